"""A patch sends new tasks the new way and old ones the old way, at every replay."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg
import pytest

from durable import NonDeterminism, SyncTaskContext, TaskContext, task
from durable.testing import check_replay
from tests.support.changing import GO, changed, deployed
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]
Sync: TypeAlias = SyncTaskContext[Any]
NAMES = "select name from durable.checkpoints where task_id = %s order by saved_at"

one = int


async def old(params: None, ctx: Context) -> str:
    await ctx.step("charge", one)
    await ctx.await_event(GO)
    return "old"


async def new(params: None, ctx: Context) -> str:
    way = "old"
    if await ctx.patched("authorize"):
        way = "new"
        await ctx.step("authorize", one)
    else:
        await ctx.step("charge", one)
    await ctx.await_event(GO)
    return way


async def newest(params: None, ctx: Context) -> str:
    ctx.deprecate_patch("authorize")
    await ctx.step("authorize", one)
    await ctx.await_event(GO)
    return "newest"


async def bare(params: None, ctx: Context) -> str:
    await ctx.step("authorize", one)
    await ctx.await_event(GO)
    return "bare"


def old_sync(params: None, ctx: Sync) -> str:
    ctx.step("charge", one)
    ctx.await_event(GO)
    return "old"


def new_sync(params: None, ctx: Sync) -> str:
    way = "old"
    if ctx.patched("authorize"):
        way = "new"
        ctx.step("authorize", one)
    else:
        ctx.step("charge", one)
    ctx.await_event(GO)
    return way


def newest_sync(params: None, ctx: Sync) -> str:
    ctx.deprecate_patch("authorize")
    ctx.step("authorize", one)
    ctx.await_event(GO)
    return "newest"


def bare_sync(params: None, ctx: Sync) -> str:
    ctx.step("authorize", one)
    ctx.await_event(GO)
    return "bare"


ASYNC = (old, new, newest, bare)
SYNC = (old_sync, new_sync, newest_sync, bare_sync)


def strict(name: str, code: Any) -> Any:
    return task(name=name, replay_check="strict", max_attempts=1)(code)


@pytest.mark.parametrize("code", [ASYNC, SYNC], ids=["async", "sync"])
async def test_repeats_its_decision(
    dsn: str, db: psycopg.Connection, code: tuple[Any, ...]
) -> None:
    old, new, newest, bare = code
    ways = [
        ("old task", old, new),
        ("new task", new, new),
        ("no old way", new, newest),
        ("never patched", newest, newest),
        ("forgotten", new, bare),
    ]
    first = {name: strict(name, code) for name, code, _ in ways}
    then = {name: strict(name, code) for name, _, code in ways}
    found = await deployed(dsn, first, then)
    assert {name: one.result for name, one in found.items()} == {
        "old task": "old",
        "new task": "new",
        "no old way": "newest",
        "never patched": "newest",
        "forgotten": None,
    }
    error = found["forgotten"].error
    assert error is not None
    assert "'$patch:authorize'" in error.message
    rows = db.execute(NAMES, [found["old task"].task_id]).fetchall()
    assert rows == [("charge",), (f"$event:{GO}",)]  # a negative answer costs nothing
    rows = db.execute(NAMES, [found["new task"].task_id]).fetchall()
    assert rows[0] == ("$patch:authorize",)


async def test_answers_the_same_whatever_was_recorded_since(dsn: str) -> None:
    """The old code runs for several claims, and answers no in each."""
    said: list[bool] = []

    async def start(params: None, ctx: Context) -> None:
        await ctx.step("a", one)
        await ctx.step("b", one)
        await ctx.await_event(GO)

    async def patched(params: None, ctx: Context) -> None:
        await ctx.step("a", one)
        said.append(await ctx.patched("p"))
        await ctx.step("b", one)
        await ctx.await_event(GO)
        for number in range(3):
            await ctx.step(f"later {number}", one)
            await ctx.sleep_for(f"nap {number}", 0.01)

    code = strict("t", patched)
    found = await changed(dsn, start, code)
    async with working(dsn, code) as (app, _):
        await app.handle(found.task_id).result(timeout=20)
    assert len(said) > 2
    assert not any(said)


async def test_decides_for_each_use_of_its_name(
    dsn: str, db: psycopg.Connection
) -> None:
    async def loop(params: None, ctx: Context) -> list[bool]:
        for number in range(2):
            await ctx.step(f"{number}", one)
        await ctx.await_event(GO)
        return []

    async def patched(params: None, ctx: Context) -> list[bool]:
        said = []
        for number in range(4):
            said.append(await ctx.scope("in").patched("p"))
            await ctx.step(f"{number}", one)
            if number == 1:
                await ctx.await_event(GO)
        return said

    found = await changed(dsn, loop, strict("t", patched))
    assert found.result == [False, False, True, True]
    names = [name for (name,) in db.execute(NAMES, [found.task_id]).fetchall()]
    assert names[3::2] == ["$patch:in/p#3", "$patch:in/p#4"]


def test_can_be_checked_without_a_database() -> None:
    def history(*names: str) -> dict[str, Any]:
        rows = [
            {"name": name, "position": number, "after": number - 1, "value": value}
            for number, name in enumerate(names, 1)
            for value in [name.startswith("$patch") or 1]
        ]
        return {"version": 1, "name": "t", "params": None, "checkpoints": rows}

    @task(name="t")
    async def patched(params: None, ctx: Context) -> str:
        return await new(params, ctx)

    check_replay(patched, history("charge", f"$event:{GO}"))
    check_replay(patched, history("$patch:authorize", "authorize", f"$event:{GO}"))
    with pytest.raises(NonDeterminism):
        check_replay(patched, history("authorize", f"$event:{GO}"))
    with pytest.raises(NonDeterminism):
        check_replay(patched, history("$patch:authorize", "charge"))
