"""What type checkers make of the public API: checked, never executed.

A line with an ignore comment must be an error; mypy and pyright both report an ignore
that is not needed, so a mistake that they stop seeing fails the check.
"""

# ruff: noqa: ARG002, INP001 - a task is given a context, needed or not

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, assert_type

from psycopg import AsyncConnection, Connection
from pydantic import BaseModel

from durable import (
    AsyncDurable,
    AsyncTaskHandle,
    Durable,
    Retry,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskHandle,
    task,
)


class Order(BaseModel):
    id: int


class Slip(BaseModel):
    carrier: str


class Shop:
    """What a lifespan gives."""

    name: str = "shop"


async def debit(conn: AsyncConnection[Any], amount: int) -> Slip:
    return Slip(carrier=f"{conn} {amount}")


def debit_sync(conn: Connection[Any], amount: int) -> Slip:
    return Slip(carrier=f"{conn} {amount}")


async def charge(order: Order) -> str:
    return f"charge-{order.id}"


def weigh(order: Order, unit: str) -> float:
    return order.id / len(unit)


def untyped(order: Any) -> Any:
    return order


class NotifyCustomer(Task[Slip, None]):
    max_attempts = None
    retry = Retry.fixed(timedelta(minutes=1))

    def run(self, slip: Slip, ctx: SyncTaskContext) -> None:
        assert_type(ctx.step("weigh", weigh, Order(id=1), "kg"), float)
        assert_type(ctx.transaction("debit", debit_sync, 3), Slip)
        ctx.transaction("debit", debit_sync, "three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        ctx.sleep_for("cool-off", 1)
        ctx.step("weigh", weigh, "no order", "kg")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]


class ProcessOrder(Task[Order, str]):
    max_attempts = 5
    no_retry = (ValueError,)

    async def run(self, order: Order, ctx: TaskContext[Shop]) -> str:
        assert_type(ctx.state, Shop)
        assert_type(await ctx.step("charge", charge, order), str)
        assert_type(await ctx.step("weigh", weigh, order, "kg"), float)
        assert_type(await ctx.step("any", untyped, order, as_type=Slip), Slip)
        assert_type(await ctx.await_event("packed", as_type=Slip, timeout=60), Slip)
        assert_type(await ctx.transaction("debit", debit, 3), Slip)
        await ctx.transaction("strict", debit, 3, isolation="serializable")
        await ctx.transaction("strict", debit, 3, isolation="strict")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
        await ctx.sleep_for("cool-off", timedelta(seconds=1))

        child = await ctx.spawn("notify", NotifyCustomer, Slip(carrier="Post"))
        assert_type(await ctx.join(child), None)
        counted = await ctx.spawn("count", count_orders, Order(id=1))
        assert_type(await ctx.join(counted, timeout=5), int)
        weighed = await ctx.spawn("weigh", weigh_order, order, queue="scales")
        assert_type(await ctx.call("count", count_orders, order, queue="far"), int)
        assert_type(await ctx.gather(counted, weighed), tuple[int, float])
        assert_type(await ctx.gather(a=counted, b=weighed), dict[str, Any])
        fastest = await ctx.first(counted, weighed, timeout=60)
        assert_type(await ctx.join(fastest), int | float)

        await ctx.step("charge", charge, "no order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        await ctx.step("charge", charge)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
        await ctx.spawn("notify", NotifyCustomer, order)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return await ctx.step("charge", charge, order)


class Greet(Task[str, str]):
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def run(self, name: str, ctx: SyncTaskContext) -> str:
        return f"{self.greeting} {name}"


@task
async def count_orders(order: Order, ctx: TaskContext) -> int:
    return order.id


@task(name="weigh-order", max_attempts=3, retry=Retry.none())
def weigh_order(order: Order, ctx: SyncTaskContext) -> float:
    return order.id


class WrongResult(Task[Order, str]):
    async def run(self, order: Order, ctx: TaskContext) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return order.id


class WrongParams(Task[Order, str]):
    async def run(self, slip: Slip, ctx: TaskContext) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return slip.carrier


class WrongOption(Task[Order, str]):
    max_attempts = "five"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    async def run(self, order: Order, ctx: TaskContext) -> str:
        return str(order.id)


assert_type(count_orders, Task[Order, int])
assert_type(weigh_order, Task[Order, float])
task(max_attemps=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def asynchronous(app: AsyncDurable) -> None:
    handle = await app.spawn(ProcessOrder, Order(id=7))
    assert_type(handle, AsyncTaskHandle[str])
    assert_type(await handle.result(timeout=30), str)
    assert_type(await (await app.spawn(count_orders, Order(id=7))).result(), int)
    assert_type(await (await app.spawn(Greet("hello"), "you")).result(), str)
    assert_type(await (await app.spawn(Greet, "you")).result(), str)
    assert_type(await app.spawn("process-order", {"id": 7}), AsyncTaskHandle[Any])
    assert_type(await app.emit_event("packed:7", Slip(carrier="Post")), bool)

    await app.spawn(ProcessOrder, Order(id=7), max_attempts=None, max_delay=60)
    await app.spawn(ProcessOrder, "no order")  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await app.spawn(ProcessOrder, Order(id=7), max_attemps=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await app.spawn(ProcessOrder, Order(id=7), max_attempts="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]

    await anything_of(handle)


def synchronous(app: Durable) -> None:
    handle = app.spawn(ProcessOrder, Order(id=7), idempotency_key="order:7")
    assert_type(handle, TaskHandle[str])
    assert_type(handle.result(timeout=30), str)
    assert_type(app.spawn(weigh_order, Order(id=7)).result(), float)
    assert_type(app.handle(handle.task_id, ProcessOrder), TaskHandle[str])
    assert_type(app.emit_event("packed:7", Slip(carrier="Post")), bool)

    thing_of(handle)


async def anything_of(handle: AsyncTaskHandle[object]) -> object:
    return await handle.result()


def thing_of(handle: TaskHandle[object]) -> object:
    return handle.result()


def ran_by_hand(order: Order, ctx: Any) -> str | Awaitable[str]:
    """A task is a class, so its run can be tested without a worker."""
    return ProcessOrder().run(order, ctx)
