"""durable does the same in every session, under any settings of database and role."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.adapt import Dumper, Loader
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

from durable import AsyncDurable, Durable, TaskContext, WrongIsolation, task
from durable.errors import from_database
from tests.support.pgbouncer import PGBOUNCER, pgbouncer
from tests.support.wait import aeventually

SETTINGS = [
    # settings that the engine requires, so durable's own statements set them
    ("client_encoding", "LATIN1"),
    ("client_encoding", "SQL_ASCII"),
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_isolation", "serializable"),
    # an operator's limits: they apply, and nothing here comes near them
    ("statement_timeout", "5s"),
    ("lock_timeout", "100ms"),
    ("idle_in_transaction_session_timeout", "1s"),
    ("idle_session_timeout", "100ms"),
    ("transaction_timeout", "5s"),
    ("temp_file_limit", "0"),
    ("work_mem", "64kB"),
]
# settings that make no difference
HARMLESS = [
    ("array_nulls", "off"),
    ("bytea_output", "escape"),
    ("client_min_messages", "error"),
    ("datestyle", "German"),
    ("default_transaction_deferrable", "on"),
    ("enable_indexscan", "off"),
    ("enable_nestloop", "off"),
    ("exit_on_error", "on"),
    ("extra_float_digits", "-15"),
    ("intervalstyle", "sql_standard"),
    ("jit_above_cost", "0"),
    ("lc_numeric", "C"),
    ("plan_cache_mode", "force_custom_plan"),
    ("row_security", "off"),
    ("search_path", "nowhere, pg_catalog"),
    ("standard_conforming_strings", "off"),
    ("synchronous_commit", "off"),
    ("timezone", "Pacific/Chatham"),
    ("transform_null_equals", "on"),
    ("xmlbinary", "hex"),
]
STRICT = ["repeatable read", "serializable"]
NAME = "漢字 ü"


class Note(BaseModel):
    text: str
    number: float
    at: datetime


NOTE = Note(text=NAME, number=math.pi, at=datetime(2026, 11, 29, 12, tzinfo=UTC))


async def insert(conn: psycopg.AsyncConnection[Any], note: Note) -> Note:
    await conn.execute("insert into public.notes values (%s)", [note.text])
    return note


@task
async def child(note: Note, ctx: TaskContext) -> Note:
    await ctx.sleep_for("nap", 0.01)
    return note


@task
async def everything(note: Note, ctx: TaskContext) -> Note:
    """Make every call of a task, with values that some sessions cannot represent."""
    await ctx.set_value(NAME, note)
    noted = await ctx.step(NAME, lambda: note, as_type=Note)
    inserted = await ctx.transaction("insert", insert, noted)
    there = await ctx.spawn("child", child, inserted)
    told = await ctx.await_event(NAME, as_type=Note)
    received = await ctx.recv(NAME, as_type=Note)
    joined = await ctx.join(there)
    assert note == noted == inserted == told == received == joined
    return joined


async def do_everything(app: AsyncDurable, db: psycopg.Connection) -> None:
    """Run a task that does everything, and delete it by maintenance."""
    handle = await app.spawn(everything, NOTE, idempotency_key=NAME)

    async def sleeps() -> bool:
        return await handle.state() == "sleeping"

    await aeventually(sleeps)
    await app.emit_event(NAME, NOTE)
    await handle.send(NAME, NOTE)
    assert await handle.result(timeout=20) == NOTE
    assert (await handle.snapshot()).result == NOTE
    assert [value async for value in handle.values(NAME, as_type=Note)] == [NOTE]
    await app.create_queue("default", keep_tasks=timedelta(), keep_events=timedelta())

    async def is_forgotten() -> bool:
        left = "select from durable.tasks union all select from durable.events"
        return not db.execute(left).fetchall()

    await aeventually(is_forgotten, deadline=20)


@pytest.fixture
def notes(db: psycopg.Connection) -> None:
    db.execute("create table public.notes (text text)")


def set_in_database(db: psycopg.Connection, setting: str, value: str) -> None:
    known = "select from pg_settings where lower(name) = lower(%s)"
    if db.execute(known, [setting]).rowcount:  # in this version of Postgres
        value = value if setting == "search_path" else f"'{value}'"
        db.execute(f'alter database "{db.info.dbname}" set {setting} = {value}')


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize(
    "settings",
    [*([one] for one in SETTINGS), HARMLESS],
    ids=[*(f"{setting} {value}" for setting, value in SETTINGS), "what is harmless"],
)
async def test_does_everything_in_a_database_with(
    dsn: str, db: psycopg.Connection, settings: list[tuple[str, str]]
) -> None:
    for setting, value in settings:
        set_in_database(db, setting, value)
    async with AsyncDurable(dsn, tasks=[everything, child]) as app:
        await app.migrate()
        async with app.worker(poll=0.2):
            await do_everything(app, db)


@pytest.mark.usefixtures("notes")
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_does_everything_under_any_encoding_of_the_environment(
    dsn: str,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    async with AsyncDurable(dsn, tasks=[everything, child]) as app, app.worker():
        await do_everything(app, db)


@pytest.mark.usefixtures("notes")
@pytest.mark.skipif(PGBOUNCER is None, reason="needs PgBouncer")
async def test_does_everything_behind_a_pooler_that_keeps_no_setting(
    dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    set_in_database(db, "default_transaction_isolation", "serializable")
    with pgbouncer(dsn, size=3) as address:
        tasks = [everything, child]
        async with AsyncDurable(
            address, tasks=tasks, prepare=False, listen=False
        ) as app:
            await app.migrate()
            async with app.worker(listen=False, poll=0.1):
                await do_everything(app, db)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"client_encoding": "LATIN1"},
        {"client_encoding": "SQL_ASCII", "autocommit": True},
        {"options": "-c default_transaction_isolation=serializable"},
        {
            "options": "-c default_transaction_isolation=serializable",
            "autocommit": True,
            "row_factory": dict_row,
            "cursor_factory": psycopg.AsyncClientCursor,
            "prepare_threshold": 0,
        },
        {"cursor_factory": psycopg.AsyncRawCursor},
    ],
    ids=["latin", "ascii", "strict", "strict and strange", "raw"],
)
@pytest.mark.usefixtures("notes")
async def test_does_everything_on_a_pool_with(
    dsn: str, db: psycopg.Connection, kwargs: dict[str, Any]
) -> None:
    async with AsyncConnectionPool(dsn, open=False, kwargs=kwargs) as pool:
        async with AsyncDurable(pool, tasks=[everything, child]) as app, app.worker():
            await do_everything(app, db)
        async with pool.connection() as connection:  # the settings are unchanged
            assert connection.isolation_level is None
            encoding = connection.info.parameter_status("client_encoding")
            assert encoding == kwargs.get("client_encoding", "UTF8")


async def test_waits_while_sessions_are_read_only_and_continues_afterwards(
    dsn: str, db: psycopg.Connection
) -> None:
    """An operator's switch, which applies: durable waits as it does for a primary."""
    async with AsyncDurable(dsn, tasks=[child]) as app:
        handle = await app.spawn(child, NOTE)
        set_in_database(db, "default_transaction_read_only", "on")
        entering = asyncio.create_task(app.worker().__aenter__())
        await asyncio.wait({entering}, timeout=0.5)
        assert await handle.state() == "pending"
        db.execute(f'alter database "{db.info.dbname}" reset all')
        worker = await entering
        try:
            assert await handle.result(timeout=20) == NOTE
        finally:
            await worker.__aexit__(None, None, None)


