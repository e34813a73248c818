"""Compare engine and model, and check what is always true."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from tests.chaos.model.engine import Seen
from tests.chaos.model.specification import Model
from tests.chaos.model.things import Free, Task

__all__ = ["agree", "check"]

FIELDS = [field.name for field in fields(Task) if field.name != "waits"]


def agree(model: Model, seen: Seen) -> None:
    """Fail unless all rows are the same; copy what the engine was free to choose."""
    for what, held, expected in (
        ("tasks", seen.tasks.keys(), model.tasks.keys()),
        ("events", seen.events, model.events),
        ("keys", seen.keys, model.keys),
        ("deferred", Counter(seen.deferred), Counter(model.deferred)),
        ("rows of no task", seen.strays, []),
        ("cleaned to", seen.cleaned_to, model.cleaned_to),
        ("pruned to", seen.pruned_to, model.pruned_to),
    ):
        assert held == expected, f"{what}: {held} instead of {expected}"
    for task_id, task in model.tasks.items():
        agree_on_task(task_id, task, seen)


def agree_on_task(task_id: str, task: Task, seen: Seen) -> None:
    found = seen.tasks[task_id]
    for field in FIELDS:
        held, expected = getattr(found, field), getattr(task, field)
        if isinstance(expected, Free) and expected.allows(held):
            setattr(task, field, held)
        elif held != expected:
            raise AssertionError(f"{task_id} {field}: {held!r} instead of {expected!r}")
    for name, wait in task.waits.items():
        if not task.is_asleep and name in found.waits:
            wait.watched = found.waits[name].watched  # set anew on suspension
        elif wait.target != seen.targets.get((task_id, name)):
            raise AssertionError(f"{task_id} {name}: another target than {wait.target}")
    waits = found.waits
    assert waits == task.waits, f"{task_id} waits: {waits} instead of {task.waits}"


def check(model: Model, revived: set[str]) -> None:
    """Check invariants after every call. revived: ids passed to retry_task."""
    for task_id, task in model.tasks.items():
        assert len(task.runs) == task.attempt - 1, f"{task_id} has lost an attempt"
        if not model.deferred and task.is_live:
            check_sleep(model, task_id, task)
            parent = model.tasks.get(task.parent or "")
            if parent and parent.state in {"failed", "cancelled"}:
                assert task_id in revived, f"{task_id} outlives its parent"


def check_sleep(model: Model, task_id: str, task: Task) -> None:
    """No task sleeps without a wake-up, or longer than what it waits for."""
    if not task.is_asleep:
        return
    wakes = task.available_at is not None
    for wait in task.waits.values():
        if wait.event is not None:
            assert model.events[wait.event].emitted_at is None, f"{task_id} sleeps on"
            wakes = True
        if wait.tasks is not None:
            target = model.tasks.get(wait.target or "")
            lives = target is not None and target.is_live
            assert lives, f"{task_id} watches nobody"
            wakes = True
    assert wakes, f"{task_id} sleeps for ever"
