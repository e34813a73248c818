"""The options of `ctx.http`, and the recorded response that it returns."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from durable.errors import BadStatus
from durable.options import StepOptions

if TYPE_CHECKING:
    import httpx

__all__ = ["RecordedResponse", "RequestOptions"]

_BAD: Final = 400


class RequestOptions(StepOptions, total=False):
    """The options of an HTTP request: those of httpx and those of a step.

    params, headers, content, data, files, json, auth, follow_redirects: as in httpx.
        None of these is stored.
    timeout: seconds or timedelta for the whole request, 60 by default; None: no limit.
    max_bytes: limit of the decompressed body, 1 MiB by default, at most 8 MiB. Above it
        the step fails with ResponseTooLarge.
    idempotency_header: whether to send `Idempotency-Key: <task_id>/<name>`, by which
        the server can recognise a repeated request. By default True, except for GET,
        HEAD and OPTIONS.
    raise_for_status: whether a status of 400 or above fails the step with BadStatus,
        and so may be retried. By default False: it is returned as a response.
    max_attempts, retry, non_retryable, retry_if: as in StepOptions.
    """

    params: Any
    headers: Any
    content: Any
    data: Any
    files: Any
    json: Any
    auth: Any
    follow_redirects: bool
    max_bytes: int
    idempotency_header: bool
    raise_for_status: bool


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """A recorded response, the same at every replay.

    `url` is the final URL after redirects, without user and password, and without the
    query if `params` were given. The body is stored as text if it is UTF-8, else as
    base64; `content` returns its bytes in both cases.
    """

    method: str
    url: str
    status_code: int
    header_items: tuple[tuple[str, str], ...]
    body: str
    is_base64: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, with case-insensitive names."""
        headers: httpx.Headers = httpx_module().Headers(list(self.header_items))
        return headers

    @property
    def content(self) -> bytes:
        """The body as bytes, decompressed."""
        return base64.b64decode(self.body) if self.is_base64 else self.body.encode()

    @property
    def text(self) -> str:
        """The body as text, in the charset of its content type, else UTF-8."""
        charset = _as_httpx(self).charset_encoding or "utf-8"
        try:
            return self.content.decode(charset, errors="replace")
        except LookupError:
            return self.content.decode(errors="replace")

    @property
    def is_success(self) -> bool:
        """Whether the status is from 200 to 299."""
        return 200 <= self.status_code < 300  # noqa: PLR2004 - what HTTP calls success

    def json(self) -> Any:
        """Parse the body as JSON. Raises ValueError if it is not JSON."""
        return json.loads(self.content)

    def raise_for_status(self) -> RecordedResponse:
        """Return this response; raise BadStatus if its status is 400 or above."""
        if self.status_code >= _BAD:
            raise BadStatus(self.status_code, self.method, self.url)
        return self

    @classmethod
    def of(
        cls, response: httpx.Response, content: bytes, *, queried: bool
    ) -> RecordedResponse:
        """Record a response of httpx, whose body was read separately.

        `queried` says that `params` made the query, which then is not stored.
        """
        url = response.url.copy_with(username=None, password=None)
        url = url.copy_with(query=None) if queried else url
        body, is_base64 = _stored(content)
        return cls(
            response.request.method,
            str(url),
            response.status_code,
            tuple(response.headers.multi_items()),
            body,
            is_base64,
        )


def httpx_module() -> Any:
    """Import httpx, or raise an ImportError that says how to install it."""
    try:
        import httpx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            "durable.http needs httpx: pip install 'durable-postgres[http]'"
        ) from error
    return httpx


def _stored(content: bytes) -> tuple[str, bool]:
    """Return bytes as text that Postgres accepts, and whether it is base64."""
    if b"\0" not in content:
        try:
            return content.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(content).decode(), True


def _as_httpx(recorded: RecordedResponse) -> httpx.Response:
    kind = recorded.headers.get("content-type", "")
    response: httpx.Response = httpx_module().Response(
        recorded.status_code, headers={"content-type": kind}
    )
    return response
