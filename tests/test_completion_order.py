"""A replay returns saved values in the order of the first run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import Retry, TaskContext, task
from tests.support.changing import GO, changed
from tests.support.clock import Clock
from tests.support.wait import aeventually
from tests.support.working import DAY, through_the_night, working

Context: TypeAlias = TaskContext[Any]
Code: TypeAlias = Callable[[Context, "Race"], Awaitable[list[Any]]]


class Race:
    """Steps that end in a given order, independent of the order of their calls."""

    def __init__(self, *order: str) -> None:
        self.ended = {name: asyncio.Event() for name in ("", *order)}
        self._before = dict(zip(order, ("", *order), strict=False))
        self.ended[""].set()

    async def run(self, ctx: Context, name: str) -> str:
        """Run a step that ends after the previous one in the order."""
        value = await ctx.step(name, self.work, name)
        self.ended[name].set()
        return value

    async def work(self, name: str) -> str:
        await self.ended[self._before[name]].wait()
        return name


async def first_of_two(ctx: Context, race: Race) -> list[Any]:
    tasks = {asyncio.create_task(race.run(ctx, name)) for name in "abc"}
    order = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        order += [one.result() for one in done]
    return order


async def as_completed(ctx: Context, race: Race) -> list[Any]:
    ends = asyncio.as_completed([race.run(ctx, name) for name in "abc"])
    return [await one for one in ends]


async def a_list(ctx: Context, race: Race) -> list[Any]:
    order = []

    async def branch(name: str) -> None:
        order.append(await race.run(ctx, name))

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(branch(name))
    return order


async def a_queue(ctx: Context, race: Race) -> list[Any]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    order = []

    async def branch(name: str) -> None:
        await queue.put(await race.run(ctx, name))

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(branch(name))
        for number in range(3):
            name = await queue.get()
            order.append(await ctx.step(f"{number}", str, name))
    return order


async def a_lock(ctx: Context, race: Race) -> list[Any]:
    lock = asyncio.Lock()
    order = []

    async def branch(name: str) -> None:
        await race.run(ctx, name)
        async with lock:
            order.append(name)
            await ctx.step(f"locked {name}", int)
            order.append(name)

    await asyncio.gather(*map(branch, "abc"))
    return order


async def a_branch_that_has_not_begun(ctx: Context, race: Race) -> list[Any]:
    """The task's own coroutine calls first, and gets its value last."""
    order = []

    async def branch() -> None:
        order.append(await race.run(ctx, "c"))
        order.append(await race.run(ctx, "b"))

    other = asyncio.create_task(branch())
    order.append(await race.run(ctx, "a"))
    await other
    return order


async def a_failure(ctx: Context, race: Race) -> list[Any]:
    """The task continues at once; the failure is saved with a later call."""
    order = []

    async def fail(name: str) -> None:
        await race.work(name)
        raise ValueError(name)

    async def branch(name: str) -> None:
        try:
            if name == "c":
                await ctx.step(name, fail, name)
            order.append(await race.run(ctx, name))
        except ValueError:
            order.append("failed")
            race.ended[name].set()

    await asyncio.gather(*map(branch, "abc"))
    await ctx.step("after", int)
    return order


async def a_deep_tree(ctx: Context, race: Race) -> list[Any]:
    order = []

    async def branch(name: str, depth: int) -> None:
        if depth:
            await asyncio.gather(branch(name, depth - 1))
            return
        order.append(await race.run(ctx, name))

    async def outer(name: str) -> None:
        await branch(name, 2)
        order.append(f"{name} ended")

    await asyncio.gather(*map(outer, "abc"))
    return order


async def a_consumer_that_makes_no_calls(ctx: Context, race: Race) -> list[Any]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    order: list[Any] = []

    async def consume() -> None:
        while True:
            order.append(await queue.get())

    consumer = asyncio.create_task(consume())
    for name in "cba":
        await queue.put(await race.run(ctx, name))
        await ctx.step(f"consumed {name}", int)
        order.append(len(order))
    consumer.cancel()
    return order


async def a_transaction_and_children(ctx: Context, race: Race) -> list[Any]:
    """Values saved by different statements."""
    order = []

    async def write(connection: Any, name: str) -> str:
        return await race.work(name)

    async def transact() -> None:
        order.append(await ctx.transaction("b", write, "b"))
        race.ended["b"].set()

    async def spawn() -> None:
        await race.ended["b"].wait()
        await ctx.spawn_many("child", "nobody's", [1, 2])
        order.append("children")

    async def emit() -> None:
        await race.run(ctx, "c")
        # not beside the transaction's commit: its order with a call that is saved at
        # the same moment is not kept
        await race.ended["b"].wait()
        await ctx.emit_event("emitted")
        order.append("c")

    await asyncio.gather(spawn(), transact(), emit())
    return order


