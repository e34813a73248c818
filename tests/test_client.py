"""A client spawns, cancels and retries tasks, and waits for their results."""

# ruff: noqa: ARG002 - a task is given a context, needed or not

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from pydantic import BaseModel, ValidationError

from durable import (
    AlreadyFinished,
    AsyncDurable,
    AsyncTaskHandle,
    Durable,
    InvalidArgument,
    NotFound,
    QueueStats,
    Retry,
    SchemaVersion,
    SyncTaskContext,
    Task,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    TaskHandle,
    TaskResult,
    UnknownQueue,
    task,
)
from durable.testing._dsn import with_dbname
from tests.support.processes import ROOT
from tests.support.wait import aeventually, eventually

NOBODY = UUID("01a1fb65-86b6-7000-9188-49b6bfbacafb")
ALL_STATES = ["pending", "running", "sleeping", "completed", "failed", "cancelled"]


class Order(BaseModel):
    id: int
    amount: int = 1


class Receipt(BaseModel):
    order: int
    total: int


class Charge(Task[Order, Receipt]):
    name = "charge"
    headers = {"team": "shop"}  # noqa: RUF012 - as people write it

    async def run(self, order: Order, ctx: TaskContext) -> Receipt:
        return Receipt(order=order.id, total=order.amount)


class Greet(Task[str, str]):
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def run(self, name: str, ctx: SyncTaskContext) -> str:
        return f"{self.greeting} {name}"


class Elsewhere(Task[int, int]):
    queue = "elsewhere"

    async def run(self, number: int, ctx: TaskContext) -> int:
        return number


class Window(BaseModel):
    days: int = 7


@task
async def report(window: Window, ctx: TaskContext) -> int:
    return window.days


@task
async def tick(params: None, ctx: TaskContext) -> str:
    return "tock"


@task(max_attempts=1)
async def explode(text: str, ctx: TaskContext) -> None:
    raise KeyError(text)


TASKS: list[Any] = [Charge, Greet("hello"), Elsewhere, report, tick, explode]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        yield app


@pytest.fixture
def sync_app(dsn: str) -> Iterator[Durable]:
    with Durable(dsn, tasks=TASKS) as app:
        yield app


def counted(db: psycopg.Connection) -> int:
    row = db.execute("select count(*) from durable.tasks").fetchone()
    assert row is not None
    return int(row[0])


def stored(db: psycopg.Connection, handle: Any) -> dict[str, Any]:
    query = "select * from durable.tasks where queue = %s and task_id = %s"
    with db.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(query, [handle.queue, handle.task_id]).fetchone()
    assert row is not None
    return row


# -- the schema ----------------------------------------------------------------------


@pytest.fixture
def empty(dsn: str, db: psycopg.Connection) -> str:
    db.execute("drop schema durable cascade")
    return dsn


async def test_installs_itself_and_the_queues(empty: str) -> None:
    async with AsyncDurable(empty, queue="orders") as app:
        for _ in range(2):
            await app.migrate()
            assert await app.list_queues() == ["default", "orders"]


async def test_migrates_an_installed_database_without_losing_data(
    app: AsyncDurable,
) -> None:
    handle = await app.spawn(Charge, Order(id=1))
    await app.migrate()
    assert await handle.state() == "pending"


async def test_installs_once_when_several_clients_migrate_concurrently(
    empty: str,
) -> None:
    apps = [AsyncDurable(empty, queue=f"q{number}") for number in range(5)]
    await asyncio.gather(*(app.migrate() for app in apps))
    queues = await apps[0].list_queues()
    await asyncio.gather(*(app.close() for app in apps))
    assert queues == ["default", "q0", "q1", "q2", "q3", "q4"]


def test_the_sql_is_ascii() -> None:
    """The SQL is ASCII, so psql and drivers can send it in any client encoding."""
    for file in (ROOT / "sql").rglob("*.sql"):
        assert file.read_bytes().isascii(), file


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_refuses_a_database_of_another_encoding(
    dsn: str, db: psycopg.Connection, encoding: str
) -> None:
    name = f"{db.info.dbname}_{encoding.lower()}"
    db.execute(
        f"create database {name} encoding '{encoding}' locale 'C' template template0"
    )
    try:
        async with AsyncDurable(with_dbname(dsn, name)) as app:
            with pytest.raises(InvalidArgument, match=f"UTF8, and .* has {encoding}"):
                await app.migrate()
    finally:
        db.execute(f"drop database {name} with (force)")


