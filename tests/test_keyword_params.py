"""A task may take no params, or keyword parameters of its own: one JSON object."""

from __future__ import annotations

import functools
from datetime import date
from typing import Annotated, Any, TypeAlias

import psycopg
import pytest
from pydantic import BaseModel, Field, ValidationError

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskFailed,
    task,
)
from durable.registry import AnyTask, define
from durable.testing import AppFactory, assert_spawned, check_replay, run_inline
from tests.support.working import outcome, working

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]


class Item(BaseModel):
    name: str
    pieces: int = 1


class Ship(Task[Any, str, ...]):
    name = "ship-as-class"

    async def run(self, ctx: Context, *, order_id: int, notify: bool = True) -> str:
        return await ctx.step("ship", shipped, order_id, notify)


class ShipSync(Task[Any, str, ...]):
    def run(self, ctx: SyncContext, *, order_id: int, notify: bool = True) -> str:
        return ctx.step("ship", shipped, order_id, notify)


@task
async def ship(ctx: Context, *, order_id: int, notify: bool = True) -> str:
    return await ctx.step("ship", shipped, order_id, notify)


@task(name="ship-by-truck")
def ship_sync(
    context: SyncTaskContext[Any], *, order_id: int, notify: bool = True
) -> str:
    return context.step("ship", shipped, order_id, notify)


class Nightly(Task[Any, int, ...]):
    async def run(self, ctx: Context) -> int:
        return ctx.attempt


@task
def nightly_sync(ctx: SyncContext) -> int:
    return ctx.attempt


@task
async def with_types(
    ctx: Context,
    *,
    item: Item,
    due: date,
    pieces: Annotated[int, Field(gt=0)] = 1,
    anything: Any = None,
) -> list[Any]:
    return [type(item).__name__, item.pieces, due.isoformat(), pieces, anything]


@task
async def parent(ctx: Context) -> list[str]:
    one = await ctx.spawn("one", Ship, {"order_id": 1})
    called = await ctx.call("called", ship, ship.params(order_id=2, notify=False))
    crowd = await ctx.spawn_many("crowd", ship, [{"order_id": n} for n in (3, 4)])
    return [await ctx.join(one), called, *await ctx.gather(*crowd)]


def shipped(order_id: int, notify: bool) -> str:  # noqa: FBT001 - as in a task
    return f"{order_id} {notify}"


ALL: list[AnyTask] = [Ship, ShipSync, ship, ship_sync, Nightly, nightly_sync]
SHIPPING: list[AnyTask] = [Ship, ShipSync, ship, ship_sync]


@pytest.mark.parametrize("shipping", SHIPPING)
async def test_takes_its_own_keyword_parameters(dsn: str, shipping: AnyTask) -> None:
    found = await outcome(dsn, shipping, {"order_id": 7})
    assert found.result == "7 True"
    found = await outcome(dsn, shipping, {"order_id": "7", "notify": False})
    assert found.result == "7 False"


@pytest.mark.parametrize("nightly", [Nightly, nightly_sync])
async def test_takes_no_params(
    dsn: str, db: psycopg.Connection, nightly: AnyTask
) -> None:
    """Its params are `{}`, which is SQL's default, so a key stands for the same."""
    async with working(dsn, nightly) as (app, worker):
        handles = [
            await app.spawn(nightly, idempotency_key="night"),
            await app.spawn(nightly, {}),
            await app.spawn(nightly, None),
        ]
        spawn = "select created from durable.spawn('default', %s, %s, %s)"
        again = [nightly.name, "{}", '{"idempotency_key": "night"}']
        assert db.execute(spawn, again).fetchone() == (False,)
        db.execute(spawn, [nightly.name, "null", "{}"])
        await worker.drain()
        assert [await handle.result() for handle in handles] == [1, 1, 1]
        assert_spawned(app, nightly, {}, times=4)
    states = db.execute("select distinct state::text from durable.tasks").fetchall()
    assert states == [("completed",)]


