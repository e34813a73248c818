"""A worker keeps its slots busy, and shuts down in good order."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import (
    AsyncDurable,
    Durable,
    Forbidden,
    InvalidArgument,
    SchemaVersion,
    Suspended,
    SyncTaskContext,
    Task,
    TaskContext,
    UnknownQueue,
    Worker,
    task,
)
from tests.support.clock import Clock
from tests.support.processes import Processes
from tests.support.wait import aeventually, eventually
from tests.support.working import DAY, outcome, working

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]

current = contextvars.ContextVar("current", default="default")


@task
async def ready(params: None, ctx: Context) -> str:
    return "ready"


# -- concurrency -----------------------------------------------------------------------


async def test_runs_up_to_its_concurrency_and_no_more(dsn: str) -> None:
    running: list[asyncio.Event] = []
    most = 0

    @task
    async def wait(params: None, ctx: Context) -> None:
        nonlocal most
        gate = asyncio.Event()
        running.append(gate)
        most = max(most, len(running))
        await gate.wait()

    async def full() -> bool:
        return len(running) == 3

    async with working(dsn, wait, concurrency=3) as (app, worker):
        handles = await app.spawn_many(wait, [None] * 8)
        for _ in range(5):  # three of eight are left then
            await aeventually(full)
            running.pop(0).set()
        await aeventually(full)
        for gate in running:
            gate.set()
        await worker.drain()
        assert [await handle.state() for handle in handles] == ["completed"] * 8
    assert most == 3


async def test_drain_runs_what_is_claimable_and_returns_the_count(
    dsn: str, clock: Clock
) -> None:
    @task
    async def nap(params: None, ctx: Context) -> None:
        await ctx.step("before", str)
        await ctx.sleep_for("night", DAY)

    async with working(dsn, nap, ready) as (app, worker):
        assert await worker.drain() == 0
        await app.spawn_many(ready, [None] * 20)
        await app.spawn(nap)
        assert await worker.drain() == 21
        assert await worker.drain() == 0
        clock.advance(DAY)
        assert await worker.drain() == 1


async def test_drain_waits_for_work_that_its_own_maintenance_has_begun(
    dsn: str, db: psycopg.Connection
) -> None:
    """The task that this work wakes belongs to the drain."""

    @task
    async def hear(params: None, ctx: Context) -> Any:
        return await ctx.await_event("news")

    begun = (
        "select from pg_stat_activity where datname = current_database()"
        " and application_name = 'durable leases' and wait_event = 'advisory'"
    )
    async with working(dsn, hear, poll=3600) as (app, worker):
        handle = await app.spawn(hear)
        await worker.drain()
        db.execute(
            """create function hold() returns trigger language plpgsql as $$
               begin perform pg_advisory_xact_lock_shared(1); return old; end $$"""
        )
        db.execute(
            "create trigger hold before delete on durable.deferred_work"
            " for each row execute function hold()"
        )
        db.execute("select pg_advisory_lock(1)")
        with psycopg.connect(dsn) as locker:
            locker.execute("select from durable.tasks for update")
            await app.emit_event("news", "now")
        await aeventually(lambda: asyncio.sleep(0, db.execute(begun).rowcount))
        draining = asyncio.create_task(worker.drain())
        assert await asyncio.wait({draining}, timeout=0.3) == (set(), {draining})
        db.execute("select pg_advisory_unlock(1)")
        assert await draining == 1
        assert await handle.result(0) == "now"


async def test_works_on_several_queues(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[ready]) as app:
        for queue in ("left", "right", "other"):
            await app.create_queue(queue)
        async with app.worker(queues=["left", "right"]) as worker:
            spawned = {
                queue: await app.spawn(ready, queue=queue)
                for queue in ("left", "right", "other")
            }
            assert await worker.drain() == 2
            states = {queue: await handle.state() for queue, handle in spawned.items()}
    assert states == {"left": "completed", "right": "completed", "other": "pending"}


async def test_finds_work_by_notification_without_polling(dsn: str) -> None:
    async with working(dsn, ready, poll=3600) as (app, worker):
        await worker.drain()
        for _ in range(3):
            handle = await app.spawn(ready)
            assert await handle.result(timeout=10) == "ready"


async def test_finds_work_by_polling_without_notifications(dsn: str) -> None:
    async with working(dsn, ready, poll=0.05, listen=False) as (app, worker):
        await worker.drain()
        assert await (await app.spawn(ready)).result(timeout=10) == "ready"


async def test_runs_sync_tasks_in_their_own_threads(dsn: str) -> None:
    meeting = threading.Barrier(3, timeout=10)

    @task
    def meet(params: None, ctx: SyncContext) -> bool:
        meeting.wait()
        here = threading.get_ident()
        there = ctx.step("where", threading.get_ident)
        return here == there != threading.main_thread().ident

    async with working(dsn, meet) as (app, worker):
        handles = await app.spawn_many(meet, [None] * 3)
        await worker.drain()
        assert [await handle.result() for handle in handles] == [True] * 3


async def test_runs_sync_steps_of_an_async_task_outside_the_loop(dsn: str) -> None:
    @task
    async def mixed(params: None, ctx: Context) -> bool:
        loops = threading.get_ident()
        meeting = threading.Barrier(2, timeout=10)
        await asyncio.gather(ctx.step("a", meeting.wait), ctx.step("b", meeting.wait))
        return await ctx.step("where", threading.get_ident) != loops

    assert (await outcome(dsn, mixed)).result is True


async def test_every_run_gets_a_copy_of_the_workers_context(dsn: str) -> None:
    seen = []

    @task
    async def look(params: None, ctx: Context) -> None:
        seen.append(current.get())
        current.set("changed")

    current.set("the worker's")
    async with working(dsn, look) as (app, worker):
        for _ in range(2):
            await app.spawn(look)
            await worker.drain()
    assert seen == ["the worker's", "the worker's"]


async def test_runs_the_lifespan_once_per_worker(dsn: str) -> None:
    story: list[str] = []

    @contextlib.asynccontextmanager
    async def resources() -> AsyncIterator[dict[str, int]]:
        story.append("open")
        yield {"answer": 42}
        story.append("closed")

    @task
    async def use(params: None, ctx: Context) -> int:
        story.append("used")
        return int(ctx.state["answer"])

    async with AsyncDurable(dsn, tasks=[use], lifespan=resources) as app:
        handles = await app.spawn_many(use, [None] * 2)
        assert story == []
        async with app.worker() as worker:
            await worker.drain()
        assert [await handle.result() for handle in handles] == [42, 42]
    assert story == ["open", "used", "used", "closed"]


async def test_creates_an_instance_for_every_run_of_a_class(dsn: str) -> None:
    made = []

    class Counted(Task[None, int]):
        def __init__(self) -> None:
            made.append(self)

        async def run(self, params: None, ctx: Context, /) -> int:  # noqa: ARG002
            return len(made)

    async with working(dsn, Counted) as (app, worker):
        handles = await app.spawn_many(Counted, [None] * 2)
        await worker.drain()
        assert {await handle.result() for handle in handles} <= {1, 2}
    assert len(made) == 2


@pytest.mark.parametrize(
    "option",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"lease": 0},
        {"poll": -1},
        {"shutdown_timeout": None},
        {"queues": "default"},
        {"concurency": 1},
    ],
)
async def test_refuses_invalid_options(dsn: str, option: Any) -> None:
    async with AsyncDurable(dsn) as app:
        with pytest.raises(InvalidArgument):
            app.worker(**option)


# -- unknown tasks ---------------------------------------------------------------------


async def test_reports_unknown_tasks_once_and_does_not_run_them(
    dsn: str,
    db: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    quick_leases: None,
) -> None:
    for _ in range(3):
        db.execute("select durable.spawn('default', 'unheard-of')")

    async def told() -> bool:
        return "'unknown as well'" in caplog.text

    async with working(dsn, ready) as (app, worker):
        handle = await app.spawn(ready)
        await worker.drain()
        assert await handle.state() == "completed"
        db.execute("select durable.spawn('default', 'unknown as well')")
        await aeventually(told)
        assert (await app.queue_stats()).pending == 4
    assert caplog.text.count("'unheard-of'") == 1


# -- leases ----------------------------------------------------------------------------


@pytest.fixture
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew leases, refresh names and check the loop every 50 ms, not every second."""
    monkeypatch.setattr("durable._worker.leases._TICK", 0.05)
    monkeypatch.setattr("durable._worker.leases._BLOCKED_SECONDS", 0.1)
    monkeypatch.setattr("durable._worker.leases._CHECK_SECONDS", 0.1)


