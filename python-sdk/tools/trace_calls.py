"""Count the functions and modules that the most frequent calls run through.

    python tools/trace_calls.py postgresql://localhost/postgres

For each call it prints the frames of `durable` that were entered between its start and
its end, the modules they belong to, and how often one module called into another. The
database needs the schema and the queue `default`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from durable import AsyncDurable, Durable, TaskContext, task


class Trace:
    """The frames of one kind of call."""

    def __init__(self) -> None:
        self.frames = 0
        self.modules: set[str] = set()
        self.changes = 0

    def enter(self, frame: FrameType, event: str, _: Any) -> None:
        """Count a frame, as `sys.setprofile` has it called."""
        module = _module(frame)
        if event != "call" or not module.startswith("durable."):
            return
        self.frames += 1
        self.modules.add(module)
        caller = frame.f_back
        while caller and not _module(caller).startswith("durable."):
            caller = caller.f_back
        self.changes += bool(caller and _module(caller) != module)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


TRACES: dict[str, Trace] = collections.defaultdict(Trace)


@contextlib.contextmanager
def traced(name: str) -> Iterator[None]:
    """Trace what this thread calls, under this name."""
    TRACES[name] = trace = Trace()  # the last of several calls counts: caches are warm
    sys.setprofile(trace.enter)
    try:
        yield
    finally:
        sys.setprofile(None)


async def one(number: int) -> int:
    """Return the number."""
    return number


@task
async def traced_task(_: None, ctx: TaskContext) -> None:
    """Make each call three times."""
    for number in range(3):
        with traced("ctx.step"):
            await ctx.step("one", one, number)
        with traced("ctx.sleep_for"):
            await ctx.sleep_for("nap", 0)


BEGUN = asyncio.Event()


@task
async def claimed_task(_params: None, _ctx: TaskContext) -> None:
    """End the trace of the claim: the task's code begins here."""
    sys.setprofile(None)
    BEGUN.set()


async def trace_claims(dsn: str) -> None:
    """Trace an idle worker, from the notification of a new task to the task's code."""
    async with AsyncDurable(dsn, tasks=[claimed_task]) as app, app.worker(poll=60):
        for _ in range(3):
            await asyncio.sleep(0.5)  # until the worker listens
            BEGUN.clear()
            with Durable(dsn) as other:  # it blocks the loop, so the worker waits
                handle = other.spawn(claimed_task)
            with traced("claim"):
                await BEGUN.wait()
            await app.handle(handle.task_id).result(timeout=30)


async def main(dsn: str) -> None:
    """Trace the calls of a client and of one task."""
    async with AsyncDurable(dsn, tasks=[traced_task]) as app:
        await app.migrate()
        await trace_claims(dsn)
        async with app.worker():
            for _ in range(3):
                with traced("app.spawn"):
                    handle = await app.spawn(traced_task)
                await handle.result(timeout=30)
                with traced("handle.result"):
                    await handle.result()
    for name, trace in sorted(TRACES.items()):
        print(
            f"{name:<14} {trace.frames:>4} frames {len(trace.modules):>4} modules"
            f" {trace.changes:>4} calls from one module into another"
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
