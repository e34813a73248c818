"""Random programs of durable calls, and one task that runs any of them.

A program is JSON: a list of nodes, each a kind and its arguments. The calls of the task
are those of its program, so that other code is another program.
"""

# ruff: noqa: ARG002 - all kinds of nodes are played alike

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final, TypeAlias
from uuid import UUID

import psycopg
from hypothesis import strategies as st

from durable import Retry, TaskContext, task

__all__ = [
    "CALLS",
    "ORDERS",
    "calls_of",
    "play",
    "programs",
    "racing_programs",
    "renamed",
    "swaps",
    "without",
]

Node: TypeAlias = list[Any]
Program: TypeAlias = list[Node]

CALLS: Final = ["step", "caught", "tries", "nap", "scope", "now", "patch"]
TOLD: Final = ["emit", "spawn", "heard"]
RACING: Final = ["step", "caught", "scope", "now", "nap", *TOLD]
UNSTEADY: Final = ["flaky", "lost", "turn", "pause", "later", *TOLD]
AT_ONCE: Final = Retry.fixed(0)
RELEASE: Final = "select durable.release_tasks('default', %s)"

ORDERS: Final[defaultdict[UUID, list[list[str]]]] = defaultdict(list)
"""In which order each run of a task has come past the places of its program."""

_seen: set[tuple[UUID, str]] = set()


def racing_programs() -> st.SearchStrategy[Program]:
    """Return programs whose branches are saved by different statements."""
    return programs(steady=True, kinds=RACING)


