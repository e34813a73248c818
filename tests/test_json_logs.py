"""Log records carry the ids of the task that they are about; as JSON, too."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
from opentelemetry.sdk.trace import TracerProvider

from durable import AsyncDurable, Durable, Retry, SyncTaskContext, TaskContext, task
from durable.telemetry import JSONFormatter, TaskFields
from durable.telemetry.otel import OpenTelemetry
from tests.support.processes import ROOT, Processes
from tests.support.wait import eventually

Context: TypeAlias = TaskContext[Any]

shop = logging.getLogger("shop")


class Lines(logging.Handler):
    """Keeps what a formatter makes of records."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def json(self, logger: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines]
        return [line for line in found if line["logger"] == logger]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Lines]:
    """Lines of JSON of all records, from INFO on."""
    caplog.set_level(logging.INFO)
    handler = Lines()
    handler.setFormatter(JSONFormatter())
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


@task(max_attempts=2, retry=Retry.fixed(0))
async def talks(ctx: Context) -> None:
    shop.info("outside")
    await ctx.step("think", lambda: shop.info("inside"))
    await asyncio.to_thread(shop.info, "in a thread")
    ctx.logger.info("by the context")
    if ctx.attempt == 1:
        raise LookupError("none")


@task(name="talks")
def talks_sync(ctx: SyncTaskContext[Any]) -> None:
    ctx.step("think", lambda: shop.info("inside"))


async def test_records_of_any_logger_carry_the_ids_of_their_task(
    dsn: str, lines: Lines
) -> None:
    hooks = [OpenTelemetry(tracer_provider=TracerProvider())]
    app = AsyncDurable(dsn, tasks=[talks], middleware=hooks)
    async with app, app.worker():
        shop.info("of no task")
        handles = [await app.spawn(talks) for _ in range(3)]
        for handle in handles:
            await handle.result(timeout=30)
    none, *mine = lines.json("shop")
    assert none.keys() == {"time", "level", "logger", "process", "message"}
    for handle in handles:
        own = [line for line in mine if line["task_id"] == str(handle.task_id)]
        said = [(line["message"], line["attempt"], line.get("step")) for line in own]
        assert said == [
            *[("outside", 1, None), ("inside", 1, "think"), ("in a thread", 1, None)],
            *[("outside", 2, None), ("in a thread", 2, None)],
        ]
        assert {(line["queue"], line["task_name"]) for line in own} == {
            ("default", "talks")
        }
        assert len({line["trace_id"] for line in own}) == 2  # one for each run
        assert len({line["span_id"] for line in own}) == 3  # and one of the step
    assert len({line["trace_id"] for line in mine}) == 6
    of_durable = lines.json("durable.task")
    failures = [line for line in of_durable if line["level"] == "warning"]
    assert {line["attempt"] for line in failures} == {1}
    assert {line["task_name"] for line in of_durable} == {"talks"}
    assert "LookupError: none" in failures[0]["exception"]


async def test_a_synchronous_task_has_them_too(dsn: str, lines: Lines) -> None:
    app = AsyncDurable(dsn, tasks=[talks_sync])
    async with app, app.worker():
        handle = await app.spawn(talks_sync)
        await handle.result(timeout=30)
    (inside,) = lines.json("shop")
    assert (inside["task_id"], inside["step"]) == (str(handle.task_id), "think")
    assert "trace_id" not in inside


async def test_logging_does_not_switch_off_the_check_of_changed_code(
    dsn: str, lines: Lines
) -> None:
    swapped: list[int] = []

    @task(max_attempts=2, retry=Retry.fixed(0), replay_check="strict")
    async def swaps(ctx: Context) -> None:
        shop.info("begins")
        swapped.append(1)
        for name in ("a", "b") if len(swapped) == 1 else ("b", "a"):
            await ctx.step(name, int)
        raise LookupError("again")

    app = AsyncDurable(dsn, tasks=[swaps])
    async with app, app.worker() as worker:
        handle = await app.spawn(swaps)
        await worker.drain()
        found = await handle.snapshot()
    assert found.error is not None
    assert found.error.type == "NonDeterminism"
    assert [line["attempt"] for line in lines.json("shop")] == [1, 2]


async def test_a_filter_adds_the_fields_for_other_formatters(dsn: str) -> None:
    handler = Lines()
    handler.addFilter(TaskFields())
    handler.setFormatter(logging.Formatter("%(task_name)s/%(step)s/%(message)s"))
    shop.addHandler(handler)
    shop.setLevel(logging.INFO)
    app = AsyncDurable(dsn, tasks=[talks_sync])
    async with app, app.worker():
        shop.info("none")
        handle = await app.spawn(talks_sync)
        await handle.result(timeout=30)
    shop.removeHandler(handler)
    shop.setLevel(logging.NOTSET)
    assert handler.lines == ["//none", "talks/think/inside"]


TALKING: Final = """
import logging
from durable import AsyncDurable, task

@task
async def talks(ctx):
    await ctx.step("think", lambda: logging.getLogger("shop").info("said"))

app = AsyncDurable(tasks=[talks])
"""


def test_a_worker_writes_json_also_from_several_processes(
    dsn: str, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "talking_app.py").write_text(TALKING)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'python-sdk' / 'src'}"}
    command = ["worker", "talking_app:app", "--log-format", "json"]
    worker = processes.durable(*command, "--processes", "2", env=path)
    with Durable(dsn) as app:
        handle = app.spawn("talks")
        handle.result(timeout=60)
    worker.wait_for("said")
    eventually(lambda: worker.output().count("has started") == 2)
    worker.terminate()
    assert worker.wait() == 0
    lines = [json.loads(line) for line in worker.output().splitlines()]
    (said,) = [line for line in lines if line["logger"] == "shop"]
    assert (said["task_id"], said["step"]) == (str(handle.task_id), "think")
    assert len({line["process"] for line in lines}) == 3