async def test_keeps_a_task_that_runs_longer_than_its_lease(
    dsn: str, db: psycopg.Connection, clock: Clock, quick_leases: None
) -> None:
    finish = asyncio.Event()

    @task
    async def long(params: None, ctx: Context) -> int:
        await finish.wait()
        return ctx.attempt

    async def extended() -> bool:
        return leased_for(db) > 2

    async with working(dsn, long, lease=3) as (app, worker):
        handle = await app.spawn(long)
        await aeventually(extended)
        for _ in range(2):  # past the end of the first lease
            clock.advance(2)
            await aeventually(extended)
        finish.set()
        await worker.drain()
        assert await handle.result() == 1


async def test_extends_leases_while_code_blocks_the_loop_and_reports_it(
    dsn: str,
    connect: Callable[[], psycopg.Connection],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    quick_leases: None,
) -> None:
    db = connect()

    @task(name="block the loop")
    async def block(params: None, ctx: Context) -> int:
        for _ in range(2):
            clock.advance(2)
            eventually(lambda: leased_for(db) > 2)
        eventually(lambda: "has been blocked" in caplog.text)
        return await ctx.step("attempt", lambda: ctx.attempt)

    async with working(dsn, block, lease=3) as (app, worker):
        handle = await app.spawn(block)
        await worker.drain()
        assert await handle.result() == 1
    assert "block the loop" in caplog.text
    assert "eventually(" in caplog.text


