"""What `ctx.http` takes and gives: options of a request, and its recorded response."""

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
    """What may be said of a request: as to httpx, and as of any step.

    params, headers, content, data, files, json, auth, follow_redirects: as
        httpx takes them. None of these is stored.
    timeout: seconds or timedelta the whole may take, 60 if left out; None: any time.
    max_bytes: of the body, decompressed: 1 MiB if left out, at most 8 MiB. Above it the
        step fails with ResponseTooLarge.
    idempotency_header: whether `Idempotency-Key: <task_id>/<name>` is sent, by which
        the other side may tell that it is asked again. Left out: unless it is a GET,
        HEAD or OPTIONS.
    raise_for_status: whether a status of 400 or above is a failure, BadStatus, after
        which the step may be tried again; else, and if left out, it is a response.
    max_attempts, retry, no_retry, retry_if: as of any step; see StepOptions.
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
    """A response as it was recorded: the same at every replay.

    `url` is where it came from, after redirects, without user and password, and without
    a query if `params` were given. The body is kept as text if it is UTF-8, else as
    base64; `content` gives its bytes either way.
    """

    method: str
    url: str
    status_code: int
    header_items: tuple[tuple[str, str], ...]
    body: str
    is_base64: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, found in upper or lower case."""
        import httpx  # noqa: PLC0415 - an extra

        return httpx.Headers(list(self.header_items))

    @property
    def content(self) -> bytes:
        """The body as it came, decompressed."""
        return base64.b64decode(self.body) if self.is_base64 else self.body.encode()

    @property
    def text(self) -> str:
        """The body as text, by the charset of its content type, else UTF-8."""
        charset = _as_httpx(self).charset_encoding or "utf-8"
        try:
            return self.content.decode(charset, errors="replace")
        except LookupError:
            return self.content.decode(errors="replace")

    @property
    def is_success(self) -> bool:
        """Whether the status is below 300, and above 199."""
        return 200 <= self.status_code < 300  # noqa: PLR2004 - what HTTP calls success

    def json(self) -> Any:
        """Return the body read as JSON. Raises ValueError if it is none."""
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
        """Record a response of httpx whose body has been read apart from it.

        `queried`, its query was given as params, which are not stored.
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


def _stored(content: bytes) -> tuple[str, bool]:
    """Return bytes as text that Postgres takes, and whether that is base64."""
    if b"\0" not in content:
        try:
            return content.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(content).decode(), True


def _as_httpx(recorded: RecordedResponse) -> httpx.Response:
    import httpx  # noqa: PLC0415 - an extra

    kind = recorded.headers.get("content-type", "")
    return httpx.Response(recorded.status_code, headers={"content-type": kind})
