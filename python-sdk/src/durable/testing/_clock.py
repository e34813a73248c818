"""The engine's clock in a test database: it goes on as clocks do, and jumps.

Production has no such switch: `durable._now()` is replaced here, in this database, and
only in one that was made for tests. All sessions see a jump at once. What a process
measures by itself is left alone: the length of a step's `timeout=`, `result(timeout=)`,
and a worker's own idea of its leases; so the clock never jumps while a task runs.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from durable._time import moment, required_seconds
from durable.errors import InvalidArgument
from durable.testing._databases import require_test_database
from durable.testing._driving import PATIENCE, App, Driver, Ran

__all__ = ["Clock", "EngineClock"]

_IS_INSTALLED: Final = "select to_regclass('durable_testing.clock') is not null"
_INSTALL: Final = """
create table durable_testing.clock (
  ahead_seconds double precision not null, stands_at timestamptz
);
insert into durable_testing.clock values (0);
grant select on durable_testing.clock to public;

create or replace function durable._now() returns timestamptz
language sql volatile
as $$
  select coalesce(
    clock.stands_at, clock_timestamp() + make_interval(secs => clock.ahead_seconds))
  from durable_testing.clock
$$;
"""
_NOW: Final = "select durable._now()"
_JUMP: Final = """
update durable_testing.clock
set ahead_seconds = extract(epoch from %(at)s::timestamptz - clock_timestamp()),
  stands_at = case when clock.stands_at is not null then %(at)s::timestamptz end
"""
_FREEZE: Final = "update durable_testing.clock set stands_at = durable._now()"
_UNFREEZE: Final = """
update durable_testing.clock
set ahead_seconds = extract(epoch from durable._now() - clock_timestamp()),
  stands_at = null
"""
_STANDS: Final = "select stands_at is not null from durable_testing.clock"
# A moment at which something is due that was not when all had settled.
_NEXT_DUE: Final = """
select min(due)
from durable.tasks
cross join unnest(array[available_at, deadline_at, lease_expires_at]) as due
where due > durable._now() and due <= coalesce(%s, 'infinity'::timestamptz)
"""


class EngineClock:
    """What both colours of a clock have in common.

    It is of one database, that of its applications; `database` says which, if there is
    no application yet. Raises InvalidArgument for a database that was not made for
    tests.
    """

    def __init__(self, *apps: App, database: str | None = None) -> None:
        if database is None and not apps:
            raise InvalidArgument("a clock needs an application or a database")
        self.apps: list[App] = list(apps)
        self.database = database or apps[0].application.conninfo
        self.session: psycopg.Connection[Any] = psycopg.connect(
            self.database, autocommit=True
        )
        try:
            require_test_database(self.session, "a clock that can be moved")
            if self.session.execute(_IS_INSTALLED).fetchone() == (False,):
                self.session.execute(_INSTALL)
        except BaseException:
            self.session.close()
            raise

    def close(self) -> None:
        """Close its connection; the database goes by it all the same."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def now(self) -> datetime:
        """Return the moment the engine believes in, in UTC."""
        row = self.session.execute(_NOW).fetchone()
        assert row is not None  # noqa: S101 - a function has its row
        now: datetime = row[0]
        return now.astimezone(UTC)

    def freeze(self, at: datetime | None = None) -> datetime:
        """Let the clock stand, at a moment if one is given; return when it stands.

        It still jumps. For tests that compare moments: a run's `ctx.now()` adds to the
        moment of its claim what has passed on its worker, and that goes on.
        """
        self.session.execute(_FREEZE)
        if at is not None:
            self.jump_to(at)
        return self.now()

    def unfreeze(self) -> None:
        """Let the clock go on from where it stands."""
        self.session.execute(_UNFREEZE)

    def jump_to(self, at: datetime) -> None:
        """Be at this moment, past or future, an aware datetime; run nothing."""
        self.session.execute(_JUMP, {"at": moment(at, "at")})

    def next_due(self, until: datetime | None = None) -> datetime | None:
        """Return the next moment by when something comes due, if that is known.

        That is a sleep, a timeout, a retry, a deadline or a lease.
        """
        row = self.session.execute(_NEXT_DUE, [until]).fetchone()
        return None if row is None or row[0] is None else row[0].astimezone(UTC)

    async def _advance_to(self, target: datetime, patience: float) -> list[Ran]:
        """Settle at each moment at which something is due, then be at the target.

        What that takes passes for the tasks, too: whoever sleeps again and again for
        just as long as the clock advances is not cut short by the milliseconds between.
        """
        begun = time.monotonic()

        def until() -> datetime:
            return target + timedelta(seconds=time.monotonic() - begun)

        async with Driver(self.apps, self.session, patience=patience) as driver:
            ran = await driver.settle(self.now())
            while (due := self.next_due(until())) is not None:
                self.jump_to(due)
                ran += await driver.settle(due)
        at = target if self._stands() else until()
        if self.now() < at:
            self.jump_to(at)
        return ran

    def _stands(self) -> bool:
        return self.session.execute(_STANDS).fetchone() == (True,)


class Clock(EngineClock):
    """The engine's clock of a test's database, for asynchronous tests.

        with Clock(app) as clock:
            await clock.advance(days=30)

    It goes on by itself, unless it is frozen, and jumps when it is told.
    """

    async def advance(
        self,
        duration: timedelta | float = 0,
        *,
        days: float = 0,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        patience: float = PATIENCE,
    ) -> list[Ran]:
        """Let so much time pass, and run all that comes due meanwhile, in order.

        First what is due already; then the clock jumps from one moment at which
        something is due to the next, and each time all that can run does. Returns what
        the tasks did, in that order. Waits `patience` seconds of real time for what
        runs at one moment, then raises TimeoutError that names it.
        """
        span = span_of(duration, days, hours, minutes, seconds)
        return await self._advance_to(self.now() + span, patience)

    async def advance_to(
        self, at: datetime, *, patience: float = PATIENCE
    ) -> list[Ran]:
        """Do the same until a moment, an aware datetime that is not past."""
        return await self._advance_to(not_past(self, at), patience)


def span_of(
    duration: timedelta | float,
    days: float,
    hours: float,
    minutes: float,
    seconds: float,
) -> timedelta:
    """Return what these are together; InvalidArgument if it leads into the past."""
    given = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return given + timedelta(seconds=required_seconds(duration, "duration"))


def not_past(clock: EngineClock, at: datetime) -> datetime:
    """Return the moment; InvalidArgument if the clock is beyond it."""
    if (now := clock.now()) > moment(at, "at"):
        raise InvalidArgument(
            f"{at} is past, it is {now}",
            hint="`jump_to` goes back, too, and runs nothing.",
        )
    return at
