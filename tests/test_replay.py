"""A renamed, reordered or removed call in a running task is detected and named."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import (
    InvalidArgument,
    NonDeterminism,
    Retry,
    SyncTaskContext,
    TaskContext,
    task,
)
from durable._task import replay
from tests.support.changing import (
    CHARGE,
    GO,
    changed,
    charges,
    deployed,
    exported,
    noted,
)
from tests.support.working import working

Context: TypeAlias = TaskContext[Any]
Sync: TypeAlias = SyncTaskContext[Any]
Difference: TypeAlias = tuple[str, str, str | None, int]

one = int


@pytest.fixture(autouse=True)
def nobody_was_warned() -> None:
    replay._warned.clear()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """Return the warnings: task, expected call, actual call, and place."""
    caplog.set_level(logging.WARNING, logger="durable.task")

    def found() -> list[Difference]:
        errors = [
            (vars(record)["task_id"], record.args[0])
            for record in caplog.records
            if record.name == "durable.task" and isinstance(record.args, tuple)
        ]
        return [
            (task_id, error.expected, error.found, error.position)
            for task_id, error in errors
            if isinstance(error, NonDeterminism)
        ]

    return found


def program(*names: str) -> Any:
    """Return code that runs these steps, and waits at `go`."""

    async def run(params: None, ctx: Context) -> str:
        for name in names:
            if name == GO:
                await ctx.await_event(GO)
            else:
                await ctx.step(name, one)
        return "done"

    return run


def program_sync(*names: str) -> Any:
    def run(params: None, ctx: Sync) -> str:
        for name in names:
            if name == GO:
                ctx.await_event(GO)
            else:
                ctx.step(name, one)
        return "done"

    return run


CHANGES = {
    "renamed": (["a", "x", "c", GO], [("b", "x", 2)]),
    "renamed first": (["x", "b", "c", GO], [("a", "x", 1)]),
    "renamed last": (["a", "b", "x", GO], [("c", "x", 3)]),
    "two renamed": (["a", "x", "y", GO], [("b", "x", 2)]),
    "removed": (["a", "c", GO], [("b", "c", 2)]),
    "removed last": (["a", "b", GO], [("c", "$event:go", 3)]),
    "removed, and nothing comes": (["a", "b", "c"], [("$event:go", None, 4)]),
    "swapped": (["b", "a", "c", GO], [("a", "b", 1)]),
    "moved to the end": (["b", "c", GO, "a"], [("a", "b", 1)]),
    "added": (["a", "x", "b", "y", "c", "z", GO, "e"], []),
    "added at the end": (["a", "b", "c", GO, "x"], []),
    "the same": (["a", "b", "c", GO], []),
}


COLOURS = pytest.mark.parametrize("colour", [program, program_sync])
OLD = ["a", "b", "c", GO]


@COLOURS
async def test_warns_of_changed_code(dsn: str, warnings: Any, colour: Any) -> None:
    old = {change: colour(*OLD) for change in CHANGES}
    new = {change: colour(*names) for change, (names, _) in CHANGES.items()}
    found = await deployed(dsn, old, new)
    assert {one.state for one in found.values()} == {"completed"}
    by_task = {
        change: [warned[1:] for warned in warnings() if warned[0] == str(one.task_id)]
        for change, one in found.items()
    }
    assert by_task == {
        change: differences for change, (_, differences) in CHANGES.items()
    }


async def test_says_what_to_do(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    await changed(dsn, program("a", "b", GO), program("a", "x", GO))
    (record,) = [r for r in caplog.records if r.name == "durable.task"]
    assert "task 't' has 'b' as its call 2, its code makes 'x'" in record.getMessage()
    assert "ctx.patched" in record.getMessage()
    assert vars(record)["task_id"]


async def test_checks_tasks_that_publish_strictly(
    dsn: str, db: psycopg.Connection
) -> None:
    """Published entries are sent independently, and have no checkpoint."""

    def publishing(name: str) -> Any:
        async def run(params: None, ctx: Context) -> None:
            await ctx.step("a", one)
            await ctx.write_stream("news", name)
            await ctx.step(name, noted, dsn, name)
            await ctx.await_event(GO)

        return task(name="t", replay_check="strict", max_attempts=1)(run)

    db.execute(CHARGE)
    found = await changed(dsn, publishing("b"), publishing("x"))
    assert "has 'b' as its call 2, its code makes 'x'" in str(found.error)
    assert charges(db) == ["b"]


async def test_warns_once_per_difference(dsn: str, warnings: Any) -> None:
    for _ in range(3):
        await changed(dsn, program("a", GO), program("x", GO))
    assert [warned[1:] for warned in warnings()] == [("a", "x", 1)]


async def test_does_not_warn_if_disabled(dsn: str, warnings: Any) -> None:
    code = task(name="t", replay_check="off")(program("x", GO))
    found = await changed(dsn, program("a", "b", GO), code)
    assert found.state == "completed"
    assert warnings() == []


# -- strict ----------------------------------------------------------------------------


def strict(code: Any, name: str = "t") -> Any:
    return task(name=name, replay_check="strict")(code)


@COLOURS
async def test_refuses_changed_code_if_strict(dsn: str, colour: Any) -> None:
    old = {change: colour(*OLD) for change in CHANGES}
    new = {
        change: strict(colour(*names), name=change)
        for change, (names, _) in CHANGES.items()
    }
    found = await deployed(dsn, old, new, max_attempts=1)
    refused = {
        change
        for change, one in found.items()
        if one.error is not None and one.error.type == "NonDeterminism"
    }
    assert refused == CHANGES.keys() - {"the same", "added at the end"}
    assert all(found[change].state == "failed" for change in refused)


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_does_not_repeat_a_renamed_step(
    dsn: str, db: psycopg.Connection, colour: str
) -> None:
    db.execute(CHARGE)

    def charging(name: str) -> Any:
        async def run(params: None, ctx: Context) -> None:
            await ctx.step(name, noted, dsn, "charged")
            await ctx.await_event(GO)

        def run_sync(params: None, ctx: Sync) -> None:
            ctx.step(name, noted, dsn, "charged")
            ctx.await_event(GO)

        return run if colour == "async" else run_sync

    new = strict(charging("charge-the-card"))
    found = await changed(dsn, charging("charge"), new, max_attempts=1)
    assert found.state == "failed"
    assert charges(db) == ["charged"]


async def test_continues_after_a_rollback_of_the_code(dsn: str) -> None:
    """The attempt fails like any other, and the next one runs the old code again."""
    old = program("a", "b", GO)
    soon = Retry.fixed(0.2)
    found = await changed(dsn, old, strict(program("a", "x", GO)), retry=soon)
    assert (found.state, found.attempt) == ("sleeping", 2)
    async with working(dsn, task(name="t")(old)) as (app, _):
        assert await app.handle(found.task_id).result(timeout=20) == "done"


async def test_does_not_continue_for_code_that_swallows_the_error(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute(CHARGE)
    raised: list[BaseException] = []

    @task(name="t", replay_check="strict")
    async def swallow(params: None, ctx: Context) -> str:
        for name in ("x", "a", "y"):
            try:
                await ctx.step(name, noted, dsn, name)
            except Exception as error:  # noqa: BLE001 - as careless code does
                raised.append(error)
        return "done"

    found = await changed(dsn, program("a", GO), swallow, max_attempts=1)
    assert found.state == "failed"
    assert [type(error) for error in raised] == [NonDeterminism] * 3
    assert charges(db) == []


# -- calls without an order ------------------------------------------------------------


def beside(*branches: list[str], start: str = "gather") -> Any:
    """Return code with concurrent branches, and a step after them."""

    async def branch(names: list[str], ctx: Context) -> None:
        for name in names:
            await ctx.step(name, one)

    async def run(params: None, ctx: Context) -> str:
        work = [branch(names, ctx) for names in branches]
        if start == "gather":
            await asyncio.gather(*work)
        else:
            first = asyncio.create_task(work[0])
            for other in work[1:]:
                await other
            await first
        await ctx.step("end", one)
        await ctx.await_event(GO)
        return "done"

    return run


@pytest.mark.parametrize("start", ["gather", "create_task"])
async def test_requires_no_order_between_branches(
    dsn: str, warnings: Any, start: str
) -> None:
    old = beside(["a", "b"], ["c", "d", "e"], start=start)
    new = beside(["c", "d", "e"], ["a", "b"], start=start)
    assert (await changed(dsn, old, strict(old), old, max_attempts=1)).error is None
    assert (await changed(dsn, old, strict(new), old, max_attempts=1)).error is None
    assert warnings() == []


@pytest.mark.parametrize(
    ("branches", "expected"),
    [
        ((["a", "x"], ["c", "d", "e"]), ("b", "end")),
        ((["a", "b"], ["c", "e"]), ("d", "end")),
        ((["a", "b"], ["c", "d"]), ("e", "end")),
    ],
)
async def test_names_a_call_missing_after_branches(
    dsn: str, warnings: Any, branches: Any, expected: tuple[str, str]
) -> None:
    await changed(dsn, beside(["a", "b"], ["c", "d", "e"]), beside(*branches))
    assert [(missed, found) for _, missed, found, _ in warnings()] == [expected]


async def test_a_cancelled_branch_may_progress_further(dsn: str, warnings: Any) -> None:
    """Which of two racing branches gets how far differs from run to run."""

    async def race(params: None, ctx: Context) -> str:
        async def slow() -> None:
            for number in range(3):
                await ctx.step(f"slow {number}", one)
                await asyncio.sleep(0)
            await asyncio.Event().wait()

        async def quick() -> None:
            await ctx.step("quick", asyncio.sleep, again.pop() if again else 0)

        again = [0.1] if first.pop() else []
        both = [asyncio.create_task(slow()), asyncio.create_task(quick())]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        both[0].cancel()
        await asyncio.wait(both)
        await ctx.step("end", one)
        await ctx.await_event(GO)
        return "done"

    first = [False, True]
    assert (await changed(dsn, race, strict(race), max_attempts=1)).error is None
    assert warnings() == []


# -- unchanged code that varies --------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_later_attempts_may_take_another_path(dsn: str, kind: str) -> None:
    """Code may test the attempt number, so the order is not certain in those."""
    first = iter([True])

    async def run(params: None, ctx: Context) -> str:
        if ctx.attempt == 1:
            await ctx.step("first", one)
        else:
            for number in range(3):
                await ctx.step(f"again {number}", one)
        await ctx.step("a", one)
        if next(first, False):
            raise ConnectionError
        await ctx.step("b", one)
        await ctx.await_event(GO)
        return "done"

    def run_sync(params: None, ctx: Sync) -> str:
        if ctx.attempt == 1:
            ctx.step("first", one)
        else:
            for number in range(3):
                ctx.step(f"again {number}", one)
        ctx.step("a", one)
        if next(first, False):
            raise ConnectionError
        ctx.step("b", one)
        ctx.await_event(GO)
        return "done"

    code = task(name="t", replay_check="strict", retry=Retry.fixed(0), max_attempts=2)(
        run if kind == "async" else run_sync
    )
    found = await changed(dsn, code, code)
    assert (found.state, found.attempt) == ("completed", 2)


async def test_knows_all_kinds_of_calls(dsn: str, db: psycopg.Connection) -> None:
    """Each has its own place; internal checkpoints and failures have none."""

    @task
    async def child(number: int, ctx: Context) -> int:
        return number

    tries: list[int] = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) % 3:
            raise ConnectionError
        return len(tries)

    def broken() -> None:
        raise ValueError

    @task(name="t", replay_check="strict")
    async def everything(params: None, ctx: Context) -> str:
        await ctx.now()
        await ctx.step("flaky", flaky, max_attempts=3, retry=Retry.fixed(0))
        with contextlib.suppress(ValueError):
            await ctx.step("broken", broken)
        children = await ctx.spawn_many("child", child, range(3))
        await ctx.gather(*children)
        with contextlib.suppress(TimeoutError):
            await ctx.await_event("never", timeout=0)
        opened = await ctx.begin_step("by hand")
        if not opened.done:
            await ctx.complete_step(opened, 1)
        await ctx.emit_event("emitted")
        await ctx.sleep_for("nap", 0)
        await ctx.scope("inner").step("one", one)
        await ctx.await_event(GO)
        await ctx.step("end", one)
        return "done"

    async with working(dsn, everything, child) as (app, worker):
        handle = await app.spawn(everything, max_attempts=1)
        await worker.drain()
        await app.emit_event(GO)
        await worker.drain()
        assert (await handle.snapshot()).state == "completed"
    saved = exported(db, handle.task_id)["checkpoints"]
    calls = [one for one in saved if not one["name"].startswith(("$try", "$retry"))]
    calls.sort(key=lambda one: one["position"])
    assert [one["position"] for one in calls] == list(range(1, 15))
    # three children were spawned at once, all others in sequence
    after = [0, 1, 2, *[3] * 3, *range(6, 14)]
    assert [one["after"] for one in calls] == after


# -- options ---------------------------------------------------------------------------


def test_refuses_an_unknown_check() -> None:
    with pytest.raises(InvalidArgument, match="replay_check is 'lax'"):
        task(replay_check="lax")(program())  # type: ignore[call-overload]
