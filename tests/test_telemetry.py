"""Traces and metrics for OpenTelemetry: what is recorded, and where it belongs."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import psycopg
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from durable import (
    AsyncDurable,
    Durable,
    Retry,
    SyncTaskContext,
    TaskContext,
    UnknownQueue,
    task,
)
from durable.registry import AnyTask
from durable.telemetry.instruments import MEASURED, READ
from durable.telemetry.otel import OpenTelemetry, observe_queues
from tests.support.clock import Clock
from tests.support.processes import ROOT, Processes

Context: TypeAlias = TaskContext[Any]
SyncContext: TypeAlias = SyncTaskContext[Any]

HOUR: Final = 3600


class Recorder:
    """An SDK that keeps what it records in memory, and the middleware for it."""

    def __init__(self, **options: Any) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider(**options)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._reader])

    def middleware(self, traces: Any = "link") -> OpenTelemetry:
        return OpenTelemetry(
            traces=traces, tracer_provider=self.tracers, meter_provider=self.meters
        )

    def spans(self, operation: str) -> list[ReadableSpan]:
        """Return the spans of an operation, or "step", in the order of their start."""
        found = [
            span
            for span in self._spans.get_finished_spans()
            if of(span, "messaging.operation.name") in {operation, None}
            and (operation == "step") == (of(span, "durable.step.name") is not None)
        ]
        return sorted(found, key=lambda span: span.start_time or 0)

    def metrics(self) -> dict[str, list[Any]]:
        """Return the data points of each metric."""
        found: defaultdict[str, list[Any]] = defaultdict(list)
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found[metric.name] += metric.data.data_points
        return found


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def of(span: ReadableSpan, attribute: str) -> Any:
    return (span.attributes or {}).get(attribute)


def linked(span: ReadableSpan) -> list[int]:
    return [link.context.span_id for link in span.links]


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def span_id(span: ReadableSpan) -> int:
    found: int = span.context.span_id
    return found


def one() -> int:
    return 1


@task(name="sleeps")
async def sleeps(ctx: Context) -> int:
    first = await ctx.step("first", one)
    await ctx.sleep_for("nap", HOUR)
    return first + await ctx.step("second", one)


@task(name="sleeps")
def sleeps_sync(ctx: SyncContext) -> int:
    first = ctx.step("first", one)
    ctx.sleep_for("nap", HOUR)
    return first + ctx.step("second", one)


async def done(
    dsn: str, recorder: Recorder, *tasks: AnyTask, clock: Clock | None = None
) -> Any:
    """Run the first task to its end, and return its result."""
    hooks = [recorder.middleware()]
    async with (
        AsyncDurable(dsn, tasks=tasks, middleware=hooks, version="7") as app,
        app.worker() as worker,
    ):
        handle = await app.spawn(tasks[0])
        await worker.drain()
        if clock is not None:
            clock.advance(2 * HOUR)
            await worker.drain()
        return await handle.result(timeout=30)


@pytest.mark.parametrize("source", [sleeps, sleeps_sync])
async def test_a_task_that_sleeps_has_a_root_span_for_each_run_linked_to_the_spawn(
    dsn: str, clock: Clock, recorder: Recorder, source: AnyTask
) -> None:
    assert await done(dsn, recorder, source, clock=clock) == 2
    (spawn,) = recorder.spans("spawn")
    first, second = recorder.spans("process")
    assert [spawn.name, first.name] == ["spawn default", "process default"]
    assert (spawn.kind, first.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert parent(first) is parent(second) is None
    assert linked(first) == linked(second) == [span_id(spawn)]
    assert len({span.context.trace_id for span in (spawn, first, second)}) == 3
    outcomes = [of(run, "durable.run.outcome") for run in (first, second)]
    assert outcomes == ["waiting", "completed"]
    assert [of(run, "durable.run.resumed") for run in (first, second)] == [False, True]
    assert first.status.status_code is second.status.status_code is StatusCode.UNSET
    known = {of(span, "durable.task.id") for span in (spawn, first, second)}
    assert len(known) == 1
    assert known == {of(span, "messaging.message.id") for span in (spawn, second)}
    expected = {
        "messaging.system": "durable",
        "messaging.operation.type": "process",
        "messaging.destination.name": "default",
        "messaging.consumer.group.name": "7",
        "durable.task.name": "sleeps",
        "durable.task.attempt": 1,
    }
    assert expected.items() <= dict(first.attributes or {}).items()


@pytest.mark.parametrize("source", [sleeps, sleeps_sync])
async def test_an_executed_step_has_a_span_and_a_replayed_one_has_none(
    dsn: str, clock: Clock, recorder: Recorder, source: AnyTask
) -> None:
    await done(dsn, recorder, source, clock=clock)
    runs, steps = recorder.spans("process"), recorder.spans("step")
    assert [step.name for step in steps] == ["first", "second"]
    assert [parent(step) for step in steps] == [span_id(run) for run in runs]
    assert {step.kind for step in steps} == {SpanKind.INTERNAL}


async def test_a_failed_attempt_or_try_has_the_exception(
    dsn: str, recorder: Recorder
) -> None:
    tries: list[int] = []

    async def fail_twice() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("no answer")
        return 1

    @task(max_attempts=2, retry=Retry.fixed(0))
    async def fails_once(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise LookupError("none")
        await ctx.step("ask", fail_twice, max_attempts=3, retry=Retry.fixed(0))
        return await ctx.step("ask", one)

    hooks = [recorder.middleware()]
    app = AsyncDurable(dsn, tasks=[fails_once], middleware=hooks)
    async with app, app.worker():
        handle = await app.spawn(fails_once)
        assert await handle.result(timeout=30) == 1
    failed, *_, last = recorder.spans("process")
    assert of(failed, "error.type") == "LookupError"
    assert of(failed, "durable.run.outcome") == "failed"
    assert failed.status.status_code is StatusCode.ERROR
    (event,) = failed.events
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "none"
    assert [of(run, "durable.task.attempt") for run in (failed, last)] == [1, 2]
    assert of(last, "durable.run.outcome") == "completed"
    steps = recorder.spans("step")
    assert [of(step, "durable.step.try") for step in steps] == [1, 2, 3, 1]
    errors = [of(step, "error.type") for step in steps]
    assert errors == ["ConnectionError", "ConnectionError", None, None]
    assert {step.name for step in steps} == {"ask"}  # a name for all of a loop
    assert of(steps[-1], "durable.step.name") == "ask#2"


async def test_tasks_that_run_at_once_keep_their_spans_apart(
    dsn: str, recorder: Recorder
) -> None:
    both = asyncio.Barrier(20)

    @task
    async def branches(ctx: Context) -> None:
        async def span_of_step() -> None:
            await both.wait()

        await asyncio.gather(
            ctx.step("a", span_of_step),
            ctx.step("b", lambda: trace.get_current_span().is_recording()),
        )

    hooks = [recorder.middleware()]
    app = AsyncDurable(dsn, tasks=[branches], middleware=hooks)
    async with app, app.worker() as worker:
        await app.spawn_many(branches, [{}] * 20)
        await worker.drain()
    (spawn,) = recorder.spans("spawn")
    assert of(spawn, "messaging.batch.message_count") == 20
    runs = recorder.spans("process")
    assert len({run.context.trace_id for run in runs}) == len(runs) == 20
    steps = recorder.spans("step")
    assert sorted(map(str, map(parent, steps))) == sorted(
        2 * [str(span_id(run)) for run in runs]
    )
    assert trace.get_current_span() is trace.INVALID_SPAN


@task
async def grandchild(ctx: Context) -> None: ...


@task
async def child(ctx: Context) -> None:
    await ctx.call("below", grandchild)


@task(name="above")
def above_sync(ctx: SyncContext) -> None:
    ctx.call("child", child)
    ctx.emit_event("said")
    ctx.sleep_for("nap", HOUR)


@task
async def above(ctx: Context) -> None:
    await ctx.call("child", child)
    await ctx.emit_event("said")
    await ctx.sleep_for("nap", HOUR)


@pytest.mark.parametrize("source", [above, above_sync])
async def test_children_are_linked_to_the_run_that_spawned_them(
    dsn: str, clock: Clock, recorder: Recorder, source: AnyTask
) -> None:
    await done(dsn, recorder, source, child, grandchild, clock=clock)
    runs: defaultdict[str, list[ReadableSpan]] = defaultdict(list)
    for run in recorder.spans("process"):
        runs[of(run, "durable.task.name")].append(run)
    assert linked(runs["child"][0]) == [span_id(runs["above"][0])]
    assert linked(runs["grandchild"][0]) == [span_id(runs["child"][0])]
    assert of(runs["child"][0], "durable.task.parent_id") == of(
        runs["above"][0], "durable.task.id"
    )
    # replays spawn and emit nothing
    top, *below = recorder.spans("spawn")
    assert parent(top) is None
    begun = [runs["above"][0], runs["child"][0]]
    assert [parent(spawn) for spawn in below] == [span_id(run) for run in begun]
    (emit,) = recorder.spans("emit")
    assert emit.kind is SpanKind.CLIENT
    assert parent(emit) in [span_id(run) for run in runs["above"]]


def test_a_synchronous_client_makes_the_same_spans(
    dsn: str, db: psycopg.Connection, recorder: Recorder
) -> None:
    with Durable(dsn, middleware=[recorder.middleware()]) as app:
        handle = app.spawn("a")
        app.spawn_many("b", [{}, {}])
        with db.transaction():
            app.spawn_with(db, "c")
            app.send_with(db, handle, "topic")
            app.emit_event_with(db, "event")
        app.emit_event("event")
        app.send(handle, "topic")
        with pytest.raises(UnknownQueue):
            app.spawn("d", queue="nowhere")
    *spawns, refused = recorder.spans("spawn")
    assert [of(span, "durable.task.name") for span in spawns] == ["a", "b", "c"]
    assert of(refused, "error.type") == "durable.errors.UnknownQueue"
    assert refused.status.status_code is StatusCode.ERROR
    rows = db.execute("select headers from durable.tasks order by task_id").fetchall()
    origins = [int(headers["traceparent"].split("-")[2], 16) for (headers,) in rows]
    a, b, c = map(span_id, spawns)
    assert origins == [a, b, b, c]
    sends = recorder.spans("send")
    assert {of(span, "durable.task.id") for span in sends} == {str(handle.task_id)}
    assert [of(span, "durable.topic.name") for span in sends] == ["topic", "topic"]
    emits = recorder.spans("emit")
    assert [of(span, "durable.event.name") for span in emits] == ["event", "event"]
    assert {span.kind for span in [*sends, *emits]} == {SpanKind.CLIENT}
    sent = recorder.metrics()["messaging.client.sent.messages"]
    assert sum(point.value for point in sent) == 9


async def test_runs_may_be_children_of_the_spawn(dsn: str, recorder: Recorder) -> None:
    hooks = [recorder.middleware("parent")]
    app = AsyncDurable(dsn, tasks=[grandchild], middleware=hooks)
    async with app, app.worker():
        await (await app.spawn(grandchild)).result(timeout=30)
    (spawn,), (run,) = recorder.spans("spawn"), recorder.spans("process")
    assert (parent(run), linked(run)) == (span_id(spawn), [])
    assert run.context.trace_id == spawn.context.trace_id
    with pytest.raises(ValueError, match="traces must be"):
        recorder.middleware("children")


async def test_baggage_reaches_the_code_and_other_headers_do_not_matter(
    dsn: str, recorder: Recorder
) -> None:
    @task
    async def reads(ctx: Context) -> Any:
        return baggage.get_baggage("tenant")

    hooks = [recorder.middleware()]
    app = AsyncDurable(dsn, tasks=[reads], middleware=hooks)
    async with app, app.worker():
        token = context.attach(baggage.set_baggage("tenant", "ada"))
        handle = await app.spawn(reads)
        context.detach(token)
        assert await handle.result(timeout=30) == "ada"
        odd = {"traceparent": 7, "tracestate": {"a": 1}, "baggage": None}
        plain = await app.spawn(reads, headers=None)
        in_sql = app.handle(await spawn_in_sql(dsn, odd), reads)
        assert await plain.result(timeout=30) is await in_sql.result(timeout=30) is None
    links = [len(run.links) for run in recorder.spans("process")]
    assert links == [1, 0, 0]


async def spawn_in_sql(dsn: str, headers: Any) -> Any:
    """Spawn a task in SQL, which calls no middleware."""
    options = json.dumps({"headers": headers})
    statement = "select task_id from durable.spawn('default', 'reads', '{}', %s)"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        row = await (await conn.execute(statement, [options])).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize(
    "middleware",
    [OpenTelemetry, lambda: Recorder(sampler=ALWAYS_OFF).middleware()],
    ids=["without SDK", "sampled out"],
)
async def test_does_nothing_but_pass_on_the_context_unless_it_is_recorded(
    dsn: str, middleware: Callable[[], OpenTelemetry]
) -> None:
    @task
    async def recorded(ctx: Context) -> bool:
        return await ctx.step("one", lambda: trace.get_current_span().is_recording())

    app = AsyncDurable(dsn, tasks=[recorded], middleware=[middleware()])
    async with app, app.worker():
        assert await (await app.spawn(recorded)).result(timeout=30) is False


async def test_counts_and_times_runs_steps_and_spawns(
    dsn: str, clock: Clock, recorder: Recorder
) -> None:
    await done(dsn, recorder, sleeps, clock=clock)
    found = recorder.metrics()
    known = {one.name for one in MEASURED} - {"durable.lease.lost"}
    assert set(found) == known
    outcomes = {
        point.attributes["durable.run.outcome"]: point.count
        for point in found["messaging.process.duration"]
    }
    assert outcomes == {"waiting": 1, "completed": 1}
    (waited,) = found["durable.task.wait.duration"]
    assert waited.count == 2
    assert waited.max >= HOUR - 1  # the clock went on for an hour after it was due
    durations = found["durable.step.duration"]
    steps = {point.attributes["step"]: point.count for point in durations}
    assert steps == {"first": 1, "second": 1}
    (running,) = found["durable.worker.running"]
    assert running.value == 0
    (sent,) = found["messaging.client.sent.messages"]
    assert sent.value == 1


def test_observes_the_queues_of_a_database(dsn: str, recorder: Recorder) -> None:
    with Durable(dsn) as app:
        app.spawn_many("a", [{}, {}])
        app.create_queue("other")
        app.pause_queue("other")
        observe_queues(app, meter_provider=recorder.meters)
        found = recorder.metrics()
        app.spawn("a")
        (again,) = recorder.metrics()["durable.queue.ready"]  # not read again so soon
    assert set(found) == {one.name for one in READ}
    (ready,) = found["durable.queue.ready"]
    assert dict(ready.attributes) == {"queue": "default", "name": "a"}
    assert ready.value == again.value == 2
    paused = {p.attributes["queue"]: p.value for p in found["durable.queue.paused"]}
    assert paused == {"default": 0, "other": 1}


KILLED: Final = """
import os, signal
from durable import AsyncDurable, task
from durable.telemetry.otel import OpenTelemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

