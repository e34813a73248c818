"""Runs synchronous code in daemon threads: one per running call, reused.

The threads are daemons, because a thread cannot be cancelled and must not keep the
process alive. ThreadPoolExecutor is no alternative: it joins its threads at exit.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from durable._db.django import close_old_connections
from durable._db.forks import end_fork_of_worker

__all__ = ["Threads"]

T = TypeVar("T")
_IDLE_SECONDS: Final = 10.0


class Threads:
    """Runs any number of functions at the same time, each in a thread."""

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
                result = context.run(_between_requests, function, *args)
            except BaseException as error:  # noqa: BLE001 - every exception is an outcome
                if isinstance(error, SystemExit):
                    end_fork_of_worker(error)
                _call_in_loop(loop, _set_exception, future, error)
            else:
                _call_in_loop(loop, _set_result, future, result)

        with self._lock:
            start = self._idle == 0
            if not start:
                self._idle -= 1
        if start:
            threading.Thread(target=self._work, daemon=True).start()
        self._jobs.put(job)
        return future

    def _work(self) -> None:
        """Run jobs, and end after a while without one.

        Any thread may take a job, so the job for which a thread was started may be done
        by another one.
        """
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._idle > 0:
                        self._idle -= 1
                        return
                continue  # a job is about to be queued for this thread
            job()
            del job  # an idle thread must not keep the job's objects alive
            with self._lock:
                self._idle += 1


def _between_requests(function: Callable[..., T], *args: Any) -> T:
    """Call a function as Django calls a view: close old connections around it."""
    close_old_connections()
    try:
        return function(*args)
    finally:
        close_old_connections()


def _call_in_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any
) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return  # the loop is closed


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