@pytest.mark.parametrize("level", STRICT)
@pytest.mark.parametrize(
    "function", ["apply_deferred_work", "prune_events", "run_maintenance"]
)
def test_names_the_function_that_cannot_run_in_a_stricter_transaction(
    db: psycopg.Connection, level: str, function: str
) -> None:
    begin = f"begin isolation level {level}"
    with pytest.raises(psycopg.Error) as refused:
        db.execute(f"{begin}; select durable.{function}('default')")
    error = from_database(refused.value)
    assert isinstance(error, WrongIsolation)
    assert level in str(error)


# -- adapters that an application registers --------------------------------------------


class AsText(Loader):
    def load(self, data: Any) -> str:
        return f"text {bytes(data)!r}"


class AsBinaryText(AsText):
    format = psycopg.pq.Format.BINARY


class Nothing(Dumper):
    def dump(self, obj: object) -> bytes:  # noqa: ARG002
        return b"nothing"


READ = ["uuid", "text", "bool", "int4", "int8", "float8", "timestamptz", "json"]
READ += ["jsonb", "numeric", "interval"]
WRITTEN: list[type | str] = [str, int, float, bool, list, dict, datetime, "uuid.UUID"]


@contextlib.contextmanager
def strange_adapters(adapters: psycopg.adapt.AdaptersMap) -> Iterator[None]:
    """Have psycopg load and dump every type in another way."""
    kept = psycopg.adapt.AdaptersMap(adapters)
    try:
        for name in READ:
            for loader in (AsText, AsBinaryText):
                adapters.register_loader(name, loader)
        for cls in WRITTEN:
            adapters.register_dumper(cls, Nothing)
        yield
    finally:
        for attribute in ("_loaders", "_dumpers", "_dumpers_by_oid"):
            setattr(adapters, attribute, getattr(kept, attribute))


@pytest.fixture
async def strange() -> AsyncIterator[None]:
    with strange_adapters(psycopg.adapters):
        yield


@pytest.mark.usefixtures("strange")
async def test_ignores_globally_registered_adapters(
    dsn: str,
) -> None:
    async with AsyncDurable(dsn, tasks=[child]) as app:
        handle = await app.spawn(child, NOTE)
        many = await app.spawn_many(child, [NOTE] * 3)
        async with app.worker():
            assert await handle.result(timeout=20) == NOTE
            assert [await one.result(timeout=20) for one in many] == [NOTE] * 3
        assert (await app.queue_stats()).completed == 4
        assert len(await app.list_tasks()) == 4
        assert (await handle.history())[0].kind == "spawned"
    with Durable(dsn) as sync_app:
        assert sync_app.handle(handle.task_id, child).result() == NOTE


async def test_ignores_adapters_registered_on_the_applications_connection(
    dsn: str, db: psycopg.Connection
) -> None:
    async with (
        AsyncDurable(dsn) as app,
        await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row) as connection,
    ):
        with strange_adapters(connection.adapters):
            handle = await app.spawn_with(connection, child, NOTE)
            assert await app.emit_event_with(connection, NAME, NOTE) is True
        await connection.commit()
        assert await handle.state() == "pending"
        assert (handle.attempt, handle.created) == (1, True)
