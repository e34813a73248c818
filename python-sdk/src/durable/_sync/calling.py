# Made from _async/calling.py by tools/async_to_sync.py: edit that, not this.
"""What every durable call of a context has in common: it takes its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from durable._values import Codec
from durable._worker.blocking import BlockingRun
from durable._worker.history import Call
from durable._worker.outcomes import read

__all__ = ["Calling"]

T = TypeVar("T")


class Calling:
    """One run, and the prefix of the names that are taken through this context."""

    def __init__(self, run: BlockingRun, prefix: str = "") -> None:
        self._run = run
        self._prefix = prefix

    @property
    def queue(self) -> str:
        """The queue the task belongs to."""
        return self._run.claimed.queue

    def _recorded(self, kind: str, make: Callable[[], T], how: Codec[T]) -> T:
        call = self._take(kind, "")
        return self._made(call, self._record(call, make, how))

    def _record(self, call: Call, make: Callable[[], T], how: Codec[T]) -> T:
        return read(self._run.record(call, how.dump(make())), how)

    def _take(self, kind: str, name: str) -> Call:
        key = f"{self._prefix}{name}"
        return self._run.take(kind, key, None)

    def _made(self, call: Call, made: T) -> T:
        """Return a call that is made, known until it begins: it may be forgotten."""
        del call  # it is over already
        return made
