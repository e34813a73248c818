# Made from _async/operating.py by tools/async_to_sync.py: edit that, not this.
"""What is done to tasks that are there already."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from durable import _sql
from durable._requests import (
    OMITTED,
    check_reason,
)
from durable._results import TaskResult
from durable._sync.connected import Connected
from durable._sync.handle import TaskHandle
from durable._time import moment_text

__all__ = ["Operating"]

R = TypeVar("R")


class Operating(Connected):
    """What becomes of tasks."""

    def cancel(
        self,
        task: TaskHandle[Any] | UUID | str,
        *,
        queue: str | None = None,
        reason: str | None = None,
    ) -> bool:
        """Cancel a task and all that lives below it; return whether it was live.

        At once: what their workers write from now on is refused. Raises NotFound.
        """
        found = self._found(task, queue)
        why = None if reason is None else check_reason(reason)
        statement = _sql.cancel_task(found.queue, found.task_id, why)
        ((cancelled,),) = self.fetch(statement)
        return bool(cancelled)

    def retry(
        self,
        task: TaskHandle[R] | UUID | str,
        *,
        queue: str | None = None,
        max_attempts: int | None = None,
        spawn_new: bool = False,
        deadline: datetime | None = OMITTED,
    ) -> TaskHandle[R]:
        """Give a failed or cancelled task one more attempt, with its checkpoints.

        Tasks below it that its end had cancelled are revived with it. `spawn_new` makes
        a new task of the same name and params instead. `deadline` is a new one, or None
        for none; left out it stays, and one that has passed is refused with
        InvalidArgument. Raises NotFound, and AlreadyFinished for a task in any other
        state.
        """
        found = self._found(task, queue)
        options: dict[str, Any] = {"spawn_new": spawn_new}
        if max_attempts is not None:
            options["max_attempts"] = max_attempts
        if deadline is not OMITTED:
            options["deadline"] = moment_text(deadline, "deadline")
        statement = _sql.retry_task(found.queue, found.task_id, options)
        ((task_id, run_id, attempt, created),) = self.fetch(statement)
        return TaskHandle(
            self,
            found.queue,
            task_id,
            found.codec,
            run_id=run_id,
            attempt=attempt,
            created=created,
        )

    def get_result(
        self, task: TaskHandle[R] | UUID | str, *, queue: str | None = None
    ) -> TaskResult[R]:
        """Return where a task stands, without waiting. Raises NotFound."""
        return self._found(task, queue).snapshot()