EXPECTED: dict[Code, list[Any]] = {
    a_consumer_that_makes_no_calls: ["c", 1, "b", 3, "a", 5],
    first_of_two: ["c", "b", "a"],
    a_transaction_and_children: [],
    as_completed: ["c", "b", "a"],
    a_list: ["c", "b", "a"],
    a_queue: ["c", "b", "a"],
    a_lock: ["c", "c", "b", "b", "a", "a"],
    a_branch_that_has_not_begun: ["c", "b", "a"],
    a_failure: ["failed", "b", "a"],
    a_deep_tree: ["c", "c ended", "b", "b ended", "a", "a ended"],
}


@pytest.mark.parametrize("code", EXPECTED)
async def test_replays_in_the_order_of_the_first_run(
    dsn: str, clock: Clock, code: Code
) -> None:
    seen: list[list[Any]] = []

    @task(replay_check="strict", max_attempts=1)
    async def racing(params: None, ctx: Context) -> list[Any]:
        seen.append(await code(ctx, Race("c", "b", "a")))
        await ctx.sleep_for("night", DAY)
        await ctx.sleep_for("next night", DAY)
        return seen[-1]

    assert (await through_the_night(dsn, clock, racing)).state == "completed"
    assert seen == [EXPECTED[code] or seen[0]] * 3


async def test_remembers_which_of_two_waits_ended_first(dsn: str, clock: Clock) -> None:
    seen: list[set[str]] = []

    @task(max_attempts=1)
    async def racing(params: None, ctx: Context) -> None:
        waits = {
            asyncio.create_task(ctx.sleep_for("long", 5 * DAY), name="long"),
            asyncio.create_task(ctx.sleep_for("short", DAY / 2), name="short"),
        }
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        seen.append({one.get_name() for one in done})
        await asyncio.wait(waits)
        await ctx.sleep_for("night", DAY)

    assert (await through_the_night(dsn, clock, racing)).state == "completed"
    assert len(seen) >= 2
    assert all(one == {"short"} for one in seen)


async def test_a_call_that_waits_for_a_lock_holds_up_others_for_a_limited_time(
    dsn: str, adb: psycopg.AsyncConnection
) -> None:
    """The lock may be released only after another call of the task was saved."""
    locked = asyncio.Event()

    @task(max_attempts=1)
    async def work(params: None, ctx: Context) -> None:
        emitting = asyncio.create_task(ctx.emit_event("locked"))
        await ctx.step("first", locked.wait)
        await ctx.step("second", int)
        await adb.rollback()
        await emitting

    async with working(dsn, work) as (app, worker), asyncio.timeout(30):
        await adb.set_autocommit(False)
        await adb.execute("select durable.emit_event('default', 'locked')")
        handle = await app.spawn(work)
        waiting = asyncio.create_task(lock_is_waited_for(dsn))
        waiting.add_done_callback(lambda _: locked.set())
        await worker.drain()
        await waiting
        assert (await handle.snapshot()).state == "completed"


async def lock_is_waited_for(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching:

        async def waits() -> bool:
            query = (
                "select 1 from pg_stat_activity"
                " where wait_event_type = 'Lock' and datname = current_database()"
            )
            return await (await watching.execute(query)).fetchone() is not None

        await aeventually(waits)


# -- code that no longer makes the calls -----------------------------------------------


def branches(*several: list[str]) -> Any:
    async def branch(names: list[str], ctx: Context) -> None:
        for name in names:
            await ctx.step(name, int)

    async def run(params: None, ctx: Context) -> str:
        await asyncio.gather(*(branch(names, ctx) for names in several))
        await ctx.await_event(GO)
        return "done"

    return run


@pytest.mark.parametrize(
    "new",
    [
        [["b"], ["c", "d"]],
        [["a", "b"], ["d"]],
        [["new", "a", "b"], ["c", "d"]],
        [["a", "new", "b"], ["c", "d", "e"]],
        [["b", "a"], ["d", "c"]],
        [["d", "c", "b", "a"]],
        [["x", "y"], ["z"]],
        [[]],
    ],
)
async def test_does_not_wait_for_a_call_that_is_no_longer_made(
    dsn: str, new: list[list[str]]
) -> None:
    old = branches(["a", "b"], ["c", "d"])
    async with asyncio.timeout(60):
        assert (await changed(dsn, old, branches(*new))).result == "done"


async def test_begins_a_new_call_after_all_recorded_values_were_returned(
    dsn: str, clock: Clock
) -> None:
    """Its value cannot come before theirs, as it did not at first."""
    runs: list[list[str]] = []

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def work(params: None, ctx: Context) -> None:
        order: list[str] = []
        runs.append(order)
        recorded = asyncio.Event()

        async def lost() -> None:
            if len(runs) == 1:
                await recorded.wait()
                raise ConnectionError

        async def branch(name: str) -> None:
            await ctx.step(name, lost if name == "lost" else int)
            order.append(name)

        async def chain() -> None:
            for name in "abc":
                await branch(name)
                for _ in range(4):
                    await asyncio.sleep(0)
            recorded.set()

        await asyncio.gather(branch("lost"), chain())

    assert (await through_the_night(dsn, clock, work)).state == "completed"
    assert runs == [["a", "b", "c"], ["a", "b", "c", "lost"]]
