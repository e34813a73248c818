# ruff: noqa: E501 - SQL
"""The engine behind the model's interface: its calls, and everything a queue holds.

Ids are text, times are microseconds, JSON is what Python parses it to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.types.string import TextLoader

from tests.chaos.model.things import (
    Checkpoint,
    Event,
    Refused,
    Run,
    Task,
    Wait,
    micro,
)
from tests.support.claims import count_claims
from tests.support.clock import Clock

__all__ = ["Engine", "Seen"]

Json: TypeAlias = Any

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MICROSECONDS: Final = """
create or replace function public.us(at timestamptz) returns bigint
language sql immutable
as $$ select (extract(epoch from at) * 1000000)::bigint $$;
"""

# Invariants of every task.
RULES: Final = """
alter table durable.tasks
  add check ((state = 'running') = (lease_expires_at is not null)),
  add check ((state = 'running') = (claim % 2 = 1)),
  add check (available_at is null or state in ('pending', 'sleeping')),
  add check ((state in ('completed', 'failed', 'cancelled')) = (finished_at is not null)),
  add check (finished_at is null or expires_at is null),
  add check (attempt <= max_attempts and attempt >= 1)
"""

# The contents of a queue: one value, each table an array.
EVERYTHING: Final = """
select json_build_array(
  (select json_agg(json_build_array(
    task_id, name, params, public.us(spawned_at), parent_task_id, idempotency_key, retry,
    max_attempts, execution_timeout, state, attempt, claim, worker, public.us(available_at),
    public.us(lease_expires_at), public.us(expires_at), public.us(started_at),
    public.us(finished_at), result, error))
  from durable.tasks where queue = %(queue)s),
  (select json_agg(json_build_array(
    task_id, attempt, outcome, worker, public.us(ended_at), error) order by attempt)
  from durable.runs where queue = %(queue)s),
  (select json_agg(json_build_array(
    task_id, name, state, value, position, after, attempt, claim, public.us(saved_at)))
  from durable.checkpoints where queue = %(queue)s),
  (select json_agg(json_build_array(
    task_id, name, position, after, public.us(expires_at), event_name, task_ids, watched,
    target_task_id))
  from durable.waits where queue = %(queue)s),
  (select json_agg(json_build_array(name, public.us(emitted_at), payload))
  from durable.events where queue = %(queue)s),
  (select json_agg(json_build_array(key, task_id))
  from durable.idempotency_keys where queue = %(queue)s),
  (select json_agg(json_build_array(kind, coalesce(event_name, task_id::text)) order by work_id)
  from durable.deferred_work where queue = %(queue)s),
  (select json_build_array(places.tasks_cleaned_to, places.events_pruned_to)
  from durable.queues left join durable.cleanup_cursors as places using (queue)
  where queue = %(queue)s)
)
"""


class Seen:
    """The contents of a queue, in the terms of the specification."""

    def __init__(self, everything: Json) -> None:
        tables = [table or [] for table in everything]
        tasks, runs, checkpoints, waits, events, keys, deferred, places = tables
        self.tasks: dict[str, Task] = {}
        for (
            task_id,
            name,
            params,
            spawned,
            parent,
            key,
            retry,
            most,
            span,
            *rest,
        ) in tasks:
            known = (name, params, spawned, parent, key, retry, most, micro(span))
            self.tasks[task_id] = Task(*known, *rest)
        self.strays = [
            row for row in [*runs, *checkpoints, *waits] if row[0] not in self.tasks
        ]
        for task_id, *run in runs:
            if task_id in self.tasks:
                self.tasks[task_id].runs.append(Run(*run))
        for task_id, name, *saved in checkpoints:
            if task_id in self.tasks:
                checkpoint = Checkpoint(*saved)
                if isinstance(checkpoint.value, dict):
                    checkpoint.value.pop("run_id", None)
                self.tasks[task_id].checkpoints[name] = checkpoint
        self.targets: dict[tuple[str, str], str | None] = {}
        for task_id, name, *wait, target in waits:
            if task_id in self.tasks:
                self.tasks[task_id].waits[name] = Wait(*wait)
                self.targets[task_id, name] = target
        self.events = {name: Event(*event) for name, *event in events}
        self.keys = dict(keys)
        self.deferred = [(kind, subject) for kind, subject in deferred]
        self.cleaned_to, self.pruned_to = places


class Engine:
    """One queue of a database whose clock is moved by hand."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._db = connection
        self._clock = Clock(connection)
        connection.execute(MICROSECONDS)
        connection.execute(RULES)
        count_claims(connection)
        connection.execute("set timezone to 'UTC'")
        connection.execute("set statement_timeout to '20s'")  # no step takes that long
        connection.adapters.register_loader("uuid", TextLoader)
        self.queue = "default"

    def begin(self, queue: str, now: int) -> None:
        """Start with an empty queue, at that moment."""
        self.queue = queue
        self.set_clock(now)
        self.call("create_queue", queue)

    def set_clock(self, now: int) -> None:
        """Set the clock to that moment."""
        self._clock.set(moment(now))

    def look(self) -> Seen:
        """Read everything."""
        row = self._db.execute(EVERYTHING, {"queue": self.queue}).fetchone()
        assert row is not None
        return Seen(row[0])

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run a query, or raise Refused with the error's code."""
        try:
            return self._db.execute(query, arguments).fetchall()
        except psycopg.Error as error:
            raise Refused(str(error.sqlstate)) from None

    def views(self, query: str) -> tuple[Any, ...] | None:
        """Run a query about this queue that returns one row."""
        return self._db.execute(query, {"queue": self.queue}).fetchone()

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function that returns one value."""
        places = ", ".join(["%s"] * len(arguments))
        return self.rows(f"select durable.{function}({places})", *arguments)[0][0]

    def table(self, function: str, *arguments: Any, columns: str = "*") -> list[Any]:
        """Call a function that returns rows."""
        places = ", ".join(["%s"] * len(arguments))
        return self.rows(
            f"select {columns} from durable.{function}({places})", *arguments
        )

    def in_an_old_snapshot(self, *, begin: bool) -> None:
        """Begin a transaction that does not see later commits; end it."""
        self._db.execute("begin isolation level repeatable read" if begin else "commit")

    def give_up(self) -> None:
        """Roll back a transaction that failed."""
        self._db.execute("rollback")


def moment(at: int) -> datetime:
    """Return a time as Postgres takes it."""
    return EPOCH + timedelta(microseconds=at)


def text(elements: Iterable[Json]) -> str:
    """Return a value as JSON."""
    return json.dumps(list(elements))
