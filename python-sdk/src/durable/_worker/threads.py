"""Where synchronous code runs: daemon threads, one per running call, used again.

Daemons, because a thread cannot be cancelled and must not hold the process open; no
executor, because that one joins its threads at exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["Threads"]

T = TypeVar("T")
_IDLE_SECONDS: Final = 10.0


class Threads:
    """Runs functions beside the loop; as many at once as are asked for."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = 0
        self._lock = threading.Lock()

    def run(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Call the function in a thread, in a copy of the current context."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            try:
                result = context.run(function, *args)
            except BaseException as error:  # noqa: BLE001 - whatever comes out is an outcome
                _tell(loop, _set_exception, future, error)
            else:
                _tell(loop, _set_result, future, result)

        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        if start:
            threading.Thread(target=self._work, daemon=True).start()
        self._jobs.put(job)
        return future

    def _work(self) -> None:
        """Do what is handed in; end once nothing was for a while.

        A job is for whoever comes first, so the one that a thread was started for may
        be done by another, which is one more that waits.
        """
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                continue  # a job is about to be handed in for each that waits
            job()
            del job  # an idle thread keeps nothing of whom it has served
            with self._lock:
                self._idle += 1


def _tell(
    loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any
) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return  # the loop is closed: nobody waits for the outcome any more


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # a future cannot hold one
        wrapped = RuntimeError(f"the function raised StopIteration: {error}")
        wrapped.__cause__ = error
        error = wrapped
    future.set_exception(error)
