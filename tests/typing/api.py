"""What type checkers make of the public API: checked, never executed.

A line with an ignore comment must be an error; mypy and pyright both report an ignore
that is not needed, so a mistake that they stop seeing fails the check.
"""

# ruff: noqa: ARG002, INP001 - a task is given a context, needed or not

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator, Awaitable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

from psycopg import AsyncConnection, Connection
from pydantic import BaseModel

import durable
from durable import (
    Actor,
    AnnouncedTask,
    AsyncDurable,
    AsyncTaskHandle,
    AsyncTaskStream,
    Depth,
    Durable,
    Explanation,
    HistoryEntry,
    LogLine,
    Middleware,
    PartitionInfo,
    RecordedResponse,
    Retry,
    Schedule,
    ScheduleInfo,
    ScheduleRun,
    Sealed,
    StreamEntry,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskHandle,
    TaskInfo,
    TaskList,
    TaskStream,
    TaskTotal,
    Throughput,
    VersionStats,
    current,
    task,
)
from durable.encryption import AESGCMCodec
from durable.middleware import Sending, run_info
from durable.options import JSON
from durable.testing import crash_everywhere, run_inline, spawned, sync


class Order(BaseModel):
    id: int


class Slip(BaseModel):
    carrier: str


class Shop:
    """The value that a lifespan returns."""

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


async def ask(question: dict[str, Any], ctx: TaskContext, tries: int = 3) -> str:
    return f"{question} {ctx} {tries}"


def measure(order: dict[str, Any]) -> float:
    return float(len(order))


def later(order: Order) -> Awaitable[str]:
    return charge(order)


class NotifyCustomer(Task[Slip, None]):
    max_attempts = None
    retry = Retry.fixed(timedelta(minutes=1))

    def run(self, slip: Slip, ctx: SyncTaskContext) -> None:
        assert_type(ctx.step("weigh", weigh, Order(id=1), "kg"), float)
        assert_type(ctx.transaction("debit", debit_sync, 3), Slip)
        ctx.transaction("debit", debit_sync, "three")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert_type(ctx.http.post("ask", "https://x", json=1), RecordedResponse)
        ctx.sleep_for("cool-off", 1)
        assert_type(ctx.patched("new way"), bool)
        ctx.step("weigh", weigh, "no order", "kg")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType]


