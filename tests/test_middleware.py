"""Middleware: code around every spawn, run and step, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Durable,
    InvalidArgument,
    Middleware,
    Retry,
    SyncTaskContext,
    Task,
    TaskContext,
    TaskFailed,
    UnknownQueue,
    current,
    task,
)
from durable.middleware import Sending
from durable.options import JSON
from durable.registry import AnyTask
from durable.testing import AppFactory, run_inline
from tests.support.clock import Clock
from tests.support.processes import ROOT, Processes

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]
AnyContext: TypeAlias = TaskContext[Any] | SyncTaskContext[Any]

HOUR: Final = 3600
tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


class Noted(Middleware):
    """Notes what is entered and left, and how."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.notes: list[str] = []

    @contextmanager
    def run_task(self, ctx: AnyContext) -> Iterator[None]:
        with self._noted(ctx, ctx.name):
            yield

    @contextmanager
    def run_step(self, ctx: AnyContext, name: str) -> Iterator[None]:
        with self._noted(ctx, name):
            yield

    @contextmanager
    def _noted(self, ctx: AnyContext, name: str) -> Iterator[None]:
        name = f"{self.prefix}{name}"
        self.notes.append(f"> {name}")
        try:
            yield
        except BaseException as error:
            self.notes.append(f"! {name} {type(error).__name__}")
            raise
        self.notes.append(f"< {name}" + f" {ctx.exit_reason}" * bool(ctx.exit_reason))


class Tenancy(Middleware):
    """Passes a context variable on, from the spawn to the task's code."""

    def spawn(
        self,
        task: str,  # noqa: ARG002
        queue: str,  # noqa: ARG002
        headers: Mapping[str, JSON],  # noqa: ARG002
    ) -> Mapping[str, JSON]:
        return {"tenant": tenant.get()}

    @contextmanager
    def run_task(self, ctx: AnyContext) -> Iterator[None]:
        token = tenant.set(str(ctx.headers["tenant"]))
        try:
            yield
        finally:
            tenant.reset(token)


def one() -> int:
    return 1


async def one_later() -> int:
    await asyncio.sleep(0)
    return 1


def fail() -> None:
    raise ConnectionError("no")


async def count(conn: psycopg.AsyncConnection) -> int:
    return len(await (await conn.execute("select 1")).fetchall())


def count_sync(conn: psycopg.Connection) -> int:
    return len(conn.execute("select 1").fetchall())


@task
async def steps(ctx: Context) -> int:
    found = [
        await ctx.step("sync", one),
        await ctx.step("async", one_later),
        await ctx.step("lambda", lambda: one_later()),  # noqa: PLW0108
        await ctx.transaction("transaction", count),
        await ctx.scope("in").step("scoped", one),
    ]
    return sum(found)


@task(name="steps")
def steps_sync(ctx: SyncContext) -> int:
    found = [
        ctx.step("sync", one),
        ctx.step("async", one),
        ctx.step("lambda", lambda: 1),
        ctx.transaction("transaction", count_sync),
        ctx.scope("in").step("scoped", one),
    ]
    return sum(found)


@task
async def sleeps(ctx: Context) -> int:
    first = await ctx.step("first", one)
    await ctx.sleep_for("nap", HOUR)
    return first + await ctx.step("second", one)


@task(name="sleeps")
def sleeps_sync(ctx: SyncContext) -> int:
    first = ctx.step("first", one)
    ctx.sleep_for("nap", HOUR)
    return first + ctx.step("second", one)


@task(name="sleeps")
async def sleeps_in_branches(ctx: Context) -> int:
    async def branch() -> None:
        await ctx.sleep_for("nap", HOUR)

    first = await ctx.step("first", one)
    await asyncio.gather(branch(), ctx.sleep_for("other", HOUR))
    return first + await ctx.step("second", one)


@task(max_attempts=2, retry=Retry.fixed(0))
async def fails_once(ctx: Context) -> int:
    await ctx.step("before", one)
    if ctx.attempt == 1:
        raise ConnectionError("no")
    return await ctx.step("after", one)


@task(name="fails-once", max_attempts=2, retry=Retry.fixed(0))
def fails_once_sync(ctx: SyncContext) -> int:
    ctx.step("before", one)
    if ctx.attempt == 1:
        raise ConnectionError("no")
    return ctx.step("after", one)


