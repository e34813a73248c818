"""HTTP requests of tasks: checked options, the httpx clients and response limits.

httpx is an extra, so it is imported when a task first uses it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from durable._core.arguments import seconds
from durable.errors import InvalidArgument, ResponseTooLarge
from durable.http import RequestOptions, httpx_module
from durable.options import StepOptions, unknown_option

if TYPE_CHECKING:
    import httpx

__all__ = ["Clients", "HttpRequest"]

_TIMEOUT: Final = 60.0
_MAX_BYTES: Final = 1024 * 1024
_MOST_BYTES: Final = 8 * 1024 * 1024  # can still be saved as base64 and sealed
_OWN: Final = ("timeout", "max_bytes", "idempotency_header", "raise_for_status")
_OF_STEPS: Final = tuple(set(StepOptions.__annotations__) - set(_OWN))
_KNOWN: Final = tuple(RequestOptions.__annotations__)
_SAFE_METHODS: Final = {"GET", "HEAD", "OPTIONS"}
_KEY: Final = "idempotency-key"


@dataclass(slots=True)
class HttpRequest:
    """One checked request: arguments for httpx and options of its step."""

    method: str
    url: str
    arguments: dict[str, Any]  # for httpx
    step_options: dict[str, Any]  # StepOptions
    timeout: float | None
    max_bytes: int
    sends_key: bool
    raises: bool

    @classmethod
    def of(cls, method: str, url: str, options: Mapping[str, Any]) -> HttpRequest:
        """Check the options of a request; InvalidArgument if they are not valid."""
        for option in options:
            if option not in _KNOWN:
                raise InvalidArgument(unknown_option(option, _KNOWN))
        if not str(method).isalpha():
            raise InvalidArgument(f"{method!r} is not an HTTP method")
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

    def set_idempotency_key(self, task_id: object, key: str) -> None:
        """Set the idempotency header, the same for every attempt of a step."""
        if self.sends_key:
            headers = httpx_module().Headers(self.arguments.get("headers"))
            headers.setdefault(_KEY, f"{task_id}/{quote(key, safe='/:#')}")
            self.arguments["headers"] = headers

    @property
    def has_params(self) -> bool:
        """Whether `params` make the query, which may then contain secrets."""
        return bool(self.arguments.get("params"))

    def deadline(self) -> float:
        """Return the deadline for the whole body, in `time.monotonic()` seconds."""
        return float("inf") if self.timeout is None else time.monotonic() + self.timeout

    def check(self, size: int, deadline: float) -> None:
        """Raise ResponseTooLarge above `max_bytes`, httpx's ReadTimeout if too late."""
        if size > self.max_bytes:
            raise ResponseTooLarge(
                f"{self.method} response of at least {size:,} bytes,"
                f" and max_bytes is {self.max_bytes:,}",
                hint="Pass a higher max_bytes, or store it elsewhere in a step.",
            )
        if time.monotonic() > deadline:
            raise httpx_module().ReadTimeout(f"body incomplete after {self.timeout} s")


class Clients:
    """A worker's async and sync httpx clients, created on first use."""

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


def _checked_size(size: object) -> int:
    if isinstance(size, bool) or not isinstance(size, int):
        raise InvalidArgument(f"max_bytes must be an int, not {size!r}")
    if not 0 <= size <= _MOST_BYTES:
        raise InvalidArgument(f"max_bytes must be from 0 to {_MOST_BYTES}")
    return size
