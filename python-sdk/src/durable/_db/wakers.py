"""Waits with a timeout that others can end, in threads and on event loops.

None of them raises at the timeout: the caller checks what has happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import select
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

__all__ = [
    "AsyncWaker",
    "Waker",
    "acquired_within",
    "acquired_within_async",
    "set_within",
    "set_within_async",
    "start",
    "start_async",
]


class Waker:
    """Lets any thread wake one that waits for sockets."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.settimeout(0)
        self._outside.settimeout(0)

    def wake(self) -> None:
        """End the wait in progress, or the next one."""
        with contextlib.suppress(BlockingIOError):  # enough wake-ups are pending
            self._outside.send(b"!")

    def wait(self, filenos: Sequence[int], timeout: float) -> None:
        """Wait for `wake` or until one of the sockets is readable."""
        poll = select.poll()
        for fileno in (self._inside.fileno(), *filenos):
            poll.register(fileno, select.POLLIN)
        poll.poll(timeout * 1000)
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(4096)

    def close(self) -> None:
        """Close its sockets."""
        self._inside.close()
        self._outside.close()


class AsyncWaker:
    """Lets the tasks of an event loop wake one that waits for sockets."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """End the wait in progress, or the next one."""
        self._event.set()

    async def wait(self, filenos: Sequence[int], timeout: float) -> None:
        """Wait for `wake` or until one of the sockets is readable."""
        loop = asyncio.get_running_loop()
        for fileno in filenos:
            loop.add_reader(fileno, self._event.set)
        try:
            await set_within_async(self._event, timeout)
        finally:
            for fileno in filenos:
                loop.remove_reader(fileno)
        self._event.clear()

    def close(self) -> None:
        """Do nothing: it has no sockets."""


def set_within(event: threading.Event, timeout: float | None) -> None:
    """Wait until the event is set, at most `timeout` seconds."""
    event.wait(timeout)


async def set_within_async(event: asyncio.Event, timeout: float | None) -> None:
    """Wait as `set_within` does, without blocking the event loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()


def acquired_within(lock: threading.Lock, timeout: float | None) -> bool:
    """Acquire the lock within `timeout` seconds; return whether that succeeded."""
    return lock.acquire(
        timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
    )


async def acquired_within_async(lock: asyncio.Lock, timeout: float | None) -> bool:
    """Acquire as `acquired_within` does, without blocking the event loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            return await lock.acquire()
    return False


def start(run: Callable[..., None], *args: Any) -> threading.Thread:
    """Run a function in a thread that ends with the process."""
    thread = threading.Thread(target=run, args=args, name="durable client", daemon=True)
    thread.start()
    return thread


def start_async(
    run: Callable[..., Coroutine[Any, Any, None]], *args: Any
) -> asyncio.Task[None]:
    """Run a coroutine function in a task, without the caller's context variables."""
    context = contextvars.Context()
    return asyncio.create_task(run(*args), name="durable client", context=context)
