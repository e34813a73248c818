"""The sizes of a run: for minutes, in full, or just enough to see that it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "QUICK", "TINY", "Sizes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one run."""

    mode: str
    rounds: int
    scale: float
    """How many times the contenders' quick quantities."""
    waiting: int
    """Tasks in the queue, at least, when a worker begins with those that do nothing."""
    lonely: int
    """Steps of one task."""
    calls: int
    """Calls of spawn_many, of a thousand tasks each."""
    seconds: int
    """How long pgbench runs."""
    wakes: int
    measured: int
    """Tasks of a round where durable is compared with itself."""
    pending: int
    sleeping: int
    finished: int
    before_snapshot: int
    arrivals: tuple[int, ...]
    """How many tasks arrive on an empty database."""
    children: int
    old: int
    """Finished tasks that cleanup deletes."""
    limited: int
    """Waiting tasks of each queue with limits."""
    tenants: int
    """Their partition keys."""


FULL: Final = Sizes(
    mode="full",
    rounds=5,
    scale=1.5,
    waiting=20_000,
    lonely=2000,
    calls=30,
    seconds=10,
    wakes=300,
    measured=20_000,
    pending=1_000_000,
    sleeping=1_000_000,
    finished=5_000_000,
    before_snapshot=100_000,
    arrivals=(100_000, 400_000),
    children=20_000,
    old=1_000_000,
    limited=1_000_000,
    tenants=100_000,
)
QUICK: Final = Sizes(
    mode="quick",
    rounds=3,
    scale=1,
    waiting=20_000,
    lonely=500,
    calls=8,
    seconds=2,
    wakes=60,
    measured=5000,
    pending=50_000,
    sleeping=50_000,
    finished=250_000,
    before_snapshot=20_000,
    arrivals=(20_000,),
    children=4000,
    old=100_000,
    limited=50_000,
    tenants=1000,
)
TINY: Final = Sizes(
    mode="tiny",
    rounds=1,
    scale=0.02,
    waiting=100,
    lonely=10,
    calls=1,
    seconds=1,
    wakes=5,
    measured=100,
    pending=100,
    sleeping=100,
    finished=100,
    before_snapshot=100,
    arrivals=(100,),
    children=20,
    old=100,
    limited=1500,
    tenants=100,
)
