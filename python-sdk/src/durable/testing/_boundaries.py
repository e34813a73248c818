"""The boundaries of a task's own calls, by the names that its author gave them.

Failpoints know calls of the database; here, in a process that is watched, they are told
apart by what they save:

    before:charge      the call begins: nothing of it has happened
    during:charge      its effect has happened, and nothing is saved
    sent:charge        what saves it was sent, and no reply has been read
    after:charge       it is saved, and the task's code does not know yet

    in:charge:insert#1:sent     within a step's function, a statement of its own was
                                sent through psycopg; or :after, was answered

`before:$run` is where a worker has the task and its code has not begun, `…:$end` the
end of the run: its completion, or the failure of the attempt. Other calls than steps
go by the names of their checkpoints: `sent:$sleep:nap`. A task's name comes first,
`before:process-order:charge`, and what is passed again in one process is `…@2`.
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

from durable import _failpoints
from durable._worker.calls import Calls, inside_a_step
from durable._worker.history import Call
from durable._worker.run import Claimed
from durable._worker.waits import Branch, Resolved
from durable._worker.worker import Worker

__all__ = ["BEGIN", "END", "Boundaries", "is_named"]

BEGIN: Final = "$run"
END: Final = "$end"

_NAMED: Final = re.compile(r"(before|during|sent|after|in):")
_PHASES: Final = {"before": "during", "sent": "sent", "after": "after"}
_SILENT: Final = ("poll_waits", "load_checkpoints", "extend_leases", "hold_task")
_COMMITS: Final = ("commit", "exit")  # the latter is psycopg's, of `transaction()`
_IN_TRANSACTIONS: Final = ("save_checkpoints", "complete_tasks")
_NO_EFFECT: Final = ("connect", "begin", "select", "hold_task", "save_checkpoints")

Name = tuple[str, str]  # a task's, and one of its calls'
Passes = Callable[[str], None]

_current: contextvars.ContextVar[Name | None] = contextvars.ContextVar(
    "durable.testing.current", default=None
)


def is_named(point: str) -> bool:
    """Whether a boundary is one of these, and not of a call of the database."""
    return _NAMED.match(point) is not None


class Boundaries:
    """Follows the calls of this process, and reaches the boundaries of its tasks."""

    def __init__(self) -> None:
        self._tasks: dict[UUID, str] = {}
        self._begun: set[tuple[UUID, int, str]] = set()
        self._times: defaultdict[str, Iterator[int]] = defaultdict(
            lambda: itertools.count(1)
        )
        self._within: defaultdict[tuple[Name, str], Iterator[int]] = defaultdict(
            lambda: itertools.count(1)
        )
        self._committing: WeakKeyDictionary[Any, Name] = WeakKeyDictionary()

    def watch(self, kill_at: Iterable[str] = ()) -> None:
        """Watch this process from now on, whose failpoints are armed; die at these."""
        _failpoints.follow(self._follow, kill_at)
        _before(Worker, "_begin", self._run_begins)
        self._watch_calls()

    def _reach(self, phase: str, name: Name) -> None:
        point = f"{phase}:{name[0]}:{name[1]}"
        times = next(self._times[point])
        _failpoints.reach(point if times == 1 else f"{point}@{times}")

    # -- where calls begin ---------------------------------------------------------

    def _run_begins(self, _: Worker, claimed: Claimed, *__: object) -> None:
        self._tasks[claimed.task_id] = claimed.name
        self._reach("before", (claimed.name, BEGIN))

    def _call_begins(self, claimed: Claimed, call: Call) -> None:
        name = (claimed.name, call.key)
        _current.set(name)
        this = (claimed.task_id, claimed.claim, call.key)
        if this not in self._begun:
            self._begun.add(this)
            self._reach("before", name)

    def _watch_calls(self) -> None:
        begin, replayed = Calls.begin, Calls.replayed
        boundaries = self

        @wraps(begin)
        async def watched_begin(
            self: Calls, call: Call
        ) -> tuple[Resolved | None, Branch]:
            saved, branch = await begin(self, call)
            if saved is None:
                boundaries._call_begins(self.claimed, call)
            return saved, branch

        @wraps(replayed)
        def watched_replayed(self: Calls, call: Call) -> Resolved | None:
            saved = replayed(self, call)
            if saved is None:
                boundaries._call_begins(self.claimed, call)
            return saved

        Calls.begin = watched_begin  # type: ignore[method-assign]
        Calls.replayed = watched_replayed  # type: ignore[method-assign]

    # -- where they are saved ------------------------------------------------------

    def _follow(
        self, connection: Any, function: str, args: Sequence[Any]
    ) -> Passes | None:
        if function in _SILENT:
            return None
        name = _current.get()
        if function in _IN_TRANSACTIONS and connection is not None:
            names = self._saved_by(args)
            if function == "complete_tasks" and name is not None:
                names = [name]
            if names:  # it is saved once the transaction is committed
                self._committing[connection] = names[0]
            return self._phases(names, "during")
        if function in _COMMITS and connection in self._committing:
            return self._phases([self._committing.pop(connection)], "sent", "after")
        if inside_a_step.get() and name is not None:
            return self._inside(name, function)
        if function == "spawn_children_in":  # in which queue comes first
            args = [*args[:3], *args[4:]]
        return self._phases(self._saved_by(args), *_PHASES.values())

    def _phases(self, names: Sequence[Name], *wanted: str) -> Passes | None:
        def passes(phase: str) -> None:
            reached = _PHASES.get(phase)
            if reached in wanted:
                for name in names:
                    self._reach(reached, name)

        return passes if names else None

    def _inside(self, name: Name, function: str) -> Passes | None:
        if function in _NO_EFFECT:
            return None
        call = f"{function}#{next(self._within[name, function])}"
        sent = False  # a commit of nothing is not

        def passes(phase: str) -> None:
            nonlocal sent
            sent = sent or phase == "sent"
            if sent and phase in {"sent", "after"}:
                _failpoints.reach(f"in:{name[0]}:{name[1]}:{call}:{phase}")

        return passes

    def _saved_by(self, args: Sequence[Any]) -> list[Name]:
        """Return what a call of the engine saves: by task, the calls and the end.

        The engine is told (queue, task_id, claim, name or children…), or lists of
        objects that say the task_id.
        """
        if len(args) > 3 and isinstance(args[1], UUID) and type(args[2]) is int:  # noqa: PLR2004 - see above
            found = _objects(args[3])
            keys = [one.get("name") for one in found] if found else [args[3]]
            return self._names(args[1], keys)
        names: list[Name] = []
        for said in itertools.chain.from_iterable(map(_objects, args)):
            with_task = said.get("task_id")
            if with_task is None or "claim" not in said:
                continue
            keys = [said.get("name"), *(one["name"] for one in said.get("waits", ()))]
            ends = "result" in said or "error" in said
            names += self._names(UUID(with_task), [*keys, END if ends else None])
        return names

    def _names(self, task_id: UUID, keys: Iterable[object]) -> list[Name]:
        task = self._tasks.get(task_id)
        if task is None:
            return []
        return [(task, key) for key in keys if isinstance(key, str)]


def _objects(text: object) -> list[dict[str, Any]]:
    """Return the objects in a list that was sent as JSON; of anything else, none."""
    if not isinstance(text, str) or not text.startswith("[{"):
        return []
    try:
        found = json.loads(text)
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)]


def _before(cls: type, method: str, do: Callable[..., None]) -> None:
    original = getattr(cls, method)

    @wraps(original)
    def watched(*args: Any) -> Any:
        do(*args)
        return original(*args)

    setattr(cls, method, watched)
