"""Waiting without looking: for a flag, or for sockets; each in both colours.

None of these raises when the time is over: who waits looks for itself what has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Sequence

__all__ = ["Bell", "readable", "readable_async", "set_within", "set_within_async"]


class Bell:
    """Wakes, from any thread, one that waits for sockets to become readable."""

    def __init__(self) -> None:
        self._inside, self._outside = socket.socketpair()
        self._inside.settimeout(0)
        self._outside.settimeout(0)

    def fileno(self) -> int:
        """Return what becomes readable when somebody rings."""
        return self._inside.fileno()

    def ring(self) -> None:
        """Wake who waits, or who waits next."""
        with contextlib.suppress(BlockingIOError):  # it has been rung often enough
            self._outside.send(b"!")

    def hush(self) -> None:
        """Take back what was rung."""
        with contextlib.suppress(BlockingIOError):
            self._inside.recv(4096)

    def close(self) -> None:
        """Give back the sockets."""
        self._inside.close()
        self._outside.close()


def readable(filenos: Sequence[int], timeout: float) -> None:
    """Wait until one of the sockets is readable, at most so many seconds."""
    poll = select.poll()
    for fileno in filenos:
        poll.register(fileno, select.POLLIN)
    poll.poll(max(timeout, 0) * 1000)


async def readable_async(filenos: Sequence[int], timeout: float) -> None:
    """Do the same without blocking the loop."""
    loop = asyncio.get_running_loop()
    found = asyncio.Event()
    for fileno in filenos:
        loop.add_reader(fileno, found.set)
    try:
        await set_within_async(found, timeout)
    finally:
        for fileno in filenos:
            loop.remove_reader(fileno)


def set_within(event: threading.Event, timeout: float | None) -> None:
    """Wait until the event is set, at most so many seconds."""
    event.wait(timeout)


async def set_within_async(event: asyncio.Event, timeout: float | None) -> None:
    """Do the same without blocking the loop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
