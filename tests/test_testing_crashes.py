"""A user's task is killed at every boundary, and the outcome is reported."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
import pytest

from durable import AsyncDurable, Retry, SyncTaskContext, TaskContext, task
from durable.errors import InvalidArgument
from durable.testing import (
    AppFactory,
    CrashUnsafe,
    Life,
    crash_at,
    crash_everywhere,
    sync,
)

Apps = AppFactory[Any]

CHARGED: Final = "select who from public.charges"


def prepare(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("create table public.charges (who text, key text unique)")


def charge(who: str, key: str | None = None) -> str:
    """Charge again if called again without a key."""
    with psycopg.connect(os.environ["DURABLE_DATABASE_URL"], autocommit=True) as db:
        db.execute(
            "insert into public.charges values (%s, %s) on conflict do nothing",
            [who, key],
        )
    return f"charged {who}"


async def enter(conn: psycopg.AsyncConnection, who: str) -> None:
    await conn.execute("insert into public.charges values (%s)", [who])


@asynccontextmanager
async def shop() -> AsyncIterator[str]:
    yield "open"


@task
async def ship(who: str, ctx: TaskContext[str]) -> str:
    return await ctx.step("pack", lambda: f"{who}'s parcel")


@task
async def safe(who: str, ctx: TaskContext[str]) -> str:
    """Use several features, each in a way that survives a crash."""
    await ctx.step("charge", charge, who, f"charge-{ctx.task_id}")
    await ctx.transaction("enter", enter, who)
    await ctx.sleep_for("month", 30 * 86_400)
    child = await ctx.spawn("ship", ship, who)
    return f"{await ctx.await_event('paid')}: {await ctx.join(child)}, {ctx.state}"


@task
def safe_too(who: str, ctx: SyncTaskContext) -> str:
    return ctx.step("charge", charge, who, who)


@task
async def without_a_key(who: str, ctx: TaskContext) -> str:
    return await ctx.step("charge", charge, who)


@task
async def between_steps(who: str, ctx: TaskContext) -> None:
    await ctx.step("greet", lambda: None)
    charge(who)
    await ctx.step("thank", lambda: None)


@task
def between_steps_too(who: str, ctx: SyncTaskContext) -> None:
    ctx.step("greet", lambda: None)
    charge(who)
    ctx.step("thank", lambda: None)


@task(max_attempts=1)
async def tried_once(params: None, ctx: TaskContext) -> str:
    return await ctx.step("work", lambda: "done")


@task(max_attempts=2, retry=Retry.fixed(0))
async def without_its_table(params: None, ctx: TaskContext) -> str:
    return await ctx.step("charge", charge, "ada")


@task
async def moody(params: None, ctx: TaskContext) -> str:
    return str(os.getpid())


@pytest.mark.slow
async def test_proves_that_a_safe_task_survives_a_kill_anywhere(
    durable_app: Apps,
) -> None:
    report = await crash_everywhere(
        durable_app(tasks=[safe, ship], lifespan=shop),
        safe,
        "ada",
        prepare=prepare,
        effects=CHARGED,
        events={"paid": "cash"},
        only=lambda point: not point.startswith(("before:$", "during:$", "in:")),
    )
    assert report.undisturbed.output == "cash: ada's parcel, open"
    assert report.undisturbed.effects == [("ada",), ("ada",)]
    points = {life.point for life in report.lives} | set(report.missed)
    assert points >= {
        *["before:charge", "during:charge", "sent:charge", "after:charge"],
        *["before:enter", "during:enter", "sent:enter", "after:enter"],
        *["sent:$sleep:month", "after:$sleep:month", "sent:$spawn:ship"],
        *["before:ship:pack", "during:ship:pack", "sent:ship:$end"],
        *["sent:$event:paid", "sent:$join:ship", "sent:$end", "after:$end"],
    }
    assert all(life.died for life in report.lives)
    assert len(report.missed) <= 2, report.missed
    repeated = {life.point for life in report.lives if life.ran["charge"] == 2}
    assert repeated == {"during:charge"}
    assert "during:charge" in str(report)
    assert "charge ran 2 times" in str(report)


def test_proves_it_for_a_synchronous_task(durable_sync_app: Apps) -> None:
    report = sync.crash_everywhere(
        durable_sync_app(tasks=[safe_too]),
        safe_too,
        "ada",
        prepare=prepare,
        effects=CHARGED,
    )
    assert [life.point for life in report.lives] == [
        *["before:$run", "before:charge"],
        *["in:charge:insert#1:sent", "in:charge:insert#1:after"],
        *["during:charge", "sent:charge", "after:charge"],
        *["during:$end", "sent:$end", "after:$end"],
    ]


async def test_detects_a_step_that_must_not_be_repeated(durable_app: Apps) -> None:
    with pytest.raises(CrashUnsafe) as caught:
        await crash_everywhere(
            durable_app(tasks=[without_a_key]),
            without_a_key,
            "ada",
            prepare=prepare,
            effects=CHARGED,
            only=lambda point: ":charge" in point and "in:" not in point,
        )
    assert caught.value.points == ["during:charge"]
    text = str(caught.value)
    assert "without-a-key does not survive a kill at 1 of 4 boundaries" in text
    assert "effects: [('ada',), ('ada',)], undisturbed: [('ada',)]" in text
    assert "steps that ran: charge 2 times" in text
    assert 'crash_at("during:charge", …)' in text


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_detects_an_effect_outside_a_step(durable_app: Apps, colour: str) -> None:
    unsafe = between_steps if colour == "async" else between_steps_too
    with pytest.raises(CrashUnsafe) as caught:
        await crash_everywhere(
            durable_app(tasks=[unsafe]),
            unsafe,
            "ada",
            prepare=prepare,
            effects=CHARGED,
            only=lambda point: point.endswith(("thank", ":$end")),
        )
    behind = ["before:thank", "during:thank", "sent:thank", "after:thank"]
    assert caught.value.points == [*behind, "during:$end"]


async def test_kills_at_one_boundary(durable_app: Apps) -> None:
    seen: list[Life] = []

    async def count(database: str) -> int:
        session = await psycopg.AsyncConnection.connect(database)
        async with session:
            return (await session.execute(CHARGED)).rowcount

    life = await crash_at(
        "during:charge",
        durable_app(tasks=[without_a_key]),
        without_a_key,
        "ada",
        prepare=prepare,
        effects=count,
        check=seen.append,
    )
    assert (life.died, life.state, life.output) == (True, "completed", "charged ada")
    assert (life.effects, life.ran["charge"], life.attempts) == (2, 2, 2)
    assert seen == [life]


async def test_reports_the_outcome_of_a_task_with_one_attempt(
    durable_app: Apps,
) -> None:
    life = await crash_at(
        "sent:$end", durable_app(tasks=[tried_once]), tried_once, headers={"of": "x"}
    )
    assert life.state in {"completed", "failed"}
    life = await crash_at("before:work", durable_app(tasks=[tried_once]), tried_once)
    assert life.state == "failed"
    assert "$LeaseExpired" in str(life.error)


async def test_passes_every_life_to_a_check(durable_app: Apps) -> None:
    def check(life: Life) -> None:
        assert life.point is None, "killed"

    with pytest.raises(CrashUnsafe, match="check: killed"):
        await crash_everywhere(
            durable_app(tasks=[tried_once]),
            tried_once,
            max_attempts=2,
            check=check,
            only=lambda point: point == "after:work",
        )


async def test_reports_that_outputs_vary(durable_app: Apps) -> None:
    app = durable_app(tasks=[moody])
    with pytest.raises(CrashUnsafe, match=r"output: '\d+', undisturbed: '\d+'"):
        await crash_everywhere(app, moody, only=lambda point: point == "before:$run")
    await crash_everywhere(
        app, moody, compare=str.isdigit, only=lambda point: point == "before:$run"
    )


async def test_lists_the_boundaries(durable_app: Apps) -> None:
    app = durable_app(tasks=[tried_once])
    with pytest.raises(InvalidArgument, match="'work' is no boundary") as caught:
        await crash_at("work", app, tried_once)
    with pytest.raises(InvalidArgument, match='does not reach "before:x"') as caught:
        await crash_at("before:x", app, tried_once)
    assert "before:$run, before:work, during:work" in str(caught.value.hint)


async def test_refuses_a_task_that_fails_without_a_crash(durable_app: Apps) -> None:
    app = durable_app(tasks=[without_its_table])
    with pytest.raises(InvalidArgument, match="in all its 2 attempts: Undef") as caught:
        await crash_everywhere(app, without_its_table)  # and no prepare
    assert "`prepare`" in str(caught.value.hint)


async def test_refuses_a_task_that_another_process_cannot_import(
    durable_app: Apps,
) -> None:
    @task
    async def local(params: None, ctx: TaskContext) -> None: ...

    with pytest.raises(InvalidArgument, match="cannot import the task test_refuses_a"):
        await crash_everywhere(durable_app(tasks=[local]), local)


async def test_refuses_a_database_that_is_not_for_tests(dsn: str) -> None:
    app = AsyncDurable(dsn, tasks=[tried_once])
    with pytest.raises(InvalidArgument, match="a crash test is for a database that wa"):
        await crash_everywhere(app, tried_once)


def named_database(database: str) -> str:
    """Return the database that code finds by itself; fail if it is the wrong one."""
    assert os.environ["DURABLE_DATABASE_URL"] == database
    return database


async def test_a_tests_own_functions_find_the_database_of_each_life(
    durable_app: Apps,
) -> None:
    """As an application does that was created without an address."""
    before = os.environ["DURABLE_DATABASE_URL"]
    seen: list[str] = []
    await crash_everywhere(
        durable_app(tasks=[ship]),
        ship,
        "ada",
        prepare=lambda database: seen.append(named_database(database)),
        effects=lambda database: len(seen) * bool(named_database(database)),
        check=lambda life: named_database(life.database) and None,
        only=lambda point: point == "during:$end",
    )
    assert len(seen) == 1
    assert os.environ["DURABLE_DATABASE_URL"] == before
