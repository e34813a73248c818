"""HTTP requests of tasks: what is sent, by which client, and how much may come back.

httpx is an extra, so it is imported when a task first asks for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from durable._time import seconds
from durable.errors import InvalidArgument, ResponseTooLarge
from durable.http import RequestOptions
from durable.options import StepOptions, unknown_option

if TYPE_CHECKING:
    import httpx

__all__ = ["Clients", "Sending"]

_TIMEOUT: Final = 60.0
_MAX_BYTES: Final = 1024 * 1024
_MOST_BYTES: Final = 8 * 1024 * 1024  # as base64, and sealed, it can still be saved
_OWN: Final = ("timeout", "max_bytes", "idempotency_header", "raise_for_status")
_OF_STEPS: Final = tuple(set(StepOptions.__annotations__) - set(_OWN))
_KNOWN: Final = tuple(RequestOptions.__annotations__)
_SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS"}
_KEY: Final = "idempotency-key"


@dataclass(slots=True)
class Sending:
    """One request, checked: for httpx, and for the step that it is."""

    method: str
    url: str
    arguments: dict[str, Any]  # for httpx
    tries: dict[str, Any]  # StepOptions
    limit: float | None
    max_bytes: int
    keyed: bool
    strict: bool

    @classmethod
    def of(cls, method: str, url: str, options: Mapping[str, Any]) -> Sending:
        """Check the options of a request; InvalidArgument for what they cannot be."""
        for option in options:
            if option not in _KNOWN:
                raise InvalidArgument(unknown_option(option, _KNOWN))
        if not str(method).isalpha():
            raise InvalidArgument(f"{method!r} is no method of HTTP")
        httpx_module()
        step = {key: options[key] for key in options if key in _OF_STEPS}
        rest = {k: v for k, v in options.items() if k not in step and k not in _OWN}
        method = method.upper()
        limit = seconds(options.get("timeout", _TIMEOUT), "timeout")
        return cls(
            method,
            str(url),
            rest | {"timeout": limit},
            step,
            limit,
            _checked_size(options.get("max_bytes", _MAX_BYTES)),
            options.get("idempotency_header", method not in _SAFE_METHODS),
            options.get("raise_for_status", False),
        )

    def named(self, task_id: object, key: str) -> None:
        """Let the other side know which step it is, however often it is asked."""
        if self.keyed:
            headers = httpx_module().Headers(self.arguments.get("headers"))
            headers.setdefault(_KEY, f"{task_id}/{quote(key, safe='/:#')}")
            self.arguments["headers"] = headers

    @property
    def queried(self) -> bool:
        """Whether the query is made of params, which may be secret."""
        return bool(self.arguments.get("params"))

    def deadline(self) -> float:
        """Return until when the body may come, by `time.monotonic()`."""
        return float("inf") if self.limit is None else time.monotonic() + self.limit

    def check(self, size: int, deadline: float) -> None:
        """Raise ResponseTooLarge, or httpx's ReadTimeout, if it takes too long."""
        if size > self.max_bytes:
            raise ResponseTooLarge(
                f"{self.method} {size:,} bytes have come, and {self.max_bytes:,} may",
                hint="Pass a higher max_bytes, or store it elsewhere in a step.",
            )
        if time.monotonic() > deadline:
            raise httpx_module().ReadTimeout(f"no end after {self.limit} s")


class Clients:
    """A worker's own clients, in either colour; made when first asked for."""

    def __init__(self) -> None:
        self._async: httpx.AsyncClient | None = None
        self._sync: httpx.Client | None = None
        self._making = threading.Lock()

    def asynchronous(self) -> httpx.AsyncClient:
        """Return the client for coroutines."""
        if self._async is None:
            self._async = httpx_module().AsyncClient()
        return self._async

    def synchronous(self) -> httpx.Client:
        """Return the client for threads."""
        with self._making:
            if self._sync is None:
                self._sync = httpx_module().Client()
            return self._sync

    async def close(self) -> None:
        """Close the connections."""
        if self._async is not None:
            await self._async.aclose()
        if self._sync is not None:
            self._sync.close()


def httpx_module() -> Any:
    """Return httpx; ImportError, with what to install, if it is not there."""
    try:
        import httpx  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("ctx.http needs httpx: pip install durable[http]") from error
    return httpx


def _checked_size(size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int):
        raise InvalidArgument(f"max_bytes must be an int, not {size!r}")
    if not 0 <= size <= _MOST_BYTES:
        raise InvalidArgument(f"max_bytes must be from 0 to {_MOST_BYTES}")
    return size
