"""A client that cannot connect reports why, with the server's or libpq's message."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from durable import AsyncDurable, DatabaseUnavailable, Durable, InvalidArgument
from durable._db.conninfo import refused
from durable.embedded import Postgres
from tests.support.wait import aeventually

LONG = 30  # seconds for which the pool would wait
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


@pytest.fixture(scope="module", params=["English", "German"])
def foreign(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that asks some roles for a password, with messages in one language."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LANGUAGE", "de" if request.param == "German" else "en")
        environment.setenv("LC_ALL", "C.UTF-8")
        with Postgres.start(
            binaries=os.environ.get("DURABLE_TEST_PG_BIN"),
            settings={"lc_messages": "C.UTF-8"},
            fast=True,
            tcp=True,
        ) as server:
            with psycopg.connect(server.conninfo(), autocommit=True) as db:
                db.execute("create role asked login password 'secret'")
                db.execute("create role shut login")
                db.execute("create database closed")
                db.execute("revoke connect on database closed from public")
                db.execute("create database away allow_connections false")
                rules = server.data_dir / "pg_hba.conf"
                rules.write_text(
                    "host all asked all scram-sha-256\nhost all shut all reject\n"
                    f"{rules.read_text()}"
                )
                db.execute("select pg_reload_conf()")
            yield server


REFUSED = {
    "no such database": ({"dbname": "nowhere"}, "3D000"),
    "no such role": ({"user": "nobody"}, "28000"),
    "wrong password": ({"user": "asked", "password": "wrong"}, "28P01"),
    "no password": ({"user": "asked"}, "28P01"),
    "role not let in": ({"user": "shut"}, "28000"),
    "no right to connect": ({"dbname": "closed", "user": "asked"}, "42501"),
    "no such setting": ({"options": "-c nosuch=1"}, "42704"),
    "may be opened again": ({"dbname": "away"}, None),
}


@pytest.mark.parametrize("refusal", REFUSED)
def test_recognizes_refused_connections_in_any_language(
    foreign: Postgres, refusal: str
) -> None:
    change, sqlstate = REFUSED[refusal]
    if refusal == "no right to connect":
        change = change | {"password": "secret"}
    address = make_conninfo(foreign.conninfo(), **change)
    with pytest.raises(psycopg.OperationalError) as error:
        psycopg.connect(address)
    assert refused(error.value, address).sqlstate == sqlstate


@pytest.mark.parametrize("refusal", ["no such database", "wrong password"])
async def test_reports_refused_connections_in_any_language_at_once(
    foreign: Postgres, refusal: str
) -> None:
    change, sqlstate = REFUSED[refusal]
    address = make_conninfo(foreign.conninfo(), **change)

    async def work() -> None:
        async with AsyncDurable(address) as app, app.worker():
            pytest.fail("it has started")

    async with AsyncDurable(address) as app, asyncio.timeout(LONG / 2):
        with pytest.raises(DatabaseUnavailable) as found:
            await app.list_queues()
        assert found.value.sqlstate == sqlstate
        with pytest.raises(DatabaseUnavailable) as found:
            await work()
        assert found.value.sqlstate == sqlstate


@pytest.fixture
def nothing_there() -> Any:
    """A port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        yield f"host=127.0.0.1 port={port} dbname=shop"


@pytest.mark.parametrize("call", CALLS)
async def test_reports_a_missing_database_at_once(dsn: str, call: str) -> None:
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
def test_reports_it_in_synchronous_code_and_for_a_given_pool(
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


async def test_waits_for_an_unreachable_server_and_reports_the_last_error(
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


async def test_reports_that_a_pool_is_exhausted(dsn: str) -> None:
    pool = AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=0.2, open=False)
    async with pool, AsyncDurable(pool) as app, pool.connection():
        with pytest.raises(
            PoolTimeout, match=r"no connection came free in 0\.2 s"
        ) as busy:
            await app.list_queues()
    assert not isinstance(busy.value, DatabaseUnavailable)


@pytest.mark.parametrize("address", ["shop", "dbnam=shop", "postgres//shop"])
def test_refuses_invalid_addresses(address: str) -> None:
    for client in (Durable, AsyncDurable):
        with pytest.raises(InvalidArgument, match="postgresql://"):
            client(address)


@pytest.mark.slow
@pytest.mark.parametrize("client", [AsyncDurable, Durable])
async def test_reconnects_soon_after_an_outage(
    own_server: Postgres, caplog: pytest.LogCaptureFixture, client: Any
) -> None:
    """After that many attempts psycopg's pool waits for eight seconds."""
    app = client(own_server.conninfo())

    async def list_queues() -> list[str]:
        if client is AsyncDurable:
            found: list[str] = await app.list_queues()
            return found
        return await asyncio.to_thread(app.list_queues)

    try:
        queues = await list_queues()
        own_server.stop()
        waiting = asyncio.create_task(list_queues())
        await aeventually(
            lambda: has_failed(caplog, 8), deadline=25, what="eight attempts"
        )
        await asyncio.to_thread(own_server.restart)
        is_back = time.monotonic()
        assert await waiting == queues
        assert time.monotonic() - is_back < 5
    finally:
        await app.close() if client is AsyncDurable else app.close()


async def has_failed(caplog: pytest.LogCaptureFixture, times: int) -> bool:
    """Whether a pool has failed to connect that often."""
    return caplog.text.count("error connecting in") >= times
