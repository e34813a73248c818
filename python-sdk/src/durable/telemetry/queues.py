"""Reads the metrics of queues from the database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from durable._core.reports import QueueStats
from durable.telemetry.instruments import (
    FULL,
    OLDEST_READY,
    PAUSED,
    QUEUE_READY,
    QUEUE_TASKS,
    READ_DURATION,
    STRANDED,
    Instrument,
)
from durable.telemetry.measuring import Bounded
from durable.telemetry.prometheus import CONTENT_TYPE, Registry
from durable.telemetry.serving import Answer, serving

if TYPE_CHECKING:
    from durable import Durable

__all__ = ["QueueReader", "Sample", "serve_queues"]

_STATES: Final = ("pending", "running", "sleeping", "completed", "failed", "cancelled")
_REST: Final = 20  # pause for so many times what a read took


class Sample(NamedTuple):
    """One value of a metric, with its labels."""

    instrument: Instrument
    value: float
    labels: dict[str, str]


class QueueReader:
    """Reads the metrics of queues, by default of all that the role may use.

    The functions that it calls read all tasks of a queue. So one process should read
    for all, and what was read is returned again for `seconds`, or for twenty times as
    long as it took to read it.
    """

    def __init__(
        self,
        client: Durable,
        queues: Sequence[str] | None = None,
        *,
        seconds: float = 10.0,
    ) -> None:
        self._client = client
        self._queues = queues
        self._seconds = seconds
        self._lock = threading.Lock()
        self._names = Bounded()
        self._samples: list[Sample] = []
        self._fresh_until = 0.0

    def read(self) -> list[Sample]:
        """Return all samples. Raises as the client does, if the database is away."""
        with self._lock:
            began = time.monotonic()
            if began >= self._fresh_until:
                self._samples = list(self._read())
                took = time.monotonic() - began
                self._samples.append(Sample(READ_DURATION, took, {}))
                pause = max(self._seconds, _REST * took)
                self._fresh_until = time.monotonic() + pause
            return self._samples

    def text(self) -> str:
        """Return all samples as text for Prometheus."""
        registry = Registry()
        for sample in self.read():
            registry.add(*sample)
        return registry.text()

    def _read(self) -> Iterator[Sample]:
        client = self._client
        queues = client.list_queues() if self._queues is None else self._queues
        for queue in queues:
            yield from self._of(client.queue_stats(queue))
            versions = client.list_versions(queue)
            stranded = sum(one.live for one in versions if one.stranded)
            yield Sample(STRANDED, stranded, {"queue": queue})

    def _of(self, stats: QueueStats) -> Iterator[Sample]:
        queue = {"queue": stats.queue}
        for state in _STATES:
            yield Sample(QUEUE_TASKS, getattr(stats, state), {**queue, "state": state})
        ready: dict[str, int] = {}
        for name, count in stats.ready_by_name.items():
            label = self._names.label(stats.queue, name)
            ready[label] = ready.get(label, 0) + count
        for name, count in ready.items():
            yield Sample(QUEUE_READY, count, {**queue, "name": name})
        yield Sample(OLDEST_READY, max(stats.oldest_ready_age or 0.0, 0.0), queue)
        yield Sample(PAUSED, stats.paused is not None, queue)
        yield Sample(FULL, stats.is_full, queue)


async def serve_queues(reader: QueueReader, host: str, port: int) -> None:
    """Serve the metrics of queues at `/metrics`, until it is cancelled."""

    async def metrics() -> Answer:
        return Answer(await asyncio.to_thread(reader.text), CONTENT_TYPE)

    async with serving({"/metrics": metrics}, host, port):
        await asyncio.Event().wait()
