# ruff: noqa: E501 - SQL
"""What operators and clients read, according to the specification."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.chaos.model.engine import Engine
from tests.chaos.model.specification import Model
from tests.chaos.model.things import SECOND

__all__ = ["REFUSED", "REFUSED_OF_TASKS", "expected_looks", "looks"]

Json = Any

STATS = """
select pending, running, sleeping, completed, failed, cancelled, ready,
  public.us(oldest_ready_at), public.us(next_due_at), ready_by_name
from durable.queue_stats(%s)
"""
VIEWS = """
select
  (select count(*) from durable.attempts where queue = %(queue)s),
  (select count(*) from durable.waiting where queue = %(queue)s),
  (select count(*) from durable.task_list where queue = %(queue)s),
  (select count(*) from durable.history where queue = %(queue)s),
  (select coalesce(json_object_agg(worker, running), '{}') from durable.workers where queue = %(queue)s),
  array(select durable.list_waiting_names(%(queue)s)),
  durable.get_next_due(%(queue)s)::float
"""
RESULTS = """
select task_id, state, attempt, result, error, public.us(finished_at)
from durable.{}(%s, %s::uuid[])
"""

# Calls that no caller may make, and their errors.
REFUSED = [
    ("spawn", "22023", ["", "{}", "{}"]),
    ("spawn", "22023", ["\N{EURO SIGN}" * 34, "{}", "{}"]),
    ("spawn", "22023", ["a", "{}", '{"attempts": 1}']),
    ("spawn", "22023", ["a", "{}", '{"max_attempts": 0}']),
    ("spawn", "22023", ["a", "{}", '{"max_attempts": 1.5}']),
    ("spawn", "22023", ["a", "{}", '{"start_timeout": -1}']),
    ("spawn", "22023", ["a", "{}", '{"idempotency_key": ""}']),
    ("spawn", "22023", ["a", "{}", '{"headers": []}']),
    ("spawn", "22023", ["a", "{}", '{"parent_task_id": "me"}']),
    ("spawn", "22023", ["a", "{}", '{"retry": {"kind": "often"}}']),
    ("spawn", "22023", ["a", "{}", '{"retry": {"kind": "fixed", "base_seconds": -1}}']),
    ("spawn_many", "22023", ['{"task": "a"}']),
    ("spawn_many", "22023", ['[{"task": "a"}, {"task": ""}]']),
    ("spawn_many", "22023", ['[{"task": "a"}, {"tusk": "a"}]']),
    ("emit_event", "22023", ["", "1"]),
    ("emit_event", "22023", ["e" * 256, "1"]),
    ("claim_tasks", "22023", ["w", None, -1]),
    ("claim_tasks", "22023", ["w", None, 1, 0]),
    ("claim_tasks", "22023", ["", None, 1]),
    ("extend_leases", "22023", ["[]", 0]),
    ("create_queue", "22023", ['{"keep": 1}']),
    ("create_queue", "22023", ['{"keep_tasks": -1}']),
]
# The same about a task: its holder must not make them either.
REFUSED_OF_TASKS = [
    ("suspend_tasks", []),
    ("suspend_tasks", [{"name": "n"}]),
    ("suspend_tasks", [{"name": "", "seconds": 1}]),
    ("suspend_tasks", [{"name": "n", "seconds": -1}]),
    ("suspend_tasks", [{"name": "n", "until": "infinity"}]),
    ("suspend_tasks", [{"name": "n", "event": "e", "task_ids": []}]),
    ("poll_waits", [{"name": "n", "event": "e" * 256}]),
]


def looks(engine: Engine, ids: list[str]) -> Json:
    """Read everything that is public."""
    return [
        engine.rows(STATS, engine.queue),
        engine.views(VIEWS),
        sorted(engine.rows(RESULTS.format("get_task_results"), engine.queue, ids)),
        sorted(
            row[:1]
            for row in engine.rows(RESULTS.format("poll_results"), engine.queue, ids)
        ),
    ]


def expected_looks(model: Model, ids: list[str]) -> Json:
    """Return what that must be."""
    tasks, now = list(model.tasks.values()), model.now
    states = Counter(task.state for task in tasks)
    waiting = [task for task in tasks if task.available_at is not None]
    dues = sorted(task.available_at or 0 for task in waiting)
    claimable = [
        task.available_at or 0
        for task in waiting
        if task.deadline is None or task.deadline > max(task.available_at or 0, now)
    ]
    ready = Counter(task.name for task in waiting if (task.available_at or 0) <= now)
    names = ["pending", "running", "sleeping", "completed", "failed", "cancelled"]
    stats = (
        *(states[name] for name in names),
        ready.total(),
        dues[0] if ready else None,
        next((due for due in dues if due > now), None),
        dict(ready),
    )
    views = (
        sum(len(task.runs) + 1 for task in tasks),
        sum(len(task.waits) for task in tasks if task.is_live),
        len(tasks),
        sum(len(task.checkpoints) for task in tasks),
        dict(Counter(task.worker for task in tasks if task.lease is not None)),
        sorted({task.name for task in waiting}),
        max(min(claimable) - now, 0) / SECOND if claimable else None,
    )
    known = [(i, model.tasks[i]) for i in ids if i in model.tasks]
    results = sorted(
        (i, task.state, task.attempt, task.result, task.error, task.finished_at)
        for i, task in known
    )
    endings = [(i,) for i in ids if i not in model.tasks or not model.tasks[i].is_live]
    return [[stats], views, results, sorted(endings)]