async def test_abandons_code_that_blocks_the_loop_for_too_long(
    dsn: str,
    db: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    quick_leases: None,
) -> None:
    monkeypatch.setattr("durable._worker.leases._GIVE_UP_SECONDS", 0.2)
    reasons, effects = [], []

    def taken_away() -> bool:
        return db.execute("select attempt = 2 from durable.tasks").fetchone() == (True,)

    @task
    async def block(params: None, ctx: Context) -> None:
        if ctx.attempt == 1:
            eventually(taken_away)
            try:
                await ctx.step("late", lambda: effects.append("too late"))
            except Suspended as suspended:
                reasons.append(suspended.reason)
                raise
        await ctx.step("now", lambda: effects.append("in time"))

    async with working(dsn, block, lease=1) as (app, _):
        handle = await app.spawn(block)
        await handle.result(timeout=20)
        assert (await handle.snapshot()).attempt == 2
    assert reasons == ["lease lost"]
    assert effects[-1] == "in time"
    assert effects.count("in time") == 1


async def test_ends_code_at_its_next_call_after_its_lease_is_lost(
    dsn: str, db: psycopg.Connection
) -> None:
    reasons = []

    def take_away() -> None:
        db.execute("update durable.tasks set lease_expires_at = 'epoch'")
        db.execute("select durable.expire_leases('default')")

    @task
    async def unlucky(params: None, ctx: Context) -> str:
        if ctx.attempt == 1:
            take_away()
            try:
                await ctx.step("late", lambda: "not saved")
            except Suspended as suspended:
                reasons.append(suspended.reason)
        return await ctx.step("late", lambda: f"attempt {ctx.attempt}")

    ended = await outcome(dsn, unlucky)
    assert (ended.result, reasons) == ("attempt 2", ["lease lost"])


