"""A worker claims no task before it has all connections that it needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from durable import AsyncDurable, TaskContext, task
from durable._db import reconnecting
from tests.support.roles import Roles
from tests.support.wait import aeventually

NEEDED = 4
CUT = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s"
SESSIONS = "select from pg_stat_activity where usename = %s"


@task(max_attempts=1)
async def work(params: None, ctx: TaskContext[Any]) -> str:
    return await ctx.step("step", lambda: "done")


@pytest.fixture
def role(db: psycopg.Connection, dsn: str) -> Iterator[str]:
    """A worker's role with a connection limit one below what a worker needs."""
    roles = Roles(db, dsn)
    name = roles.make("limited", "durable_worker", "durable_client")
    db.execute(f"alter role {name} login connection limit {NEEDED - 1}")
    yield name
    db.execute(CUT, [name])
    roles.drop_all()


async def test_claims_nothing_before_it_has_all_its_connections(
    dsn: str,
    db: psycopg.Connection,
    role: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reconnecting, "_REPORT_AFTER", 0.1)
    monkeypatch.setattr(reconnecting, "_REPORT_AGAIN", 0.1)
    missing = f"needs {NEEDED} connections to the database and has {NEEDED - 1}"
    async with AsyncDurable(dsn, tasks=[work]) as client:
        handle = await client.spawn(work)
        app = AsyncDurable(make_conninfo(dsn, user=role), tasks=[work])
        with caplog.at_level(logging.WARNING, "durable.worker"):
            worker = app.worker(listen=False)
            entering = asyncio.create_task(worker.__aenter__())
            await aeventually(lambda: asyncio.sleep(0, missing in caplog.text))
        assert "too many connections for role" in caplog.text
        assert await handle.state() == "pending"
        db.execute(f"alter role {role} connection limit {NEEDED}")
        await entering
        try:
            assert await handle.result(timeout=20) == "done"
        finally:
            await worker.__aexit__(None, None, None)


async def test_claims_nothing_while_it_has_lost_a_connection(
    dsn: str, db: psycopg.Connection, role: str
) -> None:
    """After a restart of the server others may have taken the free connections."""
    db.execute(f"alter role {role} connection limit {NEEDED}")
    app = AsyncDurable(make_conninfo(dsn, user=role), tasks=[work])
    async with (
        AsyncDurable(dsn, tasks=[work]) as client,
        app.worker(listen=False, poll=0.05),
    ):
        db.execute(f"alter role {role} connection limit {NEEDED - 1}")
        db.execute(CUT, [role])
        handle = await client.spawn(work)
        await aeventually(
            lambda: asyncio.sleep(
                0, db.execute(SESSIONS, [role]).rowcount == NEEDED - 1
            )
        )
        assert await handle.state() == "pending"
        db.execute(f"alter role {role} connection limit {NEEDED}")
        assert await handle.result(timeout=20) == "done"
