"""Several worker processes of one application, and the one that watches over them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psycopg

from tests.support.processes import Processes
from tests.support.wait import eventually

APP = """
import os
from durable import AsyncDurable, Task, TaskContext

class Who(Task[int, int]):
    async def run(self, number: int, ctx: TaskContext) -> int:
        return os.getpid()

app = AsyncDurable(tasks=[Who])
"""

SUPERVISOR = """
import os, sys
os.chdir(sys.argv[1])
import durable
durable.run_worker("shop:app", processes=2)
"""

# Stands in for the extra "fast", so that there is something to see.
UVLOOP = """
import asyncio, os

def new_event_loop():
    print("a loop of", os.getpid(), flush=True)
    return asyncio.new_event_loop()
"""


def claimers(db: psycopg.Connection[Any]) -> int:
    """Count the worker processes that are connected."""
    row = db.execute(
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and application_name = 'durable claim'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_ends_every_process_when_the_supervisor_is_killed(
    db: psycopg.Connection[Any], processes: Processes, tmp_path: Path
) -> None:
    """Not even `kill -9` leaves workers behind."""
    (tmp_path / "shop.py").write_text(APP)
    supervisor = processes.python("-c", SUPERVISOR, str(tmp_path))
    eventually(lambda: claimers(db) == 2, deadline=60)
    os.kill(supervisor.pid, signal.SIGKILL)
    eventually(lambda: claimers(db) == 0, deadline=60)


def test_runs_every_worker_process_on_uvloop_where_that_is_installed(
    db: psycopg.Connection[Any], processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "uvloop.py").write_text(UVLOOP)
    supervisor = processes.python(
        "-c", SUPERVISOR, str(tmp_path), env={"PYTHONPATH": str(tmp_path)}
    )
    eventually(lambda: claimers(db) == 2, deadline=60)
    supervisor.terminate()
    supervisor.wait()
    assert supervisor.output().count("a loop of") == 2