# -- shutting down ---------------------------------------------------------------------


async def test_lets_tasks_finish_when_it_shuts_down(
    dsn: str, db: psycopg.Connection
) -> None:
    started, effects = asyncio.Event(), []

    @task
    async def busy(params: None, ctx: Context) -> None:
        started.set()
        await asyncio.sleep(0.05)
        await ctx.step("work", lambda: effects.append("worked"))

    async with AsyncDurable(dsn, tasks=[busy]) as app:
        first = await app.spawn(busy)
        async with app.worker(concurrency=1):
            await started.wait()
            second = await app.spawn(busy)
        assert await first.state() == "completed"
        assert await second.state() == "pending"
    assert effects == ["worked"]


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_releases_unfinished_tasks_without_using_an_attempt(
    dsn: str, db: psycopg.Connection, colour: str
) -> None:
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    story: list[str] = []

    @task(name="async", max_attempts=1)
    async def busy(params: None, ctx: Context) -> int:
        await ctx.step("once", lambda: story.append("stepped"))
        started.set()
        try:
            await (asyncio.sleep(0) if len(story) > 1 else asyncio.sleep(60))
        finally:
            story.append("tidied")
        return ctx.attempt

    @task(name="sync", max_attempts=1)
    def busy_sync(params: None, ctx: SyncContext) -> int:
        ctx.step("once", lambda: story.append("stepped"))
        loop.call_soon_threadsafe(started.set)
        try:
            while "tidied" not in story:
                ctx.heartbeat()
        finally:
            story.append("tidied")
        return ctx.attempt

    chosen = busy if colour == "async" else busy_sync
    place = "select available_at from durable.tasks"
    async with AsyncDurable(dsn, tasks=[chosen]) as app:
        handle = await app.spawn(chosen)
        before = db.execute(place).fetchall()
        async with app.worker(shutdown_timeout=0):
            await started.wait()
        assert await handle.state() == "pending"
        assert db.execute(place).fetchall() == before
        async with app.worker() as worker:
            await worker.drain()
        assert await handle.result() == 1
    assert story == ["stepped", "tidied", "tidied"]


async def test_releases_tasks_that_it_does_not_know_it_holds(
    dsn: str, db: psycopg.Connection
) -> None:
    """The answer to its last claim may have been lost."""
    async with AsyncDurable(dsn, tasks=[ready]) as app:
        async with app.worker() as worker:
            handle = await app.spawn("unheard-of", max_attempts=1)
            claim = "select task_id from durable.claim_tasks('default', %s)"
            assert db.execute(claim, [worker.worker_id]).fetchall()
        assert await handle.state() == "pending"


async def test_closes_everything_it_opened(dsn: str, db: psycopg.Connection) -> None:
    async with working(dsn, ready) as (app, worker):
        await app.spawn(ready)
        await worker.drain()
    ours = "select from pg_stat_activity where application_name like 'durable %%'"
    ours += " and datname = current_database()"
    eventually(lambda: not db.execute(ours).fetchall())


