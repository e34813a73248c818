"""Queues with limits: what they cost a task, and beside an old snapshot."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import psycopg

from tests.bench.contenders import OURS
from tests.bench.place import Place
from tests.bench.results import Comparison, Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["limits", "limits_snapshot"]

BATCH: Final = 100
CALLS: Final = 10
PLAIN: Final = "no limits"
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "tenants take turns": {"priorities": True},
    "2 of a tenant": {"partition_concurrency": 2},
    "200 in the queue, 100 of a tenant": {
        "concurrency": 200,
        "partition_concurrency": 100,
    },
    "a rate of each tenant": {"partition_rate": {"starts": 1000, "period": 1}},
}
HELD: Final = "2 of a tenant"
FILL: Final = """
insert into durable.tasks (
  task_id, spawned_at, max_attempts, queue, name, params, available_at, partition_key,
  priority)
select
  durable._uuid7(1893456000000000 - 86400000000 + n), now(), 5, %(queue)s, 't', '{}',
  now() - interval '1 hour' + n * interval '1 us',
  case when %(keys)s > 0 then 'key-' || n %% %(keys)s end,
  case when %(keys)s > 0 then 0 end
from generate_series(1, %(tasks)s) as n
"""
LANES: Final = """
insert into durable.lanes (
  lane_id, turn_at, priority, resumes, queue, name, version, partition_key)
select
  gen_random_uuid(), now() - interval '1 hour' + n * interval '1 us', 0, false,
  %(queue)s, 't', '', 'key-' || n
from generate_series(0, %(keys)s - 1) as n
"""
CLAIM: Final = """
select task_id, claim, available_at
from durable.claim_tasks(%s, 'w', '{t}', %s, 3600, %s, %s)
"""
FLUSH: Final = "select durable.flush(%s, null, %s, null)"


class Session:
    """A worker's session without a worker: it claims tasks and completes them."""

    def __init__(self, db: psycopg.Connection) -> None:
        self.db = db
        self._calls = 0
        self._after: dict[str, tuple[list[Any], list[Any]]] = {}

    def fill(self, queue: str, tasks: int, keys: int) -> None:
        """Create a queue with waiting tasks of so many tenants."""
        policy = POLICIES.get(queue, {})
        call = "select durable.create_queue(%s, %s)"
        self.db.execute(call, [queue, json.dumps(policy)])
        given = {"queue": queue, "tasks": tasks, "keys": keys if policy else 0}
        self.db.execute(FILL, given)
        if policy:
            self.db.execute(LANES, given)

    def cost(self, queue: str, calls: int = CALLS) -> Mapping[str, float]:
        """Return microseconds for claiming and completing a task, of some calls."""
        took = list[float]()
        for _ in range(calls):
            begun = time.perf_counter()
            tasks = self.work(queue)
            took.append((time.perf_counter() - begun) / tasks * 1e6)
        return {queue: statistics.median(took)}

    def work(self, queue: str) -> int:
        """Claim a batch and complete it; return how many tasks it had."""
        self._calls += 1
        after: Any = self._after.get(queue, (None, None))
        if self._calls % 20 == 0:
            after = None, None  # a worker, too, starts at the beginning now and then
        claimed = self.db.execute(CLAIM, [queue, BATCH, *after]).fetchall()
        last = max((at, task_id) for task_id, _, at in claimed)
        self._after[queue] = ([last[0]], [last[1]])
        done = [
            {"task_id": str(task_id), "claim": held} for task_id, held, _ in claimed
        ]
        self.db.execute(FLUSH, [queue, json.dumps(done)])
        return len(claimed)


@contextlib.contextmanager
def _session(place: Place) -> Iterator[Session]:
    with (
        place.database(OURS) as dsn,
        psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as db,
    ):
        yield Session(db)


def limits(place: Place, sizes: Sizes) -> Figure:
    """Measure what claiming and completing costs in queues with limits."""
    names = [PLAIN, *POLICIES]
    figure = Figure(
        key="limits",
        title="Queues with limits",
        how=f"One session claims {BATCH} of {sizes.limited:,} waiting tasks of"
        f" {sizes.tenants:,} tenants and completes them, in queues with different"
        " policies in turns; microseconds a task.",
        series={name: Series("µs", json.dumps(POLICIES.get(name))) for name in names},
        comparisons=[
            Comparison(f"{name}, of no limits", name, 4, PLAIN, at_least=False)
            for name in POLICIES
        ],
    )
    with _session(place) as session:
        for name in names:
            session.fill(name, sizes.limited, min(sizes.tenants, sizes.limited))
        session.db.execute("vacuum analyze durable.tasks, durable.lanes")
        return figure.in_turns(
            sizes.rounds, {name: partial(session.cost, name) for name in names}
        )


def limits_snapshot(place: Place, sizes: Sizes) -> Figure:
    """Measure a queue with limits while another session holds an old snapshot."""
    figure = Figure(
        key="limits_snapshot",
        title="Queues with limits, and a held snapshot",
        how="Another session holds a REPEATABLE READ snapshot while one session claims"
        f" and completes {sizes.before_snapshot:,} tasks of {sizes.tenants:,} tenants,"
        f" {json.dumps(POLICIES[HELD])}; then the next ones are measured, in turns with"
        " none held; microseconds a task.",
        series={"held": Series("µs"), "none": Series("µs")},
        comparisons=[
            Comparison("of none held", "held", 1 / 0.9, "none", at_least=False)
        ],
    )

    def cost(name: str) -> Mapping[str, float]:
        with _session(place) as session, contextlib.ExitStack() as holding:
            tasks = sizes.before_snapshot + (CALLS + 1) * BATCH
            session.fill(HELD, tasks, min(sizes.tenants, tasks))
            session.db.execute("vacuum analyze durable.tasks, durable.lanes")
            if name == "held":
                dsn = session.db.info.dsn
                holder = holding.enter_context(psycopg.connect(dsn))
                holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                holder.execute("select count(*) from durable.tasks")
            done = 0
            while done < sizes.before_snapshot:
                done += session.work(HELD)
            (found,) = session.cost(HELD).values()
            return {name: found}

    return figure.in_turns(
        sizes.rounds, {name: partial(cost, name) for name in ("held", "none")}
    )