async def test_a_missing_schema_raises_an_error_that_says_how_to_install_it(
    empty: str,
) -> None:
    async with AsyncDurable(empty, tasks=TASKS) as app:
        with pytest.raises(SchemaVersion, match="durable migrate"):
            await app.spawn(Charge, Order(id=1))


async def test_refuses_a_schema_of_another_version(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    db.execute(
        "create or replace function durable.version() returns text"
        " language sql as $$ select '9.0.0' $$"
    )
    with pytest.raises(SchemaVersion, match=r"9\.0\.0"):
        await app.spawn(Charge, Order(id=1))
    with pytest.raises(SchemaVersion, match=r"9\.0\.0"):
        async with app.worker():
            pass


# -- queues --------------------------------------------------------------------------


async def test_creates_lists_and_drops_queues(app: AsyncDurable) -> None:
    assert await app.create_queue("b") is True
    assert await app.create_queue("b") is False
    assert await app.create_queue("Ab 1-_ü", keep_tasks=timedelta(days=1)) is True
    assert await app.list_queues() == ["Ab 1-_ü", "b", "default"]
    await app.spawn(Charge, Order(id=1), queue="b")
    assert await app.drop_queue("b") is True
    assert await app.drop_queue("b") is False
    await app.create_queue("b")
    assert (await app.queue_stats("b")).pending == 0


async def test_counts_the_tasks_of_a_queue_by_state(app: AsyncDurable) -> None:
    first = await app.spawn(Charge, Order(id=1))
    await app.spawn(tick)
    await app.cancel(first)
    stats = await app.queue_stats()
    assert isinstance(stats, QueueStats)
    assert [getattr(stats, state) for state in ALL_STATES] == [1, 0, 0, 0, 0, 1]
    assert (stats.queue, stats.ready, stats.ready_by_name) == (
        "default",
        1,
        {"tick": 1},
    )
    with pytest.raises(UnknownQueue):
        await app.queue_stats("nowhere")


async def test_refuses_queues_that_were_not_created(app: AsyncDurable) -> None:
    calls: list[Awaitable[object]] = [
        app.spawn(Charge, Order(id=1), queue="nowhere"),
        app.spawn_many(Charge, [Order(id=1)], queue="nowhere"),
        app.emit_event("packed", queue="nowhere"),
        app.cancel(NOBODY, queue="nowhere"),
        app.retry(NOBODY, queue="nowhere"),
    ]
    for call in calls:
        with pytest.raises(UnknownQueue, match="nowhere"):
            await call
    with pytest.raises(UnknownQueue):
        async with app.worker(queues=["nowhere"]):
            pass


@pytest.mark.parametrize(
    "roles", ["mail", 7, [], [7], ["a\0b"], ["\ud800"], ["no role of this name"]]
)
async def test_accepts_only_role_names_in_a_queues_roles(
    app: AsyncDurable, roles: Any
) -> None:
    with pytest.raises(InvalidArgument):
        await app.create_queue("mail", roles=roles)
    assert "mail" not in await app.list_queues()


async def test_refuses_an_empty_queue_name(app: AsyncDurable) -> None:
    handle = await app.spawn(Charge, Order(id=1))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: app.drop_queue(""),
        lambda: app.create_queue(""),
        lambda: app.queue_stats(""),
        lambda: app.emit_event("packed", queue=""),
        lambda: app.spawn(Charge, Order(id=1), queue=""),
        lambda: app.cancel(handle.task_id, queue=""),
        lambda: app.get_result(handle.task_id, queue=""),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="empty"):
            await call()
    assert await handle.state() == "pending"


# -- spawning ------------------------------------------------------------------------


