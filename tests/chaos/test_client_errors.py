"""A client that does not wait gets the driver's error for the state of the database.

Whether its call has happened may be unknown; that the next one works is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from durable import AsyncDurable
from tests.chaos.proxy import Proxy
from tests.support.survival import Survived
from tests.support.wait import aeventually

Trouble: TypeAlias = AbstractAsyncContextManager[AsyncDurable]
HELD = "select durable.spawn('default', 'a', '{}', '{\"idempotency_key\": \"key\"}')"


@contextlib.asynccontextmanager
async def waits_too_long(dsn: str, setting: str) -> AsyncIterator[AsyncDurable]:
    """Another session is spawning with the same key, and the role has a timeout."""
    limited = make_conninfo(dsn, options=f"-c {setting}=100")
    async with AsyncDurable(limited) as app:
        await app.list_queues()
        with psycopg.connect(dsn) as other:
            other.execute(HELD)
            yield app
            other.rollback()


@contextlib.asynccontextmanager
async def busy_pool(dsn: str) -> AsyncIterator[AsyncDurable]:
    """The application uses all connections of its pool."""
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=0.2, open=False)
    async with pool, AsyncDurable(pool) as app:
        await app.list_queues()
        async with pool.connection():
            yield app


@contextlib.asynccontextmanager
async def lost_answer(dsn: str) -> AsyncIterator[AsyncDurable]:
    """The server has committed, and the answer is lost."""
    with Proxy(dsn, Random(0)) as proxy:
        async with AsyncDurable(proxy.conninfo()) as app:
            await app.list_queues()
            proxy.cut("answer lost")
            yield app


@contextlib.asynccontextmanager
async def read_only(dsn: str) -> AsyncIterator[AsyncDurable]:
    """The server is read-only."""
    option = "-c default_transaction_read_only=on"
    async with AsyncDurable(make_conninfo(dsn, options=option)) as app:
        await app.list_queues()
        yield app


TROUBLES: dict[str, tuple[Callable[[str], Trouble], type[psycopg.Error]]] = {
    "statement timeout": (
        lambda dsn: waits_too_long(dsn, "statement_timeout"),
        errors.QueryCanceled,
    ),
    "lock timeout": (
        lambda dsn: waits_too_long(dsn, "lock_timeout"),
        errors.LockNotAvailable,
    ),
    "busy pool": (busy_pool, PoolTimeout),
    "lost answer": (lost_answer, psycopg.OperationalError),
    "read only": (read_only, errors.ReadOnlySqlTransaction),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_raises_the_drivers_error(
    dsn: str, db: psycopg.Connection, trouble: str, survived: Survived
) -> None:
    """And never spawns twice with one key, however often the call is repeated."""
    arrange, expected = TROUBLES[trouble]
    async with arrange(dsn) as app:
        with pytest.raises(expected):
            await app.spawn("a", idempotency_key="key")
        survived("calls refused or lost")

    async def again() -> Any:
        async with AsyncDurable(dsn) as app:
            return await app.spawn("a", idempotency_key="key")

    handle = await aeventually(again)
    assert handle.created is (trouble != "lost answer")
    assert db.execute("select count(*) from durable.tasks").fetchone() == (1,)
