"""What goes with a task beside its params, and what its worker lends it.

The headers are read once, when they are first asked for: who has none pays nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from durable._inheritance import IDENTITY

if TYPE_CHECKING:
    import httpx

    from durable._worker.run import Run

__all__ = ["Baggage"]


class Baggage:
    """One run's headers, who asked for it, and the HTTP clients of its worker."""

    __slots__ = ("_all_headers", "_headers", "_run", "claimed")

    def __init__(self, run: Run) -> None:
        self._run = run
        self.claimed = run.claimed
        self._all_headers: Mapping[str, Any] | None = None
        self._headers: Mapping[str, Any] | None = None

    @property
    def headers(self) -> Mapping[str, Any]:
        """What was spawned with the task beside its params, but who asked for it."""
        if self._headers is None:
            self._headers = {
                name: value
                for name, value in self.all_headers.items()
                if name != IDENTITY
            }
        return self._headers

    @property
    def all_headers(self) -> Mapping[str, Any]:
        """The same, with those that are durable's own."""
        if self._all_headers is None:
            self._all_headers = json.loads(self.claimed.headers or "{}")
        return self._all_headers or {}

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """Who asked for the task."""
        return self.all_headers.get(IDENTITY)

    @property
    def http(self) -> httpx.AsyncClient:
        """The worker's own HTTP client, for coroutines."""
        return self._run.services.http.asynchronous()

    @property
    def blocking_http(self) -> httpx.Client:
        """The worker's own HTTP client, for threads."""
        return self._run.services.http.synchronous()
