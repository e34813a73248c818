"""Wait for a condition with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["aeventually", "eventually"]

T = TypeVar("T")

PAUSE = 0.01


def eventually(
    condition: Callable[[], T], *, deadline: float = 10, what: str = "condition"
) -> T:
    """Return the first true value of `condition`, asked again until the deadline.

        eventually(lambda: handle.state() == "completed")

    Raises AssertionError, with the last value seen, after `deadline` seconds.
    """
    end = time.monotonic() + deadline
    while not (value := condition()):
        _check(end, deadline, what, value)
        time.sleep(PAUSE)
    return value


async def aeventually(
    condition: Callable[[], Awaitable[T]],
    *,
    deadline: float = 10,
    what: str = "condition",
) -> T:
    """Do the same for a coroutine function, without blocking the loop."""
    end = time.monotonic() + deadline
    while not (value := await condition()):
        _check(end, deadline, what, value)
        await asyncio.sleep(PAUSE)
    return value


def _check(end: float, deadline: float, what: str, value: object) -> None:
    if time.monotonic() > end:
        raise AssertionError(f"{what} not met in {deadline} s; last seen: {value!r}")
