# Made from _async/http.py by tools/async_to_sync.py: edit that, not this.
"""HTTP requests of a task: each is a step whose response is recorded."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from durable._task.checkpoints import inside_a_step
from durable._task.http_clients import HttpRequest
from durable.http import RecordedResponse, RequestOptions

if TYPE_CHECKING:
    import httpx

    from durable._task._sync.context import SyncTaskContext
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
        context: SyncTaskContext[Any],
        run: Run,
        client: httpx.Client | None = None,
    ) -> None:
        self._context = context
        self._run = run
        self._client = client

    def using(self, client: httpx.Client) -> Requests:
        """Return requests that use a client of your own, instead of the worker's."""
        return Requests(self._context, self._run, client)

    def request(
        self, name: str, method: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a request once, and return the recorded response."""
        request = HttpRequest.of(method, url, options)
        send = partial(self._send, request)
        step: RecordedResponse = self._context.step(
            name, send, as_type=RecordedResponse, **request.step_options
        )
        return step

    def get(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a GET request; see `request`."""
        return self.request(name, "GET", url, **options)

    def post(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a POST request; see `request`."""
        return self.request(name, "POST", url, **options)

    def put(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a PUT request; see `request`."""
        return self.request(name, "PUT", url, **options)

    def patch(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a PATCH request; see `request`."""
        return self.request(name, "PATCH", url, **options)

    def delete(
        self, name: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a DELETE request; see `request`."""
        return self.request(name, "DELETE", url, **options)

    def _send(self, request: HttpRequest) -> RecordedResponse:
        step = inside_a_step.get()
        assert step is not None  # noqa: S101 - it is a step's function
        request.set_idempotency_key(self._context.task_id, step.step)
        client, clients = self._client, self._run.services.http
        if client is None:
            client = clients.synchronous()
        body, deadline = bytearray(), request.deadline()
        with client.stream(
            request.method, request.url, **request.arguments
        ) as response:
            for chunk in response.iter_bytes():
                body += chunk
                request.check(len(body), deadline)
        recorded = RecordedResponse.of(
            response, bytes(body), queried=request.has_params
        )
        return recorded.raise_for_status() if request.raises else recorded
