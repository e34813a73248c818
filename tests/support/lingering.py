"""Tasks that are stopped just before a write, and report what they saw afterwards."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from durable import AsyncDurable, NonRetryable, Retry, TaskContext, task
from durable.testing._failpoints import reach

__all__ = ["DEEDS", "MANNERS", "linger", "mind", "work"]

Context: TypeAlias = TaskContext[Any]

PATIENCE: Final = 3600


@task(max_attempts=None, retry=Retry.fixed(PATIENCE))
async def linger(deed: str, ctx: Context) -> str:
    """Make one call that comes too late, and report its outcome."""
    reach("begins")
    _, do = DEEDS[deed]
    try:
        await do(ctx)
    except BaseException as error:
        reach(f"saw {type(error).__name__}: {error}")
        raise
    reach("saw nothing")
    return "of the former holder"


@task(max_attempts=None, retry=Retry.fixed(PATIENCE))
async def mind(manner: str, ctx: Context) -> str:
    """Re-raise the exception that ends it, as code should."""
    try:
        await ctx.step("late", late)
    except BaseException as error:  # noqa: BLE001 - that is the manner
        reach(f"saw {type(error).__name__}: {error}")
        await MANNERS[manner](ctx)
    return "of the former holder"


async def late() -> str:
    return "late"


async def return_at_once(_: Context) -> None:
    """Let the other tasks continue as if nothing had happened."""


async def go_on(ctx: Context) -> None:
    for name in ("again", "and again"):
        try:
            await ctx.step(name, late)
        except BaseException as error:  # noqa: BLE001 - as above
            reach(f"saw {type(error).__name__}: {error}")


async def raise_its_own(_: Context) -> None:
    raise ValueError("of the former holder")


async def fail_for_good(_: Context) -> None:
    raise NonRetryable("of the former holder")


async def exit_the_process(_: Context) -> None:
    sys.exit("of the former holder")


async def raise_in_a_group(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.step("again", late))
        group.create_task(raise_its_own(ctx))


async def beside_a_sleep(ctx: Context) -> None:
    """Hold the run with a step that ends after a sleep, which must be polled for."""
    rested = asyncio.Event()

    async def rest() -> None:
        await ctx.sleep_for("rest", 0.01)
        rested.set()

    await asyncio.gather(rest(), ctx.step("beside", rested.wait))


async def join_a_child(ctx: Context) -> None:
    await ctx.join(await ctx.spawn("child", "nobody's"))


async def fail(_: Context) -> None:
    raise ValueError("of the former holder")


async def nothing(_: Context) -> None:
    """Complete."""


async def hold(ctx: Context) -> None:
    await ctx.step("late", asyncio.Event().wait)


Deed: TypeAlias = Callable[[Context], Awaitable[Any]]

# The late call, and the engine function it ends up in.
DEEDS: Final[dict[str, tuple[str, Deed]]] = {
    "saves a step": ("flush#1", lambda ctx: ctx.step("late", late)),
    "completes": ("flush#1", nothing),
    "fails": ("flush#1", fail),
    "fails for good": ("flush#1", fail_for_good),
    "extends its lease": ("extend_leases#1", lambda ctx: ctx.heartbeat()),
    "has its lease extended": ("extend_leases#1", hold),
    "sleeps": ("suspend_tasks#1", lambda ctx: ctx.sleep_for("late", PATIENCE)),
    "waits for an event": ("suspend_tasks#1", lambda ctx: ctx.await_event("late")),
    "waits for a message": ("suspend_tasks#1", lambda ctx: ctx.recv("late")),
    "joins a child": ("suspend_tasks#1", join_a_child),
    "looks up its waits": ("poll_waits#1", beside_a_sleep),
    "spawns a child": ("spawn_children#1", lambda ctx: ctx.spawn("late", "nobody's")),
    "emits an event": ("emit_from_task#1", lambda ctx: ctx.emit_event("late")),
    "sends a message": (
        "send_from_task#1",
        lambda ctx: ctx.send(ctx.task_id, "late"),
    ),
    "is given back": ("release_tasks#1", hold),
    "loads its past": ("load_checkpoints#1", lambda ctx: ctx.step("late", late)),
}

# What code does with the exception that ends it.
MANNERS: Final[dict[str, Deed]] = {
    "returns": return_at_once,
    "goes on": go_on,
    "raises its own": raise_its_own,
    "fails for good": fail_for_good,
    "exits": exit_the_process,
    "raises in a group": raise_in_a_group,
}


async def work(queue: str, **options: Any) -> None:
    """Run a worker for these tasks until a signal."""
    application = AsyncDurable(queue=queue, tasks=[linger, mind])
    await application.run_worker(concurrency=1, **options)