ENDLESS = """
import time
import durable._worker.worker
from durable import AsyncDurable, run_worker, task

durable._worker.worker._EXIT_SECONDS = 0.2  # it is ten

@task(name="sleep", max_attempts=1)
def sleep(params: None, ctx) -> None:
    print("asleep", flush=True)
    time.sleep(3600)

app = AsyncDurable(tasks=[sleep])
if __name__ == "__main__":
    run_worker("endless:app", shutdown_timeout={timeout})
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_ends_at_a_signal_whatever_a_sync_task_does(
    dsn: str, processes: Processes, tmp_path: Path, signals: int
) -> None:
    """Gracefully at the first one, immediately at the second one."""
    timeout = 0.1 if signals == 1 else 3600
    (tmp_path / "endless.py").write_text(ENDLESS.format(timeout=timeout))
    with Durable(dsn) as client:
        handle = client.spawn("sleep", max_attempts=1)
        process = processes.python(
            str(tmp_path / "endless.py"), env={"PYTHONPATH": str(tmp_path)}
        )
        process.wait_for("asleep")
        for _ in range(signals):
            process.terminate()
            eventually(lambda: pending_signals(process.pid) == 0)
        assert process.wait() == (0 if signals == 1 else 128 + signal.SIGTERM)
        assert handle.state() == ("pending" if signals == 1 else "running")


# -- entering --------------------------------------------------------------------------


async def test_works_each_time_it_is_entered(dsn: str) -> None:
    async with AsyncDurable(dsn, tasks=[ready]) as app:
        worker = app.worker(shutdown_timeout=0)
        for _ in range(2):
            handle = await app.spawn(ready)
            async with worker:
                assert await handle.result(timeout=10) == "ready"
            assert (await handle.snapshot()).attempt == 1


async def test_refuses_to_be_entered_twice_at_once(dsn: str) -> None:
    async with working(dsn, ready) as (app, worker):
        with pytest.raises(RuntimeError, match="already running"):
            await worker.__aenter__()
        handle = await app.spawn(ready)
        assert await handle.result(timeout=10) == "ready"

        other = app.worker()
        entering = [asyncio.create_task(other.__aenter__()) for _ in range(2)]
        found = await asyncio.gather(*entering, return_exceptions=True)
        assert [type(one) for one in found] == [Worker, RuntimeError]
        await other.__aexit__(None, None, None)


def test_refuses_to_be_entered_twice_at_once_in_threads(dsn: str) -> None:
    with Durable(dsn, tasks=[ready]) as app:
        worker = app.worker()
        with pytest.raises(RuntimeError, match="is not running"):
            worker.drain()
        for _ in range(2):
            with worker:
                with pytest.raises(RuntimeError, match="already running"):
                    worker.__enter__()
                app.spawn(ready)
                assert worker.drain() == 1
        with pytest.raises(RuntimeError, match="is not running"):
            worker.drain()


async def test_allows_several_concurrent_drains(dsn: str) -> None:
    async with working(dsn, ready) as (app, worker):
        await app.spawn_many(ready, [None] * 20)
        assert max(await asyncio.gather(*(worker.drain() for _ in range(5)))) == 20


async def test_a_drain_ends_when_its_block_is_left(dsn: str) -> None:
    finish = asyncio.Event()

    @task
    async def wait(params: None, ctx: Context) -> None:
        await finish.wait()

    async with working(dsn, wait, shutdown_timeout=0) as (app, worker):
        await app.spawn(wait)
        draining = asyncio.create_task(worker.drain())
        await aeventually(lambda: asyncio.sleep(0, bool(worker._runs)))
    with pytest.raises(RuntimeError, match="has stopped"):
        await asyncio.wait_for(draining, 10)


# -- permanent errors ------------------------------------------------------------------


async def test_does_not_start_where_it_could_not_work(
    dsn: str, db: psycopg.Connection
) -> None:
    async def start(address: str = dsn, queue: str = "default") -> None:
        async with AsyncDurable(address, queue=queue) as app, app.worker():
            pytest.fail("it has started")

    with pytest.raises(UnknownQueue):
        await start(queue="nowhere")
    with pytest.raises(Forbidden):
        await start(f"{dsn}{'&' if '?' in dsn else '?'}options=-crole%3Dpg_monitor")
    db.execute("drop schema durable cascade")
    with pytest.raises(SchemaVersion):
        await start()


@pytest.mark.parametrize(
    ("disaster", "error"),
    [
        ("select durable.drop_queue('default')", UnknownQueue),
        ("drop schema durable cascade", SchemaVersion),
    ],
)
@pytest.mark.parametrize("body", ["waits", "drains"])
async def test_a_permanent_error_ends_the_workers_block(
    dsn: str, db: psycopg.Connection, disaster: str, error: type[Exception], body: str
) -> None:
    story = []

    async def work() -> None:
        async with working(dsn, ready, poll=0.05) as (_, worker):
            db.execute(disaster)
            try:
                while body == "drains":
                    await worker.drain()
                await asyncio.Event().wait()
            finally:
                story.append("left")

    working_task = asyncio.current_task()
    assert working_task is not None
    with pytest.raises(error):
        await work()
    assert story == ["left"]
    assert not working_task.cancelling()


async def test_a_permanent_error_reaches_all_drains(
    dsn: str, db: psycopg.Connection
) -> None:
    async def drain(worker: Worker) -> None:
        while True:
            await worker.drain()

    async def work() -> None:
        async with working(dsn, ready, poll=0.05) as (_, worker):
            draining.extend(asyncio.create_task(drain(worker)) for _ in range(2))
            await worker.drain()
            db.execute("select durable.drop_queue('default')")
            await asyncio.Event().wait()

    draining: list[asyncio.Task[None]] = []
    with pytest.raises(UnknownQueue):
        await work()
    for one in draining:
        with pytest.raises(UnknownQueue):
            await asyncio.wait_for(one, 10)


def test_a_permanent_error_reaches_synchronous_code(
    dsn: str, db: psycopg.Connection
) -> None:
    def work(app: Durable) -> None:
        with app.worker(poll=0.05) as worker:
            handle = app.spawn(ready)
            assert worker.drain() == 1
            assert handle.result() == "ready"
            db.execute("drop schema durable cascade")
            while True:
                worker.drain()

    with Durable(dsn, queue="nowhere") as app, pytest.raises(UnknownQueue):
        work(app)
    with Durable(dsn, tasks=[ready]) as app, pytest.raises(SchemaVersion):
        work(app)


# -- processes -------------------------------------------------------------------------

PRELOADED = """
import asyncio, os, sys, traceback
from durable import AsyncDurable, Durable, task

