# ruff: noqa: D205 - a rule may take two lines
"""The engine's specification, as a program without locks, sets of rows or indexes.

One queue, one caller at a time. Each method is a call, and specifies the state when it
returns; after the error `Refused` nothing has changed. Where the engine may choose, a
value is `Free`. Times and durations are whole microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.model.maintenance import Maintenance
from tests.chaos.model.things import (
    Checkpoint,
    Event,
    Id,
    Json,
    Refused,
    Task,
    Wait,
    by_a_role,
    iso,
    micro,
)

__all__ = ["Model"]


class Model(Maintenance):
    """A queue, and the calls of clients, workers and maintenance."""

    # For everyone

    def spawn(self, new: list[dict[str, Json]], ids: Iterator[Id]) -> list[Json]:
        """All or none. A key stands for one task, with one name and params; only a live
        task can have children.
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
            task.execution_timeout = micro(one.get("execution_timeout"))
            if (delay := micro(one.get("start_timeout"))) is not None:
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
        self._end(task, "cancelled", by_a_role(error))
        ended = [task_id, *self._cancel_below([task_id])]
        if not self.latest:
            self.deferred.append(("cascade", task_id))
        self._finished(ended)
        return True

    def retry(
        self, task_id: Id, most: int | None, ids: Iterator[Id], *, spawn_new: bool
    ) -> Json:
        """One more attempt at once, for it and for exactly those descendants that its
        own end had cancelled; or a new task like it, without key, parent and deadline.
        A task that sleeps until its next attempt starts it now.
        """
        task = self._known(task_id)
        if task.state == "sleeping" and task.error is not None and not spawn_new:
            return self._skip_delay(task_id, task, most)
        if task.state not in {"failed", "cancelled"}:
            raise Refused("WFFIN")
        if spawn_new:
            new = Task(task.name, task.params, self.now, available_at=self.now)
            new.retry, new.execution_timeout = task.retry, task.execution_timeout
            new.max_attempts = most or task.max_attempts
            new_id = next(ids, "a new id")
            self.tasks[new_id] = new
            return (new_id, 1, True)
        if most is not None and most <= task.attempt:
            raise Refused("22023")
        self._revive(task, most)
        self._revive_below(task_id)
        return (task_id, task.attempt, False)

    def _skip_delay(self, task_id: Id, task: Task, most: int | None) -> Json:
        if most is not None and most < task.attempt:
            raise Refused("22023")
        task.state, task.available_at = "pending", self.now
        task.max_attempts = most or task.max_attempts
        return (task_id, task.attempt, False)

    # For workers

    def claim(
        self, worker: str, names: list[str] | None, batch_size: int, lease: int
    ) -> list[tuple[Id, Task, int]]:
        """The name whose task has waited longest first, and within a name the oldest
        first. A late one is passed over: it is expire_tasks that ends it. The first
        claim starts execution_timeout.
        """
        due = [
            (task.available_at, task_id, task)
            for task_id, task in self.tasks.items()
            if task.available_at is not None
            and task.available_at <= self.now
            and (task.deadline is None or task.deadline > self.now)
            and (names is None or task.name in names)
        ]
        taken: list[tuple[Id, Task, int]] = []
        due.sort(key=lambda place: place[:2])
        for name in dict.fromkeys(task.name for _, _, task in due):
            line = [place for place in due if place[2].name == name]
            for since, task_id, task in line[: batch_size - len(taken)]:
                taken.append((task_id, task, since))
        for _, task, _ in taken:
            task.worker, task.state = worker, "running"
            task.claim += 1
            task.lease = self.now + lease
            task.available_at = task.error = None
            if task.started_at is None:
                span = task.execution_timeout
                task.deadline = None if span is None else self.now + span
                task.started_at = self.now
        return taken

    def held(self, task_id: Id, claim: int) -> Task | None:
        """The fence: a claim that has ended holds nothing, and changes nothing."""
        task = self.tasks.get(task_id)
        return task if task and task.claim == claim and claim % 2 else None

    def refusal(self, task_id: Id, claim: int) -> str:
        """Return what a call under an ended claim is told."""
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
        """Return one answer per claim. A repeated write by the same claim is ok again,
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
        """Return everything saved, after the holder's resolved waits were turned into
        checkpoints.
        """
        if task := self.held(task_id, claim):
            self._settle(task)
        known = self.tasks.get(task_id)
        return known.checkpoints if known else {}

    def suspend(self, asked: list[Json], *, leave: bool) -> list[Json]:
        """Register waits. If none is resolved and the task is to suspend, its claim
        ends; otherwise the resolved ones are returned and the task continues.
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
        named = [wait["name"] for wait in said["waits"]]
        unnamed = sorted(task.waits.keys() - set(named))
        for event in (wait.event for wait in task.waits.values() if wait.event):
            self.events.setdefault(event, Event())
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
            for name in (named if leave else [*named, *unnamed])
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
        if not saved.keys().isdisjoint(unnamed):
            self._wake(task)
        return [(task_id, "suspended", None, None, None)]

    def _settle(self, task: Task) -> None:
        """A result that is there wins over the deadline."""
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
        """Returned to the queue, without using up an attempt."""
        task = self.held(task_id, claim)
        if task is None:
            return self.refusal(task_id, claim)
        self._release(task, self.now if available_at is None else available_at)
        return "ok"

    def _release(self, task: Task, available_at: int) -> None:
        task.let_go()
        task.state, task.available_at = "pending", available_at

    def release_unknown(self, worker: str, known: list[Id]) -> int:
        """Release tasks that the worker holds without knowing it."""
        unknown = [
            task
            for task_id, task in self.tasks.items()
            if task.lease is not None and task.worker == worker and task_id not in known
        ]
        for task in unknown:
            self._release(task, self.now)
        return len(unknown)

    def extend(self, task_id: Id, claim: int, lease: int) -> str:
        """Never shortens a lease. An expired task still belongs to its holder until
        somebody claims it.
        """
        task = self.held(task_id, claim)
        if task is None:
            return self.refusal(task_id, claim)
        task.lease = max(task.lease or 0, self.now + lease)
        return "ok"

    def spawn_children(
        self, task_id: Id, claim: int, children: list[Json], ids: Iterator[Id]
    ) -> list[Json]:
        """Each with the checkpoint that records it; a recorded child stays the same."""
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
        """Like emit, with the checkpoint that records it, so it can be repeated."""
        task = self._must_hold(task_id, claim)
        if name not in task.checkpoints:
            self._save(task, name, "done", self.emit(event, payload))
        first: bool = task.checkpoints[name].value
        return first
