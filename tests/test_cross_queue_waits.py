"""A task that waits for one in another queue wakes, in any order of the two calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.wait import aeventually

CLAIM = "select claim from durable.claim_tasks(%s, 'w', array[%s])"
SUSPEND = "select outcome from durable.suspend_tasks('default', %s)"
COMPLETE = "select outcome from durable.complete_tasks('gpu', %s)"


def about_to_wait(
    db: psycopg.Connection, how: dict[str, Any]
) -> tuple[str, str, Callable[[], Any]]:
    """Hold a task and one of another queue; return what both say, and the state."""
    db.execute("select durable.create_queue('gpu')")
    held = {}
    for queue, name in (("default", "waiter"), ("gpu", "awaited")):
        spawned = db.execute("select task_id from durable.spawn(%s, %s)", [queue, name])
        row = spawned.fetchone()
        claimed = db.execute(CLAIM, [queue, name]).fetchone()
        assert row is not None
        assert claimed is not None
        held[name] = {"task_id": str(row[0]), "claim": claimed[0]}
    awaited = held["awaited"]["task_id"]
    wait = {"name": "$wait", "task_ids": [awaited], "queues": ["gpu"], **how}

    def state() -> Any:
        query = "select state from durable.tasks where name = 'waiter'"
        return db.execute(query).fetchone()

    suspension = [{**held["waiter"], "waits": [wait]}]
    return json.dumps(suspension), json.dumps([held["awaited"]]), state


@pytest.mark.parametrize("how", [{}, {"any_of": True}], ids=["join", "first"])
async def test_wakes_a_task_that_suspends_while_the_other_is_finishing(
    db: psycopg.Connection,
    connect: Callable[[], psycopg.Connection],
    how: dict[str, Any],
) -> None:
    suspension, completion, state = about_to_wait(db, how)
    other = connect()
    with other.transaction():
        other.execute(COMPLETE, [completion])
        assert db.execute(SUSPEND, [suspension]).fetchone() == ("suspended",)
    assert db.execute("select kind from durable.deferred_work").fetchall() == [
        ("waiter",)
    ]
    db.execute("select durable.apply_deferred_work('default')")
    assert state() == ("pending",)


@pytest.mark.parametrize("how", [{}, {"any_of": True}], ids=["join", "first"])
async def test_wakes_a_task_that_was_suspending_when_the_other_finished(
    db: psycopg.Connection,
    connect: Callable[[], psycopg.Connection],
    how: dict[str, Any],
) -> None:
    suspension, completion, state = about_to_wait(db, how)
    waiting, finishing = connect(), connect()
    finishing.execute("alter function durable.complete_tasks set lock_timeout = '9s'")
    pid = finishing.info.backend_pid

    async def is_blocked() -> bool:
        blocked = "select from pg_locks where pid = %s and not granted"
        return db.execute(blocked, [pid]).rowcount > 0

    with waiting.transaction():
        waiting.execute(SUSPEND, [suspension])
        ending = asyncio.create_task(
            asyncio.to_thread(finishing.execute, COMPLETE, [completion])
        )
        await aeventually(is_blocked)
    await ending
    assert state() == ("pending",)
    assert db.execute("select from durable.deferred_work").rowcount == 0
