# ruff: noqa: D205 - a rule may take two lines
"""What housekeeping does: as in specification.py."""

from __future__ import annotations

from tests.chaos.model.consequences import Queue
from tests.chaos.model.things import Id, first_id

__all__ = ["Housekeeping"]


class Housekeeping(Queue):
    """Ends what time ends, does what was left undone, deletes what is over."""

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
