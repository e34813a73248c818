# ruff: noqa: D205 - a rule may take two lines
"""Maintenance: as in specification.py."""

from __future__ import annotations

from tests.chaos.model.consequences import Queue
from tests.chaos.model.things import Id, Refused, first_id

__all__ = ["Maintenance"]


class Maintenance(Queue):
    """Expires leases and deadlines, applies deferred work, deletes old rows."""

    def expire_leases(self, batch_size: int) -> int:
        """A lost lease counts as an attempt, and is not delayed again."""
        late = self._first("lease", batch_size)
        for task_id in late:
            task = self.tasks[task_id]
            text = f'worker "{task.worker}" neither finished nor extended its lease'
            error = {"type": "$LeaseExpired", "message": f"{text} in time"}
            self._end_attempt(task, "lease_lost", error, retryable=True)
        ended = [task_id for task_id in late if not self.tasks[task_id].is_live]
        self._finished(ended)
        self._cascade(ended)
        return len(late)

    def expire_tasks(self, batch_size: int) -> int:
        """Cancel late tasks, in any state, and all their descendants."""
        late = self._first("deadline", batch_size)
        for task_id in late:
            task = self.tasks[task_id]
            started = task.started_at is not None
            limit = "execution_timeout" if started else "start_timeout"
            text = f"not {'finished' if started else 'started'} within {limit}"
            error = {"type": "$DeadlineExceeded", "message": text, "limit": limit}
            self._end(task, "cancelled", error)
        self._finished(late)
        self._cascade(late)
        return len(late)

    def _first(self, field: str, batch_size: int) -> list[Id]:
        due = sorted(
            (getattr(task, field), task_id)
            for task_id, task in self.tasks.items()
            if getattr(task, field) is not None and getattr(task, field) <= self.now
        )
        return [task_id for _, task_id in due[:batch_size]]

    def apply_deferred_work(self, order: list[tuple[str, Id]]) -> int:
        """Apply deferred work, in the order in which it was deferred."""
        if not self.latest:
            raise Refused("WFISO")
        self.deferred = [work for work in self.deferred if work not in order]
        for kind, subject in order:
            if kind == "finished":
                self._finished([subject])
            elif kind == "event":
                self._wake_waiters(subject)
            elif task := self.tasks.get(subject):
                has_ended_badly = task.state in {"failed", "cancelled"}
                if kind == "cascade" and has_ended_badly:
                    self._cascade([subject])
                elif kind == "revive" and not has_ended_badly:
                    self._revive_below(subject)
        return len(order)

    def cleanup(self, batch_size: int) -> int:
        """Continue where it stopped. A task is deleted with its key and all its rows
        once it has been final for keep_tasks, its parent is gone and no cascade below
        it is deferred.
        """
        if self.keep_tasks is None:
            return 0
        cutoff = self.now - self.keep_tasks
        walked = sorted(
            task_id
            for task_id in self.tasks
            if (self.cleaned_to or "") < task_id < first_id(cutoff)
        )[:batch_size]
        self.cleaned_to = walked[-1] if len(walked) == batch_size else None
        over = {
            i
            for i in walked
            if (self.tasks[i].finished_at or self.now + 1) <= cutoff
            and ("cascade", i) not in self.deferred
        }
        before = len(self.tasks)
        while gone := {i for i in over & self.tasks.keys() if self._is_orphan(i)}:
            for task_id in gone:
                key = self.tasks.pop(task_id).key
                self.keys.pop(key or "", None)
        return before - len(self.tasks)

    def _is_orphan(self, task_id: Id) -> bool:
        return self.tasks[task_id].parent not in self.tasks

    def prune_events(self, batch_size: int) -> int:
        """Delete events older than keep_events, and rows without an event, unless
        awaited.
        """
        names = sorted(name for name in self.events if name > (self.pruned_to or ""))
        walked = names[:batch_size]
        self.pruned_to = walked[-1] if len(walked) == batch_size else None
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