async def test_a_parameter_has_its_type(dsn: str) -> None:
    params = {"item": {"name": "tea", "pieces": 2}, "due": date(2026, 1, 2)}
    found = await outcome(dsn, with_types, params)
    assert found.result == ["Item", 2, "2026-01-02", 1, None]
    given = with_types.params(item=Item(name="tea"), due=date(2026, 1, 2), pieces=3)
    found = await outcome(dsn, with_types, given)
    assert found.result == ["Item", 1, "2026-01-02", 3, None]


async def test_is_spawned_in_every_way(dsn: str, adb: psycopg.AsyncConnection) -> None:
    async with working(dsn, ship) as (app, worker):
        many = await app.spawn_many(ship, [{"order_id": 1}, ship.params(order_id=2)])
        many += await app.spawn_many([("ship", {"order_id": 3}, {"max_attempts": 1})])
        async with adb.transaction():
            many.append(await app.spawn_with(adb, ship, {"order_id": 4}))
        with Durable(dsn, tasks=[ship]) as blocking:
            other = blocking.spawn(ship, ship.params(order_id=5))
        with Durable(dsn) as elsewhere:
            elsewhere.spawn("ship", {"order_id": 6})
        await adb.execute(
            """select durable.spawn('default', 'ship', '{"order_id": 7}')"""
        )
        await worker.drain()
        results = [await handle.result() for handle in many]
        assert results == ["1 True", "2 True", "3 True", "4 True"]
        assert await app.handle(other.task_id).result() == "5 True"
        for order_id in range(1, 8):
            assert_spawned(app, ship, {"order_id": order_id}, times=1)


async def test_is_spawned_as_a_child(dsn: str) -> None:
    async with working(dsn, parent, Ship, ship) as (app, worker):
        handle = await app.spawn(parent)
        await worker.drain()
        assert await handle.result() == ["1 True", "2 False", "3 True", "4 True"]


async def test_a_fork_and_a_retry_take_other_parameters(dsn: str) -> None:
    async with working(dsn, ship) as (app, worker):
        handle = await app.spawn(ship, {"order_id": 1})
        await worker.drain()
        fork = await handle.fork(before="ship", params={"order_id": 2})
        await worker.drain()
        assert await fork.result() == "2 True"
        with pytest.raises(InvalidArgument, match="no parameter order"):
            await handle.fork(params={"order": 2})


MISTAKES: list[tuple[Any, str]] = [
    ({"oder_id": 7}, "has no parameter oder_id: did you mean order_id?"),
    ({"order_id": 7, "x": 1}, "has no parameter x: it has order_id, notify"),
    ({"order_id": 7, 8: 1}, "has no parameter 8: it has order_id, notify"),
    ({}, "needs the parameter order_id"),
    ({"notify": True}, "needs the parameter order_id"),
    (None, "needs the parameter order_id"),
    (7, "takes its parameters by name, as a dict, not int"),
    (["order_id"], "takes its parameters by name, as a dict, not list"),
]


@pytest.mark.parametrize(("params", "words"), MISTAKES)
@pytest.mark.parametrize("shipping", SHIPPING)
async def test_names_a_wrong_parameter_before_anything_is_written(
    dsn: str, db: psycopg.Connection, shipping: AnyTask, params: Any, words: str
) -> None:
    async with AsyncDurable(dsn, tasks=[shipping]) as app:
        with pytest.raises(InvalidArgument) as refused:
            await app.spawn(shipping, params)
        assert str(refused.value).startswith(f'task "{shipping.name}" {words}')
        with pytest.raises(InvalidArgument):
            await app.spawn_many(shipping, [{"order_id": 1}, params])
    assert db.execute("select from durable.tasks").fetchall() == []


