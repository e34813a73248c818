# ruff: noqa: E501 - SQL
"""What claims cost in queues with limits, beside a queue without.

    .venv/bin/python -m tests.bench.lanes [tasks] [keys ...]

It fills queues with waiting tasks of so many partitions, and prints for each policy what
claiming and completing costs a task, in microseconds, and the WAL it writes, in bytes. The
queue without limits is measured in between: compare ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any, Final

import psycopg

from durable.embedded import Postgres
from tests.support.databases import Databases

__all__: list[str] = []

BATCH: Final = 100
ROUNDS: Final = 40
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "no limits": {},
    "fairness only": {"priorities": True},
    "2 per partition": {"partition_concurrency": 2},
    "200 in the queue, 100 per partition": {
        "concurrency": 200,
        "partition_concurrency": 100,
    },
    "a rate per partition": {"partition_rate": {"starts": 1000, "period": 1}},
}
FILL: Final = """
insert into durable.tasks (
  task_id, spawned_at, max_attempts, queue, name, params, available_at, partition_key, priority)
select durable._uuid7(1893456000000000 - 86400000000 + n), now(), 5, %(queue)s, 't', '{}',
  now() - interval '1 hour' + n * interval '1 us',
  case when %(keys)s > 0 then 'key-' || n %% %(keys)s end, case when %(keys)s > 0 then 0 end
from generate_series(1, %(tasks)s) as n
"""
LANES: Final = """
insert into durable.lanes (
  lane_id, turn_at, priority, resumes, queue, name, version, partition_key)
select gen_random_uuid(), now() - interval '1 hour' + n * interval '1 us', 0, false, %(queue)s,
  't', '', 'key-' || n from generate_series(0, %(keys)s - 1) as n
"""
FILL_RUNNING: Final = """
insert into durable.tasks (
  task_id, spawned_at, started_at, max_attempts, queue, name, params, partition_key, priority,
  state, claim, worker, lease_expires_at)
select gen_random_uuid(), now(), now(), 5, 'full', 't', '{}', 'key-' || n, 0, 'running', 1, 'x',
  now() + interval '1 day'
from generate_series(10, %(keys)s - 1) as n
"""
CLAIM: Final = (
    "select task_id, claim from durable.claim_tasks(%s, 'w', '{t}', %s, 3600)"
)


def claim(db: psycopg.Connection, queue: str, batch_size: int) -> list[Any]:
    return db.execute(CLAIM, [queue, batch_size]).fetchall()


def complete(db: psycopg.Connection, queue: str, helds: list[Any]) -> None:
    said = [{"task_id": str(task_id), "claim": held} for task_id, held in helds]
    db.execute("select durable.flush(%s, null, %s, null)", [queue, json.dumps(said)])


def wal(db: psycopg.Connection) -> int:
    row = db.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


def measure(db: psycopg.Connection, queue: str, batch: int) -> tuple[float, float, int]:
    """Return the microseconds of a claim and of a completion, and bytes of WAL, a task."""
    claims, ends, tasks, before = list[float](), list[float](), 0, wal(db)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        helds = claim(db, queue, batch)
        claimed = time.perf_counter()
        if not helds:
            break
        complete(db, queue, helds)
        claims.append((claimed - start) / len(helds))
        ends.append((time.perf_counter() - claimed) / len(helds))
        tasks += len(helds)
    if not tasks:
        return 0, 0, 0
    bytes_ = (wal(db) - before) // tasks
    return statistics.median(claims) * 1e6, statistics.median(ends) * 1e6, bytes_


def fill(db: psycopg.Connection, queue: str, tasks: int, keys: int) -> None:
    policy = json.dumps(POLICIES[queue])
    db.execute("select durable.create_queue(%s, %s)", [queue, policy])
    said = {"queue": queue, "tasks": tasks, "keys": keys if POLICIES[queue] else 0}
    db.execute(FILL, said)
    if POLICIES[queue]:
        db.execute(LANES, said)


def full(db: psycopg.Connection, keys: int) -> None:
    """Print what full partitions cost in front of ten that are not."""
    POLICIES["full"] = {"partition_concurrency": 1}
    fill(db, "full", keys, keys)
    db.execute(FILL_RUNNING, {"keys": keys})
    db.execute(
        "update durable.lanes set turn_at = now() where queue = 'full'"
        " and partition_key = any (array(select 'key-' || n from generate_series(0, 9) n))"
    )
    found, times = 0, list[float]()
    while found < 10 and len(times) < 5_000:
        start = time.perf_counter()
        found += len(claim(db, "full", 10))
        times.append(time.perf_counter() - start)
    print(
        f"{keys} full partitions in front: {len(times)} claims, the slowest"
        f" {max(times) * 1e3:.1f} ms, all {sum(times):.1f} s"
    )
    times.clear()
    for _ in range(50):
        start = time.perf_counter()
        assert not claim(db, "full", 10)
        times.append(time.perf_counter() - start)
    print(f"then an empty claim: {statistics.median(times) * 1e3:.2f} ms")


def main(tasks: int, sizes: list[int]) -> None:
    binaries = os.environ.get("DURABLE_TEST_PG_BIN", "wheel")
    with Postgres.start(binaries=binaries, fast=True) as server:
        databases = Databases(server.conninfo(), "lanes")
        databases.make_template()
        for keys in sizes:
            with (
                databases.database(str(keys)) as dsn,
                psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as db,
            ):
                for queue in list(POLICIES):
                    fill(db, queue, tasks, min(keys, tasks))
                db.execute("vacuum analyze durable.tasks, durable.lanes")
                db.execute("checkpoint")
                print(f"{tasks} tasks of {keys} partitions; us to claim, to end, bytes")
                for queue in POLICIES:
                    for again in ("no limits", queue):
                        for batch in (BATCH, 1):
                            measured = measure(db, again, batch)
                            print(
                                f"  {again}, {batch} at once: %.0f %.0f %d" % measured
                            )
                full(db, max(sizes))
                del POLICIES["full"]


if __name__ == "__main__":
    main(
        int((sys.argv[1:] or ["100000"])[0]),
        [int(n) for n in sys.argv[2:]] or [1, 1000],
    )