@task(max_attempts=1)
async def step_fails(ctx: Context) -> str:
    try:
        await ctx.step("fail", fail, max_attempts=2, retry=Retry.fixed(0))
    except ConnectionError:
        return "caught"
    return "not raised"


@task(name="step-fails", max_attempts=1)
def step_fails_sync(ctx: SyncContext) -> str:
    try:
        ctx.step("fail", fail, max_attempts=2, retry=Retry.fixed(0))
    except ConnectionError:
        return "caught"
    return "not raised"


class Fails(Task[Any, int, ...]):
    max_attempts = 1

    async def run(self, ctx: Context) -> int:  # noqa: ARG002
        raise ConnectionError("no")


@task(name="fails", max_attempts=1)
def fails_sync(ctx: SyncContext) -> int:
    raise ConnectionError("no")


@task
async def whose(ctx: Context) -> str:
    return tenant.get()


@task(name="whose")
def whose_sync(ctx: SyncContext) -> str:
    return tenant.get()


@task
async def everybody(ctx: Context) -> list[str]:
    """Return the tenants of its own code, a step in a thread, and children."""
    child = await ctx.spawn("child", whose)
    crowd = await ctx.spawn_many("crowd", whose, [{}, {}])
    return [
        tenant.get(),
        await ctx.step("step", tenant.get),
        await ctx.join(child),
        await ctx.call("called", "whose"),
        *await ctx.gather(*crowd),
    ]


@task(name="everybody")
def everybody_sync(ctx: SyncContext) -> list[str]:
    child = ctx.spawn("child", whose_sync)
    crowd = ctx.spawn_many("crowd", whose_sync, [{}, {}])
    return [
        tenant.get(),
        ctx.step("step", tenant.get),
        ctx.join(child),
        ctx.call("called", "whose"),
        *ctx.gather(*crowd),
    ]


async def done(
    dsn: str, source: AnyTask, *middleware: Middleware, clock: Clock | None = None
) -> Any:
    """Run a task to its end, and return its result."""
    async with (
        AsyncDurable(dsn, tasks=[source], middleware=middleware) as app,
        app.worker() as worker,
    ):
        handle = await app.spawn(source)
        await worker.drain()
        if clock is not None:
            clock.advance(2 * HOUR)
            await worker.drain()
        return await handle.result(timeout=30)


@pytest.mark.parametrize("source", [steps, steps_sync])
async def test_wraps_the_run_and_each_step(dsn: str, source: AnyTask) -> None:
    outer, inner = Noted("outer "), Noted("inner ")
    inner.notes = outer.notes
    assert await done(dsn, source, outer, Middleware(), inner) == 5
    expected = ["> outer steps", "> inner steps"]
    for name in ("sync", "async", "lambda", "transaction", "in/scoped"):
        expected += [f"> outer {name}", f"> inner {name}"]
        expected += [f"< inner {name}", f"< outer {name}"]
    assert outer.notes == [*expected, "< inner steps", "< outer steps"]


@pytest.mark.parametrize("source", [sleeps, sleeps_sync, sleeps_in_branches])
async def test_a_suspension_is_not_an_error_and_a_replay_calls_no_step(
    dsn: str, clock: Clock, source: AnyTask
) -> None:
    noted = Noted()
    assert await done(dsn, source, noted, clock=clock) == 2
    first = ["> sleeps", "> first", "< first", "< sleeps waiting"]
    assert noted.notes == [*first, "> sleeps", "> second", "< second", "< sleeps"]


@pytest.mark.parametrize("source", [fails_once, fails_once_sync])
async def test_sees_the_exception_of_an_attempt_and_not_its_replayed_steps(
    dsn: str, source: AnyTask
) -> None:
    noted = Noted()
    assert await done(dsn, source, noted) == 1
    assert noted.notes == [
        *["> fails-once", "> before", "< before", "! fails-once ConnectionError"],
        *["> fails-once", "> after", "< after", "< fails-once"],
    ]


@pytest.mark.parametrize("source", [step_fails, step_fails_sync])
async def test_wraps_each_try_of_a_step(
    dsn: str, clock: Clock, source: AnyTask
) -> None:
    noted = Noted()
    assert await done(dsn, source, noted, clock=clock) == "caught"
    tries = [note for note in noted.notes if "step-fails" not in note]
    assert tries == ["> fail", "! fail ConnectionError"] * 2


