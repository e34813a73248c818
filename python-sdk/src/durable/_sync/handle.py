# Made from _async/handle.py by tools/async_to_sync.py: edit that, not this.
"""A client's reference to a spawned task."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from durable import _sql
from durable._results import TaskResult, not_found, output, task_result
from durable._sync.following import Following
from durable._time import seconds
from durable._values import Codec

if TYPE_CHECKING:
    from durable._sync.connected import Connected

__all__ = ["TaskHandle"]

R_co = TypeVar("R_co", covariant=True)


class TaskHandle(Following, Generic[R_co]):
    """A task that was spawned. Made again from its id: `app.handle(id, Task)`.

    `created` is false if the idempotency key belonged to a task that was there already.
    `run_id`, `attempt` and `created` are None on a handle made from an id.
    """

    def __init__(
        self,
        app: Connected,
        queue: str,
        task_id: UUID,
        codec: Codec[R_co],
        *,
        run_id: UUID | None = None,
        attempt: int | None = None,
        created: bool | None = None,
    ) -> None:
        self._app = app
        self.codec = codec
        self.queue = queue
        self.task_id = task_id
        self.run_id = run_id
        self.attempt = attempt
        self.created = created

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id} in {self.queue!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return (self.queue, self.task_id) == (other.queue, other.task_id)

    def __hash__(self) -> int:
        return hash((self.queue, self.task_id))

    def state(self) -> str:
        """Return pending, running, sleeping, completed, failed or cancelled.

        Raises NotFound if there is no such task, or not yet.
        """
        row = self._row()
        return str(row[1])

    def snapshot(self) -> TaskResult[R_co]:
        """Return where the task stands. Raises NotFound as `state` does."""
        return task_result(self._row(), self.codec)

    def result(self, timeout: timedelta | float | None = None) -> R_co:
        """Wait until the task has finished, and return its output.

        Raises TaskFailed with its error, TaskCancelled, or the builtin TimeoutError
        after `timeout`, a timedelta or seconds; NotFound at once if there is no such
        task, or not yet: before the commit of a `spawn_with`. A connection that is lost
        meanwhile is made again.
        """
        limit = seconds(timeout, "timeout")
        row = self._app.results.wait(self.queue, self.task_id, limit)
        return output(row, self.codec)

    def _row(self) -> tuple[Any, ...]:
        statement = _sql.get_task_result(self.queue, self.task_id)
        rows = self._app.fetch(statement)
        if not rows:
            raise not_found(self.queue, self.task_id)
        return rows[0]
