"""Clocks for tests: of a database, stopped or running; and of a process."""

from __future__ import annotations

import shutil
import struct
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

__all__ = ["Clock", "RunningClock", "WallClock"]

INSTALL = """
create table public.test_clock (now timestamptz not null);

insert into public.test_clock values (date_trunc('second', clock_timestamp()));

grant select on public.test_clock to public;

create or replace function durable._now() returns timestamptz
language sql volatile
as $$ select test_clock.now from public.test_clock $$;
"""


class Clock:
    """A clock that stands still at its second of creation, until it is moved.

    It moves for all sessions at once, as soon as `set` or `advance` return.
    """

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        connection.execute(INSTALL)

    def now(self) -> datetime:
        """Return the current time of the database."""
        row = self._connection.execute("select now from public.test_clock").fetchone()
        assert row is not None
        moment: datetime = row[0]
        return moment

    def set(self, moment: datetime) -> None:
        """Set the clock to this moment, past or future."""
        self._connection.execute("update public.test_clock set now = %s", [moment])

    def advance(self, seconds: float | timedelta) -> datetime:
        """Advance by so many seconds and return the new time."""
        span = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        self.set(self.now() + span)
        return self.now()


RUN = """
create table public.test_clock (ahead interval not null);

insert into public.test_clock values ('0');

grant select on public.test_clock to public;

create or replace function durable._now() returns timestamptz
language sql volatile
as $$ select clock_timestamp() + test_clock.ahead from public.test_clock $$;
"""


class RunningClock:
    """A running database clock that jumps where the test says."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        connection.execute(RUN)

    def jump_to(self, ahead: timedelta) -> None:
        """Run ahead of the true time by so much from now on, or behind."""
        self._connection.execute("update public.test_clock set ahead = %s", [ahead])


class WallClock:
    """The wall clock of processes that are started with `env`."""

    def __init__(self, directory: Path, name: str) -> None:
        compiler = shutil.which("cc")
        assert compiler, "a C compiler is needed to shift a process's clock"
        self._shift = directory / f"{name}.shift"
        library = directory / f"{name}.so"
        source = Path(__file__).with_name("shifted_time.c")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library, source], check=True
        )
        self.jump_to(timedelta(0))
        self.env = {"LD_PRELOAD": str(library), "DURABLE_TEST_SHIFT": str(self._shift)}

    def jump_to(self, ahead: timedelta) -> None:
        """Run ahead of the true time by so much from now on, or behind."""
        seconds = struct.pack("=q", round(ahead.total_seconds()))
        with self._shift.open("r+b" if self._shift.exists() else "wb") as file:
            file.write(seconds)
