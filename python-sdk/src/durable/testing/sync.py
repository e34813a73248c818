"""The same as `durable.testing`, for synchronous tests.

    def test_reminds_after_a_month(durable_sync_app, durable_sync_clock):
        with durable_sync_app(tasks=[Remind]) as app:
            handle = app.spawn(Remind, "ada")
            durable_sync_clock.advance(days=30)
            assert handle.snapshot().state == "completed"

Each function runs the asynchronous one on a loop of its own, in a thread. So it may
also be called while a loop is running.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from durable.testing._asserting import assert_spawned, spawned, steps_of
from durable.testing._clock import EngineClock, require_not_past, span_of
from durable.testing._crashing import crash_at as _crash_at
from durable.testing._crashing import crash_everywhere as _crash_everywhere
from durable.testing._driving import PATIENCE, Ran
from durable.testing._driving import run_until_idle as _run_until_idle
from durable.testing._inline import run_inline as _run_inline

__all__ = [
    "Clock",
    "assert_spawned",
    "crash_at",
    "crash_everywhere",
    "run_inline",
    "run_until_idle",
    "spawned",
    "steps_of",
]

T = TypeVar("T")
Ps = ParamSpec("Ps")


def _blocking(function: Callable[Ps, Coroutine[Any, Any, T]]) -> Callable[Ps, T]:
    """Return a synchronous version of an asynchronous function."""

    @functools.wraps(function)
    def block(*args: Ps.args, **kwargs: Ps.kwargs) -> T:
        with ThreadPoolExecutor(1, "durable testing") as thread:
            return thread.submit(asyncio.run, function(*args, **kwargs)).result()

    return block


run_until_idle = _blocking(_run_until_idle)
run_inline = _blocking(_run_inline)
crash_at = _blocking(_crash_at)
crash_everywhere = _blocking(_crash_everywhere)


class Clock(EngineClock):
    """The engine's clock in a test's database, for synchronous tests.

        with Clock(app) as clock:
            clock.advance(days=30)

    It runs at normal speed unless it is frozen, and can be moved.
    """

    def advance(
        self,
        duration: timedelta | float = 0,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        patience: float = PATIENCE,
    ) -> list[Ran]:
        """Advance the clock, and run everything that becomes due, in order.

        See `durable.testing.Clock.advance`.
        """
        span = span_of(duration, days, hours, minutes, seconds)
        return _blocking(self._advance)(span, patience)

    def advance_to(self, at: datetime, *, patience: float = PATIENCE) -> list[Ran]:
        """Advance to an aware datetime that is not in the past; see `advance`."""
        started, target = time.monotonic(), require_not_past(self, at)
        return _blocking(self._advance_to)(target, started, patience)