async def test_spawns_by_class_instance_function_and_name(
    app: AsyncDurable,
) -> None:
    handles: list[AsyncTaskHandle[Any]] = [
        await app.spawn(Charge, Order(id=7, amount=100)),
        await app.spawn("charge", {"id": 7, "amount": 100}),
        await app.spawn(Greet("unused"), "you"),
        await app.spawn(Greet, "you"),
        await app.spawn("greet", "you"),
        await app.spawn(report, Window(days=3)),
        await app.spawn("report", {"days": 3}),
        await app.spawn(tick, None),
    ]
    assert all(handle.created for handle in handles)
    async with app.worker() as worker:
        assert await worker.drain() == len(handles)
    receipt = Receipt(order=7, total=100)
    assert [await handle.result(timeout=0) for handle in handles] == [
        *[receipt, receipt],
        *["hello you", "hello you", "hello you"],
        *[3, 3, "tock"],
    ]


async def test_a_spawn_returns_what_identifies_the_task(app: AsyncDurable) -> None:
    handle = await app.spawn(Charge, Order(id=7))
    assert isinstance(handle.task_id, UUID)
    assert isinstance(handle.run_id, UUID)
    assert (handle.queue, handle.attempt, handle.created) == ("default", 1, True)
    assert str(handle.task_id) in repr(handle)
    for again in (
        app.handle(handle.task_id, Charge),
        app.handle(str(handle.task_id), "charge", queue="default"),
    ):
        assert again == handle
        assert hash(again) == hash(handle)
        assert (again.run_id, again.attempt, again.created) == (None, None, None)
        assert await again.state() == "pending"
    assert app.handle(uuid4()) != handle
    assert handle != handle.task_id


