# ruff: noqa: D205 - a rule may take two lines
"""What the engine promises, as a program without locks, sets of rows or indexes.

One queue, one caller at a time. Each method is a call and says what has changed when it
returns; `Refused` is an error after which nothing has. Where the engine may choose, a
value is `Free`. Times and spans are whole microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

__all__ = ["SECOND", "Checkpoint", "Event", "Free", "Model", "Refused", "Run", "Task"]
__all__ += ["Wait", "iso", "micro"]

Json: TypeAlias = Any
Id: TypeAlias = str

SECOND: Final = 1_000_000
FINAL: Final = {"completed", "failed", "cancelled"}
USUAL_RETRY: Final[dict[str, Any]] = {
    "kind": "exponential",
    "base_seconds": 1,
    "factor": 2,
    "max_seconds": 300,
    "jitter": True,
}


class Refused(Exception):
    """One of these errors, whichever the engine meets first; nothing has changed."""

    def __init__(self, *codes: str) -> None:
        super().__init__(*codes)
        self.codes = set(codes)


class Free:
    """A value the engine may choose, as long as it is one of these."""

    def __init__(self, allows: Callable[[Any], bool], what: str) -> None:
        self.allows = allows
        self._what = what

    def __repr__(self) -> str:
        return self._what


@dataclass
class Run:
    """An attempt that another one followed."""

    attempt: int
    outcome: str
    worker: str | None
    ended_at: int
    error: Json


@dataclass
class Checkpoint:
    """What a task has done: written once, never changed."""

    state: str
    value: Json
    position: int
    after: int
    attempt: int
    claim: int
    saved_at: int


@dataclass
class Wait:
    """What a task waits for; it stays until it is over, with its first deadline."""

    position: int
    after: int
    deadline: int | None
    event: str | None
    tasks: list[Id] | None
    watched: int | None = None  # place of the task whose end looks at this wait, from 1

    @property
    def target(self) -> Id | None:
        """The task whose end looks at this wait."""
        return self.tasks[self.watched - 1] if self.tasks and self.watched else None


@dataclass
class Event:
    """A fact, or (without a time) the place where somebody waits for it."""

    emitted_at: int | None = None
    payload: Json = None


@dataclass
class Task:
    """One logical piece of work."""

    name: str
    params: Json
    spawned_at: int
    parent: Id | None = None
    key: str | None = None
    retry: Json = None
    max_attempts: int | None = 5
    max_duration: int | None = None
    state: str = "pending"
    attempt: int = 1
    claim: int = 0  # the fence: odd while held
    worker: str | None = None
    available_at: int | None = None
    lease: int | None = None
    deadline: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    result: Json = None
    error: Json = None
    runs: list[Run] = field(default_factory=list)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    waits: dict[str, Wait] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether it has not finished."""
        return self.state not in FINAL

    @property
    def is_asleep(self) -> bool:
        """Whether it sleeps because it waits: one between attempts has an error."""
        return self.state == "sleeping" and self.error is None

    def let_go(self) -> None:
        """Nobody holds it any more, nor will by the clock."""
        self.claim += self.claim % 2
        self.lease = self.available_at = None

    def may_retry(self) -> bool:
        """Whether there is an attempt after this one."""
        is_last = self.max_attempts is not None and self.attempt >= self.max_attempts
        return (self.retry or {}).get("kind") != "none" and not is_last

    def delay(self) -> tuple[int, int]:
        """How long until the next attempt, at least and at most."""
        retry = self.retry or USUAL_RETRY
        base, factor = retry.get("base_seconds", 1), retry.get("factor", 2)
        power = self.attempt - 1 if retry["kind"] == "exponential" else 0
        longest = retry.get("max_seconds", 365 * 86400)
        seconds = min(base * factor**power, longest)
        shortest = seconds / 2 if retry.get("jitter") else seconds
        return round(shortest * SECOND), round(seconds * SECOND)


