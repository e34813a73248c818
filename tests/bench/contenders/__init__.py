"""The contenders: how each is set up, and how its finished tasks are counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["ABSURD", "CONCURRENCY", "DBOS", "OURS", "PEERS", "Contender"]

CONCURRENCY: Final = 200
"""How many tasks a worker of durable runs at once, unless a figure says otherwise."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A contender; a program of `tests.bench.contenders` runs its commands."""

    key: str
    package: str
    """What the package index calls it."""
    settings: str
    """How it is set up, in words."""
    done: str
    """Counts its finished tasks."""
    quick: dict[str, int] = field(default_factory=dict)
    """How many tasks of each kind make a round of some seconds."""

    @property
    def module(self) -> str:
        """The module of its program."""
        return f"tests.bench.contenders.{self.key}"


OURS: Final = Contender(
    key="durable",
    package="durable-postgres",
    settings=f"`app.run_worker(concurrency={CONCURRENCY})`, on uvloop",
    done="select count(*) from durable.tasks where tasks.state = 'completed'",
    quick={"noop": 20_000, "steps": 2000, "step": 5000},
)
ABSURD: Final = Contender(
    key="absurd",
    package="absurd-sdk",
    settings="`AsyncAbsurd.start_worker(concurrency=10)`, on uvloop; SQL of absurdctl",
    done="select count(*) from absurd.t_default where state = 'completed'",
    quick={"noop": 400, "steps": 60, "step": 300},
)
DBOS: Final = Contender(
    key="dbos",
    package="dbos",
    settings="50 async workflows at once, started directly, pool of 50, on uvloop",
    done="select count(*) from dbos.workflow_status where status = 'SUCCESS'",
    quick={"noop": 600, "steps": 60},
)
PROCRASTINATE: Final = Contender(
    key="procrastinate",
    package="procrastinate",
    settings="`concurrency=10`, LISTEN on, jobs kept, on uvloop",
    done="select count(*) from procrastinate_jobs where status = 'succeeded'",
    quick={"noop": 600},
)
PGQUEUER: Final = Contender(
    key="pgqueuer",
    package="pgqueuer",
    settings="`batch_size=100`, asyncpg, uvloop, durability `durable`",
    done="select count(*) from pgqueuer_log where status = 'successful'",
    quick={"noop": 20_000},
)
AWA: Final = Contender(
    key="awa",
    package="awa-pg",
    settings="256 workers, 20 connections, its queue storage, jobs inserted by COPY",
    done="""
    select coalesce(sum(cardinality(job_ids)), 0) + (
      select coalesce(sum(pruned_completed_count), 0) from awa.queue_terminal_rollups
    )
    from awa.receipt_completion_batches
    """,
    quick={"noop": 20_000},
)
PEERS: Final = (ABSURD, DBOS, PROCRASTINATE, PGQUEUER, AWA)
