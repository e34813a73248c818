"""Processes that spawn and run tasks of a queue with limits, and are killed meanwhile.

    python -m tests.chaos.limits worker|spawner

They call the engine's functions themselves, with short leases, slow commits and
rollbacks. What happened is read from the database: `claim_log` has every claim.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from psycopg.errors import LockNotAvailable

__all__ = ["QUEUE", "Seen", "look", "unfinished"]

QUEUE: Final = "default"
KEYS: Final = 12
LEASE: Final = 0.7
MOST_UNFINISHED: Final = 500  # the slowest policy starts them in eight seconds

# Every claim, from when it began to when it ended. One that is woken while it suspends
# has no entry of its end: it had ended when the next one could be claimed.
SPANS: Final = """
with changes_of_tasks as (
  select task_id, at, attempt, true as begins
  from durable.claim_log where claim %% 2 = 1
  union all select task_id, at, null, false
  from durable.claim_log where claim %% 2 = 0
  union all select task_id, due_at, null, false
  from durable.claim_log where claim %% 2 = 1
  union all select task_id, ended_at, null, false from durable.runs
  union all select task_id, finished_at, null, false
  from durable.tasks where finished_at is not null
),
spans as (
  select tasks.partition_key, task_id, began.attempt, began.at, began.until
  from (
    select *, lead(at) over (partition by task_id order by at, begins) as until
    from changes_of_tasks
  ) as began
  join durable.tasks using (task_id)
  where began.begins
)
"""
MOST_AT_ONCE: Final = f"""{SPANS},
changes as (
  select partition_key, at, 1 as change from spans
  union all select partition_key, until, -1 from spans
)
select coalesce(max(sum), 0) from (
  select sum(change) over ({{}} order by at, change) from changes
) as running
"""
MOST_STARTS: Final = f"""{SPANS},
starts as (
  select partition_key, min(at) as at
  from spans
  group by partition_key, task_id, attempt
)
select coalesce(max(count), 0) from (
  select count(*) over ({{}} order by at
    range between %s::interval preceding and current row)
  from starts
) as period
"""
MOST_HELD: Final = """
with changes as (
  select partition_key, started_at as at, 1 as change
  from durable.tasks where started_at is not null
  union all select partition_key, finished_at, -1
  from durable.tasks where started_at is not null and finished_at is not null
)
select coalesce(max(sum), 0) from (
  select sum(change) over (partition by partition_key order by at, change) from changes
) as held
"""
BY_PARTITION: Final = "partition by partition_key"
UNFINISHED: Final = "select count(*) from durable.tasks where finished_at is null"


class Seen(NamedTuple):
    """The most that ever ran, began within a second, or had started and not ended."""

    running: int
    running_of_one: int
    starts: int
    starts_of_one: int
    started_of_one: int


def look(db: psycopg.Connection) -> Seen:
    """Return what the database has recorded about all claims of keyed tasks."""

    def most(query: str, *args: Any) -> int:
        row = db.execute(query, args).fetchone()
        return 0 if row is None else int(row[0])

    second = "0.999999 seconds"
    return Seen(
        most(MOST_AT_ONCE.format("")),
        most(MOST_AT_ONCE.format(BY_PARTITION)),
        most(MOST_STARTS.format(""), second),
        most(MOST_STARTS.format(BY_PARTITION), second),
        most(MOST_HELD),
    )


def unfinished(db: psycopg.Connection) -> int:
    """Return how many tasks have not finished."""
    row = db.execute(UNFINISHED).fetchone()
    return 0 if row is None else int(row[0])


def work(db: psycopg.Connection) -> None:
    """Claim tasks and end their claims in every way, without end."""
    name = f"worker-{os.getpid()}"
    claim = "select task_id, claim from durable.claim_tasks(%s, %s, null, %s, %s)"
    maintain = "select durable.run_maintenance(%s), durable.apply_deferred_work(%s)"
    while True:
        batch = random.choice([1, 3, 10])
        helds = db.execute(claim, [QUEUE, name, batch, LEASE]).fetchall()
        if not helds or random.random() < 0.1:
            db.execute(maintain, [QUEUE, QUEUE])
        if not helds:
            time.sleep(random.uniform(0.002, 0.01))
            continue
        time.sleep(random.uniform(0, 0.02))
        with contextlib.suppress(LockNotAvailable):
            end(db, helds)


def end(db: psycopg.Connection, helds: list[tuple[UUID, int]]) -> None:
    ways: dict[str, list[dict[str, Any]]] = {}
    for task_id, claim in helds:
        held = {"task_id": str(task_id), "claim": claim}
        way = random.choices(
            ["complete_tasks", "fail_tasks", "release_tasks", "suspend_tasks"],
            [80, 8, 6, 6],
        )[0]
        if way == "fail_tasks":
            held["error"] = {"type": "Error", "message": ""}
        elif way == "suspend_tasks":
            wait = {"name": f"$sleep:{claim}", "seconds": random.choice([0.001, 0.05])}
            held["waits"] = [wait]
        ways.setdefault(way, []).append(held)
    for way, elements in ways.items():
        with db.transaction():
            db.execute(f"select durable.{way}(%s, %s)", [QUEUE, json.dumps(elements)])
            if random.random() < 0.2:
                time.sleep(random.uniform(0, 0.03))  # a slow commit
            if random.random() < 0.03:
                raise psycopg.Rollback


def spawn(db: psycopg.Connection) -> None:
    """Spawn tasks, some in long transactions and some for nothing, without end."""
    call = "select durable.spawn(%s, %s, '{}', %s)"
    while True:
        if unfinished(db) > MOST_UNFINISHED:
            time.sleep(0.05)
            continue
        with db.transaction():
            for _ in range(random.choice([1, 2, 6])):
                options = {
                    "partition_key": f"key-{random.randrange(KEYS)}",
                    "priority": random.choice([0, 0, 5]),
                    "delay": random.choice([0, 0, 0, 0.05]),
                    "retry": {"kind": "fixed", "base_seconds": 0.01},
                    "max_attempts": None,
                }
                name = random.choice(["one", "two"])
                db.execute(call, [QUEUE, name, json.dumps(options)])
            if random.random() < 0.3:
                time.sleep(random.uniform(0, 0.1))
            if random.random() < 0.05:
                raise psycopg.Rollback
        time.sleep(random.uniform(0, 0.03))


if __name__ == "__main__":
    connection = psycopg.connect(os.environ["DURABLE_DATABASE_URL"], autocommit=True)
    {"worker": work, "spawner": spawn}[sys.argv[1]](connection)
