"""Where a worker runs when nobody awaits it: until a signal, or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

from durable._worker.worker import Worker

__all__ = ["ThreadedWorker", "run_until_signalled", "until_signalled"]

# A busy worker makes and drops many objects, hardly any of them in a cycle; to go
# through all that is under way every 700 of them took a fifth of its time.
_COLLECTOR_THRESHOLDS: Final = (10_000, 50, 100)


async def until_signalled(worker: Worker) -> None:
    """Run a worker until SIGTERM or SIGINT; the second one ends the process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def signalled(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, signalled, number)
    try:
        with _patient_collector():
            async with worker:
                await stop.wait()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _patient_collector() -> Iterator[None]:
    """Look for garbage less often, and not among what is there already."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_COLLECTOR_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def run_until_signalled(worker: Worker) -> None:
    """Do the same from synchronous code."""
    _run(until_signalled(worker))


def _run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes uvloop's loops, where that is installed."""
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

    What no time heals (schema, queue or right missing) comes out of `drain` and of the
    block.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._started: Future[None] = Future()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: Future[None] = Future()

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._work, name="durable worker", daemon=True)
        thread.start()
        self._started.result()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._stop is not None and not self._ended.done():
            self._loop.call_soon_threadsafe(self._stop.set)
        if exc_type is None:
            self._ended.result()
        else:
            self._ended.exception()

    @property
    def worker_id(self) -> str:
        """What the worker calls itself."""
        return self._worker.worker_id

    def drain(self) -> int:
        """Work until nothing is claimable and nothing runs here; sleepers don't count.

        Returns the number of runs that have ended meanwhile.
        """
        if self._loop is None or self._ended.done():
            self._ended.result()
            raise RuntimeError("the worker does not run")
        drained = asyncio.run_coroutine_threadsafe(self._worker.drain(), self._loop)
        self._ended.add_done_callback(lambda _: drained.cancel())
        try:
            return drained.result()
        except BaseException:
            if self._ended.done():
                self._ended.result()
            raise

    def _work(self) -> None:
        try:
            _run(self._main())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            if not self._started.done():
                self._started.set_exception(error)
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with self._worker:
            self._started.set_result(None)
            await self._stop.wait()
