"""OpenTelemetry: traces and metrics of an application, as middleware.

Names follow the semantic conventions for messaging, version 1.44. It needs
opentelemetry-api, and records nothing until the application sets up an SDK.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from opentelemetry import context as contexts
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from durable._core.values import JSON
from durable._db.schema import VERSION
from durable.middleware import RunInfo, Sending, run_info
from durable.telemetry.instruments import MEASURED, READ, Instrument
from durable.telemetry.measuring import (
    TASK_ID,
    Measuring,
    Scope,
    error_type,
    messaging,
)
from durable.telemetry.queues import QueueReader

if TYPE_CHECKING:
    from durable import Durable, SyncTaskContext, TaskContext

__all__ = ["OpenTelemetry", "observe_queues"]

AnyContext: TypeAlias = "TaskContext[Any] | SyncTaskContext[Any]"
Attributes: TypeAlias = dict[str, AttributeValue]

_API: Final = ("opentelemetry.trace", "opentelemetry.metrics")
_SCOPE: Final = "durable"
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.44.0"


class OpenTelemetry(Measuring):
    """Middleware that makes spans and metrics.

        app = AsyncDurable(tasks=[…], middleware=[OpenTelemetry()])

    A spawn's trace context travels in the task's headers. Each run is the root of a
    trace of its own, with a link to the spawn: a span that stayed open while its task
    sleeps for days would be exported late, or never. With `traces="parent"` runs are
    children of the spawn, which suits tasks that end soon.

    The providers are by default those that the application has set globally.
    """

    def __init__(
        self,
        *,
        traces: Literal["link", "parent"] = "link",
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        if traces not in {"link", "parent"}:
            raise ValueError(f'traces must be "link" or "parent", not {traces!r}')
        super().__init__(_Instruments(_meter(meter_provider)))
        self._has_sdk = not (tracer_provider is None and meter_provider is None)
        self._is_linked = traces == "link"
        self._tracer = trace.get_tracer(_SCOPE, VERSION, tracer_provider, _SCHEMA)

    def spawn(
        self,
        task: str,  # noqa: ARG002 - as it is called
        queue: str,  # noqa: ARG002
        headers: Mapping[str, JSON],  # noqa: ARG002
    ) -> Mapping[str, JSON]:
        """Add the trace context: of a client's spawn, or of the parent's run."""
        if not self._is_on():
            return {}  # a child inherits its parent's context
        carrier: dict[str, JSON] = {}
        propagate.inject(carrier)
        return carrier

    def _begin_send(self, sending: Sending) -> Scope:
        operation, queue = sending.operation, sending.queue
        attributes: Attributes = {**messaging(operation, "send", queue)}
        if sending.name is not None:
            attributes[_NAMES[operation]] = sending.name
        if sending.count > 1:
            attributes["messaging.batch.message_count"] = sending.count
        # the receiver of an event or a message does not get this span's context
        kind = SpanKind.PRODUCER if operation == "spawn" else SpanKind.CLIENT
        return self._span(f"{operation} {queue}", kind, attributes)

    def _begin_run(self, ctx: AnyContext, info: RunInfo) -> Scope:
        queue, task_id = ctx.queue, str(ctx.task_id)
        attributes: Attributes = {
            **messaging("process", "process", queue),
            "messaging.message.id": task_id,
            TASK_ID: task_id,
            "durable.task.name": ctx.name,
            "durable.task.attempt": info.attempt,
            "durable.run.resumed": info.resumed,
        }
        if ctx.version is not None:
            attributes["messaging.consumer.group.name"] = ctx.version
        if ctx.parent_task_id is not None:
            attributes["durable.task.parent_id"] = str(ctx.parent_task_id)
        context, links = self._origin(ctx)
        name, kind = f"process {queue}", SpanKind.CONSUMER
        return self._span(name, kind, attributes, context, links)

    def _begin_step(self, ctx: AnyContext, name: str) -> Scope:
        attributes: Attributes = {
            "durable.step.name": name,
            "durable.step.try": run_info(ctx).step_try,
        }
        return self._span(name.partition("#")[0], SpanKind.INTERNAL, attributes)

    def _is_on(self) -> bool:
        """Whether there is an SDK; the application may set it up at any time."""
        if not self._has_sdk:
            providers = trace.get_tracer_provider(), metrics.get_meter_provider()
            modules = [type(provider).__module__ for provider in providers]
            self._has_sdk = not all(module.startswith(_API) for module in modules)
        return self._has_sdk

    def _origin(self, ctx: AnyContext) -> tuple[Context, list[Link]]:
        """Return the context in which a run's span begins, and the links it has."""
        carrier = {k: v for k, v in ctx.headers.items() if isinstance(v, str)}
        sent = propagate.extract(carrier, Context())
        if not self._is_linked:
            return sent, []
        origin = trace.get_current_span(sent).get_span_context()
        root = trace.set_span_in_context(trace.INVALID_SPAN, sent)
        return root, [Link(origin)] if origin.is_valid else []

    def _span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        context: Context | None = None,
        links: Sequence[Link] = (),
    ) -> Scope:
        return _Span(
            self._tracer.start_span(name, context, kind, attributes, links), context
        )


class _Span(Scope):
    """A span that is the current one until it ends."""

    def __init__(self, span: Span, context: Context | None) -> None:
        self._span = span
        self._token = contexts.attach(trace.set_span_in_context(span, context))

    def end(self, error: BaseException | None, found: Mapping[str, str]) -> None:
        """End the span with its last attributes, and with the exception."""
        contexts.detach(self._token)
        span = self._span
        if span.is_recording():
            span.set_attributes(found)
            if error is not None:
                span.set_attribute("error.type", error_type(error))
                span.set_status(StatusCode.ERROR, str(error))
                span.record_exception(error)
        span.end()


_NAMES: Final = {
    "spawn": "durable.task.name",
    "emit": "durable.event.name",
    "send": "durable.topic.name",
}


# -- metrics ---------------------------------------------------------------------------


def observe_queues(
    client: Durable,
    queues: Sequence[str] | None = None,
    *,
    seconds: float = 10.0,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Export the metrics of queues, as `durable metrics` prints them.

    Call it in one process only, with a client that stays open: the statements read all
    tasks of the queues. They are sent when metrics are collected, at most once in
    `seconds`.
    """
    reader, meter = QueueReader(client, queues, seconds=seconds), _meter(meter_provider)

    def observe(one: Instrument, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(sample.value, sample.labels)
            for sample in reader.read()
            if sample.instrument is one
        ]

    for one in READ:
        callbacks = [partial(observe, one)]
        meter.create_observable_gauge(one.name, callbacks, one.unit, one.description)


class _Instruments:
    """Passes measurements on to the instruments of a meter."""

    def __init__(self, meter: Meter) -> None:
        self._add = {one: _recording(meter, one) for one in MEASURED}

    def add(
        self, instrument: Instrument, value: float, labels: Mapping[str, str]
    ) -> None:
        """Add to a counter, or record a value of a histogram."""
        self._add[instrument](value, labels)


def _meter(provider: MeterProvider | None) -> Meter:
    return metrics.get_meter(_SCOPE, VERSION, provider, _SCHEMA)


def _recording(meter: Meter, one: Instrument) -> Any:
    if one.kind == "histogram":
        return meter.create_histogram(
            one.name,
            one.unit,
            one.description,
            explicit_bucket_boundaries_advisory=one.buckets,
        ).record
    if one.kind == "updown":
        return meter.create_up_down_counter(one.name, one.unit, one.description).add
    return meter.create_counter(one.name, one.unit, one.description).add
