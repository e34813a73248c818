# Made from _async/http.py by tools/async_to_sync.py: edit that, not this.
"""HTTP requests of a task: each a step, whose response is recorded."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Unpack

from durable._http import Sending
from durable._names import check_step_name
from durable._sync.calling import Calling
from durable._sync.retrying import tried
from durable._tries import Tries
from durable._values import codec
from durable._worker.blocking import BlockingRun
from durable._worker.history import Call
from durable.http import RecordedResponse, RequestOptions

if TYPE_CHECKING:
    import httpx

__all__ = ["Requests"]

_RESPONSE: Final = codec(RecordedResponse)


class Requests(Calling):
    """`ctx.http`: what is asked of others once, whatever crashes.

    Each takes the name of the step it is, and RequestOptions; it raises what httpx
    raises. A crash between the response and its save asks again, with the same
    `Idempotency-Key`.
    """

    def __init__(
        self, run: BlockingRun, prefix: str, client: httpx.Client | None = None
    ) -> None:
        super().__init__(run, prefix)
        self._client = client

    def using(self, client: httpx.Client) -> Requests:
        """Return the same by a client of your own, instead of the worker's."""
        return Requests(self._run, self._prefix, client)

    def request(
        self, name: str, method: str, url: str, **options: Unpack[RequestOptions]
    ) -> RecordedResponse:
        """Send a request, once, and return its response as it was recorded."""
        sending = Sending.of(method, url, options)
        tries = Tries.of(sending.tries, self._send)
        call = self._take("", check_step_name(name))
        sending.named(self._run.claimed.task_id, call.key)
        return self._made(call, self._request(call, sending, tries))

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

    def _request(self, call: Call, sending: Sending, tries: Tries) -> RecordedResponse:
        step = partial(self._run.step, call, self._send, (sending,), _RESPONSE)
        recorded: RecordedResponse = (
            tried(self._run, call, tries, step) if sending.tries else step()
        )
        return recorded

    def _send(self, sending: Sending) -> RecordedResponse:
        client = self._client or self._run.http
        body, deadline = bytearray(), sending.deadline()
        with client.stream(
            sending.method, sending.url, **sending.arguments
        ) as response:
            for chunk in response.iter_bytes():
                body += chunk
                sending.check(len(body), deadline)
        recorded = RecordedResponse.of(response, bytes(body), queried=sending.queried)
        return recorded.raise_for_status() if sending.strict else recorded
