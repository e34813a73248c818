"""A fork keeps the checkpoints before a step, and runs everything after it again."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import BaseModel, ValidationError

from durable import (
    AsyncTaskHandle,
    Durable,
    InvalidArgument,
    NotFound,
    Retry,
    Task,
    TaskContext,
    TaskFailed,
    UnknownQueue,
    current,
    task,
)
from tests.support.processes import Processes
from tests.support.wait import eventually
from tests.support.working import working

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


class Goal(BaseModel):
    """What an agent is asked for, and where it gives up."""

    question: str
    breaks: str = ""


def think(what: str, goal: Goal) -> str:
    CALLS.append(what)
    if what == goal.breaks:
        raise ValueError(f"cannot {what}")
    return f"{what} {goal.question}"


@task(max_attempts=1)
async def agent(goal: Goal, ctx: TaskContext) -> list[str]:
    at = await ctx.now()
    done = [await ctx.step(what, think, what, goal) for what in ("plan", "search")]
    await ctx.sleep_for("rest", 0.001)
    done += [await ctx.step(what, think, what, goal) for what in ("write", "check")]
    assert await ctx.random() < 1
    return [*done, str(at)]


@task
async def asks(params: None, ctx: TaskContext) -> str:
    return await ctx.step("ask", str.upper, "x")


async def test_repeats_only_what_follows_the_step(dsn: str) -> None:
    async with working(dsn, agent) as (app, _):
        origin = await app.spawn(agent, Goal(question="why", breaks="write"))
        with pytest.raises(TaskFailed):
            await origin.result(timeout=20)
        assert CALLS == ["plan", "search", "write"]
        CALLS.clear()
        stands = await app.fork(origin, params=Goal(question="who"))
        result = await stands.result(timeout=20)
        assert result[:4] == ["plan why", "search why", "write who", "check who"]
        assert CALLS == ["write", "check"]
        CALLS.clear()
        third = await stands.fork(before="write", params=Goal(question="how"))
        assert (third.created, third.attempt) == (True, 1)
        again = await third.result(timeout=20)
        elsewhere = app.handle(stands.task_id, agent)
        first = await app.fork(elsewhere, before="plan", max_attempts=3)
        assert again[:4] == ["plan why", "search why", "write how", "check how"]
        assert again[4] == result[4]
        # params of a fork default to those of its origin
        assert (await first.result(timeout=20))[:2] == ["plan who", "search who"]
        assert CALLS == ["write", "check", "plan", "search", "write", "check"]
        assert await origin.state() == "failed"


async def test_a_fork_repeats_what_ran_beside_the_step(dsn: str) -> None:
    """Left: one, two, three. Right: slow, which ends after two, and last."""
    twice, slow_may_end = asyncio.Event(), asyncio.Event()

    async def call(name: str) -> str:
        CALLS.append(name)
        if name == "two":
            slow_may_end.set()
        if name == "slow":
            await slow_may_end.wait()
        if name == "three":
            await twice.wait()
        return name

    @task
    async def branches(params: None, ctx: TaskContext) -> str:
        async def left() -> None:
            for name in ("one", "two", "three"):
                await ctx.step(name, call, name)

        async def right() -> None:
            await ctx.step("slow", call, "slow")
            twice.set()
            await ctx.step("last", call, "last")

        await asyncio.gather(left(), right())
        return "done"

    async with working(dsn, branches) as (app, worker):
        origin = await app.spawn(branches)
        await worker.drain()
        begun = sorted(CALLS)
        for before, missing in {
            "two": {"two", "three", "slow", "last"},
            "last": {"last", "three"},
            "one": {"one", "two", "three", "slow", "last"},
        }.items():
            CALLS.clear()
            fork = await origin.fork(before=before)
            await worker.drain()
            assert await fork.result(timeout=10) == "done"
            assert set(CALLS) == missing, before
            assert len(CALLS) == len(missing)
        assert begun == sorted(["one", "two", "three", "slow", "last"])


async def test_forks_after_a_failure_that_the_task_had_caught(dsn: str) -> None:
    def refuse(name: str) -> None:
        CALLS.append(name)
        raise LookupError(name)

    @task
    async def careful(params: None, ctx: TaskContext) -> list[str]:
        said = []
        for name in ("charge", "pay"):
            try:
                await ctx.step(name, refuse, name)
            except LookupError as error:
                said.append(str(error))
        return [*said, await ctx.step("refund", think, "refund", Goal(question="it"))]

    async with working(dsn, careful) as (app, worker):
        origin = await app.spawn(careful)
        await worker.drain()
        CALLS.clear()
        fork = await origin.fork(before="refund")
        await worker.drain()
        assert await fork.result(timeout=10) == ["charge", "pay", "refund it"]
        assert CALLS == ["refund"]


async def test_counts_the_tries_of_a_step_from_zero(dsn: str) -> None:
    @task(max_attempts=1)
    async def stubborn(fails: int, ctx: TaskContext) -> str:
        def often() -> str:
            CALLS.append("try")
            if len(CALLS) <= fails:
                raise ConnectionError
            return "in the end"

        retry = Retry.fixed(0.001)
        return await ctx.step("often", often, max_attempts=3, retry=retry, as_type=str)

    async with working(dsn, stubborn) as (app, worker):
        origin = await app.spawn(stubborn, 3)
        await worker.drain()
        with pytest.raises(TaskFailed):
            await origin.result(timeout=10)
        assert len(CALLS) == 3
        CALLS.clear()
        fork = await origin.fork(params=2)
        await worker.drain()
        assert await fork.result(timeout=10) == "in the end"
        assert len(CALLS) == 3


async def test_joins_the_children_of_its_origin(dsn: str) -> None:
    @task
    async def parent(params: str, ctx: TaskContext) -> str:
        child = await ctx.spawn("child", asks)
        return await ctx.join(child) + params

    async with working(dsn, parent, asks) as (app, worker):
        origin = await app.spawn(parent, "1")
        await worker.drain()
        fork = await origin.fork(before="$join:child", params="2")
        await worker.drain()
        assert await fork.result(timeout=10) == "X2"
        assert len(await app.list_tasks(name="asks")) == 1


async def tokens(goal: Goal) -> str:
    CALLS.append("tokens")
    for word in ("one", "two"):
        current().write_stream("words", f"{word} {goal.question}")
    return goal.question


@task(max_attempts=1)
async def speaker(goal: Goal, ctx: TaskContext) -> str:
    await ctx.write_stream("words", f"begin {goal.question}")
    await ctx.set_value("at", "begin")
    await ctx.set_value("only", goal.question)
    await ctx.step("tokens", tokens, goal)
    await ctx.write_stream("words", f"said {goal.question}")
    await ctx.write_stream("other", goal.question)
    await ctx.step("middle", think, "middle", goal)
    await ctx.write_stream("words", f"middle {goal.question}")
    await ctx.set_value("at", "middle")
    await ctx.step("tokens-again", tokens, goal)
    await ctx.write_stream("words", f"end {goal.question}")
    await ctx.close_stream("words")
    ctx.logger.info("it is said")
    return goal.question


@pytest.mark.parametrize(
    ("place", "copied", "other"),
    [
        ({"before": "tokens"}, 0, "B"),
        ({"after": "tokens"}, 3, "B"),
        ({"before": "tokens-again"}, 4, "A"),
        ({"after": "middle"}, 4, "A"),
        ({}, 7, "A"),
    ],
)
async def test_has_published_what_its_origin_had_by_then(
    dsn: str, place: Any, copied: int, other: str
) -> None:
    """Each entry once, without gaps; the fork publishes the later ones itself."""
    async with working(dsn, speaker) as (app, _):
        origin = await app.spawn(speaker, Goal(question="A"))
        assert await origin.result(timeout=10) == "A"
        fork = await origin.fork(**place, params=Goal(question="B"))
        assert await fork.result(timeout=10) == "B"
        whole = [entry.value async for entry in origin.stream("words").entries()]
        assert len(whole) == 8
        words = [entry async for entry in fork.stream("words").entries()]
        assert [entry.offset for entry in words] == list(range(8))
        expected = [
            said if index < copied else said.replace("A", "B")
            for index, said in enumerate(whole)
        ]
        assert [entry.value for entry in words] == expected
        assert {entry.attempt for entry in words[:copied]} <= {0}
        assert {entry.attempt for entry in words[copied:]} == {1}
        others = [value async for value in fork.stream("other")]
        assert others == [other]
        assert await fork.value("at") == "middle"
        assert await fork.value("only") == ("A" if copied else "B")
        lines = [line.message async for line in fork.logs()]
        assert lines == ["it is said"]


async def test_shows_its_origin(dsn: str) -> None:
    @task(headers={"tenant": 7})
    async def told(params: None, ctx: TaskContext) -> Any:
        return dict(ctx.headers)

    async with working(dsn, told) as (app, worker):
        await app.create_queue("other")
        origin = await app.spawn(told, idempotency_key="k")
        fork = await origin.fork(headers={"more": 1}, queue="other")
        assert fork.queue == "other"
        fork = await origin.fork(headers={"more": 1})
        await worker.drain()
        whose = {"task_id": str(origin.task_id)}
        by = {"user": conninfo_to_dict(dsn)["user"]}
        headers = {"tenant": 7, "more": 1, "durable:forked_from": {**whose, "by": by}}
        assert await fork.result(timeout=10) == headers
        listed = await app.list_tasks(headers={"durable:forked_from": whose})
        assert [info.task_id for info in listed] == [fork.task_id]
        spawned, *_ = await fork.history()
        assert spawned.detail == {"forked_from": whose}
        once = await origin.fork(idempotency_key="once")
        assert await origin.fork(idempotency_key="once") == once


async def test_refuses_an_unknown_step(dsn: str) -> None:
    async with working(dsn, agent, asks) as (app, _):
        origin = await app.spawn(agent, Goal(question="why"))
        await origin.result(timeout=20)
        with pytest.raises(InvalidArgument, match="no checkpoint") as refused:
            await origin.fork(before="serch")
        assert "there are: search (3)," in str(refused.value)
        refusals: list[dict[str, Any]] = [
            {"before": "plan", "after": "plan"},
            {"before": 7},
            {"position": "one"},
            {"position": True},
            {"position": 99},
            {"after": "nothing"},
            {"max_attemps": 3},
            {"before": "a\0"},
        ]
        for bad in refusals:
            with pytest.raises((InvalidArgument, TypeError)):
                await origin.fork(**bad)
        with pytest.raises(ValidationError):
            await app.fork(origin.task_id, params={"q": 1})
        with pytest.raises(NotFound):
            await app.fork(uuid4())
        with pytest.raises(NotFound):
            await app.fork(uuid4(), params=1)
        with pytest.raises(UnknownQueue):
            await origin.fork(queue="nowhere")
        assert len(await app.list_tasks()) == 1


def test_forks_for_synchronous_code(dsn: str) -> None:
    with Durable(dsn, tasks=[asks]) as app, app.worker() as worker:
        origin = app.spawn(asks)
        worker.drain()
        fork = app.fork(origin, after="ask")
        worker.drain()
        assert fork.result(timeout=10) == "X"
        assert app.export_history(fork)["checkpoints"][0]["value"] == "X"


class Chain(Task[int, int]):
    """Run steps, one after the other."""

    async def run(self, steps: int, ctx: TaskContext) -> int:
        total = 0
        for number in range(steps):
            total += await ctx.step(f"s{number:02}", add, number)
        return total


def add(number: int) -> int:
    return number


async def test_forks_a_running_task_at_its_last_commit(dsn: str) -> None:
    """What is committed counts: a fork has a prefix of its origin's history."""
    async with working(dsn, Chain) as (app, worker):
        origin = await app.spawn(Chain, 60)
        forks: list[AsyncTaskHandle[int]] = []
        while await origin.state() != "completed" and len(forks) < 20:
            forks.append(await origin.fork())
        await worker.drain()
        assert len(forks) > 1
        for fork in forks:
            assert await fork.result(timeout=10) == sum(range(60))
        exported = [await fork.export_history() for fork in forks]
        copied = [
            [each["name"] for each in found["checkpoints"] if each["attempt"] == 0]
            for found in exported
        ]
        steps = [f"s{number:02}" for number in range(60)]
        assert all(names == steps[: len(names)] for names in copied)


