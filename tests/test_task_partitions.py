"""Tasks have the partition key and the priority that their definition says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    Schedule,
    SyncTaskContext,
    Task,
    TaskContext,
    task,
)
from durable.registry import define


class Order(BaseModel):
    tenant: str
    id: int = 0


class Mail(Task[Order, None]):
    priority = 5

    def partition_key(self, params: Order) -> str | None:
        return params.tenant or None

    async def run(self, params: Order, ctx: TaskContext) -> None: ...


@task(priority=-1, partition_key=lambda params: params["tenant"])
def ship(ctx: SyncTaskContext, *, tenant: str) -> None: ...


@task(partition_key="stripe")
async def charge(params: Order, ctx: TaskContext) -> None: ...


@task
async def parent(order: Order, ctx: TaskContext) -> None:
    await ctx.spawn("default", Mail, order)
    await ctx.spawn_many("all", Mail, [order])
    await ctx.spawn("given", Mail, order, partition_key="given", priority=9)


ADA: Any = {"tenant": "ada"}
TASKS: list[Any] = [Mail, ship, charge, parent]


@pytest.fixture
def app(dsn: str) -> Iterator[Durable]:
    with Durable(dsn, tasks=TASKS) as app:
        app.create_queue(priorities=True)
        yield app


def lanes(db: psycopg.Connection, name: str = "mail") -> list[tuple[Any, ...]]:
    """Return the partition keys and priorities of the tasks with a name."""
    return db.execute(
        "select partition_key, priority from durable.task_list where name = %s"
        " order by task_id",
        [name],
    ).fetchall()


def test_apply_wherever_a_client_names_the_task(
    app: Durable, dsn: str, db: psycopg.Connection
) -> None:
    app.spawn(Mail, Order(tenant="ada"))
    app.spawn("mail", ADA)
    app.spawn_many(Mail, [ADA, {"tenant": "bob"}])
    app.spawn_many([(Mail, ADA), (Mail, ADA, {"priority": 1})])
    app.spawn_in_batches([(Mail, ADA)])
    with psycopg.connect(dsn) as session:
        app.spawn_with(session, Mail, ADA)
    assert lanes(db) == [
        *[("ada", 5)] * 3,
        ("bob", 5),
        ("ada", 5),
        ("ada", 1),
        *[("ada", 5)] * 2,
    ]
    app.spawn(ship, {"tenant": "cy"})
    app.spawn(charge, ADA)
    assert (lanes(db, "ship"), lanes(db, "charge")) == ([("cy", -1)], [("stripe", 0)])


def test_a_spawn_overrides_them(app: Durable, db: psycopg.Connection) -> None:
    app.spawn(Mail, ADA, partition_key="given")
    app.spawn(Mail, ADA, priority=9)
    app.spawn(Mail, ADA, partition_key=None, priority=None)
    app.spawn("mail", {"tenant": ""})
    assert lanes(db) == [("given", 5), ("ada", 9), (None, 0), (None, 5)]


async def test_apply_to_children(dsn: str, db: psycopg.Connection) -> None:
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        await app.create_queue(priorities=True)
        handle = await app.spawn(parent, ADA)
        async with app.worker():
            await handle.result(timeout=30)
    assert lanes(db) == [("ada", 5), ("ada", 5), ("given", 9)]


async def test_apply_to_schedules_and_to_spawns_by_others(
    dsn: str, db: psycopg.Connection
) -> None:
    """A priority is announced by workers; a partition key needs the task's code."""
    async with AsyncDurable(dsn, tasks=TASKS) as app:
        await app.create_queue(priorities=True)
        async with app.worker():
            pass
        listed = await app.list_definitions()
        assert {one.name: one.options["priority"] for one in listed} == {
            "mail": 5,
            "ship": -1,
            "charge": None,
            "parent": None,
        }
        hourly = Schedule.every(3600, params=ADA, name="one")
        await app.create_schedule(Mail, hourly)
        await app.trigger_schedule("one")
        await app.create_schedule(
            Mail,
            Schedule.every(60, params=ADA, name="two", partition_key="x", priority=1),
        )
        await app.trigger_schedule("two")
    async with AsyncDurable(dsn) as other:
        await other.spawn("mail", ADA)
        await other.spawn("mail", ADA, priority=3)
    assert lanes(db) == [("ada", 5), ("x", 1), (None, 5), (None, 3)]


def test_are_ignored_in_a_queue_without_limits(
    dsn: str, db: psycopg.Connection
) -> None:
    """So one task suits every queue, and a limit that comes later changes no code."""
    with Durable(dsn, tasks=TASKS) as app:
        app.spawn(Mail, ADA)
        app.spawn_many(Mail, [ADA])
        app.spawn(Mail, ADA, unique={"key": "k"})
        app.create_schedule(Mail, Schedule.every(3600, params=ADA))
        app.trigger_schedule("mail")
        assert lanes(db) == [(None, None)] * 4
        with pytest.raises(InvalidArgument, match="neither limits nor priorities"):
            app.spawn(Mail, ADA, priority=5)
        with pytest.raises(InvalidArgument, match="neither limits nor priorities"):
            app.create_schedule(Mail, Schedule.every(60, params=ADA, priority=5))


def test_may_be_a_static_or_a_class_method_or_that_of_an_instance() -> None:
    class Static(Task[Order, None]):
        @staticmethod
        def partition_key(params: Order) -> str:
            return params.tenant

        def run(self, params: Order, ctx: SyncTaskContext) -> None: ...

    class OfClass(Static):
        @classmethod
        def partition_key(cls, params: Order) -> str:
            return f"{cls.__name__} {params.tenant}"

    class OfInstance(Mail):
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        def partition_key(self, params: Order) -> str:
            return self.prefix + params.tenant

    tasks: list[Any] = [Static, OfClass, OfInstance("a ")]
    found = [define(one).partition_key for one in tasks]
    keys = [key(Order(tenant="x")) for key in found if key is not None]
    assert keys == ["x", "OfClass x", "a x"]


def test_refuses_what_gives_no_partition_key(dsn: str) -> None:
    with pytest.raises(InvalidArgument, match=r"Bad: .*missing a required argument"):

        class Bad(Task[Order, None]):
            def partition_key(self, params: Order, more: str) -> str:  # type: ignore[override]
                return params.tenant + more

            def run(self, params: Order, ctx: SyncTaskContext) -> None: ...

    for key in (7, "", lambda: "x"):
        with pytest.raises(InvalidArgument, match="partition_key"):

            @task(partition_key=key)  # type: ignore[arg-type]
            def bad(params: Order, ctx: SyncTaskContext) -> None: ...

    @task(partition_key=lambda order: order.id)
    def number(order: Order, ctx: SyncTaskContext) -> None: ...

    with (
        Durable(dsn, tasks=[number]) as app,
        pytest.raises(InvalidArgument, match="a partition_key must be a str, not int"),
    ):
        app.spawn(number, ADA)