@task(name="where")
async def where(params: None, ctx) -> int:
    return os.getpid()

unused, used, app = (kind(tasks=[where]) for kind in (Durable, Durable, AsyncDurable))
used.list_queues()
threaded, worker = unused.worker(), app.worker()

async def work():
    async with app, worker:
        return await (await app.spawn("where")).result(timeout=10)

def child():
    here = os.getpid()
    assert unused.list_queues() == used.list_queues() == ["default"]
    assert asyncio.run(work()) == here
    with threaded:
        assert used.spawn("where").result(timeout=10) == here
    assert f":{here}:" in worker.worker_id
    used.close()
    print("worked in a fork", flush=True)

for _ in range(2):
    if os.fork() == 0:
        try:
            child()
        finally:
            traceback.print_exc()
            os._exit(0)
    os.wait()
assert used.list_queues() == ["default"]
used.close()
print("parent goes on", flush=True)
"""


def test_works_in_forks_of_a_process_that_has_imported_the_app(
    dsn: str, processes: Processes
) -> None:
    """As with gunicorn --preload; also if the application was used before."""
    output = processes.python("-c", PRELOADED).wait_for("parent goes on")
    assert output.count("worked in a fork") == 2, output


FORK = """
import asyncio, os
from durable import AsyncDurable, Durable
from psycopg_pool import ConnectionPool

def in_a_child(*calls):
    if os.fork() == 0:
        for call in calls:
            try:
                print("returned", call(), flush=True)
            except RuntimeError as error:
                print("refused:", error, flush=True)
        os._exit(0)
    os.wait()

async def work():
    async with AsyncDurable() as app, app.worker() as worker:
        in_a_child(lambda: worker.drain().send(None))
        assert await worker.drain() == 0

asyncio.run(work())
with ConnectionPool(os.environ["DURABLE_DATABASE_URL"]) as pool, Durable(pool) as app:
    app.list_queues()
    with app.worker() as worker:
        in_a_child(
            worker.drain, app.list_queues, lambda: worker.__exit__(None, None, None)
        )
        assert worker.drain() == 0
        assert app.list_queues() == ["default"]