@pytest.mark.parametrize("nightly", [Nightly, nightly_sync])
async def test_a_task_without_params_takes_none(dsn: str, nightly: AnyTask) -> None:
    async with AsyncDurable(dsn, tasks=[nightly]) as app:
        with pytest.raises(InvalidArgument, match="has no parameter x: it has none"):
            await app.spawn(nightly, {"x": 1})
        with pytest.raises(InvalidArgument, match="by name, as a dict, not int"):
            await app.spawn(nightly, 7)


async def test_a_value_of_another_type_is_refused_by_pydantic(dsn: str) -> None:
    async with AsyncDurable(dsn) as app:
        with pytest.raises(ValidationError, match="order_id"):
            await app.spawn(Ship, {"order_id": "seven"})
        with pytest.raises(ValidationError, match="pieces"):
            await app.spawn(
                with_types, {"item": {"name": "tea"}, "due": "2026-01-02", "pieces": 0}
            )


async def test_a_task_that_sql_spawned_with_a_wrong_parameter_fails(
    dsn: str, db: psycopg.Connection
) -> None:
    spawn = "select task_id from durable.spawn('default', 'ship', %s)"
    async with working(dsn, ship) as (app, worker):
        for params, words in (
            ('{"oder_id": 7}', "did you mean order_id?"),
            ("{}", "needs the parameter order_id"),
            ("7", "by name, as a dict"),
            ('{"order_id": "seven"}', "order_id"),
        ):
            (task_id,) = db.execute(spawn, [params]).fetchone() or ()
            await worker.drain()
            with pytest.raises(TaskFailed) as failed:
                await app.handle(task_id).result()
            assert words in str(failed.value)


async def test_announces_the_schema_of_its_parameters(dsn: str) -> None:
    async with working(dsn, ship, Nightly) as (app, worker):
        await worker.drain()
        found = {one.name: one.params_schema for one in await app.list_definitions()}
    assert found["ship"] == {
        "title": "ship",
        "type": "object",
        "properties": {
            "order_id": {"title": "Order Id", "type": "integer"},
            "notify": {"title": "Notify", "type": "boolean"},
        },
        "required": ["order_id"],
        "additionalProperties": False,
    }
    assert found["nightly"] == {
        "title": "nightly",
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }


async def test_runs_inline_and_replays_its_history(
    durable_app: AppFactory[AsyncDurable],
) -> None:
    async with durable_app(tasks=[ship]) as app:
        assert await run_inline(app, ship, {"order_id": 7}) == "7 True"
        (found,) = await app.list_tasks()
        check_replay(ship, await app.export_history(found))


async def test_can_be_called_without_a_worker() -> None:
    called = await Nightly().run(type("Context", (), {"attempt": 3})())
    assert called == 3


@functools.cache
def signatures() -> dict[str, Any]:
    def positional_after_the_context(ctx: Context, order_id: int) -> None: ...
    def two_positional(ctx: Context, order_id: int, notify: bool) -> None: ...  # noqa: FBT001
    def without_context(order_id: int) -> None: ...
    def only_keywords(*, ctx: Context, order_id: int) -> None: ...
    def params_and_keywords(order: Item, ctx: Context, *, notify: bool) -> None: ...
    def any_keywords(ctx: Context, **keywords: int) -> None: ...
    def nothing() -> None: ...

    return locals()


@pytest.mark.parametrize("name", list(signatures()))
def test_refuses_other_signatures(name: str) -> None:
    function = signatures()[name]
    with pytest.raises(TypeError, match=f"{name} must take"):
        task(function)
    with pytest.raises(TypeError, match=r"Wrong.run must take"):
        define(type("Wrong", (Task,), {"run": staticmethod(function)}))


def test_keyword_defaults_may_follow_params_and_context() -> None:
    """As before: they are not parameters of the task."""

    @task
    def with_default(item: Item, ctx: SyncContext, *, debug: bool = False) -> None: ...

    @task
    def with_any(*args: Any, **keywords: Any) -> None: ...

    assert define(with_default).params_codec.type is Item
    assert define(with_any).params_codec.type is Any
