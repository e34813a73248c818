"""The boundaries of a task's durable calls, at which crash tests kill its worker.

Failpoints name calls of the database. In a process that is watched, this module derives
from them the durable calls that they save:

    before:charge      the call begins: nothing has happened yet
    during:charge      its effect has happened, and nothing is saved
    sent:charge        the statement that saves it was sent, and no reply was read
    after:charge       it is saved, and the task's code has not continued yet

    in:charge:insert#1:sent     a statement of the step's function was sent through
                                psycopg; `:after`: it was answered

At `before:$run`, a worker has claimed the task and the code has not started. `…:$end`
is the end of the run: the completion, or the failure of the attempt. Calls other than
steps have the names of their checkpoints, as in `sent:$sleep:nap`. The full name starts
with the task's, `before:process-order:charge`; if a process reaches a boundary again,
it is `…@2`.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary

from durable._core.outcomes import Resolved
from durable._task.branches import Branch
from durable._task.checkpoints import Call, inside_a_step
from durable._task.run import Claimed, Run
from durable._worker.worker import Worker
from durable.testing import _failpoints

__all__ = ["BEGIN", "END", "Boundaries", "is_named"]

BEGIN: Final = "$run"
END: Final = "$end"

_NAMED: Final = re.compile(r"(before|during|sent|after|in):")
_PHASES: Final = {"before": "during", "sent": "sent", "after": "after"}
_SILENT: Final = ("poll_waits", "load_checkpoints", "extend_leases", "lock_task")
_COMMITS: Final = ("commit", "exit")  # the latter is psycopg's, of `transaction()`
_IN_TRANSACTIONS: Final = ("save_checkpoints", "complete_tasks")
_NO_EFFECT: Final = ("connect", "begin", "select", "lock_task", "save_checkpoints")

Name = tuple[str, str]  # of a task and of one of its calls
Passes = Callable[[str], None]

_current: contextvars.ContextVar[Name | None] = contextvars.ContextVar(
    "durable.testing.current", default=None
)


def is_named(point: str) -> bool:
    """Whether a point is a boundary of a durable call, not one of a database call."""
    return _NAMED.match(point) is not None


class Boundaries:
    """Watches the calls of this process, and reports the boundaries it reaches."""

    def __init__(self) -> None:
        self._tasks: dict[UUID, str] = {}
        self._started: set[tuple[UUID, int, str]] = set()
        self._times: defaultdict[str, Iterator[int]] = defaultdict(
            lambda: itertools.count(1)
        )
        self._within: defaultdict[tuple[Name, str], Iterator[int]] = defaultdict(
            lambda: itertools.count(1)
        )
        self._committing: WeakKeyDictionary[Any, Name] = WeakKeyDictionary()

    def watch(self, kill_at: Iterable[str] = ()) -> None:
        """Start to watch this process, and kill it at the given boundaries."""
        _failpoints.follow(self._on_call, kill_at)
        _before(Worker, "_start_run", self._run_begins)
        self._watch_calls()

    def _reach(self, phase: str, name: Name) -> None:
        point = f"{phase}:{name[0]}:{name[1]}"
        times = next(self._times[point])
        _failpoints.reach(point if times == 1 else f"{point}@{times}")

    # -- beginnings of calls -------------------------------------------------------

    def _run_begins(self, _: Worker, claimed: Claimed, *__: object) -> None:
        self._tasks[claimed.task_id] = claimed.name
        self._reach("before", (claimed.name, BEGIN))

    def _call_begins(self, claimed: Claimed, call: Call) -> None:
        name = (claimed.name, call.key)
        _current.set(name)
        this = (claimed.task_id, claimed.claim, call.key)
        if this not in self._started:
            self._started.add(this)
            self._reach("before", name)

    def _watch_calls(self) -> None:
        begin, replayed = Run.begin, Run.replayed
        boundaries = self

        @wraps(begin)
        async def watched_begin(
            self: Run, call: Call
        ) -> tuple[Resolved | None, Branch]:
            saved, branch = await begin(self, call)
            if saved is None:
                boundaries._call_begins(self.claimed, call)
            return saved, branch

        @wraps(replayed)
        def watched_replayed(self: Run, call: Call) -> Resolved | None:
            saved = replayed(self, call)
            if saved is None:
                boundaries._call_begins(self.claimed, call)
            return saved

        Run.begin = watched_begin  # type: ignore[method-assign]
        Run.replayed = watched_replayed  # type: ignore[method-assign]

    # -- statements that save calls ------------------------------------------------

    def _on_call(
        self, connection: Any, function: str, args: Sequence[Any]
    ) -> Passes | None:
        if function in _SILENT:
            return None
        name = _current.get()
        if function in _IN_TRANSACTIONS and connection is not None:
            names = self._saved_by(args)
            if function == "complete_tasks" and name is not None:
                names = [name]
            if names:  # saved by the commit of the transaction
                self._committing[connection] = names[0]
            return self._phases(names, "during")
        if function in _COMMITS and connection in self._committing:
            return self._phases([self._committing.pop(connection)], "sent", "after")
        if inside_a_step.get() and name is not None:
            return self._step_statement(name, function)
        if function == "spawn_children_in":  # without the child's queue
            args = [*args[:3], *args[4:]]
        return self._phases(self._saved_by(args), *_PHASES.values())

    def _phases(self, names: Sequence[Name], *wanted: str) -> Passes | None:
        def passes(phase: str) -> None:
            reached = _PHASES.get(phase)
            if reached in wanted:
                for name in names:
                    self._reach(reached, name)

        return passes if names else None

    def _step_statement(self, name: Name, function: str) -> Passes | None:
        if function in _NO_EFFECT:
            return None
        call = f"{function}#{next(self._within[name, function])}"
        sent = False  # an empty commit is not sent

        def passes(phase: str) -> None:
            nonlocal sent
            sent = sent or phase == "sent"
            if sent and phase in {"sent", "after"}:
                _failpoints.reach(f"in:{name[0]}:{name[1]}:{call}:{phase}")

        return passes

    def _saved_by(self, args: Sequence[Any]) -> list[Name]:
        """Return the durable calls and outcomes that a call of the engine saves.

        Its arguments are (queue, task_id, claim, name or children…), or JSON lists of
        objects with a task_id.
        """
        if len(args) > 3 and isinstance(args[1], UUID) and type(args[2]) is int:  # noqa: PLR2004 - see above
            found = _objects(args[3])
            keys = [one.get("name") for one in found] if found else [args[3]]
            return self._names(args[1], keys)
        names: list[Name] = []
        for item in itertools.chain.from_iterable(map(_objects, args)):
            with_task = item.get("task_id")
            if with_task is None or "claim" not in item:
                continue
            keys = [item.get("name"), *(one["name"] for one in item.get("waits", ()))]
            ends = "result" in item or "error" in item
            names += self._names(UUID(with_task), [*keys, END if ends else None])
        return names

    def _names(self, task_id: UUID, keys: Iterable[object]) -> list[Name]:
        task = self._tasks.get(task_id)
        if task is None:
            return []
        return [(task, key) for key in keys if isinstance(key, str)]


def _objects(text: object) -> list[dict[str, Any]]:
    """Return a JSON object, or those of a JSON list; nothing for anything else."""
    if not isinstance(text, str) or not text.startswith(("{", "[{")):
        return []
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [
        one for one in (found if text[0] == "[" else [found]) if isinstance(one, dict)
    ]


def _before(cls: type, method: str, do: Callable[..., None]) -> None:
    original = getattr(cls, method)

    @wraps(original)
    def watched(*args: Any) -> Any:
        do(*args)
        return original(*args)

    setattr(cls, method, watched)
