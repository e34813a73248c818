"""The engine's clock in a test database, which a test can move.

It works by replacing `durable._now()`, and only in a database that was made for tests.
All sessions see a jump at once. Times that a process measures itself are not affected:
a step's `timeout=`, `result(timeout=)`, and a worker's view of its leases. So the clock
never jumps while a task runs.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

import psycopg

from durable._core.arguments import moment, required_seconds
from durable._db.application import application_of
from durable._db.conninfo import checked_conninfo
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
# The next time at which something is due that was not due at a given time.
_NEXT_DUE: Final = """
select min(due)
from (
  select unnest(array[available_at, expires_at, lease_expires_at]) as due
  from durable.tasks
  union all
  select next_at from durable.schedules where %(schedules)s
  union all
  select counted.started_at + make_interval(secs => coalesce(
    case when counted.partition_key = '' then queues.rate_period
      else coalesce(partitions.rate_period, queues.partition_rate_period) end, 0))
  from durable.starts as counted
  join durable.queues using (queue)
  left join durable.partitions using (queue, partition_key)
) as times
where due > coalesce(%(after)s, durable._now())
  and due <= coalesce(%(until)s, 'infinity'::timestamptz)
"""
_STOP_CLAIMS: Final = "lock table durable.tasks in share row exclusive mode"


class EngineClock:
    """The common base of the async and the sync clock.

    It moves the time of the applications' database, or of `database`, if there is no
    application yet. Raises InvalidArgument for a database that was not made for tests.
    """

    def __init__(self, *apps: App, database: str | None = None) -> None:
        if database is None and not apps:
            raise InvalidArgument("a clock needs an application or a database")
        self.apps: list[App] = list(apps)
        self.database = (
            checked_conninfo(database) if database else application_of(apps[0]).conninfo
        )
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
        """Close the connection. The database keeps the clock's time."""
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
        """Return the engine's current time, in UTC."""
        row = self.session.execute(_NOW).fetchone()
        assert row is not None  # noqa: S101 - a function returns one row
        now: datetime = row[0]
        return now.astimezone(UTC)

    def freeze(self, at: datetime | None = None) -> datetime:
        """Stop the clock, now or at a given time, and return its time.

        It can still jump. In a test that compares times, note that a run's `ctx.now()`
        is the time of its claim plus the time since on its worker, which is not frozen.
        """
        self.session.execute(_FREEZE)
        if at is not None:
            self.jump_to(at)
        return self.now()

    def unfreeze(self) -> None:
        """Let a frozen clock run again."""
        self.session.execute(_UNFREEZE)

    def jump_to(self, at: datetime) -> None:
        """Jump to an aware datetime, past or future, without running any task."""
        self.session.execute(_JUMP, {"at": moment(at, "at")})

    def next_due(
        self,
        until: datetime | None = None,
        *,
        after: datetime | None = None,
        schedules: bool = True,
    ) -> datetime | None:
        """Return the next time at which something is due, if there is one.

        That is the end of a sleep, a timeout, a retry, a deadline or a lease, the time
        from which a rate lets another attempt begin, or, unless `schedules` is False, a
        tick of a schedule. Only times later than `after` count (default: now).
        """
        times = {"after": after, "until": until, "schedules": schedules}
        row = self.session.execute(_NEXT_DUE, times).fetchone()
        return None if row is None or row[0] is None else row[0].astimezone(UTC)

    def jump_to_next_due(
        self,
        driver: Driver,
        after: datetime,
        until: datetime | None = None,
        *,
        schedules: bool = True,
    ) -> datetime | None:
        """Jump to the next time at which something is due; None if there is none.

        Time passes while a test runs, so something may have become due or started since
        `after`, when all had settled: then the clock does not jump. Claims are blocked
        meanwhile, so that no task starts just before a jump.
        """
        with self.session.transaction():
            self.session.execute(_STOP_CLAIMS)
            if driver.running():
                return self.now()
            due = self.next_due(until, after=after, schedules=schedules)
            if due is None or due <= self.now():
                return due
            self.jump_to(due)
            return due

    async def _advance(self, span: timedelta, patience: float) -> list[Ran]:
        started = time.monotonic()
        return await self._advance_to(self.now() + span, started, patience)

    async def _advance_to(
        self, target: datetime, started: float, patience: float
    ) -> list[Ran]:
        """Settle at each time at which something is due, then jump to the target.

        The real time since `started` is added to the target. Otherwise a task that
        sleeps repeatedly for exactly the duration by which the clock advances could
        miss its last wake-up by milliseconds.
        """

        def until() -> datetime:
            return target + timedelta(seconds=time.monotonic() - started)

        async with Driver(self.apps, self.session, patience=patience) as driver:
            settled_at = self.now()
            ran = await driver.settle(settled_at)
            while (
                due := self.jump_to_next_due(driver, settled_at, until())
            ) is not None:
                settled_at = self.now()
                ran += await driver.settle(due)
        at = target if self._is_frozen() else until()
        if self.now() < at:
            self.jump_to(at)
        return ran

    def _is_frozen(self) -> bool:
        return self.session.execute(_STANDS).fetchone() == (True,)


class Clock(EngineClock):
    """The engine's clock in a test's database, for asynchronous tests.

        with Clock(app) as clock:
            await clock.advance(days=30)

    It runs at normal speed unless it is frozen, and can be moved.
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
        """Advance the clock, and run everything that becomes due, in order.

        First runs all tasks due now. Then the clock jumps from one time at which
        something is due to the next, and everything that can run does. Returns what the
        tasks did, in order. Waits `patience` seconds of real time for the tasks that
        run at one time, then raises a TimeoutError that names them.
        """
        span = span_of(duration, days, hours, minutes, seconds)
        return await self._advance(span, patience)

    async def advance_to(
        self, at: datetime, *, patience: float = PATIENCE
    ) -> list[Ran]:
        """Advance to an aware datetime that is not in the past; see `advance`."""
        started = time.monotonic()
        return await self._advance_to(require_not_past(self, at), started, patience)


def span_of(
    duration: timedelta | float,
    days: float,
    hours: float,
    minutes: float,
    seconds: float,
) -> timedelta:
    """Return the sum of these durations. Raises InvalidArgument if it is negative."""
    given = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return given + timedelta(seconds=required_seconds(duration, "duration"))


def require_not_past(clock: EngineClock, at: datetime) -> datetime:
    """Return `at`. Raises InvalidArgument if the clock is beyond it."""
    if (now := clock.now()) > moment(at, "at"):
        raise InvalidArgument(
            f"{at} is past, it is {now}",
            hint="`jump_to` goes back, too, and runs nothing.",
        )
    return at