def programs(
    *, steady: bool, kinds: list[str] | None = None
) -> st.SearchStrategy[Program]:
    """Return programs; steady ones do not fail, crash, or depend on timing."""
    names = st.sampled_from("abc")
    kinds = kinds or (CALLS if steady else [*CALLS, *UNSTEADY])
    leaves = st.lists(st.tuples(st.sampled_from(kinds), names).map(list), max_size=5)
    groups = ["all", "group"] if steady else ["all", "group", "beside", "race"]

    def larger(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
        branches = st.lists(inner, min_size=2, max_size=3)
        group = st.tuples(st.sampled_from(groups), branches).map(list)
        parts = st.lists(st.one_of(leaves, st.lists(group, max_size=1)), max_size=4)
        return parts.map(lambda several: [node for part in several for node in part])

    return st.recursive(leaves, larger, max_leaves=6).filter(bool)


class Flaky(Exception):
    """An error that fails an attempt, or a try, once."""


class Caught(Exception):
    """The error of a step that always fails."""


@task(max_attempts=50, retry=AT_ONCE, replay_check="strict")
async def play(params: dict[str, Any], ctx: TaskContext[Any]) -> str:
    """Run a program, wait for its event, and end."""
    player = _Player(ctx, params.get("dsn", ""))
    await player.play(params["program"], ctx, "")
    if params["waits"]:
        await ctx.await_event(f"go:{ctx.task_id}")
    return "done"


class _Player:
    def __init__(self, ctx: TaskContext[Any], dsn: str) -> None:
        self.ctx = ctx
        self.dsn = dsn
        self.order: list[str] = []
        ORDERS[ctx.task_id].append(self.order)

    async def play(self, program: Program, ctx: TaskContext[Any], path: str) -> None:
        for number, (kind, what) in enumerate(program):
            await getattr(self, kind)(what, ctx, f"{path}/{number}")
            self.order.append(f"{path}/{number}")

    def first(self, place: str) -> bool:
        """Whether this task gets here for the first time."""
        new = (self.ctx.task_id, place) not in _seen
        _seen.add((self.ctx.task_id, place))
        return new

    # -- calls ---------------------------------------------------------------------

    async def step(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.step(name, int)

    async def caught(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        # with names of its own: where another step got the failure, the code would
        # fail, and failing code is not reported for calls that it has not reached
        with contextlib.suppress(Caught):
            await ctx.scope("c").step(name, refuse)

    async def tries(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.step(name, self.fail_once, place, max_attempts=9, retry=AT_ONCE)

    async def nap(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.sleep_for(name, 0)

    async def scope(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.scope("s").step(name, int)

    async def now(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.scope("n").now()

    async def patch(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.patched(name)

    async def emit(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.scope("e").emit_event(f"{name}:{self.ctx.task_id}")

    async def spawn(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.scope("p").spawn(name, "nobody's")

    async def heard(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        """Wait for an event that has been emitted."""
        event = f"heard:{name}:{self.ctx.task_id}"
        await ctx.scope(f"h{place}").emit_event(event)
        await ctx.scope(f"h{place}").await_event(event)

    # -- failures and delays -------------------------------------------------------

    async def flaky(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.step(name, self.fail_once, place)

    async def lost(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await ctx.step(name, self.lose_once, place)

    async def later(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        """Run a step in later attempts only."""
        if ctx.attempt > 1:
            await ctx.scope(f"later{ctx.attempt}").step(name, int)

    async def turn(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await asyncio.sleep(0)

    async def pause(self, name: str, ctx: TaskContext[Any], place: str) -> None:
        await asyncio.sleep(0.001 if self.first(place) else 0)

    # -- branches ------------------------------------------------------------------

    def branches(
        self, programs: list[Program], ctx: TaskContext[Any], place: str
    ) -> list[Any]:
        return [
            self.play(program, ctx.scope(f"{place[1:]}.{number}"), f"{place}.{number}")
            for number, program in enumerate(programs)
        ]

    async def all(self, what: Any, ctx: TaskContext[Any], place: str) -> None:
        await asyncio.gather(*self.branches(what, ctx, place))

    async def group(self, what: Any, ctx: TaskContext[Any], place: str) -> None:
        async with asyncio.TaskGroup() as group:
            for branch in self.branches(what, ctx, place):
                group.create_task(branch)

    async def beside(self, what: Any, ctx: TaskContext[Any], place: str) -> None:
        """Continue while others run."""
        own, *others = self.branches(what, ctx, place)
        tasks = [asyncio.create_task(other) for other in others]
        try:
            await own
        finally:
            await asyncio.gather(*tasks)

    async def race(self, what: Any, ctx: TaskContext[Any], place: str) -> None:
        """Cancel the others when one has ended."""
        tasks = [asyncio.create_task(one) for one in self.branches(what, ctx, place)]
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        await asyncio.wait(tasks)
        for one in done:
            one.result()

    # -- functions of steps --------------------------------------------------------

    def fail_once(self, place: str) -> int:
        if self.first(place):
            raise Flaky
        return 0

    def lose_once(self, place: str) -> int:
        """Release the task, as if its worker had died here."""
        if self.first(place):
            claimed = self.ctx._run.claimed
            held = [{"task_id": str(claimed.task_id), "claim": claimed.claim}]
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute(RELEASE, [json.dumps(held)])
        return 0


def refuse() -> int:
    raise Caught


# -- other programs --------------------------------------------------------------------


def calls_of(program: Program) -> Iterator[tuple[Program, int]]:
    """Yield the places of a program's calls: the list, and the index in it."""
    for number, (kind, what) in enumerate(program):
        if kind in CALLS:
            yield program, number
        elif isinstance(what, list):
            for branch in what:
                yield from calls_of(branch)


def without(program: Program, index: int) -> Program:
    """Return the program without one of its calls."""
    other = copy.deepcopy(program)
    where, number = list(calls_of(other))[index]
    del where[number]
    return other


def renamed(program: Program, index: int) -> Program:
    """Return the program with another name for one of its calls."""
    other = copy.deepcopy(program)
    where, number = list(calls_of(other))[index]
    where[number] = ["step", "renamed"]
    return other


def swaps(program: Program) -> list[Program]:
    """Return the programs with two neighbours of the task's own coroutine swapped."""
    found = []
    for number, (one, other) in enumerate(pairwise(program)):
        if one[0] in CALLS and other[0] in CALLS and _key(one) != _key(other):
            swapped = copy.deepcopy(program)
            swapped[number : number + 2] = [other, one]
            found.append(swapped)
    return found


def _key(node: Node) -> tuple[str, str]:
    """Return what distinguishes its checkpoint from that of another call."""
    kind, name = node
    if kind == "now":
        return kind, ""
    return ("step" if kind in {"caught", "tries"} else kind), name
