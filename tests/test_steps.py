"""A step runs once, and every replay returns the value of that run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import psycopg
import pytest
from pydantic import BaseModel, Field

from durable import (
    InvalidArgument,
    Retry,
    StepFailed,
    SyncTaskContext,
    TaskContext,
    task,
)
from tests.support.clock import Clock
from tests.support.working import DAY, outcome, through_the_night

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]


class Line(BaseModel):
    unit_price: float = Field(alias="unitPrice")


class Cat(BaseModel):
    name: str


class Dog(BaseModel):
    name: str


def line() -> Line:
    return Line(unitPrice=1.5)


def rex() -> Cat | Dog:
    return Dog(name="Rex")


class Refused(Exception):
    """Can be restored at replay: it is importable, and its arguments are JSON."""


# -- values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"z": 1, "a": {"y": 2, "b": 3}},
        1e22,
        -0.0,
        0.1 + 0.2,
        2**70,
        [None, True, "ß\n\\u0000 'quoted' %s"],
        {"": []},
    ],
)
async def test_returns_the_same_value_at_replay(
    dsn: str, clock: Clock, value: object
) -> None:
    seen = []

    @task
    async def remember(params: None, ctx: Context) -> None:
        seen.append(repr(await ctx.step("value", lambda: value)))
        await ctx.sleep_for("night", DAY)

    assert (await through_the_night(dsn, clock, remember)).state == "completed"
    assert seen == [repr(value), repr(value)]


@pytest.mark.parametrize("function", [line, rex])
async def test_returns_models_as_the_return_type_of_the_function(
    dsn: str, clock: Clock, function: Callable[[], BaseModel]
) -> None:
    seen: list[BaseModel] = []

    @task
    async def remember(params: None, ctx: Context) -> None:
        seen.append(await ctx.step("value", function))
        await ctx.sleep_for("night", DAY)

    await through_the_night(dsn, clock, remember)
    first, again = seen
    assert first == again
    assert type(first) is type(again)


async def test_warns_when_a_value_changes_at_replay(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    @task(name="choose a pet")
    async def choose(params: None, ctx: Context) -> str:
        return type(await ctx.step("pet", rex)).__name__

    assert (await outcome(dsn, choose)).result == "Cat"
    assert "'pet' of 'choose a pet' returned Dog(name='Rex')" in caplog.text


async def test_does_not_warn_when_a_value_stays_the_same(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    @task
    async def price(params: None, ctx: Context) -> None:
        await ctx.step("line", line)
        await ctx.step("typed", lambda: (1, 2), as_type=tuple[int, int])

    assert (await outcome(dsn, price)).state == "completed"
    assert not caplog.records


async def test_refuses_an_unresolvable_type_before_anything_happens(
    dsn: str,
) -> None:
    class Here(BaseModel):
        pass

    effects = []

    def make() -> Here:
        effects.append("made")
        return Here()

    @task
    async def caught(params: None, ctx: Context) -> str:
        with pytest.raises(TypeError, match="as_type="):
            await ctx.step("make", make)
        await ctx.step("make", make, as_type=Here)
        return "settled"

    assert (await outcome(dsn, caught)).result == "settled"
    assert effects == ["made"]


@pytest.mark.parametrize("value", [Cat(name="Tom"), (1, 2), {1: 2}, float("nan"), "\0"])
async def test_fails_a_task_at_once_if_a_step_value_cannot_be_saved(
    dsn: str, value: object
) -> None:
    effects = []

    def make_it():  # type: ignore[no-untyped-def] # noqa: ANN202 - it says nothing
        effects.append("made")
        return value

    @task(max_attempts=5)
    async def make(params: None, ctx: Context) -> None:
        await ctx.step("make", make_it)

    ended = await outcome(dsn, make)
    assert (ended.state, ended.attempt) == ("failed", 1)
    assert effects == ["made"]


async def test_names_both_remedies_for_a_lambda_that_returns_a_model(dsn: str) -> None:
    @task
    async def make(params: None, ctx: Context) -> None:
        await ctx.step("make", lambda: Cat(name="Tom"))

    error = (await outcome(dsn, make)).error
    assert error is not None
    assert "annotate what the function returns, or pass as_type=" in error.message


async def test_returns_the_same_time_and_random_numbers_at_replay(
    dsn: str, clock: Clock
) -> None:
    seen = []

    @task
    async def draw(params: None, ctx: Context) -> None:
        numbers = (await ctx.random(), await ctx.random())
        ids = (await ctx.uuid7(), await ctx.uuid7())
        seen.append((await ctx.now(), numbers, ids))
        await ctx.sleep_for("night", DAY)

    await through_the_night(dsn, clock, draw)
    first, again = seen
    assert first == again
    now, numbers, ids = first
    assert now.tzinfo is not None
    assert numbers[0] != numbers[1]
    assert ids[0] < ids[1]


# -- names -----------------------------------------------------------------------------


async def test_numbers_the_steps_of_a_loop(dsn: str, db: psycopg.Connection) -> None:
    @task
    async def count(params: None, ctx: Context) -> list[int]:
        return [await ctx.step("item", abs, number) for number in range(3)]

    assert (await outcome(dsn, count)).result == [0, 1, 2]
    assert checkpoints(db) == {"item": 0, "item#2": 1, "item#3": 2}


async def test_numbers_calls_in_the_order_in_which_they_are_made(
    dsn: str, db: psycopg.Connection
) -> None:
    @task
    async def gather(params: None, ctx: Context) -> list[str]:
        calls = [ctx.step("item", str, letter) for letter in "abc"]
        return list(await asyncio.gather(*reversed(calls)))

    assert (await outcome(dsn, gather)).result == ["c", "b", "a"]
    assert checkpoints(db) == {"item": "a", "item#2": "b", "item#3": "c"}


async def test_refuses_one_name_in_two_branches(dsn: str) -> None:
    effects = []

    async def branch(ctx: Context, number: int) -> None:
        await ctx.step("fetch", lambda: effects.append(number))
        await ctx.step("store", lambda: effects.append(number))

    @task(max_attempts=1)
    async def both(params: None, ctx: Context) -> None:
        await asyncio.gather(branch(ctx, 1), branch(ctx, 2))

    error = (await outcome(dsn, both)).error
    assert error is not None
    assert error.type == "RuntimeError"
    assert 'ctx.scope("…")' in error.message
    assert 2 not in effects


async def test_each_branch_gets_its_own_values_at_replay(
    dsn: str, clock: Clock, db: psycopg.Connection
) -> None:
    """In any order of the branches: the second time the other one is faster."""
    runs: list[list[str]] = []

    async def branch(ctx: Context, name: str, *, slow: bool) -> list[str]:
        for _ in range(5 if slow else 0):
            await asyncio.sleep(0)
        fetched = await ctx.step("fetch", lambda: f"fetched {name}")
        return [fetched, await ctx.step("store", lambda: f"stored {name}")]

    @task
    async def both(params: None, ctx: Context) -> None:
        first = branch(ctx.scope("a"), "a", slow=not runs)
        second = branch(ctx.scope("b"), "b", slow=bool(runs))
        both = await asyncio.gather(first, second)
        runs.append([*both[0], *both[1]])
        await ctx.sleep_for("night", DAY)

    await through_the_night(dsn, clock, both)
    expected = ["fetched a", "stored a", "fetched b", "stored b"]
    assert runs == [expected, expected]
    assert {"a/fetch", "a/store", "b/fetch", "b/store"} < checkpoints(db).keys()


async def test_remembers_which_steps_overlapped(
    dsn: str, db: psycopg.Connection
) -> None:
    @task
    async def some(params: None, ctx: Context) -> None:
        await ctx.step("first", str)
        await asyncio.gather(ctx.step("left", str), ctx.step("right", str))
        await ctx.step("last", str)

    await outcome(dsn, some)
    rows = db.execute(
        "select name, position, after from durable.checkpoints"
    ).fetchall()
    assert set(rows) == {
        ("first", 1, 0),
        ("left", 2, 1),
        ("right", 3, 1),
        ("last", 4, 3),
    }


async def test_refuses_an_invalid_name_before_anything_happens(dsn: str) -> None:
    effects = []

    @task
    async def slip(params: None, ctx: Context) -> None:
        for name in ("", "$now", "item#2", "a\nb", "ä" * 128):
            with pytest.raises(InvalidArgument):
                await ctx.step(name, lambda: effects.append("happened"))
        with pytest.raises(InvalidArgument):
            ctx.scope("$")

    assert (await outcome(dsn, slip)).state == "completed"
    assert effects == []


# -- where a context may be used -------------------------------------------------------


async def test_refuses_a_durable_call_inside_a_step(dsn: str) -> None:
    @task
    async def nest(params: None, ctx: Context) -> None:
        async def inner() -> None:
            with pytest.raises(RuntimeError, match="a step is a leaf"):
                await ctx.step("inner", str)

        def inner_in_a_thread() -> None:
            with pytest.raises(RuntimeError, match="a step is a leaf"):
                ctx.sleep_for("inner", 1).close()

        await ctx.step("async", inner)
        await ctx.step("thread", inner_in_a_thread)
        await ctx.step("after", str)

    assert (await outcome(dsn, nest)).error is None


async def test_refuses_a_durable_call_inside_a_step_of_a_sync_task(dsn: str) -> None:
    @task
    def nest(params: None, ctx: SyncContext) -> None:
        def inner() -> None:
            with pytest.raises(RuntimeError, match="a step is a leaf"):
                ctx.step("inner", str)

        ctx.step("outer", inner)
        ctx.step("after", str)

    assert (await outcome(dsn, nest)).error is None


async def test_refuses_a_context_after_its_run(dsn: str) -> None:
    kept: list[Context] = []

    @task
    async def leak(params: None, ctx: Context) -> None:
        kept.append(ctx)

    await outcome(dsn, leak)
    with pytest.raises(RuntimeError, match="after its run has ended"):
        await kept[0].step("late", str)


async def test_refuses_a_context_on_another_thread(dsn: str) -> None:
    @task
    async def stray(params: None, ctx: Context) -> list[str]:
        said = []

        def call() -> None:
            for use in (lambda: ctx.step("x", str), lambda: asyncio.run(later(ctx))):
                with pytest.raises(RuntimeError) as refusal:
                    use()
                said.append(str(refusal.value))

        await asyncio.to_thread(call)
        return said

    @task
    def sync_stray(params: None, ctx: SyncContext) -> list[str]:
        said = []

        def call() -> None:
            with pytest.raises(RuntimeError) as refusal:
                ctx.step("x", str)
            said.append(str(refusal.value))

        ctx.step("first", str)
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        return said

    async def later(ctx: Context) -> None:
        await ctx.step("y", str)

    on_a_thread, on_a_loop = (await outcome(dsn, stray)).result or []
    assert "another thread" in on_a_thread
    assert "another event loop" in on_a_loop
    (on_a_thread,) = (await outcome(dsn, sync_stray)).result or []
    assert "another thread" in on_a_thread


# -- steps without a function ----------------------------------------------------------


async def test_begin_and_complete_a_step_that_no_function_can_wrap(
    dsn: str, clock: Clock
) -> None:
    effects, seen = [], []

    @task
    async def by_hand(params: None, ctx: Context) -> None:
        step = await ctx.begin_step("line", as_type=Line)
        if step.done:
            assert step.value is not None
            seen.append(step.value)
        else:
            effects.append("worked")
            seen.append(await ctx.complete_step(step, line()))
        await ctx.sleep_for("night", DAY)

    assert (await through_the_night(dsn, clock, by_hand)).state == "completed"
    assert effects == ["worked"]
    assert seen == [line(), line()]


async def test_refuses_a_wait_while_a_step_is_open(dsn: str) -> None:
    @task
    async def forget(params: None, ctx: Context) -> None:
        step = await ctx.begin_step("by hand")
        with pytest.raises(RuntimeError, match="complete by hand first"):
            await ctx.sleep_for("night", DAY)
        await ctx.complete_step(step, None)
        with pytest.raises(RuntimeError, match="not open"):
            await ctx.complete_step(step, None)

    assert (await outcome(dsn, forget)).state == "completed"


async def test_does_not_suspend_while_a_step_is_open(dsn: str, clock: Clock) -> None:
    effects = []

    async def by_hand(ctx: Context) -> None:
        step = await ctx.begin_step("by hand")
        if not step.done:
            effects.append("worked")
            await asyncio.sleep(0.1)  # longer than a run takes to resolve waits
            await ctx.complete_step(step, None)

    @task
    async def both(params: None, ctx: Context) -> None:
        await asyncio.gather(ctx.sleep_for("night", DAY), by_hand(ctx))

    assert (await through_the_night(dsn, clock, both)).state == "completed"
    assert effects == ["worked"]


@pytest.mark.parametrize("fails", [True, False])
async def test_discards_a_step_that_was_begun_and_never_completed(
    dsn: str, *, fails: bool
) -> None:
    @task(max_attempts=1)
    async def forget(params: None, ctx: Context) -> None:
        await ctx.begin_step("by hand")
        if fails:
            raise ValueError

    assert (await outcome(dsn, forget)).state == ("failed" if fails else "completed")


# -- failures --------------------------------------------------------------------------


async def test_takes_the_same_branch_after_a_step_whose_failure_was_caught(
    dsn: str, clock: Clock
) -> None:
    effects, seen = [], []

    def refuse() -> None:
        effects.append("tried")
        raise Refused("no stock", 7)

    @task
    async def order(params: None, ctx: Context) -> str:
        try:
            await ctx.step("reserve", refuse)
        except Refused as error:
            seen.append(error.args)
            await ctx.sleep_for("night", DAY)
            return "refused"
        return "reserved"

    assert (await through_the_night(dsn, clock, order)).result == "refused"
    assert effects == ["tried"]
    assert seen == [("no stock", 7), ("no stock", 7)]


@pytest.mark.parametrize("threaded", [False, True])
async def test_does_not_repeat_a_step_whose_value_could_not_be_saved(
    dsn: str, clock: Clock, *, threaded: bool
) -> None:
    effects, seen = [], []

    def charge() -> object:
        effects.append("charged")
        return object()

    @task
    async def order(params: None, ctx: Context) -> str:
        try:
            await ctx.step("charge", charge)
        except TypeError as error:
            seen.append(str(error))
        await ctx.sleep_for("night", DAY)
        return "settled"

    @task
    def order_in_a_thread(params: None, ctx: SyncContext) -> str:
        try:
            ctx.step("charge", charge)
        except TypeError as error:
            seen.append(str(error))
        ctx.sleep_for("night", DAY)
        return "settled"

    tried = order_in_a_thread if threaded else order
    assert (await through_the_night(dsn, clock, tried)).result == "settled"
    assert effects == ["charged"]
    assert len(seen) == 2
    assert len(set(seen)) == 1


async def test_describes_a_failure_whose_class_cannot_be_imported(
    dsn: str, clock: Clock
) -> None:
    class Local(Exception):
        pass

    seen: list[Exception] = []

    def refuse() -> None:
        raise Local("no stock")

    @task
    async def order(params: None, ctx: Context) -> None:
        try:
            await ctx.step("reserve", refuse)
        except Exception as error:  # noqa: BLE001 - either class
            seen.append(error)
        await ctx.sleep_for("night", DAY)

    await through_the_night(dsn, clock, order)
    for failed in seen:
        assert isinstance(failed, StepFailed)
        assert failed.error.type.split(".")[-1] == "Local"
        assert failed.error.message == "no stock"


async def test_retries_a_step_whose_failure_ended_the_attempt(dsn: str) -> None:
    effects = []

    def flaky() -> str:
        effects.append("tried")
        if effects.count("tried") == 1:
            raise ConnectionError
        return "connected"

    @task(retry=Retry.fixed(0))
    async def connect(params: None, ctx: Context) -> str:
        await ctx.step("before", lambda: effects.append("before"))
        return await ctx.step("connect", flaky)

    ended = await outcome(dsn, connect)
    assert (ended.result, ended.attempt) == ("connected", 2)
    assert effects == ["before", "tried", "tried"]


async def test_a_recorded_failure_that_is_not_caught_fails_the_task(
    dsn: str, clock: Clock
) -> None:
    effects = []

    def refuse() -> None:
        effects.append("tried")
        raise Refused

    @task(max_attempts=5)
    async def order(params: None, ctx: Context) -> None:
        try:
            await ctx.step("reserve", refuse)
        finally:
            await ctx.step("note", str)

    ended = await through_the_night(dsn, clock, order)
    assert (ended.state, ended.attempt) == ("failed", 1)
    assert effects == ["tried"]


async def test_a_failed_attempt_names_the_step_that_raised(dsn: str) -> None:
    def refuse() -> None:
        raise Refused

    @task(max_attempts=1)
    async def order(way: str, ctx: Context) -> None:
        await ctx.step("before", str)
        try:
            await ctx.step("reserve", refuse, max_attempts=2, retry=Retry.fixed(0))
        except Refused as error:
            if way == "as it is":
                raise
            raise ValueError from error

    failed = await outcome(dsn, order, "as it is")
    raised = await outcome(dsn, order, "as another")
    assert failed.error is not None
    assert raised.error is not None
    assert (failed.error.type, failed.error.step) == ("Refused", "reserve")
    assert (raised.error.type, raised.error.step) == ("ValueError", None)


def checkpoints(db: psycopg.Connection) -> dict[str, Any]:
    return dict(db.execute("select name, value from durable.checkpoints").fetchall())