class ProcessOrder(Task[Order, str]):
    max_attempts = 5
    priority = 5
    schedule = Schedule.every(timedelta(hours=1), params=Order(id=1), catch_up=3)
    non_retryable = (ValueError,)
    replay_check = "strict"

    def partition_key(self, order: Order) -> str:
        return f"order {order.id}"

    async def run(self, order: Order, ctx: TaskContext[Shop]) -> str:
        assert_type(ctx.state, Shop)
        assert_type(await ctx.patched("new way"), bool)
        ctx.deprecate_patch("old way")
        assert_type(ctx.deadline, datetime | None)
        assert_type(ctx.version, str | None)
        assert_type(ctx.scheduled_at, datetime | None)
        assert_type(await ctx.step("charge", charge, order), str)
        assert_type(await ctx.step("weigh", weigh, order, "kg"), float)
        assert_type(await ctx.step("any", untyped, order, as_type=Slip), Slip)
        assert_type(await ctx.step("ask", ask, {}, ctx), str)  # pyright: ignore[reportUnknownArgumentType]
        anything: Any = order
        assert_type(await ctx.step("ask", ask, anything, ctx, max_attempts=3), str)
        assert_type(await ctx.step("measure", measure, anything), float)
        assert_type(await ctx.step("later", later, order), Any)
        assert_type(await ctx.step("later", later, order, as_type=str), str)
        pair = gather(
            ctx.step("ask", ask, anything, ctx), ctx.step("w", weigh, order, "g")
        )
        assert_type(await pair, tuple[str, float])
        assert_type(await ctx.await_event("packed", as_type=Slip, timeout=60), Slip)
        assert_type(await ctx.recv("slips", as_type=Slip, timeout=60), Slip)
        assert_type(await ctx.recv("slips"), Any)
        assert_type(await ctx.transaction("debit", debit, 3), Slip)
        assert_type(await ctx.http.get("ask", "https://x", params={}), RecordedResponse)
        assert_type(ctx.identity, Mapping[str, JSON] | None)
        assert_type(current().task_id, UUID)
        assert_type(current(None), TaskContext[Any] | SyncTaskContext[Any] | None)
        await ctx.http.post("ask", "https://x", jsn={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
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
        six = ctx.gather(counted, weighed, child, counted, weighed, child)
        assert_type(await six, tuple[int, float, None, int, float, None])
        assert_type(await ctx.gather(*[counted] * 7), tuple[int, ...])
        fastest = await ctx.first(counted, weighed, timeout=60)
        assert_type(await ctx.join(fastest), int | float)
        crowd = await ctx.spawn_many("crowd", count_orders, [order])
        assert_type(await ctx.join(await ctx.first(*crowd)), int)

        await ctx.step("charge", charge, "no order")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
        await ctx.step("charge", charge)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
        await ctx.spawn("notify", NotifyCustomer, order)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return await ctx.step("charge", charge, order)


class Mirror:
    """A custom codec."""

    def seal(self, plain: bytes, /) -> Sealed:
        return Sealed("mirror", plain[::-1])

    def open(self, sealed: Sealed, /) -> bytes:
        return sealed.data[::-1]

    def fingerprints(self, plain: bytes, /) -> Sequence[str]:
        return ()


AsyncDurable(codec=Mirror())
Durable(codec=[AESGCMCodec({}), Mirror()])
Durable(codec=AESGCMCodec)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Traced(Middleware):
    def spawn(
        self, task: str, queue: str, headers: Mapping[str, JSON]
    ) -> Mapping[str, JSON]:
        return {"trace": task}

    @contextmanager
    def run_task(
        self, ctx: TaskContext | SyncTaskContext
    ) -> Generator[None, None, None]:
        assert_type(ctx.name, str)
        yield
        assert_type(ctx.exit_reason, str | None)

    def run_step(
        self, ctx: TaskContext | SyncTaskContext, name: str
    ) -> AbstractContextManager[int]:
        assert_type(run_info(ctx).attempt, int)
        return nullcontext(7)

    @contextmanager
    def send(self, sending: Sending) -> Generator[None, None, None]:
        yield
        assert_type(sending.task_ids, Sequence[UUID])


class WrongHook(Middleware):
    def run_step(self, ctx: TaskContext | SyncTaskContext, name: str) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return None


AsyncDurable(middleware=[Traced()])
Durable(middleware=[Traced()])
Durable(middleware=[Traced])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


class Greet(Task[str, str]):
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def run(self, name: str, ctx: SyncTaskContext) -> str:
        return f"{self.greeting} {name}"


@task
async def count_orders(order: Order, ctx: TaskContext) -> int:
    return order.id


@task(
    name="weigh-order",
    max_attempts=3,
    retry=Retry.none(),
    priority=-1,
    partition_key=lambda order: str(order.id),
)
def weigh_order(order: Order, ctx: SyncTaskContext) -> float:
    return order.id


class Ship(Task[Any, str, ...]):
    async def run(
        self, ctx: TaskContext[Shop], *, order_id: int, notify: bool = True
    ) -> str:
        nightly = await ctx.spawn("nightly", CleanUp)
        assert_type(await ctx.join(nightly), int)
        assert_type(await ctx.call("pack", pack, pack.params(order_id=7)), float)
        assert_type(await ctx.call("pack", pack, {"order_id": 7}), float)
        await ctx.call("pack", pack, 7)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
        crowd = await ctx.spawn_many("crowd", pack, [pack.params(order_id=order_id)])
        assert_type(await ctx.gather(*crowd), tuple[float, ...])
        return f"{order_id} {notify}"


class CleanUp(Task[Any, int, ...]):
    def run(self, ctx: SyncTaskContext) -> int:
        return ctx.step("count", int)


@task
async def pack(ctx: TaskContext, *, order_id: int, notify: bool = True) -> float:
    return order_id / (1 + notify)


@task(max_attempts=3)
def clean_up(ctx: SyncTaskContext) -> int:
    return ctx.attempt


class WrongKeywordResult(Task[Any, str, ...]):
    async def run(self, ctx: TaskContext, *, order_id: int) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return order_id


class WithoutEllipsis(Task[Order, str]):
    async def run(self, ctx: TaskContext, *, order_id: int) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(order_id)


class WrongResult(Task[Order, str]):
    async def run(self, order: Order, ctx: TaskContext) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return order.id


class WrongParams(Task[Order, str]):
    async def run(self, slip: Slip, ctx: TaskContext) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return slip.carrier


class WrongPartitionKey(Task[Order, str]):
    def partition_key(self, params: Order) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return params.id

    async def run(self, params: Order, ctx: TaskContext[Any]) -> str:
        return ""


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
    assert_type(await handle.value("slip", as_type=Slip), Slip)
    assert_type(await handle.value("slip"), Any)
    assert_type(handle.stream("slips", as_type=Slip), AsyncTaskStream[Slip])
    async for slip in handle.stream("slips", start=3, as_type=Slip):
        assert_type(slip, Slip)
    async for entry in handle.stream("slips", as_type=Slip).entries():
        assert_type(entry, StreamEntry[Slip])
    async for number in handle.values("slip", as_type=int):
        assert_type(number, int)
    assert_type(handle.values("slip"), AsyncIterator[Any])
    async for line in handle.logs(follow=True):
        assert_type(line, LogLine)
    assert_type(await app.emit_event("packed:7", Slip(carrier="Post")), bool)
    assert_type(await app.send(handle, "slips", Slip(carrier="Post")), bool)
    assert_type(await handle.send("slips", dedup_key="7"), bool)
    await app.send(7, "slips")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await app.spawn(ProcessOrder, Order(id=7), max_attempts=None, start_timeout=60)
    await app.spawn(ProcessOrder, "no order")  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await app.spawn(ProcessOrder, Order(id=7), max_attemps=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await app.spawn(ProcessOrder, Order(id=7), max_attempts="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]

    await anything_of(handle)


async def operating(app: AsyncDurable, handle: AsyncTaskHandle[str]) -> None:
    assert_type(await app.list_versions(), list[VersionStats])
    assert_type(await app.list_workers(), list[durable.WorkerInfo])
    assert_type(await app.list_audit(user="ops"), list[durable.AuditEntry])
    assert_type(await app.list_events(prefix="x"), list[durable.EventInfo])
    assert_type(await app.diagnose(), list[durable.Finding])
    found = await app.find_task("01a1fb65-86b6-7000-9188-49b6bfbacafb")
    assert_type(await found.list_published(), list[durable.PublishedInfo])
    assert_type(await app.list_definitions(), list[AnnouncedTask])
    assert_type(await app.set_version(None, from_version="2026.10"), int)
    nightly = Schedule.cron("@daily", time_zone="Europe/Vienna", params=Order(id=1))
    assert_type(nightly, Schedule)
    Schedule.every(60, overlap="buffer_one")
    orders = [Order(id=1), Order(id=2)]
    many = app.spawn_in_batches(ProcessOrder, orders, on_full="wait", batch_size=9)
    assert_type(await many, int)
    assert_type(await app.create_schedule(ProcessOrder, nightly), bool)
    assert_type(await app.apply_schedules([("elsewhere", nightly)]), int)
    assert_type(await app.list_schedules(), list[ScheduleInfo])
    assert_type(await app.list_partitions(), list[PartitionInfo])
    await app.reprioritize(handle, 5)
    await handle.reprioritize("high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await app.list_schedule_runs("nightly"), list[ScheduleRun])
    assert_type(await app.trigger_schedule("nightly"), AsyncTaskHandle[Any])
    Schedule.every(60, overlap="queue")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await app.create_queue(versions="pin", max_lost_leases=None)
    await app.create_queue(history="full", max_length=10_000)
    await app.create_queue(partition_order="strict", ageing=60)
    await app.create_queue(partition_order="any")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(await app.pause_queue(task=ProcessOrder), bool)
    assert_type(await app.resume_queue("mail", task="process-order"), bool)
    assert_type(await handle.explain(), list[Explanation])
    assert_type(await app.explain(handle), list[Explanation])
    await app.create_queue(history="long")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await app.create_queue(versions="both")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def with_keywords(app: AsyncDurable) -> None:
    assert_type(await app.spawn(Ship, Ship.params(order_id=7)), AsyncTaskHandle[str])
    assert_type(await app.spawn(Ship, {"order_id": 7}), AsyncTaskHandle[str])
    assert_type(await app.spawn(CleanUp, queue="night"), AsyncTaskHandle[int])
    assert_type(await app.spawn(clean_up), AsyncTaskHandle[int])
    packing = await app.spawn(pack, pack.params(order_id=7, notify=False))
    assert_type(packing, AsyncTaskHandle[float])
    many = await app.spawn_many(pack, [{"order_id": 7}, pack.params(order_id=8)])
    assert_type(many, list[AsyncTaskHandle[float]])
    assert_type(await run_inline(app, pack, {"order_id": 7}), float)
    Ship.params(oder_id=7)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pack.params(order_id="7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pack.params()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    clean_up.params(order_id=7)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await app.spawn(pack, 7)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]


def synchronous(app: Durable) -> None:
    handle = app.spawn(ProcessOrder, Order(id=7), idempotency_key="order:7")
    assert_type(handle, TaskHandle[str])
    assert_type(handle.result(timeout=30), str)
    assert_type(app.spawn(weigh_order, Order(id=7)).result(), float)
    assert_type(handle.value("slip", timeout=3, as_type=Slip), Slip)
    assert_type(handle.stream("slips", as_type=Slip), TaskStream[Slip])
    assert_type(list(handle.stream("slips", as_type=Slip)), list[Slip])
    assert_type(list(handle.values("slip", as_type=Slip)), list[Slip])
    assert_type(list(handle.logs()), list[LogLine])
    assert_type(app.handle(handle.task_id, ProcessOrder), TaskHandle[str])
    assert_type(app.emit_event("packed:7", Slip(carrier="Post")), bool)
    assert_type(app.send(handle.task_id, "slips", queue="shop"), bool)

    thing_of(handle)


async def tested(app: AsyncDurable) -> None:
    assert_type(await run_inline(app, ProcessOrder, Order(id=7)), str)
    assert_type(spawned(app, ProcessOrder)[0].params, Order)
    report = await crash_everywhere(app, ProcessOrder, Order(id=7), effects=len)
    assert_type(report.undisturbed.point, str | None)


def tested_synchronously(app: Durable) -> None:
    assert_type(sync.run_inline(app, ProcessOrder, Order(id=7)), str)
    assert_type(sync.run_until_idle(app)[0].state, str)


async def anything_of(handle: AsyncTaskHandle[object]) -> object:
    return await handle.result()


def thing_of(handle: TaskHandle[object]) -> object:
    return handle.result()


def ran_by_hand(order: Order, ctx: Any) -> str | Awaitable[str]:
    """A task is a class, so its run can be tested without a worker."""
    return ProcessOrder().run(order, ctx)


async def again_and_elsewhere(
    app: AsyncDurable,
    sync_app: Durable,
    handle: AsyncTaskHandle[str],
    other: TaskHandle[int],
) -> None:
    """A fork returns what its origin returns."""
    assert_type(await handle.fork(before="charge"), AsyncTaskHandle[str])
    assert_type(await app.fork(handle, params=Order(id=7)), AsyncTaskHandle[str])
    assert_type(other.fork(after="charge", max_attempts=3), TaskHandle[int])
    assert_type(sync_app.retry(other, params={"id": 7}), TaskHandle[int])
    assert_type(await handle.cancel(reason="moved away"), bool)
    assert_type(await handle.retry(params=Order(id=7)), AsyncTaskHandle[str])
    assert_type(other.retry(deadline=None, spawn_new=True), TaskHandle[int])
    assert_type(await handle.children(), list[TaskInfo])
    assert_type(await handle.history(), list[HistoryEntry])
    await handle.cancel("moved away")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    assert_type((await handle.history())[0].by, Actor | None)
    assert_type(await app.cancel(handle, identity={"user": "ada"}), bool)
    assert_type(await handle.export_history(), dict[str, Any])
    assert_type(await app.list_tasks(states=["failed"], limit=3), TaskList)
    assert_type((await app.list_tasks())[0], TaskInfo)
    assert_type(await app.count_tasks(name="weigh"), int)
    assert_type(await app.queue_throughput(by_name=True), list[Throughput])
    assert_type(sync_app.queue_depth(bucket=timedelta(hours=1)), list[Depth])
    assert_type(sync_app.task_totals(), list[TaskTotal])
    assert_type(sync_app.cancel_many(name="weigh", reason="no"), int)
    await handle.fork(befor="charge")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await app.list_tasks(states=["fialed"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await app.delete_many(stats=["failed"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
