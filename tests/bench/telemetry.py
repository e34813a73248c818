"""What telemetry costs for each spawn, run and step, without a database.

python -m tests.bench.telemetry
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Final
from uuid import uuid4

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from durable import Middleware
from durable.middleware import Hooks, RunInfo, around
from durable.telemetry.measuring import Measuring
from durable.telemetry.otel import OpenTelemetry
from durable.telemetry.prometheus import Registry

_ROUNDS: Final = 15
_CALLS: Final = 2_000
_PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

_now = datetime.now(UTC)
_info = RunInfo(
    attempt=1,
    resumed=False,
    spawned_at=_now,
    available_at=_now,
    claimed_at=_now,
    claim=1,
    run_id=uuid4(),
    step=None,
    step_try=1,
)
_run: Any = SimpleNamespace(exit_reason=None, info=_info)
_ctx: Any = SimpleNamespace(
    _run=_run,
    queue="default",
    name="work",
    task_id=uuid4(),
    version=None,
    parent_task_id=None,
    exit_reason=None,
    headers={"traceparent": _PARENT},
)


def _variants() -> Iterator[tuple[str, list[Middleware]]]:
    dropped, kept = TracerProvider(sampler=ALWAYS_OFF), TracerProvider()
    kept.add_span_processor(SpanProcessor())
    yield "no middleware", []
    yield "OpenTelemetry's API without an SDK", [OpenTelemetry()]
    yield "sampled out", [OpenTelemetry(tracer_provider=dropped)]
    both = OpenTelemetry(tracer_provider=dropped, meter_provider=MeterProvider())
    yield "sampled out, with metrics", [both]
    both = OpenTelemetry(tracer_provider=kept, meter_provider=MeterProvider())
    yield "recorded, with metrics", [both]
    yield "metrics of `--health`", [Measuring(Registry())]


def _spawn(hooks: Hooks) -> None:
    with hooks.sending("spawn", "default", "work"):
        for hook in hooks.spawn:
            hook("work", "default", {})


def _run_task(hooks: Hooks) -> None:
    if hooks.run_task:
        with around(hooks.run_task, _run, _ctx):
            pass


def _run_step(hooks: Hooks) -> None:
    if hooks.run_step:
        with around(hooks.run_step, _run, _ctx, "charge"):
            pass


def _microseconds(call: Callable[[Hooks], None], hooks: Hooks) -> float:
    """Return the processor time of a call: the least of several rounds."""
    rounds = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(_CALLS):
            call(hooks)
        rounds.append(time.process_time() - began)
    return min(rounds) / _CALLS * 1e6


def main() -> None:
    """Print a table in Markdown."""
    print("| microseconds | spawn | run | step |\n|---|---|---|---|")
    for name, middleware in _variants():
        hooks = Hooks(middleware)
        calls = (_spawn, _run_task, _run_step)
        cells = [f"{_microseconds(call, hooks):.2g}" for call in calls]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
