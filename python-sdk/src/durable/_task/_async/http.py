"""HTTP requests of a task: each is a step whose response is recorded."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from durable._task.checkpoints import inside_a_step
from durable._task.http_clients import HttpRequest
from durable.http import RecordedResponse, RequestOptions

if TYPE_CHECKING:
    import httpx

    from durable._task._async.context import TaskContext
    from durable._task.run import Run

__all__ = ["Requests"]


class Requests:
    """`ctx.http`: HTTP requests that are steps.

    Each method takes the step's name and RequestOptions, and raises httpx's errors. A
    crash between the response and its save repeats the request, with the same
    `Idempotency-Key`.
    """

    def __init__(
        self,
        context: TaskContext[Any],
        run: Run,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._context = context
        self._run = run
        self._client = client

    def using(self, client: httpx.AsyncClient) -> Requests:
        """Return requests that use a client of your own, instead of the worker's."""
        return Requests(self._context, self._run, client)

    def request(
        self, name: str, method: str, url: str, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, RecordedResponse]:
        """Send a request once, and return the recorded response."""
        request = HttpRequest.of(method, url, options)
        send = partial(self._send, request)
        step: Coroutine[Any, Any, RecordedResponse] = self._context.step(
            name, send, as_type=RecordedResponse, **request.step_options
        )
        return step

    def get(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, RecordedResponse]:
        """Send a GET request; see `request`."""
        return self.request(name, "GET", url, **options)

    def post(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, RecordedResponse]:
        """Send a POST request; see `request`."""
        return self.request(name, "POST", url, **options)

    def put(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, RecordedResponse]:
        """Send a PUT request; see `request`."""
        return self.request(name, "PUT", url, **options)

    def patch(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, RecordedResponse]:
        """Send a PATCH request; see `request`."""
        return self.request(name, "PATCH", url, **options)

    def delete(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> Coroutine[Any, Any, RecordedResponse]:
        """Send a DELETE request; see `request`."""
        return self.request(name, "DELETE", url, **options)

    async def _send(self, request: HttpRequest) -> RecordedResponse:
        step = inside_a_step.get()
        assert step is not None  # noqa: S101 - it is a step's function
        request.set_idempotency_key(self._context.task_id, step.step)
        client, clients = self._client, self._run.services.http
        if client is None:
            client = clients.asynchronous()  # sync: client = clients.synchronous()
        body, deadline = bytearray(), request.deadline()
        async with client.stream(
            request.method, request.url, **request.arguments
        ) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                request.check(len(body), deadline)
        recorded = RecordedResponse.of(
            response, bytes(body), queried=request.has_params
        )
        return recorded.raise_for_status() if request.raises else recorded
