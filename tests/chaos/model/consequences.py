"""Consequences of a call: who wakes, who is retried, and who ends with whom."""

from __future__ import annotations

from typing import Any

from tests.chaos.model.things import (
    SECOND,
    Event,
    Free,
    Id,
    Json,
    Refused,
    Run,
    Task,
    Wait,
)

__all__ = ["Queue"]


def by_parent(root: Id | None) -> Json:
    """Return the error of a task that was cancelled by the end of a task above it."""
    text = f"cancelled by parent {root}"
    return {"type": "$CancelledByParent", "message": text, "by": root}


class Queue:
    """A queue.

    `latest`: the call runs in READ COMMITTED. At other levels it cannot see the latest
    commits, and defers the consequences.
    """

    def __init__(self, now: int) -> None:
        self.now = now
        self.latest = True
        self.tasks: dict[Id, Task] = {}
        self.events: dict[str, Event] = {}
        self.keys: dict[str, Id] = {}
        self.deferred: list[tuple[str, Id]] = []
        self.keep_tasks: int | None = 30 * 86400 * SECOND
        self.keep_events: int | None = 30 * 86400 * SECOND
        self.cleaned_to: Id | None = None
        self.pruned_to: str | None = None

    def _known(self, task_id: Id) -> Task:
        if task_id not in self.tasks:
            raise Refused("WFNFD")
        return self.tasks[task_id]

    def _end(self, task: Task, state: str, error: Json, result: Json = None) -> None:
        """Final. Its waits are deleted, unless it completed."""
        task.let_go()
        task.state, task.finished_at, task.deadline = state, self.now, None
        task.result, task.error = result, error
        if state != "completed":
            task.waits.clear()

    def _end_attempt(
        self, task: Task, outcome: str, error: Json, *, retryable: bool
    ) -> None:
        """Another attempt follows if one is left and begins before the deadline."""
        if not (retryable and task.may_retry()):
            self._end(task, "failed", error)
            return
        least, most = (0, 0) if outcome == "lease_lost" else task.delay()
        soon, late = self.now + least, self.now + most
        if task.deadline is not None and soon >= task.deadline:
            text = (
                f"no time left for attempt {task.attempt + 1} within execution_timeout"
            )
            late_error = {
                "type": "$DeadlineExceeded",
                "message": text,
                "limit": "execution_timeout",
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
        """Wake the tasks that watch these, if all they wait for has finished.

        The others watch the next one.
        """
        if not self.latest:
            self.deferred += [("finished", task_id) for task_id in ended]
            return
        for task in self.tasks.values():
            waits = task.waits.values()
            if task.is_asleep and any(wait.target in ended for wait in waits):
                heard = any(w.event and self._is_emitted(w.event) for w in waits)
                watching = [w.tasks is None or self._watch(w) for w in waits]
                if heard or not all(watching):
                    self._wake(task)

    def _watch(self, wait: Wait) -> bool:
        """Watch the last live task of the wait, at or before the place watched so far.

        Return whether there is one.
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
            self.deferred.append(("event", event))
            return
        for task in self.tasks.values():
            if task.is_asleep and event in {wait.event for wait in task.waits.values()}:
                self._wake(task)

    def _wake(self, task: Task) -> None:
        """Pending now. Its waits stay until its next holder resolves them."""
        task.state, task.available_at = "pending", self.now

    def _cascade(self, fallen: list[Id]) -> None:
        """A task that fails or is cancelled cancels all its descendants."""
        if not self.latest:
            self.deferred += [("cascade", task_id) for task_id in fallen]
        elif cancelled := self._cancel_below(fallen):
            self._finished(cancelled)

    def _cancel_below(self, roots: list[Id]) -> list[Id]:
        """Includes descendants of finished tasks.

        Records by which ended ancestor, the nearest one: retry revives these.
        """
        cancelled = []
        for root in sorted(roots, reverse=True):
            for task_id in self._below(root):
                if self.tasks[task_id].is_live:
                    self._end(self.tasks[task_id], "cancelled", by_parent(root))
                    cancelled.append(task_id)
        return cancelled

    def _revive_below(self, root: Id) -> None:
        """Revive exactly those that its own end had cancelled.

        Below a task that stays ended none: they are revived with that one.
        """
        if not self.latest:
            self.deferred.append(("revive", root))
            return
        for task_id in self._below(root):
            task = self.tasks[task_id]
            if task.state == "cancelled" and task.error.get("by") == root:
                parent = self.tasks[task.parent or ""]
                if parent.state not in {"failed", "cancelled"}:
                    self._revive(task, None)
                elif parent.error.get("type") == "$CancelledByParent":
                    task.error = parent.error
                else:
                    task.error = by_parent(task.parent)

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
