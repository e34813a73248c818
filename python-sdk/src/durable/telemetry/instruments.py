"""The metrics of durable, by their names in OpenTelemetry and in Prometheus.

Those of `messaging.*` and their labels are OpenTelemetry's semantic conventions for
messaging, version 1.44. A worker measures the first group in its own process. The
second is read from the database, by one reader for all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["MEASURED", "READ", "Instrument"]

_QUICK: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0),
)
_SLOW: Final = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0)


@dataclass(frozen=True, slots=True, eq=False)  # its hash is needed for each value
class Instrument:
    """A metric. The unit is in seconds, or a note in braces of what is counted."""

    name: str
    kind: Literal["counter", "updown", "gauge", "histogram"]
    unit: str
    description: str
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The name that OpenTelemetry's exporters to Prometheus give it, too."""
        unit = "_seconds" if self.unit == "s" else ""
        total = "_total" if self.kind == "counter" else ""
        return f"{self.name.replace('.', '_')}{unit}{total}"


OPERATION_DURATION: Final = Instrument(
    "messaging.client.operation.duration",
    "histogram",
    "s",
    "Duration of spawns, events and messages, until the database has answered.",
    _QUICK,
)
SENT_MESSAGES: Final = Instrument(
    "messaging.client.sent.messages",
    "counter",
    "{message}",
    "Tasks, events and messages that were sent to the database.",
)
CONSUMED_MESSAGES: Final = Instrument(
    "messaging.client.consumed.messages",
    "counter",
    "{message}",
    "Runs of tasks that have begun.",
)
PROCESS_DURATION: Final = Instrument(
    "messaging.process.duration",
    "histogram",
    "s",
    "Duration of runs: from a claim until the task's code ends or waits.",
    _QUICK,
)
WAIT_DURATION: Final = Instrument(
    "durable.task.wait.duration",
    "histogram",
    "s",
    "Time from when a task could be claimed until it was.",
    (*_QUICK[:-1], *_SLOW[3:]),
)
STEP_DURATION: Final = Instrument(
    "durable.step.duration",
    "histogram",
    "s",
    "Duration of calls of a step's function; each try of a retried step counts.",
    (*_QUICK[:-1], *_SLOW[3:]),
)
RUNNING: Final = Instrument(
    "durable.worker.running", "updown", "{task}", "Runs in progress in this process."
)
SLOTS: Final = Instrument(
    "durable.worker.slots", "gauge", "{task}", "How many tasks the worker may run."
)
LEASES_LOST: Final = Instrument(
    "durable.lease.lost",
    "counter",
    "{lease}",
    "Runs that ended because their lease was lost.",
)

QUEUE_TASKS: Final = Instrument(
    "durable.queue.tasks", "gauge", "{task}", "Tasks of a queue, by state."
)
QUEUE_READY: Final = Instrument(
    "durable.queue.ready", "gauge", "{task}", "Tasks that can be claimed, by name."
)
OLDEST_READY: Final = Instrument(
    "durable.queue.oldest_ready.age",
    "gauge",
    "s",
    "For how long the oldest ready task could have been claimed.",
)
STRANDED: Final = Instrument(
    "durable.queue.stranded",
    "gauge",
    "{task}",
    "Unfinished tasks of versions that no live worker runs.",
)
PAUSED: Final = Instrument(
    "durable.queue.paused", "gauge", "{queue}", "1 if the queue is paused, else 0."
)
FULL: Final = Instrument(
    "durable.queue.full",
    "gauge",
    "{queue}",
    "1 if the queue refuses spawns because of max_length, else 0.",
)
READ_DURATION: Final = Instrument(
    "durable.queue.read.duration",
    "gauge",
    "s",
    "How long it took to read these metrics from the database.",
)

MEASURED: Final = (
    *(OPERATION_DURATION, SENT_MESSAGES, CONSUMED_MESSAGES, PROCESS_DURATION),
    *(WAIT_DURATION, STEP_DURATION, RUNNING, LEASES_LOST),
)
READ: Final = (
    *(QUEUE_TASKS, QUEUE_READY, OLDEST_READY, STRANDED, PAUSED, FULL, READ_DURATION),
)