AGENT = """
import os, signal, sys
from durable import AsyncDurable, task

def think(what, crash):
    with open(sys.argv[1], "a") as file:
        print(what, file=file, flush=True)
    if crash:
        os.kill(os.getpid(), signal.SIGKILL)
    return what

@task(max_attempts=1)
async def agent(crash: str, ctx) -> list[str]:
    return [
        await ctx.step(what, think, what, what == crash, as_type=str)
        for what in ("first", "second", "third", "fourth")
    ]

async def main():
    async with AsyncDurable(tasks=[agent]) as app, app.worker(lease=0.5) as worker:
        await worker.drain()

import asyncio
asyncio.run(main())
"""


def test_forks_a_task_that_was_killed_with_its_worker(
    dsn: str, db: psycopg.Connection, processes: Processes, tmp_path: Any
) -> None:
    script, calls = tmp_path / "agent.py", tmp_path / "calls"
    script.write_text(AGENT)
    with Durable(dsn) as app:
        origin = app.spawn("agent", "third", max_attempts=1)
        assert processes.python(str(script), str(calls)).wait() == -9
        assert calls.read_text().split() == ["first", "second", "third"]
        expire = "select durable.expire_leases('default')"
        eventually(lambda: db.execute(expire).fetchone() == (1,))
        assert origin.state() == "failed"
        fork = origin.fork(params="never")
        assert processes.python(str(script), str(calls)).wait() == 0
        assert fork.result(timeout=10) == ["first", "second", "third", "fourth"]
    expected = ["first", "second", "third", "third", "fourth"]
    assert calls.read_text().split() == expected
