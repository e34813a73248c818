"""What a client reads about a queue over time: throughput, depth, totals."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["Depth", "TaskTotal", "Throughput"]


@dataclass(frozen=True, slots=True)
class Throughput:
    """What happened to the tasks of a queue in the time that begins at `at`.

    `name` is None for all task names together. `retried` counts attempts that failed
    and were followed by another one, `lost` leases that expired. The rest are
    percentiles in seconds, None without tasks: `wait` is the time from the spawn to the
    first start, a delay included, of tasks that ended in their first attempt; `run` is
    that from the first start to the end, waits included, of tasks that completed or
    failed. They are interpolated between 3 ms and 1 hour.
    """

    at: datetime
    name: str | None
    spawned: int
    completed: int
    failed: int
    cancelled: int
    retried: int
    lost: int
    wait_p50: float | None
    wait_p95: float | None
    wait_p99: float | None
    run_p50: float | None
    run_p95: float | None
    run_p99: float | None


@dataclass(frozen=True, slots=True)
class Depth:
    """The most live tasks that a queue had in the time that begins at `at`.

    `ready` tasks could be claimed; one had been ready for `oldest_ready` seconds.
    """

    at: datetime
    pending: int
    running: int
    sleeping: int
    ready: int
    oldest_ready: float | None


@dataclass(frozen=True, slots=True)
class TaskTotal:
    """How many tasks of a name there are: live ones, and finished ones by state."""

    name: str
    live: int
    completed: int
    failed: int
    cancelled: int
