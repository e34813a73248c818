"""A task has the options of its class, however it was spawned."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from pydantic import BaseModel

from durable import (
    AsyncDurable,
    Durable,
    Retry,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskFailed,
    task,
)
from tests.support.processes import COMMAND_LINE, Processes
from tests.support.roles import Roles
from tests.support.wait import eventually

APPLICATION = """
import os, sys, time
from durable import Durable, Task

class Once(Task[dict, None]):
    max_attempts = 1
    def run(self, params, ctx):
        print("begins", flush=True)
        time.sleep(params.get("seconds", 0))
        raise ValueError("never")

app = Durable(tasks=[Once])
"""


class Order(BaseModel):
    number: int


@task(max_attempts=1, headers={"team": "pay"}, execution_timeout=60)
async def once(order: Order, ctx: TaskContext) -> None:
    raise ValueError("never")


@task(retry=Retry.none())
async def never_again(params: Any, ctx: TaskContext) -> None:
    raise ValueError("never")


@task
async def spawns_in_sql(dsn: str, ctx: TaskContext) -> str:
    """Spawn a child by SQL, without its class."""
    child = await ctx.spawn("child", "once-more", {"number": 1})
    return str(child.task_id)


class OnceMore(Task[Order, None]):
    max_attempts = 1

    def run(self, params: Order, ctx: SyncTaskContext) -> None:  # noqa: ARG002 - as a task
        raise ValueError("never")


def spawn(db: psycopg.Connection, name: str, options: str = "{}") -> Any:
    query = "select task_id from durable.spawn('default', %s, '{\"number\": 1}', %s)"
    row = db.execute(query, [name, options]).fetchone()
    assert row is not None
    return row[0]


def attempts(db: psycopg.Connection, task_id: Any) -> tuple[str, int]:
    query = "select state::text, attempt from durable.tasks where task_id = %s"
    row = db.execute(query, [task_id]).fetchone()
    assert row is not None
    return row[0], row[1]


async def test_a_task_that_sql_spawned_first_has_its_class_s_options(
    dsn: str, db: psycopg.Connection
) -> None:
    """Also tasks created by spawning a child by its name alone."""
    ids = [spawn(db, "once"), spawn(db, "never-again")]
    async with (
        AsyncDurable(dsn, tasks=[once, never_again, spawns_in_sql, OnceMore]) as app,
        app.worker() as worker,
    ):
        await worker.drain()
        ids += [spawn(db, "once"), spawn(db, "never-again")]
        parent = await app.spawn(spawns_in_sql, dsn)
        ids.append(await parent.result(timeout=30))
        await worker.drain()
    assert [attempts(db, one) for one in ids] == [("failed", 1)] * 5
    query = "select headers, execution_timeout from durable.tasks where name = 'once'"
    assert db.execute(query).fetchall() == [({"team": "pay"}, 60)] * 2


async def test_options_of_the_spawn_override_those_of_the_class(
    dsn: str, db: psycopg.Connection
) -> None:
    async with AsyncDurable(dsn, tasks=[once, never_again]) as app:
        async with app.worker():
            pass
        handles = [
            await app.spawn(
                once, Order(number=1), max_attempts=2, execution_timeout=None
            ),
            await app.spawn(once, Order(number=1), headers=None),
            await app.spawn(never_again, None, retry=None),
        ]
    query = """
    select max_attempts, execution_timeout, headers, retry from durable.tasks
    where task_id = any (%s) order by task_id
    """
    rows = db.execute(query, [[one.task_id for one in handles]]).fetchall()
    assert rows == [
        (2, None, {"team": "pay"}, None),
        (1, 60, None, None),
        (5, None, None, None),
    ]


def test_a_worker_that_dies_at_once_uses_up_the_only_attempt(
    dsn: str, db: psycopg.Connection, processes: Processes, tmp_path: Any
) -> None:
    """Spawned from the command line, before any worker has announced the name."""
    (tmp_path / "single.py").write_text(APPLICATION)
    env = {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", COMMAND_LINE, "spawn", "default", "once"]
    done = subprocess.run(
        [*command, "--params", '{"seconds": 600}', "--dsn", dsn],
        capture_output=True,
        text=True,
        check=True,
    )
    worker = processes.durable("worker", "single:app", "--lease", "1", env=env)
    worker.wait_for("begins")
    worker.kill()
    again = processes.durable("worker", "single:app", env=env)
    eventually(lambda: attempts(db, done.stdout.strip())[0] == "failed", deadline=30)
    assert attempts(db, done.stdout.strip()) == ("failed", 1)
    assert "begins" not in again.output()


async def test_announces_the_schema_of_its_params(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[once], version="7") as app, app.worker():
        (known,) = await app.list_definitions()
    assert (known.name, known.version, known.latest) == ("once", "7", True)
    assert known.options["max_attempts"] == 1
    assert known.params_schema is not None
    assert known.params_schema["required"] == ["number"]


async def test_an_invalid_schema_stops_no_worker(dsn: str) -> None:
    class Odd(BaseModel):
        text: str = "\0"

    class Strange(Task[Odd, None]):
        async def run(self, params: Odd, ctx: TaskContext) -> None: ...

    async with AsyncDurable(dsn, tasks=[Strange]) as app, app.worker():
        (known,) = await app.list_definitions()
    assert known.params_schema is None


def run(dsn: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *command, "--dsn", dsn],
        capture_output=True,
        text=True,
        check=True,
    )


def test_the_command_line_reports_a_name_that_no_worker_knows(dsn: str) -> None:
    with Durable(dsn, tasks=[OnceMore]) as app, app.worker():
        pass
    said = 'no worker of queue "default" has announced a task named'
    mistyped = run(dsn, "spawn", "default", "once-mroe")
    assert f'{said} "once-mroe": did you mean "once-more"?' in mistyped.stderr
    assert run(dsn, "spawn", "default", "once-more").stderr == ""
    stats = run(dsn, "stats").stderr
    assert f'{said} "once-mroe": did you mean "once-more"?' in stats
    assert stats.count(said) == 1


def test_a_worker_without_the_grants_to_announce_still_works(
    dsn: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a DBA granted functions one by one, before these existed."""
    roles = Roles(db, dsn)
    role = roles.make("worker", "durable_worker")
    db.execute(
        "revoke execute on function durable.announce_definitions,"
        " durable.announce_worker, durable.remove_worker from durable_worker"
    )
    try:
        with_role = make_conninfo(dsn, options=f"-c role={role}")
        with Durable(with_role, tasks=[OnceMore]) as app, app.worker():
            handle = app.spawn(OnceMore, Order(number=1))
            with pytest.raises(TaskFailed):
                handle.result(timeout=30)
    finally:
        roles.drop_all()
    assert "do not get their class's options" in caplog.text
    assert "list_workers does not show this worker" in caplog.text
