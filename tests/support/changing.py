"""A running task, and the code deployed next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from durable import AsyncDurable, Task, TaskResult, task
from durable.registry import AnyTask

__all__ = ["CHARGE", "GO", "changed", "charges", "deployed", "exported", "noted"]

GO = "go"
CHARGE = "create table public.charges (name text)"
CHECKPOINTS = """
select name, position, after, state::text, value, attempt
from durable.checkpoints where task_id = %s order by saved_at, position
"""
TASK = """
select queue, task_id::text, name, params, headers, attempt
from durable.tasks where task_id = %s
"""


def exported(db: psycopg.Connection, task_id: Any) -> dict[str, Any]:
    """Return a task's history in the form that `check_replay` takes."""
    columns = ("name", "position", "after", "state", "value", "attempt")
    rows = db.execute(CHECKPOINTS, [task_id])
    checkpoints = [dict(zip(columns, row, strict=True)) for row in rows]
    row = db.execute(TASK, [task_id]).fetchone()
    assert row is not None
    columns = ("queue", "task_id", "name", "params", "headers", "attempt")
    head = dict(zip(columns, row, strict=True))
    return {"version": 1, **head, "checkpoints": checkpoints}


async def deployed(
    dsn: str, *deployments: Mapping[str, Any], **options: Any
) -> dict[str, TaskResult[Any]]:
    """Run tasks until they wait for the event, then with each next version of the code.

    A deployment has the code of each task by its name. The event is emitted before the
    second. Returns the state of each task after the last; options are those of spawn.
    """
    tasks: dict[str, Any] = {}
    for number, deployment in enumerate(deployments):
        code = [named(name, code) for name, code in deployment.items()]
        async with AsyncDurable(dsn, tasks=code) as app:
            if number == 0:
                tasks = {name: await app.spawn(name, **options) for name in deployment}
            if number == 1:
                await app.emit_event(GO)
            async with app.worker() as worker:
                await worker.drain()
    async with AsyncDurable(dsn) as app:
        return {
            name: await app.handle(spawned.task_id).snapshot()
            for name, spawned in tasks.items()
        }


async def changed(dsn: str, *code: Any, **options: Any) -> TaskResult[Any]:
    """Do the same with one task."""
    found = await deployed(dsn, *({"t": one} for one in code), **options)
    return found["t"]


def named(name: str, code: Any) -> AnyTask:
    """Return a function as a task of that name, unless it is a task already."""
    if isinstance(code, Task):
        return code
    made: AnyTask = task(name=name)(code)
    return made


def noted(dsn: str, name: str) -> str:
    """Have an effect that can be counted."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("insert into public.charges values (%s)", [name])
    return name


def charges(db: psycopg.Connection) -> list[str]:
    """Return the counted effects, in order of their names."""
    rows = db.execute("select name from public.charges order by name")
    return [str(name) for (name,) in rows]