tracers = TracerProvider()
write = lambda span: "span " + span.to_json(indent=None) + "\\n"
tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=write)))

@task
async def killed(ctx):
    await ctx.step("before", int)
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)

app = AsyncDurable(tasks=[killed], middleware=[OpenTelemetry(tracer_provider=tracers)])
"""


def test_a_killed_worker_leaves_no_span_of_its_run_and_the_next_has_its_own(
    processes: Processes, dsn: str, tmp_path: Path, recorder: Recorder
) -> None:
    (tmp_path / "killed_app.py").write_text(KILLED)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'python-sdk' / 'src'}"}
    command = ["worker", "killed_app:app", "--lease", "1"]
    with Durable(dsn, middleware=[recorder.middleware()]) as app:
        handle = app.spawn("killed")
        first = processes.durable(*command, env=path)
        assert first.wait(deadline=60) == -signal.SIGKILL
        second = processes.durable(*command, env=path)
        handle.result(timeout=60)
        second.wait_for("process default")
    before, after = (
        [json.loads(line[5:]) for line in lines if line.startswith("span ")]
        for lines in (first.output().splitlines(), second.output().splitlines())
    )
    assert [span["name"] for span in before] == ["before"]
    (run,) = after
    assert run["parent_id"] is None
    assert run["attributes"]["durable.task.attempt"] == 2
    (spawn,) = recorder.spans("spawn")
    (link,) = run["links"]
    assert int(link["context"]["span_id"], 16) == span_id(spawn)


@task(name="swaps", max_attempts=2, retry=Retry.fixed(0), replay_check="strict")
async def swaps(ctx: Context) -> None:
    names = ["a", "b"] if not swapped else ["b", "a"]
    swapped.append(1)
    for name in names:
        await ctx.step(name, one)
    raise LookupError("again")


swapped: list[int] = []


async def test_does_not_switch_off_the_check_of_changed_code(
    dsn: str, recorder: Recorder
) -> None:
    hooks = [recorder.middleware()]
    app = AsyncDurable(dsn, tasks=[swaps], middleware=hooks)
    async with app, app.worker() as worker:
        handle = await app.spawn(swaps)
        await worker.drain()
        found = await handle.snapshot()
    assert found.error is not None
    assert found.error.type == "NonDeterminism"


def test_is_not_loaded_by_an_application_that_does_not_ask_for_it() -> None:
    code = "import durable.cli, sys; print([m for m in sys.modules if 'opentel' in m])"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
