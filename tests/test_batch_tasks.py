"""A batch task runs together with others of its kind, and is a task of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from durable import (
    BatchTask,
    InvalidArgument,
    Retry,
    Task,
    TaskContext,
    current,
)
from tests.support.wait import aeventually
from tests.support.working import working

AT_ONCE = Retry.fixed(0)


class Square(BatchTask[int, int]):
    batch_size = 40
    batch_wait = 5.0
    retry = AT_ONCE
    sizes: ClassVar[list[int]] = []

    async def run_batch(self, batch: Sequence[int]) -> Sequence[int | Exception]:
        self.sizes.append(len(batch))
        return [number * number for number in batch]


@pytest.fixture(autouse=True)
def _forget_sizes() -> None:
    Square.sizes.clear()


async def test_runs_many_tasks_in_one_call(dsn: str) -> None:
    async with working(dsn, Square, concurrency=40) as (app, worker):
        handles = await app.spawn_many(Square, range(80))
        await worker.drain()
        results = [await handle.result(0) for handle in handles]
    assert results == [number * number for number in range(80)]
    assert Square.sizes == [40, 40]


async def test_a_batch_that_is_not_full_runs_after_its_wait(dsn: str) -> None:
    class Quick(Square):
        batch_wait = 0.05

    async with working(dsn, Quick, concurrency=40) as (app, worker):
        await app.spawn_many(Quick, range(3))
        await worker.drain()
    assert sum(Square.sizes) == 3


async def test_one_failure_fails_only_its_task(dsn: str) -> None:
    class Sqrt(BatchTask[int, float]):
        batch_size = 3
        batch_wait = 0.5
        retry = AT_ONCE
        max_attempts = 2

        async def run_batch(self, batch: Sequence[int]) -> Sequence[float | Exception]:
            return [
                number**0.5 if number >= 0 else ValueError(f"{number} is negative")
                for number in batch
            ]

    async with working(dsn, Sqrt) as (app, worker):
        handles = await app.spawn_many(Sqrt, [4, -1, 9])
        await worker.drain()
        ends = [await handle.snapshot() for handle in handles]
    assert [end.state for end in ends] == ["completed", "failed", "completed"]
    assert [end.attempt for end in ends] == [1, 2, 1]
    assert ends[1].error is not None
    assert ends[1].error.message == "-1 is negative"


@pytest.mark.parametrize("how", ["raises", "miscounts"])
async def test_a_failed_call_fails_an_attempt_of_each(dsn: str, how: str) -> None:
    calls: list[list[int]] = []

    class Fragile(BatchTask[int, int]):
        batch_size = 2
        batch_wait = 0.5
        retry = AT_ONCE

        async def run_batch(self, batch: Sequence[int]) -> list[int]:
            calls.append(sorted(batch))
            if len(calls) > 1:
                return list(batch)
            if how == "raises":
                raise ConnectionError("no model")
            return [1]

    async with working(dsn, Fragile) as (app, worker):
        handles = await app.spawn_many(Fragile, [1, 2])
        await worker.drain()
        assert [await handle.result(0) for handle in handles] == [1, 2]
        assert [(await handle.snapshot()).attempt for handle in handles] == [2, 2]
        (failed,) = [
            entry
            for entry in await handles[0].history()
            if entry.kind == "attempt_failed"
        ]
        error = failed.detail["error"]["message"]
    assert (
        error
        == {
            "raises": "no model",
            "miscounts": f"{Fragile.__qualname__}.run_batch returned 1 results for a"
            " batch of 2",
        }[how]
    )


async def test_a_cancelled_task_leaves_the_others_alone(dsn: str) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    class Slow(BatchTask[int, int]):
        batch_size = 2
        batch_wait = 0.5

        async def run_batch(self, batch: Sequence[int]) -> list[int]:
            began.set()
            await go.wait()
            return list(batch)

    async with working(dsn, Slow, lease=1) as (app, worker):
        one, other = await app.spawn_many(Slow, [1, 2])
        await began.wait()
        await one.cancel()
        await aeventually(lambda: asyncio.sleep(0, len(worker._runs) == 1))
        go.set()
        assert await other.result(10) == 2


async def test_a_call_ends_once_all_of_its_tasks_have(dsn: str) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Endless(BatchTask[int, int]):
        batch_size = 2

        async def run_batch(self, batch: Sequence[int]) -> list[int]:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return list(batch)

    async with working(dsn, Endless, shutdown_timeout=0) as (app, _):
        await app.spawn_many(Endless, [1, 2])
        await began.wait()
    await asyncio.wait_for(ended.wait(), 10)


async def test_a_synchronous_batch_runs_in_a_thread(dsn: str) -> None:
    class Blocking(BatchTask[str, bool]):
        def run_batch(self, batch: Sequence[str]) -> list[bool]:
            is_main = threading.current_thread() is threading.main_thread()
            return [is_main] * len(batch)

    async with working(dsn, Blocking) as (app, worker):
        handle = await app.spawn(Blocking, "x")
        await worker.drain()
        assert await handle.result(0) is False


async def test_no_task_is_current_in_a_batch(dsn: str) -> None:
    class Asks(BatchTask[None, str]):
        non_retryable = (RuntimeError,)

        async def run_batch(self, batch: Sequence[None]) -> list[str]:
            return [str(current().task_id) for _ in batch]

    async with working(dsn, Asks) as (app, worker):
        handle = await app.spawn(Asks)
        await worker.drain()
        assert await handle.state() == "failed"


class Collect(Task[list[int], list[int]]):
    async def run(self, numbers: list[int], ctx: TaskContext) -> list[int]:
        children = await ctx.spawn_many("square", Square, numbers)
        return list(await ctx.gather(*children))


async def test_its_tasks_may_be_children(dsn: str) -> None:
    async with working(dsn, Collect, Square, concurrency=40) as (app, worker):
        handle = await app.spawn(Collect, list(range(40)))
        await worker.drain()
        assert await handle.result(0) == [number**2 for number in range(40)]
    assert Square.sizes == [40]


@pytest.mark.parametrize("body", [{"batch_size": 0}, {"batch_size": True}])
def test_refuses_a_size_that_is_none(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="batch_size"):
        type("Odd", (Square,), body)


def test_refuses_a_negative_wait() -> None:
    with pytest.raises(InvalidArgument, match="batch_wait"):
        type("Hasty", (Square,), {"batch_wait": -1})
