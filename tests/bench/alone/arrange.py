"""Create tasks in the states that a figure needs, and query the database."""

from __future__ import annotations

import json
from typing import Any, Final

import psycopg

from tests.bench.place import Failed

__all__ = [
    "CHUNK",
    "SPARE",
    "SPAWN_MANY",
    "checkpoint",
    "preload",
    "row",
    "spawn",
    "vacuum",
]

CHUNK: Final = 1000
# More tasks than are measured: the end of a queue behaves differently.
SPARE: Final = 1000
SPAWN_MANY: Final = "select task_id from durable.spawn_many('default', %s)"
PRELOAD: Final = """
insert into durable.tasks (
  task_id, spawned_at, queue, name, params, max_attempts, claim, state, available_at,
  started_at, finished_at, result
)
select
  (%(prefix)s || lpad(to_hex(number), 12, '0'))::uuid, now(), 'default', 'noop',
  'null', 5, %(claim)s, %(state)s::durable.task_state,
  now() + %(available)s::interval, now() + %(started)s::interval,
  now() + %(finished)s::interval,
  case when %(state)s = 'completed' then 'null'::jsonb end
from generate_series(1, %(batch_size)s) as number
"""


def spawn(dsn: str, batch_size: int, task: str = "noop", params: Any = None) -> None:
    """Spawn tasks of one kind in one transaction."""
    with psycopg.connect(dsn) as connection:
        for start in range(0, batch_size, CHUNK):
            one = {"task": task, "params": params}
            chunk = [one] * min(CHUNK, batch_size - start)
            connection.execute(SPAWN_MANY, [json.dumps(chunk)])


def preload(dsn: str, state: str, batch_size: int, age: str = "0") -> None:
    """Insert tasks in a state, older than all spawned ones."""
    where: dict[str, Any] = {"state": state, "batch_size": batch_size}
    where |= {"available": None, "started": None, "finished": None, "claim": 0}
    if state == "pending":
        where |= {"prefix": "00000000-0001-7000-8000-", "available": "-1 day"}
    elif state == "sleeping":
        where |= {"prefix": "00000000-0002-7000-8000-", "available": "1 year"}
        where |= {"started": "-1 day", "claim": 2}
    else:
        where |= {"prefix": "00000000-0000-7000-8000-", "claim": 2}
        where |= {"started": f"-{age}", "finished": f"-{age}"}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PRELOAD, where)


def vacuum(dsn: str) -> None:
    """Do what autovacuum does after many inserts."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("vacuum (analyze) durable.tasks")


def checkpoint(dsn: str) -> None:
    """Make a checkpoint: afterwards the first change of a page logs all of it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("checkpoint")


def row(dsn: str, query: str) -> tuple[Any, ...]:
    """Return the single row of a query."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(query.encode()).fetchone()
    if found is None:
        raise Failed("no such row")
    return found
