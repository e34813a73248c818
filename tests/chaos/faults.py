"""Faults of a database, each a function that returns when the fault has ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from signal import SIGKILL
from typing import Final

import psycopg

from durable.embedded import Postgres
from tests.support.wait import eventually

__all__ = ["exhausted", "kill_server", "only_reading", "terminate_one"]

BINARIES: Final = os.environ.get("DURABLE_TEST_PG_BIN")
SESSIONS: Final = """
select pid from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
  and application_name <> 'hog'
order by backend_start
"""


def terminate_one(conninfo: str, random: Random) -> int:
    """End one session of the database, of any client; return how many."""
    with psycopg.connect(conninfo, autocommit=True) as db:
        pids = [pid for (pid,) in db.execute(SESSIONS).fetchall()]
        if not pids:
            return 0
        row = db.execute(
            "select pg_terminate_backend(%s)", [random.choice(pids)]
        ).fetchone()
    assert row is not None
    return int(row[0])


def kill_server(server: Postgres) -> None:
    """Kill the postmaster with SIGKILL; its children find out by themselves."""
    postmaster = int((server.data_dir / "postmaster.pid").read_text().split()[0])
    children = _children(postmaster)
    os.kill(postmaster, SIGKILL)
    eventually(
        lambda: not any(map(_is_alive, children)),
        deadline=60,
        what="the server's processes ended",
    )
    server.stop()


@contextlib.contextmanager
def only_reading(conninfo: str) -> Iterator[None]:
    """Make the server read-only, as one that was demoted."""
    with psycopg.connect(conninfo, autocommit=True) as db:
        db.execute("alter system set default_transaction_read_only = on")
        db.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            db.execute("alter system reset default_transaction_read_only")
            db.execute("select pg_reload_conf()")


@contextlib.contextmanager
def exhausted(conninfo: str, random: Random) -> Iterator[int]:
    """Take every free connection of the server, and some of the used ones as well."""
    with (
        contextlib.ExitStack() as hogs,
        psycopg.connect(conninfo, autocommit=True) as db,
    ):
        taken = 0
        for _ in range(3):
            pids = [pid for (pid,) in db.execute(SESSIONS).fetchall()]
            if pids and taken:
                # until it is gone: else its place becomes free after the last look
                db.execute(
                    "select pg_terminate_backend(%s, 10000)", [random.choice(pids)]
                )
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    hogs.enter_context(
                        psycopg.connect(conninfo, application_name="hog")
                    )
                    taken += 1
        yield taken


def _children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{pid}\n" in status.read_text():
                found.append(int(status.parent.name))
    return found


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