class Model:
    """A queue.

    `latest`: the call runs in READ COMMITTED. Outside it cannot see what has just been
    committed, and leaves what follows from it to notes.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self.latest = True
        self.tasks: dict[Id, Task] = {}
        self.events: dict[str, Event] = {}
        self.keys: dict[str, Id] = {}
        self.notes: list[tuple[str, Id]] = []
        self.keep_tasks: int | None = 30 * 86400 * SECOND
        self.keep_events: int | None = 30 * 86400 * SECOND
        self.cleaned_to: Id | None = None
        self.pruned_to: str | None = None

    # For everyone

    def spawn(self, new: list[dict[str, Json]], ids: Iterator[Id]) -> list[Json]:
        """All or none. A key stands for one task, with one name and params; only a
        live task can have children.
        """
        codes, answers, keys = set(), [], dict(self.keys)
        fresh: dict[Id, Task] = {}
        for one in new:
            key, parent = one.get("key"), self.tasks.get(one.get("parent") or "")
            task = Task(one["task"], one["params"], self.now, available_at=self.now)
            if key in keys:
                task_id = keys[key]
                same = self.tasks.get(task_id) or fresh[task_id]
                if (same.name, same.params) != (task.name, task.params):
                    codes.add("WFCON")
                answers.append((task_id, same.attempt, False))
                continue
            if one.get("parent") is not None and (parent is None or not parent.is_live):
                codes.add("WFNFD" if parent is None else "WFFIN")
            task.key, task.parent = key, one.get("parent")
            task.retry = one.get("retry")
            task.max_attempts = one.get("max_attempts", 5)
            task.max_duration = micro(one.get("max_duration"))
            if (delay := micro(one.get("max_delay"))) is not None:
                task.deadline = self.now + delay
            task_id = next(ids, f"an id for {len(answers)}")
            fresh[task_id] = task
            if key is not None:
                keys[key] = task_id
            answers.append((task_id, 1, True))
        if codes:
            raise Refused(*codes)
        self.tasks |= fresh
        self.keys = keys
        return answers

    def emit(self, event: str, payload: Json) -> bool:
        """The first payload wins, and wakes every task that waits for it."""
        if self._is_emitted(event):
            return False
        self.events[event] = Event(self.now, payload)
        self._wake_waiters(event)
        return True

    def cancel(self, task_id: Id, reason: str | None) -> bool:
        """A task and all live tasks below it, at once."""
        task = self._known(task_id)
        if not task.is_live:
            return False
        error = {"type": "$Cancelled", "message": reason}
        self._end(task, "cancelled", _by_a_role(error))
        ended = [task_id, *self._cancel_below([task_id])]
        if not self.latest:
            self.notes.append(("cascade", task_id))
        self._finished(ended)
        return True

    def retry(
        self, task_id: Id, most: int | None, ids: Iterator[Id], *, spawn_new: bool
    ) -> Json:
        """One more attempt at once, for it and for exactly those below it that its own
        end had cancelled; or a new task like it, without key, parent and deadline. What
        sleeps until its next attempt starts that now.
        """
        task = self._known(task_id)
        if task.state == "sleeping" and task.error is not None and not spawn_new:
            return self._skip_delay(task_id, task, most)
        if task.state not in {"failed", "cancelled"}:
            raise Refused("WFFIN")
        if spawn_new:
            new = Task(task.name, task.params, self.now, available_at=self.now)
            new.retry, new.max_duration = task.retry, task.max_duration
            new.max_attempts = most or task.max_attempts
            new_id = next(ids, "a new id")
            self.tasks[new_id] = new
            return (new_id, 1, True)
        if most is not None and most <= task.attempt:
            raise Refused("22023")
        self._revive(task, most)
        for below in self._below(task_id):
            child = self.tasks[below]
            if child.state == "cancelled" and child.error.get("by") == task_id:
                self._revive(child, None)
        return (task_id, task.attempt, False)

    def _skip_delay(self, task_id: Id, task: Task, most: int | None) -> Json:
        if most is not None and most < task.attempt:
            raise Refused("22023")
        task.state, task.available_at = "pending", self.now
        task.max_attempts = most or task.max_attempts
        return (task_id, task.attempt, False)

    def _revive(self, task: Task, most: int | None) -> None:
        outcome = "failed" if task.state == "failed" else "cancelled"
        ended_at = task.finished_at or 0
        task.runs.append(Run(task.attempt, outcome, task.worker, ended_at, task.error))
        task.attempt += 1
        if task.max_attempts is not None:
            task.max_attempts = max(task.max_attempts, task.attempt)
        task.max_attempts = most or task.max_attempts
        task.state, task.available_at = "pending", self.now
        task.started_at = task.finished_at = task.error = None

    # For workers

    def claim(
        self, worker: str, names: list[str] | None, quantity: int, lease: int
    ) -> list[tuple[Id, Task, int]]:
        """The name whose task has waited longest first, and within a name the oldest
        first. A late one is not claimed, though it keeps its place in line: it is
        expire_deadlines that ends it. The first claim starts max_duration.
        """
        due = [
            (task.available_at, task_id, task)
            for task_id, task in self.tasks.items()
            if task.available_at is not None
            and task.available_at <= self.now
            and (names is None or task.name in names)
        ]
        taken: list[tuple[Id, Task, int]] = []
        due.sort(key=lambda place: place[:2])
        for name in dict.fromkeys(task.name for _, _, task in due):
            line = [place for place in due if place[2].name == name]
            for since, task_id, task in line[: quantity - len(taken)]:
                if task.deadline is None or task.deadline > self.now:
                    taken.append((task_id, task, since))
        for _, task, _ in taken:
            task.worker, task.state = worker, "running"
            task.claim += 1
            task.lease = self.now + lease
            task.available_at = task.error = None
            if task.started_at is None:
                span = task.max_duration
                task.deadline = None if span is None else self.now + span
                task.started_at = self.now
        return taken

    def held(self, task_id: Id, claim: int) -> Task | None:
        """The fence: whose claim is over holds nothing, and changes nothing."""
        task = self.tasks.get(task_id)
        return task if task and task.claim == claim and claim % 2 else None

    def refusal(self, task_id: Id, claim: int) -> str:
        """What a claim is told that is over."""
        task = self.tasks.get(task_id)
        stopped = task and task.claim == claim + 1 and task.state == "cancelled"
        return "cancelled" if stopped else "lost"

    def _must_hold(self, task_id: Id, claim: int) -> Task:
        if task := self.held(task_id, claim):
            return task
        was_cancelled = self.refusal(task_id, claim) == "cancelled"
        raise Refused("WFCAN" if was_cancelled else "WFLST")

    def flush(
        self, saves: list[Json], completions: list[Json], failures: list[Json]
    ) -> dict[tuple[Id, int], str]:
        """What each claim is told. What this very claim has said before is ok again,
        and changes nothing.
        """
        told: dict[tuple[Id, int], str] = {}
        for said in saves:
            task = self.held(said["task_id"], said["claim"])
            told[said["task_id"], said["claim"]] = "ok" if task else "?"
            if task:
                places = said["position"], said["after"]
                self._save(task, said["name"], said["state"], said["value"], places)
        ended, fallen = [], []
        for said in completions:
            task_id, claim = said["task_id"], said["claim"]
            if task := self.held(task_id, claim):
                self._end(task, "completed", None, said["result"])
                ended.append(task_id)
            told[task_id, claim] = self._repeated(task_id, claim, ("completed",))
        for said in sorted(failures, key=lambda said: str(said["task_id"])):
            task_id, claim = said["task_id"], said["claim"]
            if task := self.held(task_id, claim):
                again = said["retryable"]
                self._end_attempt(task, "failed", said["error"], retryable=again)
                told[task_id, claim] = "ok"
                if not task.is_live:
                    fallen.append(task_id)
                continue
            told[task_id, claim] = self._repeated(task_id, claim, ("failed",))
        self._finished([*ended, *fallen])
        self._cascade(fallen)
        return {
            who: self.refusal(*who) if outcome == "?" else outcome
            for who, outcome in told.items()
        }

    def _repeated(self, task_id: Id, claim: int, ends: Iterable[str]) -> str:
        task = self.tasks.get(task_id)
        if task and task.claim == claim + 1:
            cause = (task.error or {}).get("cause", task.error) or {}
            own = cause.get("type") != "$LeaseExpired"
            failed = (
                "failed" in ends
                and own
                and task.error
                and (task.state != "cancelled" or "cause" in task.error)
            )
            if failed or (task.state in ends and own):
                return "ok"
        return "?"

    def _save(
        self,
        task: Task,
        name: str,
        state: str,
        value: Json,
        places: tuple[int, int] = (0, 0),
    ) -> None:
        """First write wins."""
        task.checkpoints.setdefault(
            name,
            Checkpoint(state, value, *places, task.attempt, task.claim, self.now),
        )

    def load(self, task_id: Id, claim: int) -> dict[str, Checkpoint]:
        """All that was saved; what has happened meanwhile is turned into checkpoints
        first, by who holds the task.
        """
        if task := self.held(task_id, claim):
            self._settle(task)
        known = self.tasks.get(task_id)
        return known.checkpoints if known else {}

    def suspend(self, asked: list[Json], *, leave: bool) -> list[Json]:
        """Registers waits. A task none of whose waits is over is not held from then
        on, if it is to leave; else those that are over come back, and it goes on.
        """
        for said in asked:
            if any(said["task_id"] in (w.get("task_ids") or ()) for w in said["waits"]):
                raise Refused("22023")
        for wait in (wait for said in asked for wait in said["waits"]):
            if wait.get("event") is not None:
                self.events.setdefault(wait["event"], Event())
        answers: list[Json] = []
        for said in asked:
            answers += self._suspend(said, leave=leave)
        return answers

    def _suspend(self, said: Json, *, leave: bool) -> list[Json]:
        task_id, claim = said["task_id"], said["claim"]
        task = self.held(task_id, claim)
        if task is None:
            was = self.tasks.get(task_id)
            same = was and was.claim == claim + 1 and was.error is None and was.is_live
            outcome = "suspended" if same and leave else self.refusal(task_id, claim)
            return [(task_id, outcome, None, None, None)]
        for wait in said["waits"]:
            if wait["name"] not in task.checkpoints.keys() | task.waits.keys():
                until = wait.get("until")
                if until is None and wait.get("span") is not None:
                    until = self.now + wait["span"]
                task.waits[wait["name"]] = Wait(
                    wait["position"],
                    wait["after"],
                    until,
                    wait.get("event"),
                    wait.get("task_ids"),
                )
        self._settle(task)
        saved = task.checkpoints
        resolved: list[Json] = [
            (task_id, "resolved", name, saved[name].state, saved[name].value)
            for name in (wait["name"] for wait in said["waits"])
            if name in saved
        ]
        if resolved or not leave:
            return resolved or [(task_id, "waiting", None, None, None)]
        task.let_go()
        task.state = "sleeping"
        ends = [wait.deadline for wait in task.waits.values() if wait.deadline]
        task.available_at = min(ends, default=None)
        for wait in task.waits.values():
            if wait.tasks is not None:
                wait.watched = len(wait.tasks)
                self._watch(wait)
        return [(task_id, "suspended", None, None, None)]

    def _settle(self, task: Task) -> None:
        """What happened wins over the deadline."""
        for name, wait in list(task.waits.items()):
            state, value = "done", None
            if wait.event is not None and self._is_emitted(wait.event):
                value = self.events[wait.event].payload
            elif wait.tasks is not None and self._have_finished(wait.tasks):
                value = [self._outcome(task_id) for task_id in wait.tasks]
            elif wait.deadline is None or wait.deadline > self.now:
                continue
            elif wait.event is None and wait.tasks is None:
                value = iso(wait.deadline)
            else:
                state = "timed_out"
            self._save(task, name, state, value, (wait.position, wait.after))
            del task.waits[name]

    def release(self, task_id: Id, claim: int, available_at: int | None) -> str:
        """Given back, without using up an attempt."""
        task = self.held(task_id, claim)
        if task is None:
            return self.refusal(task_id, claim)
        self._release(task, self.now if available_at is None else available_at)
        return "ok"

    def _release(self, task: Task, available_at: int) -> None:
        task.let_go()
        task.state, task.available_at = "pending", available_at

    def release_unknown(self, worker: str, known: list[Id]) -> int:
        """What this worker holds without knowing."""
        unknown = [
            task
            for task_id, task in self.tasks.items()
            if task.lease is not None and task.worker == worker and task_id not in known
        ]
        for task in unknown:
            self._release(task, self.now)
        return len(unknown)

    def extend(self, task_id: Id, claim: int, lease: int) -> str:
        """Never shortens a lease. After its lease a task is still its holder's, until
        somebody takes it.
        """
        task = self.held(task_id, claim)
        if task is None:
            return self.refusal(task_id, claim)
        task.lease = max(task.lease or 0, self.now + lease)
        return "ok"

    def spawn_children(
        self, task_id: Id, claim: int, children: list[Json], ids: Iterator[Id]
    ) -> list[Json]:
        """Each with the checkpoint that records it; what is recorded stays so."""
        task = self._must_hold(task_id, claim)
        new = [child for child in children if child["name"] not in task.checkpoints]
        spawned = self.spawn([{**child, "parent": task_id} for child in new], ids)
        for child, (child_id, attempt, created) in zip(new, spawned, strict=True):
            value = {"task_id": child_id, "attempt": attempt, "created": created}
            self._save(task, child["name"], "done", value)
        return [
            (child["name"], *task.checkpoints[child["name"]].value.values())
            for child in children
        ]

    def emit_from_task(
        self, task_id: Id, claim: int, name: str, event: str, payload: Json
    ) -> bool:
        """As emit, with the checkpoint that records it: said again, it is the same."""
        task = self._must_hold(task_id, claim)
        if name not in task.checkpoints:
            self._save(task, name, "done", self.emit(event, payload))
        first: bool = task.checkpoints[name].value
        return first

    # Housekeeping

    def expire_leases(self, quantity: int) -> int:
        """A lost lease counts as an attempt, and is not delayed again."""
        late = self._first("lease", quantity)
        for task_id in late:
            task = self.tasks[task_id]
            text = f'worker "{task.worker}" neither finished nor extended its lease'
            error = {"type": "$LeaseExpired", "message": f"{text} in time"}
            self._end_attempt(task, "lease_lost", error, retryable=True)
        ended = [task_id for task_id in late if not self.tasks[task_id].is_live]
        self._finished(ended)
        self._cascade(ended)
        return len(late)

    def expire_deadlines(self, quantity: int) -> int:
        """Cancelled, whatever they are doing, and what lives below them."""
        late = self._first("deadline", quantity)
        for task_id in late:
            task = self.tasks[task_id]
            started = task.started_at is not None
            limit = "max_duration" if started else "max_delay"
            text = f"not {'finished' if started else 'started'} within {limit}"
            error = {"type": "$DeadlineExceeded", "message": text, "limit": limit}
            self._end(task, "cancelled", error)
        self._finished(late)
        self._cascade(late)
        return len(late)

    def _first(self, field: str, quantity: int) -> list[Id]:
        due = sorted(
            (getattr(task, field), task_id)
            for task_id, task in self.tasks.items()
            if getattr(task, field) is not None and getattr(task, field) <= self.now
        )
        return [task_id for _, task_id in due[:quantity]]

    def apply_notes(self, order: list[tuple[str, Id]]) -> int:
        """Does what was left undone, in the order in which it was."""
        if not self.latest:
            return 0
        self.notes = [note for note in self.notes if note not in order]
        for kind, subject in order:
            if kind == "finished":
                self._finished([subject])
            elif kind == "event":
                self._wake_waiters(subject)
            elif subject in self.tasks and self.tasks[subject].state in {
                "failed",
                "cancelled",
            }:
                self._cascade([subject])
        return len(order)

    def cleanup(self, quantity: int) -> int:
        """Walks on from where it stopped. A task goes once it has been over for
        keep_tasks, its parent is gone and no cascade below it is left to a note, with
        its key and all that belongs to it.
        """
        if self.keep_tasks is None:
            return 0
        cutoff = self.now - self.keep_tasks
        walked = sorted(
            task_id
            for task_id in self.tasks
            if (self.cleaned_to or "") < task_id < first_id(cutoff)
        )[:quantity]
        self.cleaned_to = walked[-1] if len(walked) == quantity else None
        over = {
            i
            for i in walked
            if (self.tasks[i].finished_at or self.now + 1) <= cutoff
            and ("cascade", i) not in self.notes
        }
        before = len(self.tasks)
        while gone := {i for i in over & self.tasks.keys() if self._is_orphan(i)}:
            for task_id in gone:
                key = self.tasks.pop(task_id).key
                self.keys.pop(key or "", None)
        return before - len(self.tasks)

    def _is_orphan(self, task_id: Id) -> bool:
        return self.tasks[task_id].parent not in self.tasks

    def prune_events(self, quantity: int) -> int:
        """Events that are older than keep_events, and places, unless awaited."""
        names = sorted(name for name in self.events if name > (self.pruned_to or ""))
        walked = names[:quantity]
        self.pruned_to = walked[-1] if len(walked) == quantity else None
        awaited = {
            wait.event
            for task in self.tasks.values()
            if task.is_live
            for wait in task.waits.values()
        }
        before = len(self.events)
        for name in walked:
            at = self.events[name].emitted_at
            old = (
                self.keep_events is not None
                and (at or 0) <= self.now - self.keep_events
            )
            if name not in awaited and (at is None or old):
                del self.events[name]
        return before - len(self.events)

    # What follows from it

    def _known(self, task_id: Id) -> Task:
        if task_id not in self.tasks:
            raise Refused("WFNFD")
        return self.tasks[task_id]

    def _end(self, task: Task, state: str, error: Json, result: Json = None) -> None:
        """Final. What it waited for is forgotten, unless it completed."""
        task.let_go()
        task.state, task.finished_at, task.deadline = state, self.now, None
        task.result, task.error = result, error
        if state != "completed":
            task.waits.clear()

    def _end_attempt(
        self, task: Task, outcome: str, error: Json, *, retryable: bool
    ) -> None:
        """Another attempt follows, if one is left and begins before the deadline."""
        if not (retryable and task.may_retry()):
            self._end(task, "failed", error)
            return
        least, most = (0, 0) if outcome == "lease_lost" else task.delay()
        soon, late = self.now + least, self.now + most
        if task.deadline is not None and soon >= task.deadline:
            text = f"no time left for attempt {task.attempt + 1} within max_duration"
            late_error = {
                "type": "$DeadlineExceeded",
                "message": text,
                "limit": "max_duration",
                "cause": error,
            }
            self._end(task, "cancelled", late_error)
            return
        task.runs.append(Run(task.attempt, outcome, task.worker, self.now, error))
        task.let_go()
        task.attempt += 1
        task.state = "sleeping" if late > self.now else "pending"
        task.available_at, task.error = soon, error
        if soon < late:
            in_between: Any = Free(lambda at: soon <= at <= late, f"{soon} to {late}")
            task.available_at = in_between

    def _finished(self, ended: list[Id]) -> None:
        """Looks at who watches these: each wakes if all it waits for has finished, or
        watches on.
        """
        if not self.latest:
            self.notes += [("finished", task_id) for task_id in ended]
            return
        for task in self.tasks.values():
            waits = task.waits.values()
            if task.is_asleep and any(wait.target in ended for wait in waits):
                heard = any(w.event and self._is_emitted(w.event) for w in waits)
                watching = [w.tasks is None or self._watch(w) for w in waits]
                if heard or not all(watching):
                    self._wake(task)

    def _watch(self, wait: Wait) -> bool:
        """Watches the last of its tasks that lives, at or before where it has watched;
        whether there is one.
        """
        assert wait.tasks is not None
        assert wait.watched is not None
        if self._is_live(wait.tasks[wait.watched - 1]):
            return True
        before = range(wait.watched, 0, -1)
        live = next((i for i in before if self._is_live(wait.tasks[i - 1])), None)
        wait.watched = live or wait.watched
        return live is not None

    def _wake_waiters(self, event: str) -> None:
        if not self.latest:
            self.notes.append(("event", event))
            return
        for task in self.tasks.values():
            if task.is_asleep and event in {wait.event for wait in task.waits.values()}:
                self._wake(task)

    def _wake(self, task: Task) -> None:
        """Pending now. Its waits stay until its next holder settles them."""
        task.state, task.available_at = "pending", self.now

    def _cascade(self, fallen: list[Id]) -> None:
        """Whoever ends badly takes with it all that lives below it."""
        if not self.latest:
            self.notes += [("cascade", task_id) for task_id in fallen]
        elif cancelled := self._cancel_below(fallen):
            self._finished(cancelled)

    def _cancel_below(self, roots: list[Id]) -> list[Id]:
        """Also below what has finished. Records by whose end; retry revives these."""
        by: dict[Id, list[Id]] = {}
        for root in roots:
            for task_id in self._below(root):
                if self.tasks[task_id].is_live:
                    by.setdefault(task_id, []).append(root)
        for task_id, parents in by.items():
            errors = [
                {
                    "type": "$CancelledByParent",
                    "message": f"cancelled by parent {root}",
                    "by": root,
                }
                for root in parents
            ]
            whose: Any = Free(errors.__contains__, f"one of {errors}")
            self._end(self.tasks[task_id], "cancelled", whose)
        return list(by)

    def _below(self, root: Id) -> list[Id]:
        found = [root]
        for above in found:
            found += [i for i, task in self.tasks.items() if task.parent == above]
        return found[1:]

    def _is_emitted(self, event: str) -> bool:
        return event in self.events and self.events[event].emitted_at is not None

    def _is_live(self, task_id: Id) -> bool:
        return task_id in self.tasks and self.tasks[task_id].is_live

    def _have_finished(self, ids: list[Id]) -> bool:
        return not any(map(self._is_live, ids))

    def _outcome(self, task_id: Id) -> Json:
        task = self.tasks.get(task_id)
        return {
            "task_id": task_id,
            "state": task.state if task else "not_found",
            "result": task.result if task else None,
            "error": task.error if task else None,
        }


def micro(seconds: float | None) -> int | None:
    """Seconds as whole microseconds."""
    return None if seconds is None else round(seconds * SECOND)


def iso(at: int) -> str:
    """A time as JSON."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    fraction = f"{moment:.%f}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}+00:00"


def _by_a_role(error: dict[str, Json]) -> Any:
    """Of what the engine may keep with it: by which role it was done."""

    def allows(held: Json) -> bool:
        return {**held, "by": None} == {**error, "by": None} and [*held["by"]] == [
            "user"
        ]

    return Free(allows, f"{error}, and by whom")


def first_id(at: int) -> Id:
    """The lowest id of a task that was spawned at that moment."""
    text = f"{(at + 500) // 1000:012x}"
    return f"{text[:8]}-{text[8:]}-0000-0000-000000000000"
