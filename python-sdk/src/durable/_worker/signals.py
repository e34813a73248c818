"""Handlers for the signals that stop a worker, and their reset in forked children."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

__all__ = ["STOP_SIGNALS", "reset_in_forks", "stop_signals"]

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# The modules of event loops' handlers, which work through the wakeup descriptor.
_LOOPS: Final = {"asyncio.unix_events", "asyncio.runners", "uvloop._noop"}

_resets = False


class _Handler:
    """The handler of all stop signals of a process."""

    def __init__(
        self, stop: Callable[[], object], end: Callable[[int], object]
    ) -> None:
        self._stop = stop
        self._end = end
        self._received = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self._received:
            self._received = True
            self._stop()
        elif number != signal.SIGHUP:
            self._end(number)


def _exit_now(number: int) -> None:
    os._exit(128 + number)


@contextlib.contextmanager
def stop_signals(
    stop: Callable[[], object], end: Callable[[int], object] = _exit_now
) -> Iterator[None]:
    """Call `stop` at the first signal, and `end` at the second, which exits.

    SIGHUP never counts as the second one, because a closing terminal sends several. If
    SIGHUP is ignored, as under nohup, it stays ignored. The handlers are those of the
    process, not of the event loop, so the second signal also ends code that blocks the
    loop.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "run_worker handles signals, which only the main thread can do: call it"
            " there, or use app.worker() as a context manager"
        )
    reset_in_forks()
    handler = _Handler(stop, end)
    previous: dict[signal.Signals, Any] = {}
    try:
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
        yield
    finally:
        for number, former in previous.items():
            # None: it was not set from Python, and cannot be restored from Python
            signal.signal(number, signal.SIG_DFL if former is None else former)


# -- forks -----------------------------------------------------------------------------


def reset_in_forks() -> None:
    """Restore the default handlers in processes that are forked from now on.

    Otherwise a SIGTERM for a child would reach its copy of the worker, or the worker
    itself, through the wakeup descriptor that both share.
    """
    global _resets  # noqa: PLW0603 - the process has one set of handlers
    _resets = True


_thread = threading.local()  # `mask`: the signal mask before the fork


def _block() -> None:
    """Block signals in the child until it has its own handlers."""
    if _resets:
        _thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _unblock() -> None:
    if hasattr(_thread, "mask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, _thread.mask)
        del _thread.mask


def _reset() -> None:
    if _resets:
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            handler: Any = signal.getsignal(number)
            function = getattr(handler, "func", handler)  # it may be a partial
            is_loops = getattr(function, "__module__", None) in _LOOPS
            if is_loops or isinstance(handler, _Handler):
                interrupts = number == signal.SIGINT
                default = signal.default_int_handler if interrupts else signal.SIG_DFL
                signal.signal(number, default)
    _unblock()


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_reset)