print("parent goes on", flush=True)
"""


def test_a_fork_refuses_to_use_what_its_parent_has_opened(
    dsn: str, processes: Processes
) -> None:
    output = processes.python("-c", FORK).wait_for("parent goes on")
    told = [line for line in output.splitlines() if line.startswith("re")]
    assert ["survive a fork" in line for line in told] == [True] * 3 + [False]
    assert told[-1] == "returned None"


CREW = """
import os
from durable import AsyncDurable, run_worker, task

@task(name="where")
async def where(params: None, ctx) -> int:
    return os.getpid()

app = AsyncDurable(tasks=[where])
if __name__ == "__main__":
    # a claim that is on its way when its process is killed holds a task for one lease
    run_worker("crew:app", processes=2, concurrency=1, lease=3, queues={"default"})
"""


@pytest.mark.slow
def test_runs_several_processes_and_replaces_those_that_die(
    dsn: str, db: psycopg.Connection, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "crew.py").write_text(CREW)
    crew = processes.python(
        str(tmp_path / "crew.py"), env={"PYTHONPATH": str(tmp_path)}
    )
    with Durable(dsn) as client:

        def workers() -> set[int]:
            handles = client.spawn_many("where", [None] * 10)
            return {handle.result(timeout=30) for handle in handles}

        seen: set[int] = set()
        eventually(lambda: len(seen.__ior__(workers())) == 2, deadline=30)
        victim = min(seen)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(seen.__ior__(workers())) == 3, deadline=30)
        crew.terminate()
        assert crew.wait() == 0
        eventually(lambda: not any(map(is_alive, seen)))


def leased_for(db: psycopg.Connection) -> float:
    """Return for how many seconds the one task of this test is still leased."""
    query = "select extract(epoch from lease_expires_at - durable._now())"
    row = db.execute(f"{query} from durable.tasks").fetchone()
    return float(row[0] or 0) if row else 0


def pending_signals(pid: int) -> int:
    """Return the pending signals of a process, as bits."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("ShdPnd:"):
                return int(line.split()[1], 16)
    return 0


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("address", ["there", "away"])
async def test_restores_signal_handlers_when_it_is_cancelled(
    dsn: str, address: str
) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    away = "postgresql://postgres@127.0.0.1:1/postgres"
    async with AsyncDurable(dsn, tasks=[ready]) as app:
        worker = AsyncDurable(dsn if address == "there" else away, tasks=[ready])
        working = asyncio.create_task(worker.run_worker())
        handle = await app.spawn(ready)
        if address == "there":
            assert await handle.result(timeout=10) == "ready"
        await asyncio.sleep(0)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(working, 10)
    assert [signal.getsignal(number) for number in numbers] == before


async def test_collects_garbage_less_often_while_it_only_runs_tasks(
    dsn: str,
) -> None:
    seen: list[tuple[int, int, int]] = []

    @task
    async def look(params: None, ctx: TaskContext) -> None:
        seen.append(gc.get_threshold())
        os.kill(os.getpid(), signal.SIGTERM)

    before = gc.get_threshold()
    async with AsyncDurable(dsn, tasks=[look]) as app:
        await app.migrate()
        await app.spawn(look)
        await app.run_worker()
    assert [frequent > before[0] for frequent, _, _ in seen] == [True]
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("before", [700, 20_000, 0])
async def test_collects_garbage_less_often_while_any_worker_runs(
    dsn: str, before: int
) -> None:
    """Unless the application does it even less often, or not at all."""
    usual = gc.get_threshold()
    gc.set_threshold(before, *usual[1:])
    try:
        async with (
            AsyncDurable(dsn, tasks=[ready]) as app,
            contextlib.AsyncExitStack() as second,
        ):
            async with app.worker():
                await second.enter_async_context(app.worker())
                during = gc.get_threshold()
            assert during == (before and max(before, 10_000), *usual[1:])
            assert gc.get_threshold() == during
            await second.aclose()
            assert gc.get_threshold() == (before, *usual[1:])
    finally:
        gc.set_threshold(*usual)