async def test_leaves_a_cancelled_run_and_its_step_without_an_error(dsn: str) -> None:
    noted, begun = Noted(), asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    @task
    async def waits(ctx: Context) -> None:
        await ctx.step("never", never)

    async with (
        AsyncDurable(dsn, tasks=[waits], middleware=[noted]) as app,
        app.worker(lease=1) as worker,
    ):
        handle = await app.spawn(waits)
        await begun.wait()
        await handle.cancel()
        await worker.drain()
    ended = ["< never cancelled", "< waits cancelled"]
    assert noted.notes == ["> waits", "> never", *ended]


CRASHING: Final = """
import os, signal, sys
from contextlib import contextmanager
from durable import Durable, Middleware, SyncTaskContext, task

class Printed(Middleware):
    @contextmanager
    def run_step(self, ctx, name):
        print(name, "in attempt", ctx.attempt, flush=True)
        yield

@task
def crash(ctx: SyncTaskContext) -> str:
    ctx.step("before", str)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.step("after", str)

app = Durable(tasks=[crash], middleware=[Printed()])
"""


def test_a_step_saved_before_a_crash_is_not_wrapped_again(
    processes: Processes, dsn: str, tmp_path: Path, db: psycopg.Connection
) -> None:
    (tmp_path / "crashing_app.py").write_text(CRASHING)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'python-sdk' / 'src'}"}
    command = ["worker", "crashing_app:app", "--lease", "1"]
    with Durable(dsn) as app:
        handle = app.spawn("crash")
        first = processes.durable(*command, env=path)
        assert first.wait(deadline=60) == -signal.SIGKILL
        second = processes.durable(*command, env=path)
        assert handle.result(timeout=60) == ""
    assert "before in attempt 1" in first.output()
    assert "before in" not in second.output()
    assert "after in attempt 2" in second.output()


@pytest.mark.parametrize("sources", [(everybody, whose), (everybody_sync, whose_sync)])
async def test_headers_reach_the_task_and_its_children(
    dsn: str, sources: tuple[AnyTask, ...], adb: psycopg.AsyncConnection
) -> None:
    parent, child = sources
    async with (
        AsyncDurable(dsn, tasks=sources, middleware=[Tenancy()]) as app,
        app.worker() as worker,
    ):
        tenant.set("ada")
        handles = [await app.spawn(parent, headers={"team": "shop"})]
        handles += await app.spawn_many(child, [{}, {}])
        async with adb.transaction():
            handles.append(await app.spawn_with(adb, child))
        tenant.set("bob")
        handles.append(await app.spawn(child))
        await worker.drain()
        found = [await handle.result(timeout=30) for handle in handles]
    assert found == [["ada"] * 6, "ada", "ada", "ada", "bob"]
    rows = await adb.execute("select headers from durable.tasks where name = 'whose'")
    headers = [row[0] for row in await rows.fetchall()]
    assert headers.count({"tenant": "ada", "team": "shop"}) == 4
    assert headers.count({"tenant": "ada"}) == 3


async def test_a_synchronous_client_adds_headers_too(
    dsn: str, db: psycopg.Connection
) -> None:
    with Durable(dsn, middleware=[Tenancy()]) as app:
        tenant.set("ada")
        app.spawn("whose", headers={"tenant": "of the spawn", "team": "shop"})
        app.spawn("whose", headers=None)
    rows = db.execute("select headers from durable.tasks order by task_id").fetchall()
    assert rows == [({"tenant": "ada", "team": "shop"},), (None,)]


async def test_each_spawn_hook_sees_the_headers_so_far(
    dsn: str, db: psycopg.Connection
) -> None:
    seen: list[tuple[str, str, dict[str, JSON]]] = []

    class Numbered(Middleware):
        def spawn(
            self, task: str, queue: str, headers: Mapping[str, JSON]
        ) -> Mapping[str, JSON] | None:
            seen.append((task, queue, dict(headers)))
            return {"number": len(seen)} if len(seen) < 3 else None

    @task(headers={"team": "shop"})
    async def sell(ctx: Context) -> None: ...

    hooks = [Numbered(), Numbered(), Numbered()]
    async with AsyncDurable(dsn, tasks=[sell], middleware=hooks) as app:
        await app.spawn(sell)
    shop = {"team": "shop"}
    expected = [shop, {**shop, "number": 1}, {**shop, "number": 2}]
    assert seen == [("sell", "default", headers) for headers in expected]
    row = db.execute("select headers from durable.tasks").fetchone()
    assert row == ({"team": "shop", "number": 2},)