async def test_omitted_params_take_the_form_of_the_tasks_params_type(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    db.execute(
        "select durable.spawn('default', 'tick'), durable.spawn('default', 'report')"
    )
    spawned = [await app.spawn(tick), await app.spawn(report), await app.spawn("tick")]
    async with app.worker() as worker:
        await worker.drain()
    assert [await handle.result(0) for handle in spawned] == ["tock", 7, "tock"]
    assert (await app.queue_stats()).completed == 5
    with pytest.raises(ValidationError, match="id"):
        await app.spawn(Charge)


async def test_applies_options_of_the_class_and_of_the_spawn(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handle = await app.spawn(
        Charge,
        Order(id=7),
        max_attempts=3,
        retry=Retry.fixed(timedelta(minutes=1)),
        headers={"trace": ["a", 1]},
        idempotency_key="order:7",
        start_timeout=60,
        execution_timeout=timedelta(hours=1),
    )
    row = stored(db, handle)
    assert row["params"] == {"id": 7, "amount": 1}
    assert row["headers"] == {"team": "shop", "trace": ["a", 1]}
    assert row["retry"] == {"kind": "fixed", "base_seconds": 60}
    assert (row["max_attempts"], row["execution_timeout"]) == (3, 3600)
    assert row["expires_at"] - row["spawned_at"] == timedelta(minutes=1)
    assert row["idempotency_key"] == "order:7"
    plain = stored(db, await app.spawn(tick))
    assert (plain["max_attempts"], plain["retry"], plain["headers"]) == (5, None, None)


async def test_takes_the_queue_from_the_spawn_the_class_or_the_app(
    dsn: str, app: AsyncDurable
) -> None:
    await app.create_queue("elsewhere")
    await app.create_queue("third")
    assert (await app.spawn(Elsewhere, 1)).queue == "elsewhere"
    assert (await app.spawn(Elsewhere, 1, queue="third")).queue == "third"
    assert (await app.spawn(Elsewhere, 1, queue=None)).queue == "elsewhere"
    async with AsyncDurable(dsn, queue="third", tasks=[Charge]) as third:
        assert third.queue == "third"
        assert (await third.spawn(Charge, Order(id=1))).queue == "third"
        assert third.handle(NOBODY).queue == "third"
        assert third.handle(NOBODY, Elsewhere).queue == "elsewhere"


async def test_spawns_by_name_a_task_that_other_workers_run(
    app: AsyncDurable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "durable.client"):
        handle = await app.spawn("charges", {"id": 1})
        await app.spawn("charges", {"id": 2})
    (warning,) = caplog.records
    assert 'no task named "charges"' in warning.getMessage()
    assert 'did you mean "charge"?' in warning.getMessage()
    known = await app.spawn(tick)
    async with app.worker() as worker:
        await worker.drain()
    assert await handle.state() == "pending"
    assert await known.state() == "completed"
    assert await app.handle(handle.task_id, "charges").state() == "pending"


async def test_spawns_without_knowing_any_task(dsn: str) -> None:
    async with AsyncDurable(dsn) as client:
        by_name = await client.spawn("charge", {"id": 7})
        by_class = await client.spawn(Charge, Order(id=7))
        async with AsyncDurable(dsn, tasks=TASKS).worker() as worker:
            await worker.drain()
        assert await by_name.result(0) == {"order": 7, "total": 1}
        assert await by_class.result(0) == Receipt(order=7, total=1)


async def test_recognizes_a_task_once_it_is_registered(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        app.register(Charge, tick)
        app.register(Charge)
        with pytest.raises(InvalidArgument, match='two tasks are named "charge"'):
            app.register(Charge())
        handle = await app.spawn("charge", {"id": 7})
        async with app.worker() as worker:
            await worker.drain()
        assert await handle.result(0) == Receipt(order=7, total=1)


async def test_spawns_many_of_one_task_in_one_call(app: AsyncDurable) -> None:
    orders = (Order(id=number) for number in range(250))
    handles = await app.spawn_many(Charge, orders, max_attempts=1)
    assert len({handle.task_id for handle in handles}) == 250
    assert [handle.task_id for handle in handles] == sorted(h.task_id for h in handles)
    async with app.worker() as worker:
        assert await worker.drain() == 250
    results = [await handle.result(0) for handle in handles[::50]]
    assert results == [Receipt(order=number, total=1) for number in range(0, 250, 50)]
    assert await app.spawn_many(Charge, []) == []
    assert await app.spawn_many([]) == []


async def test_spawns_many_of_several_tasks_in_one_call(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    handles = await app.spawn_many(
        [
            (Charge, Order(id=7), {"max_attempts": 2}),
            ("greet", "you"),
            (tick, None, {"idempotency_key": "now"}),
            (tick, None, {"idempotency_key": "now"}),
        ],
        max_attempts=9,
    )
    rows = [stored(db, handle) for handle in handles]
    assert [row["name"] for row in rows] == ["charge", "greet", "tick", "tick"]
    assert [row["max_attempts"] for row in rows] == [2, 9, 9, 9]
    assert [handle.created for handle in handles] == [True, True, True, False]
    assert handles[2] == handles[3]


async def test_spawns_any_number_in_batches(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    """The iterable is read as batches are spawned, each in its transaction."""
    seen = []

    def orders(end: int) -> Iterator[Order]:
        for number in range(end):
            seen.append(counted(db))
            yield Order(id=number)

    assert await app.spawn_in_batches(Charge, orders(7), batch_size=3) == 7
    assert seen == [0, 0, 0, 3, 3, 3, 6]
    keyed = [(tick, None, {"idempotency_key": f"{n}"}) for n in range(5)]
    assert await app.spawn_in_batches(keyed[:2]) == 2
    assert await app.spawn_in_batches(iter(keyed), batch_size=2) == 3
    assert await app.spawn_in_batches([]) == 0
    assert counted(db) == 12
    mixed: list[Any] = [*orders(2), {"id": "x"}]
    with pytest.raises(ValidationError):
        await app.spawn_in_batches(Charge, mixed, batch_size=2)
    assert counted(db) == 14
    for wrong in (0, True, 10**6):
        with pytest.raises(InvalidArgument, match="batch_size"):
            await app.spawn_in_batches(Charge, [], batch_size=wrong)
    wrong_tasks: Any
    for wrong_tasks in ("tick", {"a": 1}):
        with pytest.raises(InvalidArgument):
            await app.spawn_in_batches(wrong_tasks)


@pytest.mark.parametrize(
    "tasks",
    [
        lambda app: app.spawn_many(Charge, [{"id": 1}, {"id": "x"}]),
        lambda app: app.spawn_many([(tick, None), (Charge, {"id": "x"})]),
        lambda app: app.spawn_many([(tick, None), (tick, None, {"max_attempts": 0})]),
        lambda app: app.spawn_many([(tick, None), (Elsewhere, 1)]),
        lambda app: app.spawn_many([(tick, None), (tick,)]),
        lambda app: app.spawn_many([(tick, None), tick]),
        lambda app: app.spawn_many([(tick, None, {}, {})]),
        lambda app: app.spawn_many(tick, {"a": 1}),
        lambda app: app.spawn_many("tick"),
        lambda app: app.spawn_many(tick),
        lambda app: app.spawn_many(tick, 7),
    ],
)
async def test_spawns_all_of_many_or_none(
    app: AsyncDurable, db: psycopg.Connection, tasks: Callable[[AsyncDurable], Any]
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - ValidationError or InvalidArgument
        await tasks(app)
    assert counted(db) == 0


# -- refused arguments ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("spawned", "options"),
    [
        ((Charge, {"id": "seven"}), {}),
        ((Charge, {}), {}),
        ((Charge, None), {}),
        (("charge", {"id": "seven"}), {}),
        ((tick, 7), {}),
        ((Greet, "a\0b"), {}),
        ((Greet, "\ud800"), {}),
        ((Greet, "x" * (16 * 1024 * 1024)), {}),
        (("unknown", math.nan), {}),
        (("unknown", "x" * (16 * 1024 * 1024)), {}),
        (("", {}), {}),
        (("   ", {}), {}),
        (("x" * 101, {}), {}),
        (("a\nb", {}), {}),
        ((Charge, {"id": 1}), {"max_attempts": 0}),
        ((Charge, {"id": 1}), {"max_attempts": "3"}),
        ((Charge, {"id": 1}), {"max_attemps": 3}),
        ((Charge, {"id": 1}), {"retry": "fixed"}),
        ((Charge, {"id": 1}), {"headers": {"durable:trace": 1}}),
        ((Charge, {"id": 1}), {"headers": ["a"]}),
        ((Charge, {"id": 1}), {"idempotency_key": ""}),
        ((Charge, {"id": 1}), {"idempotency_key": 7}),
        ((Charge, {"id": 1}), {"idempotency_key": "x" * 256}),
        ((Charge, {"id": 1}), {"start_timeout": -1}),
        ((Charge, {"id": 1}), {"execution_timeout": math.nan}),
        ((Charge, {"id": 1}), {"queue": ""}),
        ((Charge, {"id": 1}), {"queue": 7}),
        ((Charge, {"id": 1}), {"queue": "x" * 101}),
    ],
)
async def test_refuses_a_bad_spawn_before_anything_is_sent(
    spawned: Any, options: Any
) -> None:
    app = AsyncDurable("postgresql://nobody@127.0.0.1:1/nowhere", tasks=TASKS)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - one of two classes
        await app.spawn(*spawned, **options)
    assert isinstance(refusal.value, InvalidArgument | ValidationError)
    assert str(refusal.value)


@pytest.mark.parametrize("no_task", [7, None, object(), len, Task, Order, b"charge"])
async def test_refuses_to_spawn_something_that_is_no_task(no_task: Any) -> None:
    app = AsyncDurable("postgresql://nobody@127.0.0.1:1/nowhere", tasks=TASKS)
    with pytest.raises(TypeError, match="is not a task"):
        await app.spawn(no_task, {})
    with pytest.raises(TypeError, match="is not a task"):
        AsyncDurable("dbname=nowhere", tasks=[no_task])


async def test_refuses_untyped_params_that_are_not_plain_json(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        for params in (Order(id=1), {1: "a"}, {"a": {2, 3}}, (1, 2), uuid4()):
            with pytest.raises(TypeError, match="plain JSON"):
                await app.spawn("charge", params)
        assert (await app.queue_stats()).pending == 0


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("", None),
        (7, None),
        ("x" * 256, None),
        ("a\0b", None),
        ("packed", math.inf),
        ("packed", {"a": "\0"}),
        ("packed", ["\ud800"]),
        ("packed", "x" * (16 * 1024 * 1024)),
    ],
)
async def test_refuses_a_bad_event_before_anything_is_sent(
    event: Any, payload: Any
) -> None:
    app = AsyncDurable("postgresql://nobody@127.0.0.1:1/nowhere")
    with pytest.raises(InvalidArgument):
        await app.emit_event(event, payload)


@pytest.mark.parametrize("task_id", ["", "seven", 7, None, b"x", object()])
async def test_refuses_invalid_task_ids(task_id: Any) -> None:
    app = AsyncDurable("postgresql://nobody@127.0.0.1:1/nowhere")
    for method in (app.cancel, app.retry, app.get_result):
        with pytest.raises(InvalidArgument, match="UUID"):
            await method(task_id)
    with pytest.raises(InvalidArgument, match="UUID"):
        app.handle(task_id)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"concurrency": "9"},
        {"lease": 0},
        {"lease": -1},
        {"poll": 0},
        {"shutdown_timeout": math.nan},
        {"queues": "default"},
        {"queues": [""]},
        {"concurency": 9},
    ],
)
def test_refuses_invalid_worker_options(options: Any) -> None:
    for make in (AsyncDurable, Durable):
        with pytest.raises(InvalidArgument):
            make("dbname=nowhere").worker(**options)


async def test_drains_only_while_it_runs(app: AsyncDurable) -> None:
    worker = app.worker()
    with pytest.raises(RuntimeError, match="is not running"):
        await worker.drain()
    async with worker:
        assert await worker.drain() == 0
    with pytest.raises(RuntimeError, match="is not running"):
        await worker.drain()


# -- results -------------------------------------------------------------------------


async def test_reports_the_states_of_a_task(app: AsyncDurable) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    @task
    async def dawdle(params: None, ctx: TaskContext) -> int:
        entered.set()
        await leave.wait()
        if ctx.attempt == 1:
            raise ValueError
        await ctx.await_event("go")
        return 7

    app.register(dawdle)
    handle = await app.spawn(dawdle, retry=Retry.fixed(0))
    assert await handle.state() == "pending"
    async with app.worker():
        await entered.wait()
        assert await handle.state() == "running"
        leave.set()

        async def sleeps() -> bool:
            return await handle.state() == "sleeping"

        await aeventually(sleeps)
        await app.emit_event("go")
        assert await handle.result(timeout=10) == 7
    assert await handle.state() == "completed"


async def test_returns_the_state_of_a_task_without_waiting(app: AsyncDurable) -> None:
    handle = await app.spawn(Charge, Order(id=7))
    failing = await app.spawn(explode, "bang")
    cancelled = await app.spawn(tick)
    await app.cancel(cancelled, reason="enough")
    before = await app.get_result(handle)
    assert (before.state, before.finished, before.result) == ("pending", False, None)
    async with app.worker() as worker:
        await worker.drain()
    done = await app.get_result(handle)
    assert done == TaskResult(
        handle.task_id, "completed", 1, Receipt(order=7, total=1), None
    )
    assert done.finished
    assert (await app.get_result(handle.task_id)).result == {"order": 7, "total": 1}
    failed = await app.get_result(failing)
    assert (failed.state, failed.result) == ("failed", None)
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("KeyError", "'bang'")
    assert "raise KeyError(text)" in (failed.error.traceback or "")
    ended = await app.get_result(cancelled)
    assert (ended.state, ended.result) == ("cancelled", None)
    assert ended.error is not None
    assert ended.error.message == "enough"


async def test_raises_the_error_of_a_failed_task(app: AsyncDurable) -> None:
    handle = await app.spawn(explode, "bang")
    async with app.worker():
        with pytest.raises(TaskFailed, match="KeyError: 'bang'") as failure:
            await handle.result(timeout=10)
    assert failure.value.error.type == "KeyError"
    assert "explode" in (failure.value.error.traceback or "")


async def test_result_times_out(app: AsyncDurable) -> None:
    handle = await app.spawn(tick)
    for timeout in (0, 0.02, timedelta(milliseconds=20)):
        with pytest.raises(TimeoutError, match="still pending"):
            await handle.result(timeout=timeout)
    for bad in (-1, math.nan, math.inf, "1", True):
        with pytest.raises(InvalidArgument):
            await handle.result(timeout=bad)  # type: ignore[arg-type]


async def test_raises_for_an_unknown_task(app: AsyncDurable) -> None:
    handle = app.handle(NOBODY)
    calls: list[Awaitable[object]] = [
        handle.result(),
        handle.state(),
        handle.snapshot(),
        app.get_result(NOBODY),
        app.cancel(NOBODY),
        app.retry(str(NOBODY)),
    ]
    for call in calls:
        with pytest.raises(NotFound, match=str(NOBODY)):
            await call


# -- cancelling, retrying, events ----------------------------------------------------


async def test_refuses_a_queue_other_than_the_handles(app: AsyncDurable) -> None:
    handle = await app.spawn(tick)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: app.cancel(handle, queue="other"),
        lambda: app.retry(handle, queue="other"),
        lambda: app.get_result(handle, queue="other"),
        lambda: app.export_history(handle, queue="other"),
        lambda: app.send(handle, "topic", queue="other"),
        lambda: app.set_version("1", task=handle, queue="other"),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="is in the queue 'default'"):
            await call()
    assert await app.cancel(handle, queue="default") is True


