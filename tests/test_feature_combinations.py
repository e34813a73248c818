"""Features combine: in one task, and in every tool."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Final

import httpx
import psycopg
import pytest

import durable
from durable import (
    AsyncDurable,
    NonDeterminism,
    Retry,
    SyncTaskContext,
    TaskContext,
    TaskFailed,
    UnreadablePayload,
    task,
)
from durable.encryption import AESGCMCodec
from durable.testing import (
    AppFactory,
    check_replay,
    crash_everywhere,
    run_inline,
    spawned,
    steps_of,
)
from tests.support.working import working

SECRET: Final = "attack-at-dawn"  # noqa: S105 - what nobody may read
CODEC: Final = AESGCMCodec({"k": bytes(32)})  # every process needs it
Apps = AppFactory[Any]
KINDS: Final = {
    "$send:mine": "message_sent",
    "$recv:mine": "message_received",
    "$first:first": "first_finished",
    "$patch:newer": "patched",
    "$spawn:there": "child_spawned",
    "$join:gather": "joined",
    "set-out": "step",
    "give-up": "step_failed",
    "insert": "step",
}


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text=f"answer to {request.url.path}")


def sets_out(name: str) -> str:
    durable.current().write_stream("words", f"{name} begins")
    return name


def gives_up() -> None:
    raise ValueError("given up")


async def insert(conn: psycopg.AsyncConnection[Any], said: str) -> str:
    await conn.execute("select 1")
    return said


def insert_sync(conn: psycopg.Connection[Any], said: str) -> str:
    conn.execute("select 1")
    return said


@task
async def echo(said: str, ctx: TaskContext) -> str:
    return said


@task
async def tour(said: str, ctx: TaskContext) -> Any:
    """Call everything that a task can, in sequence."""
    ctx.logger.info("begun")
    await ctx.set_value("at", "the start")
    await ctx.write_stream("words", said)
    name = await ctx.step("set-out", sets_out, said)
    with contextlib.suppress(ValueError):
        await ctx.step("give-up", gives_up)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        found = await ctx.http.using(client).get("ask", "http://there/it")
    own = durable.current().task_id
    assert await ctx.send(own, "mine", found.text)
    heard = await ctx.recv("mine")
    with contextlib.suppress(TimeoutError):
        await ctx.recv("nothing", timeout=0)
    await ctx.emit_event(f"event:{own}", heard)
    await ctx.await_event(f"event:{own}")
    here = await ctx.spawn("here", echo, "here")
    there = await ctx.spawn("there", echo, "there", queue="elsewhere")
    won = await ctx.join(await ctx.first(here, there))
    both = await ctx.gather(here=here, there=there)
    called = await ctx.call("call", echo, "called", queue="elsewhere")
    many = await ctx.spawn_many("many", echo, ["1", "2"], queue="elsewhere")
    await ctx.gather(*many)
    if await ctx.patched("newer"):
        await ctx.sleep_for("nap", 0)
    await ctx.now()
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.scope("left").step("go", sets_out, "left"))
        group.create_task(ctx.scope("right").step("go", sets_out, "right"))
    await ctx.transaction("insert", insert, said)
    await ctx.heartbeat()
    await ctx.write_stream("words", "end")
    await ctx.close_stream("words")
    await ctx.set_value("at", "the end")
    ctx.logger.info("ends")
    assert won in both.values()
    result = [name, heard, both["there"], called]
    return await ctx.transaction("last", end, result, completes=True)


async def end(conn: psycopg.AsyncConnection[Any], result: Any) -> Any:
    await conn.execute("select 1")
    return result


@task
def tour_sync(said: str, ctx: SyncTaskContext) -> Any:
    """Do the same in a thread, as far as it can."""
    ctx.logger.info("begun")
    ctx.set_value("at", "the start")
    ctx.write_stream("words", said)
    name = ctx.step("set-out", sets_out, said)
    with contextlib.suppress(ValueError):
        ctx.step("give-up", gives_up)
    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        found = ctx.http.using(client).get("ask", "http://there/it")
    own = durable.current().task_id
    assert ctx.send(own, "mine", found.text)
    heard = ctx.recv("mine")
    here = ctx.spawn("here", echo, "here")
    there = ctx.spawn("there", echo, "there", queue="elsewhere")
    won = ctx.join(ctx.first(here, there))
    both = ctx.gather(here=here, there=there)
    called = ctx.call("call", echo, "called", queue="elsewhere")
    if ctx.patched("newer"):
        ctx.sleep_for("nap", 0)
    ctx.transaction("insert", insert_sync, said)
    ctx.heartbeat()
    ctx.write_stream("words", "end")
    ctx.close_stream("words")
    ctx.set_value("at", "the end")
    ctx.logger.info("ends")
    assert won in both.values()
    result = [name, heard, both["there"], called]
    return ctx.transaction("last", end_sync, result, completes=True)


def end_sync(conn: psycopg.Connection[Any], result: Any) -> Any:
    conn.execute("select 1")
    return result


def app_of(make: Apps, *tasks: Any) -> AsyncDurable:
    """Return an application that uses every feature, and a second queue."""
    model = AsyncDurable(
        "dbname=nowhere", tasks=tasks, codec=CODEC, version="v1", keep_logs=20
    )
    app: AsyncDurable = make(like=model)
    with psycopg.connect(app._application.conninfo, autocommit=True) as session:
        session.execute("select durable.create_queue('elsewhere')")
    return app


@pytest.mark.parametrize("code", [tour, tour_sync], ids=["async", "sync"])
async def test_every_tool_supports_every_feature(durable_app: Apps, code: Any) -> None:
    app = app_of(durable_app, code, echo)
    assert app._application.version == "v1"
    async with app:
        expected = [SECRET, "answer to /it", "there", "called"]
        assert await run_inline(app, code, SECRET) == expected
        (ran,) = spawned(app, code)
        assert ran.params == SECRET
        handle = app.handle(ran.task_id, code)
        values = {one.name: one.value for one in steps_of(handle)}
        assert values["set-out"] == SECRET
        words = [word async for word in handle.stream("words")]
        assert words[:2] == [SECRET, f"{SECRET} begins"]
        assert words[-1] == "end"
        assert await handle.value("at") == "the end"
        assert [line.message async for line in handle.logs()] == ["begun", "ends"]
        exported = await handle.export_history()
        entries = await handle.history()
        kinds = {one.name: one.kind for one in entries}
        assert {name: kinds[name] for name in KINDS} == KINDS
        assert [
            one for one in entries if one.kind == "recorded" and one.name != "$now"
        ] == []
        (there,) = [one for one in entries if one.name == "$spawn:there"]
        assert there.detail["queue"] == "elsewhere"
        child = app.handle(there.detail["task_id"], echo, queue="elsewhere")
        spawning, *_ = await child.history()
        assert spawning.detail["parent_queue"] == "default"
    saved = exported["checkpoints"]
    for length in range(len(saved) + 1):
        check_replay(code, {**exported, "checkpoints": saved[:length]}, tasks=[echo])
    sealed = {**exported, "params": json.loads(app._application.payloads.encode('"x"'))}
    check_replay(code, sealed, tasks=[echo], codec=CODEC)
    with pytest.raises(UnreadablePayload):
        check_replay(code, sealed, tasks=[echo])
    (gone,) = [one for one in saved if one["name"] == "set-out"]
    renamed = [{**one, "name": "x"} if one is gone else one for one in saved]
    with pytest.raises(NonDeterminism):
        check_replay(code, {**exported, "checkpoints": renamed}, tasks=[echo])


@pytest.mark.slow
async def test_names_the_boundaries_of_every_feature(durable_app: Apps) -> None:
    wanted: tuple[str, ...]
    wanted = ("set-out", "$send:mine", "$recv:mine", "$spawn:there", "$first:first")
    wanted += ("$join:gather", "$patch:newer", "last", "insert", "ask", "$join:call")
    points = {f"sent:{name}" for name in wanted} | {"during:last", "after:last"}
    report = await crash_everywhere(
        app_of(durable_app, tour, echo),
        tour,
        "ada",
        only=lambda point: point in points,
    )
    assert report.undisturbed.output == ["ada", "answer to /it", "there", "called"]
    came = {life.point for life in report.lives} | set(report.missed)
    assert points - came == set()
    assert len(report.missed) <= 2, report.missed


async def said_and_done(conn: psycopg.AsyncConnection[Any], said: str) -> str:
    current = durable.current()
    current.logger.info("within: %s", said)
    await conn.execute("insert into public.done values (%s)", [said])
    return said


def said_and_done_sync(conn: psycopg.Connection[Any], said: str) -> str:
    durable.current().logger.info("within: %s", said)
    conn.execute("insert into public.done values (%s)", [said])
    return said


@task
async def ends_within(said: str, ctx: TaskContext) -> str:
    with contextlib.suppress(ValueError):
        await ctx.step("give-up", gives_up)
    await ctx.write_stream("words", said)
    await ctx.set_value("at", said)
    ctx.logger.info("before: %s", said)
    result = await ctx.transaction("end", said_and_done, said, completes=True)
    ctx.logger.info("too late")
    return result


@task
def ends_within_sync(said: str, ctx: SyncTaskContext) -> str:
    with contextlib.suppress(ValueError):
        ctx.step("give-up", gives_up)
    ctx.write_stream("words", said)
    ctx.set_value("at", said)
    ctx.logger.info("before: %s", said)
    result = ctx.transaction("end", said_and_done_sync, said, completes=True)
    ctx.logger.info("too late")
    return result


@pytest.mark.parametrize("code", [ends_within, ends_within_sync])
async def test_keeps_everything_published_before_a_transaction_completes_the_task(
    dsn: str, db: psycopg.Connection, code: Any
) -> None:
    db.execute("create table public.done (said text)")
    async with working(dsn, code) as (app, worker):
        handle = await app.spawn(code, "it")
        assert await handle.result(10) == "it"
        assert [word async for word in handle.stream("words")] == ["it"]
        assert await handle.value("at", timeout=0) == "it"
        lines = [line.message async for line in handle.logs()]
        assert lines == ["before: it", "within: it"]
        (failed,) = [one for one in steps_of(handle) if one.name == "give-up"]
        assert failed.state == "failed"
        await worker.drain()
    left = [one for one in asyncio.all_tasks() if "_send" in repr(one.get_coro())]
    assert left == []


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_refuses_to_complete_a_strict_task_that_left_out_a_call(
    dsn: str, db: psycopg.Connection, colour: str
) -> None:
    """A recorded call that was not repeated is found before the commit."""
    db.execute("create table public.done (said text)")
    versions = iter([True, False, False])

    async def shipping(said: str, ctx: TaskContext) -> str:
        old = next(versions)
        if old:
            await ctx.step("charge", sets_out, said)
            await ctx.step("tell", sets_out, said)
            raise ValueError("once more")
        await ctx.step("charge", sets_out, said)
        return await ctx.transaction("end", said_and_done, said, completes=True)

    def shipping_sync(said: str, ctx: SyncTaskContext) -> str:
        old = next(versions)
        if old:
            ctx.step("charge", sets_out, said)
            ctx.step("tell", sets_out, said)
            raise ValueError("once more")
        ctx.step("charge", sets_out, said)
        return ctx.transaction("end", said_and_done_sync, said, completes=True)

    code: Any = shipping if colour == "async" else shipping_sync
    decorated = task(
        name="shipping", replay_check="strict", max_attempts=2, retry=Retry.fixed(0)
    )(code)
    async with working(dsn, decorated) as (app, _):
        handle = await app.spawn(decorated, "it")
        with pytest.raises(TaskFailed) as failed:
            await handle.result(10)
    assert failed.value.error.type == "NonDeterminism"
    assert db.execute("select count(*) from public.done").fetchone() == (0,)


async def test_refuses_to_complete_a_strict_task_with_a_gap_for_the_missing_call(
    dsn: str, db: psycopg.Connection
) -> None:
    """A failed branch has left a gap, so the call itself cannot be refused."""
    db.execute("create table public.done (said text)")
    versions = iter([True, False, False])

    @task(replay_check="strict", max_attempts=2, retry=Retry.fixed(0))
    async def shipping(said: str, ctx: TaskContext) -> str:
        await ctx.step("charge", sets_out, said)
        if next(versions):
            told = asyncio.Event()

            async def fails() -> None:
                await told.wait()
                raise ValueError("once more")

            async def tells() -> None:
                await ctx.step("tell", sets_out, said)
                told.set()

            await asyncio.gather(ctx.step("fail", fails), tells())
        return await ctx.transaction("end", said_and_done, said, completes=True)

    async with working(dsn, shipping) as (app, _):
        handle = await app.spawn(shipping, "it")
        with pytest.raises(TaskFailed) as failed:
            await handle.result(10)
    assert failed.value.error.type == "NonDeterminism"
    assert db.execute("select count(*) from public.done").fetchone() == (0,)


@task
async def tells_whose(deeper: int, ctx: TaskContext) -> Any:
    """Return the headers and the identity, and those of the children."""
    here = [dict(ctx.headers), dict(ctx.identity or {})]
    if not deeper:
        return here
    below = await ctx.call("there", tells_whose, deeper - 1, queue="elsewhere")
    return [here, below]


async def test_headers_and_identity_reach_all_tasks_of_a_task(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute("select durable.create_queue('elsewhere')")
    who, own = {"user": "ada"}, {"tenant": 7}
    async with (
        AsyncDurable(dsn, tasks=[tells_whose]) as app,
        app.worker(queues=["default", "elsewhere"]),
    ):
        handle = await app.spawn(tells_whose, 1, headers=own, identity=who)
        assert await handle.result(10) == [[own, who], [own, who]]
        fork = await app.fork(handle, before="$spawn:there")
        origin = {"task_id": str(handle.task_id), "by": {"user": db.info.user}}
        whose = {"durable:forked_from": origin}
        assert await fork.result(10) == [[{**own, **whose}, who], [own, who]]
        waiting = await app.spawn("nobody-runs", 1, headers=own, identity=who)
        await app.cancel(waiting)
        anew = await app.retry(waiting, spawn_new=True)
        (listed,) = await app.list_tasks(task_ids=[anew.task_id], headers=own)
        assert listed.task_id == anew.task_id
        row = db.execute(
            "select headers -> 'durable:identity'"
            " from durable.tasks where task_id = %s",
            [anew.task_id],
        ).fetchone()
        assert row == (who,)
