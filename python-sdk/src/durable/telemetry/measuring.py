"""Middleware that measures spawns, runs and steps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from durable.middleware import NOTHING, Middleware, RunInfo, Sending, run_info
from durable.telemetry.instruments import (
    CONSUMED_MESSAGES,
    LEASES_LOST,
    OPERATION_DURATION,
    PROCESS_DURATION,
    RUNNING,
    SENT_MESSAGES,
    STEP_DURATION,
    WAIT_DURATION,
    Instrument,
)

if TYPE_CHECKING:
    from durable import SyncTaskContext, TaskContext

__all__ = ["OTHER", "TASK_ID", "Bounded", "Measuring", "Meter", "Scope", "messaging"]

AnyContext: TypeAlias = "TaskContext[Any] | SyncTaskContext[Any]"

OTHER: Final = "other"
TASK_ID: Final = "durable.task.id"
_MOST_NAMES: Final = 200  # in each queue


class Meter(Protocol):
    """Where measurements go: to OpenTelemetry, or to a page for Prometheus."""

    def add(
        self, instrument: Instrument, value: float, labels: Mapping[str, str]
    ) -> None:
        """Add to a counter, observe a value of a histogram, or set a gauge."""


class Bounded:
    """Bounds the number of names: after 200 of a queue, further ones are "other"."""

    def __init__(self) -> None:
        self._known: defaultdict[str, set[str]] = defaultdict(set)

    def label(self, queue: str, name: str) -> str:
        """Return the label of a name."""
        known = self._known[queue]
        if name in known:
            return name
        if len(known) >= _MOST_NAMES:
            return OTHER
        known.add(name)
        return name


class Scope:
    """What surrounds a block that is measured: here nothing, for traces a span."""

    def end(self, error: BaseException | None, found: Mapping[str, str]) -> None:
        """End with the block, its exception, and what is known by then."""


_NO_SCOPE: Final = Scope()


class Measuring(Middleware):
    """Measures what an application sends, and what its workers run."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._tasks, self._steps = Bounded(), Bounded()

    def _begin_send(self, sending: Sending) -> Scope:  # noqa: ARG002 - for subclasses
        return _NO_SCOPE

    def _begin_run(self, ctx: AnyContext, info: RunInfo) -> Scope:  # noqa: ARG002
        return _NO_SCOPE

    def _begin_step(self, ctx: AnyContext, name: str) -> Scope:  # noqa: ARG002
        return _NO_SCOPE

    def _is_on(self) -> bool:
        return True

    def send(self, sending: Sending) -> AbstractContextManager[None]:
        """Measure a spawn, an event or a message."""
        return self._send(sending) if self._is_on() else NOTHING

    def run_task(self, ctx: AnyContext) -> AbstractContextManager[None]:
        """Measure a run."""
        return self._run(ctx) if self._is_on() else NOTHING

    def run_step(self, ctx: AnyContext, name: str) -> AbstractContextManager[None]:
        """Measure a call of a step's function."""
        return self._step(ctx, name) if self._is_on() else NOTHING

    @contextmanager
    def _send(self, sending: Sending) -> Iterator[None]:
        scope, began = self._begin_send(sending), time.perf_counter()
        labels = messaging(sending.operation, "send", sending.queue)
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            labels["error.type"] = error_type(error)
            raise
        finally:
            took = time.perf_counter() - began
            self._meter.add(OPERATION_DURATION, took, labels)
            self._meter.add(SENT_MESSAGES, sending.count, labels)
            scope.end(raised, _ids(sending))
            raised = None  # its traceback refers to this frame

    @contextmanager
    def _run(self, ctx: AnyContext) -> Iterator[None]:
        info, add, queue = run_info(ctx), self._meter.add, ctx.queue
        scope, began = self._begin_run(ctx, info), time.perf_counter()
        name = self._tasks.label(queue, ctx.name)
        labels = messaging("process", "process", queue)
        labels["durable.task.name"] = name
        if ctx.version is not None:
            labels["messaging.consumer.group.name"] = ctx.version
        waited = (info.claimed_at - info.available_at).total_seconds()
        add(CONSUMED_MESSAGES, 1, labels)
        add(WAIT_DURATION, max(waited, 0.0), {"queue": queue, "name": name})
        add(RUNNING, 1, {"queue": queue})
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            labels["error.type"] = error_type(error)
            raise
        finally:
            outcome = ctx.exit_reason or ("failed" if raised else "completed")
            labels["durable.run.outcome"] = outcome
            add(PROCESS_DURATION, time.perf_counter() - began, labels)
            add(RUNNING, -1, {"queue": queue})
            if outcome == "lease lost":
                add(LEASES_LOST, 1, {"queue": queue})
            scope.end(raised, {"durable.run.outcome": outcome})
            raised = None  # its traceback refers to this frame

    @contextmanager
    def _step(self, ctx: AnyContext, name: str) -> Iterator[None]:
        scope, began = self._begin_step(ctx, name), time.perf_counter()
        queue = ctx.queue
        labels = {
            "queue": queue,
            "name": self._tasks.label(queue, ctx.name),
            "step": self._steps.label(queue, name.partition("#")[0]),
        }
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            labels["error.type"] = error_type(error)
            raise
        finally:
            self._meter.add(STEP_DURATION, time.perf_counter() - began, labels)
            scope.end(raised, {})
            raised = None  # its traceback refers to this frame


def error_type(error: BaseException) -> str:
    """Return the name of an error's class, as `error.type` wants it."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def messaging(operation: str, kind: str, queue: str) -> dict[str, str]:
    """Return what spans and metrics of messaging have in common."""
    return {
        "messaging.system": "durable",
        "messaging.operation.name": operation,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
    }


def _ids(sending: Sending) -> dict[str, str]:
    """Return the task that a spawn has returned, or that a message is for."""
    if len(sending.task_ids) != 1:
        return {}
    task_id = str(sending.task_ids[0])
    if sending.operation == "spawn":
        return {TASK_ID: task_id, "messaging.message.id": task_id}
    return {TASK_ID: task_id}