async def test_cancels_by_handle_id_or_text(app: AsyncDurable) -> None:
    for form in (lambda handle: handle, lambda h: h.task_id, lambda h: str(h.task_id)):
        handle = await app.spawn(tick)
        assert await app.cancel(form(handle), reason="sold\nout") is True
        assert await app.cancel(form(handle), reason="again") is False
        with pytest.raises(TaskCancelled) as cancelled:
            await handle.result()
        assert cancelled.value.reason == "sold\nout"
    (listed,) = await app.list_tasks(limit=1)
    assert await app.cancel(listed) is False
    reasons: list[Any] = ["a\0b", "\ud800", 7]
    for reason in reasons:
        with pytest.raises(InvalidArgument):
            await app.cancel(NOBODY, reason=reason)


async def test_retries_only_failed_and_cancelled_tasks(app: AsyncDurable) -> None:
    done, failing = await app.spawn(tick), await app.spawn(explode, "bang")
    with pytest.raises(AlreadyFinished, match="pending"):
        await app.retry(failing)
    async with app.worker() as worker:
        await worker.drain()
        with pytest.raises(AlreadyFinished, match="completed"):
            await app.retry(done)
        again = await app.retry(failing)
        assert again == failing
        assert (again.attempt, again.created) == (2, False)
        assert again.run_id != failing.run_id
        await worker.drain()
        anew: AsyncTaskHandle[Any] = await app.retry(
            failing.task_id, spawn_new=True, max_attempts=1
        )
        assert anew != failing
        assert (anew.attempt, anew.created) == (1, True)
        await worker.drain()
        with pytest.raises(InvalidArgument, match="max_attempts"):
            await app.retry(failing, max_attempts=2)
    assert await anew.state() == "failed"


