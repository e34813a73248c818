"""Headers and the caller's identity pass from a task to all tasks it spawns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    SyncTaskContext,
    Task,
    TaskContext,
    task,
)
from durable.options import JSON

ADA = {"user": "ada", "roles": ["ops"]}


def seen(ctx: TaskContext | SyncTaskContext) -> list[Any]:
    return [dict(ctx.headers), ctx.identity]


@task
async def leaf(_: None, ctx: TaskContext) -> list[Any]:
    return seen(ctx)


class Middle(Task[dict[str, Any], list[Any]]):
    headers: ClassVar[Mapping[str, JSON]] = {"of": "class", "class": True}

    def run(self, options: dict[str, Any], ctx: SyncTaskContext) -> list[Any]:
        (child,) = ctx.spawn_many("leaf", leaf, [None], **options)
        return [*seen(ctx), *ctx.join(child)]


@task
async def top(options: list[dict[str, Any]], ctx: TaskContext) -> list[Any]:
    below, own = options
    child = await ctx.spawn("middle", Middle, below, **own)
    return [*seen(ctx), *await ctx.join(child)]


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[AsyncDurable]:
    async with AsyncDurable(dsn, tasks=[leaf, Middle, top]) as app, app.worker():
        yield app


async def ran(app: AsyncDurable, own: Any, below: Any, **options: Any) -> list[Any]:
    """Return headers and identity of three generations."""
    handle = await app.spawn(top, [below, own], **options)
    return await handle.result(20)


async def test_pass_from_generation_to_generation(app: AsyncDurable) -> None:
    found = await ran(app, {}, {}, headers={"t": 1, "of": "top"}, identity=ADA)
    middle = {"t": 1, "of": "class", "class": True}
    assert found == [{"t": 1, "of": "top"}, ADA, middle, ADA, middle, ADA]


async def test_a_childs_own_take_precedence(app: AsyncDurable) -> None:
    bob = {"user": "bob"}
    own = {"headers": {"t": 2}, "identity": bob}
    found = await ran(app, own, {"headers": {"x": 3}}, headers={"t": 1}, identity=ADA)
    middle = {"t": 2, "of": "class", "class": True}
    assert found == [{"t": 1}, ADA, middle, bob, {**middle, "x": 3}, bob]


async def test_can_be_reset(app: AsyncDurable) -> None:
    own, below = {"headers": None}, {"identity": None}
    found = await ran(app, own, below, headers={"t": 1}, identity=ADA)
    assert found == [{"t": 1}, ADA, {}, ADA, {}, None]


async def test_are_empty_by_default(app: AsyncDurable, db: psycopg.Connection) -> None:
    handle = await app.spawn(leaf)
    assert await handle.result(20) == [{}, None]
    query = "select headers from durable.tasks where task_id = %s"
    assert db.execute(query, [handle.task_id]).fetchone() == (None,)


async def test_are_kept_by_retries_and_respawns(
    dsn: str, db: psycopg.Connection
) -> None:
    @task(max_attempts=1)
    async def stubborn(_: None, ctx: TaskContext) -> list[Any]:
        if ctx.attempt == 1 and ctx.run_id is not None:
            raise ValueError(str(seen(ctx)))
        return seen(ctx)

    async with AsyncDurable(dsn, tasks=[stubborn]) as app, app.worker() as worker:
        handle = await app.spawn(stubborn, headers={"h": 1}, identity=ADA)
        await worker.drain()
        anew = await app.retry(handle, spawn_new=True)
        again = await app.retry(handle)
        await worker.drain()
        assert await again.result(10) == [{"h": 1}, ADA]
        with pytest.raises(Exception, match="ada"):
            await anew.result(10)


@pytest.mark.parametrize("identity", ["ada", ["ada"], {"at": object()}, {"x": "\0"}])
def test_refuse_an_invalid_identity(dsn: str, identity: Any) -> None:
    with Durable(dsn) as app, pytest.raises(InvalidArgument, match="identity"):
        app.spawn("x", identity=identity)


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ('{"identity": {"user": "u"}}', {"durable:identity": {"user": "u"}}),
        (
            '{"identity": {"user": "u"}, "headers": {"a": 1}}',
            {"a": 1, "durable:identity": {"user": "u"}},
        ),
        ('{"identity": null, "headers": {"a": 1}}', {"a": 1}),
        ('{"identity": null}', None),
    ],
)
def test_are_options_in_sql(
    db: psycopg.Connection, options: str, headers: Mapping[str, Any] | None
) -> None:
    db.execute("select durable.spawn('default', 'x', '{}', %s)", [options])
    assert db.execute("select headers from durable.tasks").fetchone() == (headers,)


@pytest.mark.parametrize("identity", ['"ada"', "[]", "1"])
def test_must_be_json_objects_in_sql(db: psycopg.Connection, identity: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="identity"):
        db.execute(
            "select durable.spawn('default', 'x', '{}', %s)",
            [f'{{"identity": {identity}}}'],
        )
