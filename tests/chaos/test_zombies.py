"""A worker that was stopped for longer than its lease goes on, if nobody took over."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import psycopg

from durable import Durable, TaskContext, task
from tests.support.processes import Processes
from tests.support.wait import eventually

LEASE = 1.0


@task(max_attempts=1)
async def wait_for_a_file(path: str, ctx: TaskContext) -> int:
    """Hold the worker until a file is there."""
    return await ctx.step("wait", until_exists, path, ctx.attempt)


def until_exists(path: str, attempt: int) -> int:
    eventually(Path(path).exists, deadline=60)
    return attempt


app = Durable(os.environ.get("DURABLE_DATABASE_URL", "unset"), tasks=[wait_for_a_file])


def test_keeps_what_nobody_took_over(
    dsn: str, db: psycopg.Connection, processes: Processes, tmp_path: Path
) -> None:
    def is_true(condition: str) -> bool:
        return db.execute(f"select from durable.tasks where {condition}").rowcount == 1

    file = tmp_path / "go on"
    with Durable(dsn) as client:
        handle = client.spawn(wait_for_a_file, str(file))
        worker = processes.durable(
            "worker", f"{__name__}:app", "--lease", str(LEASE), "--concurrency", "1"
        )
        eventually(lambda: is_true("state = 'running'"), deadline=30)
        os.kill(worker.pid, SIGSTOP)
        eventually(lambda: is_true("lease_expires_at < clock_timestamp()"))
        os.kill(worker.pid, SIGCONT)
        eventually(lambda: is_true("lease_expires_at > clock_timestamp()"))
        file.touch()
        assert handle.result(timeout=30) == 1