async def test_emits_an_event_once(app: AsyncDurable, db: psycopg.Connection) -> None:
    assert await app.emit_event("packed:7", Receipt(order=7, total=1)) is True
    assert await app.emit_event("packed:7", "ignored") is False
    assert await app.emit_event("packed:8") is True
    events = db.execute("select name, payload from durable.events order by name")
    assert events.fetchall() == [
        ("packed:7", {"order": 7, "total": 1}),
        ("packed:8", None),
    ]


# -- the address of the database -----------------------------------------------------


async def test_reads_its_database_from_the_environment(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    async with AsyncDurable() as app:
        assert await app.list_queues() == ["default"]
    with Durable(tasks=TASKS) as sync_app:
        assert sync_app.list_queues() == ["default"]


def test_needs_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_DATABASE_URL", raising=False)
    with pytest.raises(InvalidArgument, match="DURABLE_DATABASE_URL"), Durable():
        pass
    for make in (AsyncDurable, Durable):
        with pytest.raises(InvalidArgument, match="DURABLE_DATABASE_URL"):
            make("")
        with pytest.raises(TypeError, match="AsyncConnectionPool for AsyncDurable"):
            make(7)  # type: ignore[arg-type]


async def test_connects_where_a_pool_with_an_empty_address_connects(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libpq completes an empty address from its environment variables."""
    for key, value in conninfo_to_dict(dsn).items():
        name = "DATABASE" if key == "dbname" else key.upper()
        monkeypatch.setenv(f"PG{name}", str(value))
    async with (
        AsyncConnectionPool("", open=False) as pool,
        AsyncDurable(pool, queue="orders", tasks=TASKS) as app,
    ):
        await app.migrate()
        handle = await app.spawn(Charge, Order(id=7))
        async with app.worker():
            await handle.result(timeout=30)


def test_accepts_only_a_pool_of_its_own_kind(dsn: str) -> None:
    with pytest.raises(TypeError, match="ConnectionPool"):
        AsyncDurable(ConnectionPool(dsn, open=False))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="AsyncConnectionPool"):
        Durable(AsyncConnectionPool(dsn, open=False))  # type: ignore[arg-type]


async def test_uses_a_given_pool_and_leaves_it_open(dsn: str) -> None:
    rows = {"row_factory": dict_row}
    async with AsyncConnectionPool(dsn, open=False, kwargs=rows) as pool:
        async with AsyncDurable(pool, queue="orders", tasks=TASKS) as app:
            await app.migrate()
            await app.migrate()
            handle = await app.spawn(Charge, Order(id=7))
            async with app.worker():
                assert await handle.result(timeout=10) == Receipt(order=7, total=1)
        assert not pool.closed
        assert await handle.state() == "completed"


async def test_opens_a_given_pool_that_is_closed(dsn: str) -> None:
    nowhere, dbname = with_dbname(dsn, "nowhere"), dsn.rpartition("/")[2].split("?")[0]
    pool = AsyncConnectionPool(nowhere, open=False, kwargs={"dbname": dbname})
    async with AsyncDurable(pool, tasks=TASKS) as app:
        handle = await app.spawn(tick)
        async with app.worker():  # the client's own connections use the same address
            assert await handle.result(timeout=10) == "tock"
    await pool.close()


async def test_can_be_closed_and_opened_again(dsn: str) -> None:
    app = AsyncDurable(dsn, tasks=TASKS)
    async with app:
        handle = await app.spawn(tick)
    for _ in range(2):
        async with app:
            assert await handle.state() == "pending"
        with pytest.raises(RuntimeError, match="closed"):
            await handle.state()


async def test_works_without_being_opened(dsn: str) -> None:
    app = AsyncDurable(dsn)
    assert await app.list_queues() == ["default"]
    await app.close()


async def test_recovers_when_its_idle_connection_was_lost(
    app: AsyncDurable, db: psycopg.Connection
) -> None:
    await app.list_queues()
    db.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    assert await app.list_queues() == ["default"]


async def test_works_under_any_database_settings(
    dsn: str, db: psycopg.Connection
) -> None:
    for setting in ("datestyle = German", 'timezone = "Pacific/Chatham"'):
        db.execute(f'alter database "{db.info.dbname}" set {setting}')
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        handle = await app.spawn(Charge, Order(id=7), execution_timeout=60)
        assert (await app.queue_stats()).oldest_ready_at is not None
        async with app.worker():
            assert await handle.result(timeout=10) == Receipt(order=7, total=1)


def test_has_a_readable_repr() -> None:
    assert repr(AsyncDurable("dbname=x", queue="orders")) == (
        "<AsyncDurable on queue 'orders'>"
    )


# -- the synchronous client ----------------------------------------------------------


def test_the_synchronous_client_does_the_same(sync_app: Durable) -> None:
    app = sync_app
    app.migrate()
    handle = app.spawn(Charge, Order(id=7))
    assert isinstance(handle, TaskHandle)
    many = app.spawn_many([(Greet, "you"), ("explode", "bang", {"max_attempts": 1})])
    waiting = app.spawn(tick)
    assert app.cancel(waiting) is True
    with app.worker(concurrency=5) as worker:
        assert handle.result(timeout=10) == Receipt(order=7, total=1)
        assert many[0].result(timeout=10) == "hello you"
        with pytest.raises(TaskFailed, match="bang"):
            many[1].result(timeout=10)
        assert app.retry(many[1]).attempt == 2
        assert worker.drain() >= 1
    with pytest.raises(TaskCancelled):
        waiting.result()
    assert app.emit_event("packed", {"a": 1}) is True
    assert app.get_result(many[1]).attempt == 2
    assert app.queue_stats().completed == 2
    assert app.handle(handle.task_id, Charge).snapshot().result == handle.result()
    with pytest.raises(NotFound):
        app.handle(NOBODY).result()
    with pytest.raises(TimeoutError):
        app.spawn(tick).result(timeout=0.01)


def test_is_thread_safe(sync_app: Durable) -> None:
    handles: list[TaskHandle[str]] = []
    threads = [
        threading.Thread(target=lambda: handles.append(sync_app.spawn(tick)))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    with sync_app.worker():
        eventually(lambda: len(handles) == len(threads))
        results = [handle.result(timeout=10) for handle in handles]
    for thread in threads:
        thread.join()
    assert results == ["tock"] * 20
