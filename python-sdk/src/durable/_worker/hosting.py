"""Runs a worker until a signal arrives, or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from durable._worker.signals import stop_signals
from durable._worker.worker import Worker, WorkerHealth

__all__ = ["ThreadedWorker", "run_until_signalled", "until_signalled"]

logger = logging.getLogger("durable.worker")


async def until_signalled(
    worker: Worker,
    supervisor_gone: Future[None] | None = None,
    beside: AbstractAsyncContextManager[Any] | None = None,
) -> None:
    """Run a worker until SIGTERM, SIGINT or SIGHUP; a second signal ends the process.

    It also stops when its supervisor has ended. That does not count as a signal: an
    init system may signal the supervisor and each of its processes. `beside` is entered
    before the worker starts, and left after it has stopped.
    """
    loop = asyncio.get_running_loop()
    stop_requested = asyncio.Event()

    async def work() -> None:
        async with beside or contextlib.nullcontext(), worker:
            await stop_requested.wait()

    def stop() -> None:
        if stop_requested.is_set():
            return
        stop_requested.set()
        if not worker.has_started:  # it may be trying to connect without limit
            logger.info("the worker stops before it has started")
            working.cancel()

    def stop_soon(_: object = None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stop)

    with stop_signals(stop_soon), _frozen_heap():
        working = asyncio.create_task(work(), name="durable worker")
        if supervisor_gone is not None:
            supervisor_gone.add_done_callback(stop_soon)
        try:
            await working
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not stop_requested.is_set() or (
                current is not None and current.cancelling()
            ):
                raise


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Collect no garbage among existing objects."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_until_signalled(
    worker: Worker,
    supervisor_gone: Future[None] | None = None,
    beside: AbstractAsyncContextManager[Any] | None = None,
) -> None:
    """Run `until_signalled` from synchronous code."""
    _run(until_signalled(worker, supervisor_gone, beside))


def _run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory if uvloop is installed."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class ThreadedWorker:
    """A worker for synchronous code, on an event loop in a thread of its own.

        with app.worker() as worker:
            worker.drain()

    An error that retrying cannot fix (a missing schema, queue or privilege) is raised
    by `drain` and by the block.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pid: int | None = None  # of the process in which it was entered
        self._ended: Future[None] | None = None

    def __enter__(self) -> Self:
        if self._pid == os.getpid() and self._ended and not self._ended.done():
            raise RuntimeError("the worker is already running: make another one")
        self._pid = os.getpid()
        self._running: Future[tuple[asyncio.AbstractEventLoop, Any]] = Future()
        self._started: Future[None] = Future()
        self._ended = ended = Future[None]()
        self._stop = asyncio.Event()
        threading.Thread(
            target=self._work, args=[ended], name="durable worker", daemon=True
        ).start()
        try:
            self._started.result()
        except BaseException:
            self._running.add_done_callback(_cancel)  # it may never connect
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pid != os.getpid() or self._ended is None:
            return  # a forked process, which does not have the thread
        loop, _ = self._running.result()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._stop.set)
        if exc_type is None:
            self._ended.result()
        else:
            self._ended.exception()

    @property
    def worker_id(self) -> str:
        """The id under which the worker claims tasks."""
        return self._worker.worker_id

    def health(self) -> WorkerHealth:
        """Return the worker's state, without asking the database."""
        return self._worker.health()

    def drain(self) -> int:
        """Work until no task is claimable or running here; waiting tasks don't count.

        Returns the number of runs that have ended meanwhile.
        """
        if self._pid is not None and self._pid != os.getpid():
            raise RuntimeError("a worker does not survive a fork: make a new one")
        ended = self._ended
        if ended is None or ended.done():
            if ended is not None:
                ended.result()
            raise RuntimeError("the worker is not running")
        loop, _ = self._running.result()
        drained = asyncio.run_coroutine_threadsafe(self._worker.drain(), loop)
        ended.add_done_callback(lambda _: drained.cancel())
        try:
            return drained.result()
        except BaseException:
            if ended.done():
                ended.result()
            raise

    def _work(self, ended: Future[None]) -> None:
        try:
            _run(self._main())
        except BaseException as error:  # noqa: BLE001 - passed to the futures
            for future in (self._started, ended):
                if not future.done():
                    future.set_exception(error)
        else:
            ended.set_result(None)

    async def _main(self) -> None:
        self._running.set_result((asyncio.get_running_loop(), asyncio.current_task()))
        async with self._worker:
            self._started.set_result(None)
            await self._stop.wait()


def _cancel(running: Future[tuple[asyncio.AbstractEventLoop, Any]]) -> None:
    loop, task = running.result()
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(task.cancel)
