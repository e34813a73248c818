"""A mistake raises one error that says what to do, and leaves nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias
from uuid import uuid4

import psycopg
import pytest

from durable import (
    AsyncDurable,
    ChildHandle,
    Durable,
    InvalidArgument,
    Retry,
    TaskContext,
    task,
)
from durable._core.values import PLAIN
from durable.registry import AnyTask
from tests.support.clock import Clock
from tests.support.working import outcome, through_the_night, working

Context: TypeAlias = TaskContext[Any]
Call: TypeAlias = Callable[[Context], Coroutine[Any, Any, Any]]

charged: list[int] = []


@pytest.fixture(autouse=True)
def nothing_charged() -> None:
    charged.clear()


def charge(amount: int) -> str:
    charged.append(amount)
    return "receipt"


async def charge_once_more(attempt: int) -> None:
    if attempt == 1:
        await never()
    charge(2)


def fail() -> None:
    raise ConnectionError


async def never() -> None:
    await asyncio.Event().wait()


async def charge_in(conn: psycopg.AsyncConnection, amount: int) -> str:
    charged.append(amount)
    return "receipt"


def other() -> ChildHandle[Any]:
    return ChildHandle("other", uuid4(), uuid4(), "default", 1, True, PLAIN)  # noqa: FBT003


CALLS: Final[dict[str, Call]] = {
    "charge": lambda ctx: ctx.step("charge", charge, 1),
    "try": lambda ctx: ctx.step("try", charge, 1, max_attempts=3),
    "pay": lambda ctx: ctx.transaction("pay", charge_in, 1),
    "$sleep:nap": lambda ctx: ctx.sleep_for("nap", 60),
    "$event:paid": lambda ctx: ctx.await_event("paid"),
    "$emit:shipped": lambda ctx: ctx.emit_event("shipped"),
    "$send:votes": lambda ctx: ctx.send(uuid4(), "votes", 1),
    "$recv:votes": lambda ctx: ctx.recv("votes"),
    "$spawn:child": lambda ctx: ctx.spawn("child", "pack", 1),
    "$spawn:all:0": lambda ctx: ctx.spawn_many("all", "pack", [1, 2]),
    "$spawn:pack": lambda ctx: ctx.call("pack", "pack", 1),
    "$join:other": lambda ctx: ctx.join(other(), timeout=1),
    "$join:gather": lambda ctx: ctx.gather(other()),
    "$first:first": lambda ctx: ctx.first(other()),
    "$patch:new": lambda ctx: ctx.patched("new"),
    "$now": lambda ctx: ctx.now(),
    "open": lambda ctx: ctx.begin_step("open"),
    "ask": lambda ctx: ctx.http.post("ask", "http://localhost:1/"),
}


@task(max_attempts=1)
async def forgets(name: str, ctx: Context) -> str:
    CALLS[name](ctx)  # type: ignore[unused-coroutine]
    return "done"


@task(max_attempts=1)
async def leaves_it_to_the_loop(name: str, ctx: Context) -> str:
    assert not asyncio.ensure_future(CALLS[name](ctx)).done()
    return "done"


@task(max_attempts=1)
async def leaves_it_to_what_has_it(name: str, ctx: Context) -> str:
    assert not asyncio.ensure_future(asyncio.wait_for(CALLS[name](ctx), 60)).done()
    return "done"


@task(max_attempts=2, retry=Retry.fixed(0))
async def leaves_it_to_the_loop_beside_a_step(name: str, ctx: Context) -> str:
    other = asyncio.ensure_future(ctx.step("other", charge_once_more, ctx.attempt))
    await ctx.step(name, charge, 1)
    if ctx.attempt == 1:
        other.cancel()
        raise ConnectionError
    return "done"


@task(max_attempts=2, retry=Retry.fixed(0))
async def cancels_what_has_begun(name: str, ctx: Context) -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait_for(ctx.step("never", never), 60))
            await ctx.step(name, charge, 1)
            await ctx.step("fail", fail)
    except* ConnectionError:
        if await ctx.step("attempt", str, ctx.attempt) and ctx.attempt == 1:
            raise RuntimeError("once") from None
    return "done"


@task(max_attempts=1)
async def cancels_it_and_ends(name: str, ctx: Context) -> str:
    asyncio.ensure_future(CALLS[name](ctx)).cancel()
    return "done"


@task(max_attempts=1)
async def cancels_what_has_it_and_ends(name: str, ctx: Context) -> str:
    asyncio.ensure_future(asyncio.wait_for(CALLS[name](ctx), 60)).cancel()
    return "done"


@task(max_attempts=1)
async def cancels_it_in_time(name: str, ctx: Context) -> str:
    early = asyncio.ensure_future(CALLS[name](ctx))
    early.cancel()
    await asyncio.wait([early])
    return "done"


@task(max_attempts=2, retry=Retry.fixed(0))
async def lets_two_race(name: str, ctx: Context) -> list[str]:
    b_is_saved = asyncio.Event()

    async def work(name: str) -> str:
        if name == "a":
            await b_is_saved.wait()
        return name

    racing = [asyncio.ensure_future(ctx.step(name, work, name)) for name in "ab"]
    if ctx.attempt == 1:
        await racing[1]
        b_is_saved.set()
        await asyncio.wait(racing)
        raise ConnectionError
    await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
    return [await racer for racer in racing if racer.done()]


# -- a missing await -------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_task_that_does_not_await_a_call_fails(dsn: str) -> None:
    async with working(dsn, forgets) as (app, worker):
        forgotten = [(name, await app.spawn(forgets, name)) for name in CALLS]
        await worker.drain()
        for name, handle in forgotten:
            error = (await handle.snapshot()).error
            assert error is not None, name
            assert error.type == "RuntimeError"
            assert f"'{name}': called and never awaited" in error.message
            assert "write await" in error.message
    assert charged == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "cancelling",
    [cancels_it_in_time, cancels_it_and_ends, cancels_what_has_it_and_ends],
)
async def test_a_call_cancelled_before_it_began_is_not_reported(
    dsn: str, cancelling: AnyTask
) -> None:
    found = await outcome(dsn, cancelling, "charge")
    assert (found.result, found.error) == ("done", None)


@pytest.mark.asyncio
@pytest.mark.parametrize("leaving", [leaves_it_to_the_loop, leaves_it_to_what_has_it])
async def test_a_call_wrapped_in_an_asyncio_task_is_executed(
    dsn: str, leaving: AnyTask
) -> None:
    found = await outcome(dsn, leaving, "charge")
    assert (found.result, found.error) == ("done", None)
    assert charged == [1]


@pytest.mark.asyncio
async def test_a_replay_executes_what_an_asyncio_task_has_not_done_yet(
    dsn: str,
) -> None:
    found = await outcome(dsn, leaves_it_to_the_loop_beside_a_step, "charge")
    assert (found.result, found.error) == ("done", None)
    assert charged == [1, 2]


@pytest.mark.asyncio
async def test_a_replay_begins_a_call_that_had_begun_when_it_was_cancelled(
    dsn: str,
) -> None:
    found = await outcome(dsn, cancels_what_has_begun, "charge")
    assert (found.result, found.error) == ("done", None)


@pytest.mark.asyncio
async def test_a_replay_keeps_the_order_in_which_calls_were_saved(dsn: str) -> None:
    assert (await outcome(dsn, lets_two_race, "")).result == ["b"]


# -- arguments of a step ---------------------------------------------------------------


@task(max_attempts=1)
async def calls_it_itself(_: None, ctx: Context) -> Any:
    return await ctx.step("charge", charge_later(1))  # type: ignore[call-overload]


async def charge_later(amount: int) -> str:
    return charge(amount)


@task(max_attempts=1)
async def gives_a_value(_: None, ctx: Context) -> Any:
    return await ctx.step("charge", charge(1), as_type=str)  # type: ignore[call-overload]


@pytest.mark.asyncio
async def test_a_step_given_a_called_function_says_how_to_pass_it(dsn: str) -> None:
    error = (await outcome(dsn, calls_it_itself)).error
    assert error is not None
    assert error.message == (
        "a step calls its function itself: pass charge_later and its arguments,"
        " not charge_later(…)"
    )
    assert charged == []
    error = (await outcome(dsn, gives_a_value)).error
    assert error is not None
    assert error.message == "a step calls a function: pass one, not str"


# -- a transaction whose function is not async -----------------------------------------


def write(conn: psycopg.AsyncConnection) -> str:
    conn.execute("insert into written values (1)").close()  # nobody awaits it
    return "written"


@task(max_attempts=1)
async def writes_nothing(_: None, ctx: Context) -> str:
    said: str = await ctx.transaction("write", write)  # type: ignore[arg-type, call-arg]
    return said


@task(max_attempts=1)
async def writes_by_a_lambda(_: None, ctx: Context) -> str:
    return await ctx.transaction("write", lambda conn: charge_in(conn, 1))


@pytest.mark.asyncio
async def test_a_transaction_of_an_async_task_refuses_a_sync_function(
    dsn: str,
) -> None:
    error = (await outcome(dsn, writes_nothing)).error
    assert error is not None
    assert error.type == "TypeError"
    assert "must be async" in error.message
    assert (await outcome(dsn, writes_by_a_lambda)).result == "receipt"


# -- timeouts, and arguments of waits --------------------------------------------------


@task(max_attempts=1)
async def waits_in_vain(how: str, ctx: Context) -> None:
    if how == "event":
        await ctx.await_event("paid:7", timeout=1)
    elif how == "message":
        await ctx.recv("votes", timeout=1)
    elif how == "child":
        await ctx.call("pack", "nobody-knows-it", timeout=1)
    else:
        children = await ctx.spawn_many("pack", "nobody-knows-it", range(9))
        await ctx.gather(*children, timeout=1)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("event", "event 'paid:7' did not come in time"),
        ("message", "a message on 'votes' did not come in time"),
        ("child", "not finished in time: pack"),
        ("many", "not finished in time: pack:0, pack:1, pack:2, 6 more"),
    ],
)
async def test_a_timeout_says_what_was_waited_for(
    dsn: str, clock: Clock, how: str, said: str
) -> None:
    error = (await through_the_night(dsn, clock, waits_in_vain, how)).error
    assert error is not None
    assert (error.type, error.message) == ("TimeoutError", said)


@task(max_attempts=1)
async def joins_no_task(how: str, ctx: Context) -> None:
    if how == "id":
        await ctx.join(ctx.task_id)  # type: ignore[arg-type]
    else:
        step = ctx.step("a", charge, 1)
        try:
            await ctx.gather(step)  # type: ignore[call-overload]
        finally:
            step.close()


@pytest.mark.asyncio
async def test_waiting_for_something_that_is_no_handle_is_refused(dsn: str) -> None:
    for how, what in (("id", "UUID"), ("step", "coroutine")):
        error = (await outcome(dsn, joins_no_task, how)).error
        assert error is not None
        assert error.type == "TypeError"
        assert error.message.endswith(f"or `app.handle(task_id)`; got a {what}")


# -- an application --------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_DATABASE_URL", raising=False)
    monkeypatch.setenv("PGHOST", "/nowhere")  # what libpq would try


@pytest.mark.asyncio
@pytest.mark.usefixtures("nowhere")
async def test_an_application_without_a_database_can_be_created_but_not_used() -> None:
    app = AsyncDurable(tasks=[forgets])
    with pytest.raises(InvalidArgument, match="no database was given") as refusal:
        await app.spawn(forgets, "charge")
    assert "DURABLE_DATABASE_URL" in str(refusal.value.hint)
    with pytest.raises(InvalidArgument, match="no database was given"):
        async with app:
            pass
    with pytest.raises(InvalidArgument, match="no database was given"):
        async with app.worker():
            pass
    with pytest.raises(InvalidArgument, match="no database was given"):
        await app.migrate()
    with pytest.raises(InvalidArgument, match="no database was given"):
        await app.handle(uuid4()).result()
    with pytest.raises(InvalidArgument, match="no database was given"):
        await anext(aiter(app.handle(uuid4()).stream("words")))


@pytest.mark.usefixtures("nowhere")
def test_so_can_a_synchronous_application() -> None:
    app = Durable(tasks=[forgets])
    with pytest.raises(InvalidArgument, match="no database was given"):
        app.spawn(forgets, "charge")
    with pytest.raises(InvalidArgument, match="no database was given"):
        app.handle(uuid4()).result()


@pytest.mark.usefixtures("nowhere")
def test_names_the_argument_that_is_in_the_wrong_place() -> None:
    with pytest.raises(TypeError, match="tasks= takes a list of tasks, not"):
        AsyncDurable(tasks=forgets)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="params first, then the context"):

        @task
        async def turned_round(ctx: TaskContext[Any], amount: int) -> None: ...
