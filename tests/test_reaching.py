"""A client that is not let in says why, in the words of whoever bars the way."""

from __future__ import annotations

import asyncio
import pickle
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from durable import AsyncDurable, DatabaseUnavailable, Durable, InvalidArgument

LONG = 30  # seconds that the pool would wait
CALLS: dict[str, Callable[[AsyncDurable], Awaitable[object]]] = {
    "spawn": lambda app: app.spawn("a"),
    "migrate": lambda app: app.migrate(),
    "result": lambda app: app.handle(uuid4()).result(timeout=LONG),
    "value": lambda app: app.handle(uuid4()).value("a"),
}
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "database": ({"dbname": "nowhere"}, '"nowhere" does not exist'),
    "role": ({"user": "nobody at all"}, "nobody at all"),
}


@pytest.fixture
def nothing_there() -> Any:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        yield f"host=127.0.0.1 port={port} dbname=shop"


@pytest.mark.parametrize("call", CALLS)
async def test_says_at_once_that_there_is_no_such_database(dsn: str, call: str) -> None:
    async with AsyncDurable(make_conninfo(dsn, dbname="nowhere")) as app:
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as refusal:
            await CALLS[call](app)
        assert time.monotonic() - started < LONG / 2
    assert 'database "nowhere" does not exist' in str(refusal.value)
    assert "Hint: Create that database" in str(refusal.value)
    assert refusal.value.sqlstate == "3D000"
    assert isinstance(refusal.value.__cause__, psycopg.OperationalError)


@pytest.mark.parametrize("wrong", WRONG)
def test_says_so_without_asyncio_and_of_a_pool_that_was_given(
    dsn: str, wrong: str
) -> None:
    address, said = WRONG[wrong]
    with (
        Durable(make_conninfo(dsn, **address)) as app,
        pytest.raises(DatabaseUnavailable, match=said),
    ):
        app.list_queues()

    async def pooled() -> None:
        pool = AsyncConnectionPool(dsn, kwargs=address, open=False)
        async with pool, AsyncDurable(pool) as app:
            with pytest.raises(DatabaseUnavailable, match=said):
                await app.list_queues()

    asyncio.run(pooled())


async def test_waits_for_one_that_is_away_and_says_what_it_met(
    nothing_there: str,
) -> None:
    pool = AsyncConnectionPool(
        nothing_there, min_size=0, max_size=1, timeout=1, open=False
    )
    async with pool, AsyncDurable(pool) as app:
        started = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="refused") as refusal:
            await app.list_queues()
        assert time.monotonic() - started >= 1
        assert refusal.value.sqlstate is None
        assert isinstance(refusal.value, PoolTimeout)
        with pytest.raises(DatabaseUnavailable, match="refused"):
            await app.handle(uuid4()).result(timeout=30)
        copy = pickle.loads(pickle.dumps(refusal.value))  # noqa: S301 - our own
        assert str(copy) == str(refusal.value)


async def test_says_that_a_pool_is_busy(dsn: str) -> None:
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=0.2, open=False)
    async with pool, AsyncDurable(pool) as app, pool.connection():
        with pytest.raises(
            PoolTimeout, match=r"no connection came free in 0\.2 s"
        ) as busy:
            await app.list_queues()
    assert not isinstance(busy.value, DatabaseUnavailable)


@pytest.mark.parametrize("address", ["shop", "dbnam=shop", "postgres//shop"])
def test_refuses_what_is_no_address(address: str) -> None:
    for client in (Durable, AsyncDurable):
        with pytest.raises(InvalidArgument, match="postgresql://"):
            client(address)
