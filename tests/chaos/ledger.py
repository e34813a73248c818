"""Compare what clients were promised with what the database holds.

The promises are in the clients' journals, files that no database fault can reach. A
call without an answer is neither promised nor denied: the database shows its outcome,
and either is right.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.support.wait import eventually

__all__ = ["LOST", "Ledger"]

LOST: Final = "acknowledged spawns lost"

ENDS: Final = {"doomed": "failed", "endless": "cancelled"}  # the others complete
EFFECTS: Final = {
    "steps": ["one", "three", "two"],
    "nap": ["after", "before"],
    "meet": ["after", "before"],
    "flaky": ["after", "before"],
}

TASKS: Final = """
select params #>> '{}', task_id::text, name, state::text, result #>> '{}'
from durable.tasks where parent_task_id is null
"""
OPEN: Final = """
select (select count(*) from durable.tasks where finished_at is null)
  + (select count(*) from durable.deferred_work)
"""
EMIT: Final = "select durable.emit_event('default', %s, %s)"
CANCEL: Final = "select durable.cancel_task('default', %s)"
# What must never be, independent of any promise.
NEVER: Final = {
    "an effect had again in an attempt after the one that saved it": """
        select count(*) from public.effects
        join durable.checkpoints using (task_id)
        where checkpoints.name = effects.step
          and checkpoints.attempt < effects.attempt""",
    "a step saved without its effect": """
        select count(*) from durable.checkpoints
        where name in ('one', 'two', 'three', 'before', 'after') and not exists (
          select from public.effects
          where effects.task_id = checkpoints.task_id
            and effects.step = checkpoints.name
            and effects.attempt = checkpoints.attempt)""",
    "an effect without a task": """
        select count(*) from public.effects
        where not exists (select from durable.tasks
          where tasks.task_id = effects.task_id)""",
    "an orphan": """
        select count(*) from durable.tasks as child
        join durable.tasks as parent
          on parent.queue = child.queue and parent.task_id = child.parent_task_id
        where parent.finished_at is not null and parent.state <> 'completed'
          and child.finished_at is null""",
    "a family without its two children": """
        select count(*) from durable.tasks as parent
        where name = 'family' and state = 'completed' and 2 <> (
          select count(*) from durable.tasks as child
          where child.queue = parent.queue and child.parent_task_id = parent.task_id
            and child.state = 'completed')""",
    "a wait of nobody's": """
        select count(*) from durable.waits
        where not exists (select from durable.tasks
          where tasks.queue = waits.queue and tasks.task_id = waits.task_id
            and tasks.state = 'sleeping')""",
    "deferred work left": "select count(*) from durable.deferred_work",
    "a deadlock": """
        select deadlocks from pg_stat_database where datname = current_database()""",
}


class Ledger:
    """All journals of a directory, read once their writers have ended."""

    def __init__(self, journals: Iterable[Path]) -> None:
        self.kinds: dict[str, str] = {}
        self.acknowledged: dict[str, str] = {}
        self.unknown: set[str] = set()
        self.orders: set[str] = set()
        self.cancels: set[str] = set()
        self.cancelled: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.together: list[list[str]] = []
        for journal in journals:
            for line in journal.read_text().splitlines():
                self._read(json.loads(line))
        self.unknown |= self.kinds.keys() - self.acknowledged.keys()

    def _read(self, line: dict[str, Any]) -> None:
        what, intent = line["what"], line.get("intent", "")
        if what == "ask":
            self.kinds[intent] = line["kind"]
            if line.get("order"):
                self.orders.add(intent)
        elif what == "ack":
            self.acknowledged[intent] = line["task_id"]
        elif what == "unknown":
            self.unknown.add(intent)
        elif what == "cancel":
            self.cancels.add(intent)
        elif what == "cancelled":
            self.cancelled.add(intent)
        elif what == "result":
            self.outcomes[intent] = line["outcome"]
        elif what == "many":
            self.together.append(line["intents"])

    def settle(self, db: psycopg.Connection) -> None:
        """Emit what tasks of dead clients wait for, and wait for all others."""
        for intent, task_id, name, state, _ in db.execute(TASKS).fetchall():
            if state in {"completed", "failed", "cancelled"}:
                continue
            if name == "meet":
                db.execute(EMIT, [f"go:{intent}", json.dumps(intent)])
            elif name == "endless":
                self.cancels.add(intent)
                db.execute(CANCEL, [task_id])
        eventually(lambda: _is_quiet(db), deadline=90, what="every task at its end")

    def check(self, db: psycopg.Connection) -> Counter[str]:
        """Assert that journals and database agree, and return counts."""
        tasks: defaultdict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
        for intent, *rest in db.execute(TASKS).fetchall():
            tasks[intent].append(tuple(rest))
        wrong = [
            *self._compare(tasks),
            *self._count_orders(db, tasks),
            *self._count_effects(db),
        ]
        for what, query in NEVER.items():
            if number := _number(db, query):
                wrong.append(f"{what}: {number}")
        assert wrong == []
        resolved = sum(intent in tasks for intent in self.unknown)
        return Counter(
            {
                "tasks under faults": _number(db, "select count(*) from durable.tasks"),
                "effects under faults": _number(
                    db, "select count(*) from public.effects"
                ),
                "acknowledged spawns": len(self.acknowledged),
                LOST: sum(not tasks.get(intent) for intent in self.acknowledged),
                "unknown spawns that had happened": resolved,
                "unknown spawns that had not": len(self.unknown) - resolved,
                "results awaited through faults": len(self.outcomes),
            }
        )

    def _compare(self, tasks: dict[str, list[tuple[str, str, str, str]]]) -> list[str]:
        unasked = tasks.keys() - self.kinds.keys()
        wrong = [f"{intent}: nobody asked for it" for intent in unasked]
        for intent, kind in self.kinds.items():
            found = tasks.get(intent, [])
            told = self.acknowledged.get(intent)
            if told is not None and told not in {task_id for task_id, *_ in found}:
                wrong.append(f"{intent}: acknowledged, and lost")
            if len(found) > 1:
                wrong.append(f"{intent}: spawned {len(found)} times")
            for _, name, state, result in found:
                if name != kind:
                    wrong.append(f"{intent}: {name}, not {kind}")
                wrong += self._compare_end(intent, kind, state, result)
        for together in self.together:
            if len({intent in tasks for intent in together}) > 1:
                wrong.append(f"{together}: some of them")
        return wrong

    def _compare_end(
        self, intent: str, kind: str, state: str, result: str
    ) -> list[str]:
        expected = {ENDS.get(kind, "completed")}
        if intent in self.cancelled:
            expected = {"cancelled"}
        elif intent in self.cancels:
            expected.add("cancelled")
        if state not in expected:
            return [f"{intent}: {kind} is {state}, not {expected}"]
        outcome = self.outcomes.get(intent)
        ends = {"TaskFailed": "failed", "TaskCancelled": "cancelled"}
        if outcome is not None and state != ends.get(outcome, "completed"):
            return [f"{intent}: {state}, its client was told {outcome}"]
        if state == "completed" and result != intent:
            return [f"{intent}: returned {result}"]
        return []

    def _count_orders(self, db: psycopg.Connection, tasks: Iterable[str]) -> list[str]:
        rows = db.execute("select intent from public.orders").fetchall()
        orders = {intent for (intent,) in rows}
        spawned = self.orders.intersection(tasks)
        return [
            *(f"{intent}: an order without a task" for intent in orders - spawned),
            *(f"{intent}: a task without its order" for intent in spawned - orders),
        ]

    def _count_effects(self, db: psycopg.Connection) -> list[str]:
        """Assert that each completed task had every effect, and no other."""
        rows = db.execute(
            """
            select task_id::text, name, array_agg(distinct step order by step)
            from durable.tasks left join public.effects using (task_id)
            where state = 'completed' group by task_id, name
            """
        ).fetchall()
        return [
            f"{task_id}: {name} had the effects {steps}"
            for task_id, name, steps in rows
            if name in EFFECTS and steps != EFFECTS[name]
        ]


def _is_quiet(db: psycopg.Connection) -> bool:
    """Whether no task is open and no deferred work is left."""
    return _number(db, OPEN) == 0


def _number(db: psycopg.Connection, query: str) -> int:
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])