@pytest.mark.parametrize("added", [{"durable:x": 1}, {"x": object()}, 7])
async def test_refuses_headers_that_cannot_be_saved(
    dsn: str, db: psycopg.Connection, added: Any
) -> None:
    class Wrong(Middleware):
        def spawn(self, *_: Any) -> Any:
            return added

    async with AsyncDurable(dsn, tasks=[steps], middleware=[Wrong()]) as app:
        with pytest.raises(InvalidArgument, match="header"):
            await app.spawn(steps)
    assert db.execute("select from durable.tasks").fetchall() == []


class RaisesAt(Middleware):
    def __init__(self, hook: str, when: str) -> None:
        self.hook, self.when = hook, when

    def run_task(self, ctx: AnyContext) -> AbstractContextManager[None]:  # noqa: ARG002
        return self._raising("run_task")

    def run_step(
        self,
        ctx: AnyContext,  # noqa: ARG002
        name: str,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        return self._raising("run_step")

    @contextmanager
    def _raising(self, hook: str) -> Iterator[None]:
        if hook == self.hook and self.when == "before":
            raise LookupError("of the hook")
        yield
        if hook == self.hook:
            raise LookupError("of the hook")


@task(max_attempts=1)
async def catches(ctx: Context) -> str:
    try:
        await ctx.step("one", one)
    except LookupError as error:
        return f"caught {error}"
    return "not raised"


@task(name="catches", max_attempts=1)
def catches_sync(ctx: SyncContext) -> str:
    try:
        ctx.step("one", one)
    except LookupError as error:
        return f"caught {error}"
    return "not raised"


@pytest.mark.parametrize("source", [catches, catches_sync])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_exception_of_a_hook_is_one_of_the_task_or_step(
    dsn: str, source: AnyTask, when: str
) -> None:
    assert await done(dsn, source, RaisesAt("run_step", when)) == "caught of the hook"
    with pytest.raises(TaskFailed, match="LookupError: of the hook"):
        await done(dsn, source, RaisesAt("run_task", when))


class Suppresses(Middleware):
    def run_task(self, ctx: AnyContext) -> AbstractContextManager[None]:  # noqa: ARG002
        return suppress(Exception)

    def run_step(
        self,
        ctx: AnyContext,  # noqa: ARG002
        name: str,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        return suppress(Exception)


@pytest.mark.parametrize("source", [Fails, fails_sync, step_fails, step_fails_sync])
async def test_a_hook_cannot_suppress_an_exception(
    dsn: str, clock: Clock, source: AnyTask
) -> None:
    if source in (Fails, fails_sync):
        with pytest.raises(TaskFailed, match="ConnectionError: no"):
            await done(dsn, source, Suppresses())
    else:
        assert await done(dsn, source, Suppresses(), clock=clock) == "caught"


async def test_a_step_s_hook_makes_no_durable_calls(dsn: str) -> None:
    class Calls(Middleware):
        def run_step(
            self,
            ctx: AnyContext,
            name: str,  # noqa: ARG002
        ) -> AbstractContextManager[None]:
            ctx.step("another", one)
            return nullcontext()

    @task(max_attempts=1)
    async def calls(ctx: Context) -> int:
        return await ctx.step("one", one)

    with pytest.raises(TaskFailed, match="a step is a leaf"):
        await done(dsn, calls, Calls())


async def test_is_called_with_the_task_s_context(dsn: str) -> None:
    seen: list[Any] = []

    class Seen(Middleware):
        def run_task(self, ctx: AnyContext) -> AbstractContextManager[None]:
            assert current() is ctx
            seen.append((ctx.name, ctx.queue, ctx.attempt, ctx.headers, ctx.identity))
            return nullcontext()

        def run_step(self, ctx: AnyContext, name: str) -> AbstractContextManager[None]:
            assert current() is ctx
            seen.append(name)
            return nullcontext()

    @task
    async def twice(ctx: Context) -> int:
        return await ctx.step("one", one) + await ctx.step("one", one)

    async with (
        AsyncDurable(dsn, tasks=[twice], middleware=[Seen()]) as app,
        app.worker() as worker,
    ):
        await app.spawn(twice, headers={"team": "shop"}, identity={"user": "ada"})
        await worker.drain()
    assert seen == [
        ("twice", "default", 1, {"team": "shop"}, {"user": "ada"}),
        *["one", "one#2"],
    ]


async def test_runs_in_tests_too(durable_app: AppFactory[AsyncDurable]) -> None:
    noted = Noted()
    model = AsyncDurable(tasks=[sleeps, whose], middleware=[noted, Tenancy()])
    async with durable_app(model) as app:
        assert await run_inline(app, sleeps) == 2
        tenant.set("ada")
        assert await run_inline(app, whose) == "ada"
    assert "< sleeps waiting" in noted.notes


@pytest.mark.parametrize("wrong", [Middleware, "tracing", None])
def test_takes_only_instances(wrong: Any) -> None:
    with pytest.raises(TypeError, match="takes instances of Middleware"):
        AsyncDurable(middleware=[wrong])
    with pytest.raises(TypeError, match="takes instances of Middleware"):
        Durable(middleware=[wrong])


def test_costs_nothing_where_nothing_is_overridden() -> None:
    hooks = AsyncDurable(middleware=[Middleware(), Tenancy()])._application.hooks
    assert (len(hooks.spawn), len(hooks.run_task), len(hooks.run_step)) == (1, 1, 0)


class Sends(Middleware):
    """Notes what is sent, and how it ends."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def spawn(
        self,
        task: str,  # noqa: ARG002
        queue: str,  # noqa: ARG002
        headers: Mapping[str, JSON],  # noqa: ARG002
    ) -> Mapping[str, JSON]:
        return {"sends": len(self.sent)}

    @contextmanager
    def send(self, sending: Sending) -> Iterator[None]:
        of = (sending.operation, sending.queue, sending.name, sending.count)
        self.sent.append(of)
        try:
            yield
        except Exception as error:
            self.sent.append(("!", type(error).__name__))
            raise
        assert len(sending.task_ids) == sending.count * (sending.operation != "emit")


@task
async def sends(ctx: Context) -> None:
    child = await ctx.spawn("child", "waits")
    await ctx.spawn_many("two", "waits", [{}, {}], queue="other")
    await ctx.emit_event("event")
    await ctx.send(child, "topic")
    await ctx.sleep_for("nap", HOUR)
    with suppress(UnknownQueue):
        await ctx.spawn("nowhere", "waits", queue="nowhere")


@task(name="sends")
def sends_sync(ctx: SyncContext) -> None:
    child = ctx.spawn("child", "waits")
    ctx.spawn_many("two", "waits", [{}, {}], queue="other")
    ctx.emit_event("event")
    ctx.send(child, "topic")
    ctx.sleep_for("nap", HOUR)
    with suppress(UnknownQueue):
        ctx.spawn("nowhere", "waits", queue="nowhere")


@pytest.mark.parametrize("source", [sends, sends_sync])
async def test_wraps_what_a_task_sends_once(
    dsn: str, clock: Clock, source: AnyTask
) -> None:
    hook = Sends()
    async with AsyncDurable(dsn) as app:
        await app.create_queue("other")
    await done(dsn, source, hook, clock=clock)
    assert hook.sent == [
        ("spawn", "default", "sends", 1),
        ("spawn", "default", "waits", 1),
        ("spawn", "other", "waits", 2),
        ("emit", "default", "event", 1),
        ("send", "default", "topic", 1),
        ("spawn", "nowhere", "waits", 1),
        ("!", "UnknownQueue"),
    ]


def test_wraps_what_a_client_sends_and_the_hook_of_its_headers(
    dsn: str, db: psycopg.Connection
) -> None:
    hook = Sends()
    with Durable(dsn, middleware=[hook]) as app:
        handle = app.spawn("a")
        app.spawn_many([("a", {}), ("b", {})])
        app.spawn_in_batches("a", [{}, {}, {}], batch_size=2)
        app.emit_event("event")
        handle.send("topic")
        with pytest.raises(UnknownQueue):
            app.send(handle.task_id, "topic", queue="nowhere")
    assert hook.sent == [
        *[("spawn", "default", "a", 1), ("spawn", "default", None, 2)],
        *[("spawn", "default", "a", 2), ("spawn", "default", "a", 1)],
        *[("emit", "default", "event", 1), ("send", "default", "topic", 1)],
        *[("send", "nowhere", "topic", 1), ("!", "UnknownQueue")],
    ]
    rows = db.execute("select headers from durable.tasks order by task_id").fetchall()
    assert [headers["sends"] for (headers,) in rows] == [1, 2, 2, 3, 3, 4]
