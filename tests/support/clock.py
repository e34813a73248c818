"""A clock for one test's database, moved by the test and by nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta

import psycopg

__all__ = ["Clock"]

INSTALL = """
create table public.test_clock (now timestamptz not null);

insert into public.test_clock values (date_trunc('second', clock_timestamp()));

grant select on public.test_clock to public;

create or replace function durable._now() returns timestamptz
language sql volatile
as $$ select test_clock.now from public.test_clock $$;
"""


class Clock:
    """Stands still at the second it was made, until told otherwise.

    It moves for all sessions at once, as soon as `set` or `advance` return.
    """

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        connection.execute(INSTALL)

    def now(self) -> datetime:
        """Return the moment the database believes in."""
        row = self._connection.execute("select now from public.test_clock").fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment

    def set(self, moment: datetime) -> None:
        """Move to this moment, be it past or future."""
        self._connection.execute("update public.test_clock set now = %s", [moment])

    def advance(self, seconds: float | timedelta) -> datetime:
        """Move on by so many seconds and return the new moment."""
        span = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        self.set(self.now() + span)
        return self.now()
