# Made from _async/handle.py by tools/async_to_sync.py: edit that, not this.
"""A client's reference to a spawned task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack
from uuid import UUID

from durable import _sql
from durable._callers import caller
from durable._json import JSON
from durable._listing import TaskInfo, task_info
from durable._messages import message
from durable._requests import OMITTED, check_reason
from durable._results import TaskResult, not_found, opened, output, task_result
from durable._sync import forking
from durable._sync.following import Following
from durable._time import moment_text, seconds
from durable._told import HistoryEntry, history_entry
from durable._values import Codec
from durable._vault import Vault
from durable.options import SpawnOptions

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
        row = opened(self._row(), self._vault)
        return task_result(row, self.codec)

    def result(self, timeout: timedelta | float | None = None) -> R_co:
        """Wait until the task has finished, and return its output.

        Raises TaskFailed with its error, TaskCancelled, or the builtin TimeoutError
        after `timeout`, a timedelta or seconds; NotFound at once if there is no such
        task, or not yet: before the commit of a `spawn_with`. A connection that is lost
        meanwhile is made again.
        """
        limit = seconds(timeout, "timeout")
        row = self._app.results.wait(self.queue, self.task_id, limit)
        return output(opened(row, self._vault), self.codec)

    def send(
        self,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send the task a message, as `app.send` does."""
        sent = message(
            self, self.queue, topic, payload, dedup_key=dedup_key, as_type=as_type
        )
        sealed = sent.sealed(self._vault)
        ((is_new,),) = self._app.fetch(_sql.send_message(sealed))
        return bool(is_new)

    def cancel(
        self,
        *,
        reason: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Cancel the task and all that lives below it; return whether it was live.

        At once: what their workers write from now on is refused. `identity` is who asks
        for it, such as {"user": "ada"}, for the task's history. Raises NotFound.
        """
        why = None if reason is None else check_reason(reason)
        who = caller(identity)
        statement = _sql.cancel_task(self.queue, self.task_id, why, who)
        ((cancelled,),) = self._app.fetch(statement)
        return bool(cancelled)

    def retry(
        self,
        *,
        max_attempts: int | None = None,
        params: Any = OMITTED,
        spawn_new: bool = False,
        deadline: datetime | None = OMITTED,
        identity: Mapping[str, JSON] | None = None,
    ) -> TaskHandle[R_co]:
        """Give it one more attempt, if it has failed or was cancelled: `app.retry`.

        Returns a handle that knows the new attempt; `params` are what it works on from
        now on. Raises as `app.retry` does.
        """
        options: dict[str, Any] = {"spawn_new": spawn_new}
        if max_attempts is not None:
            options["max_attempts"] = max_attempts
        if params is not OMITTED:
            options |= forking.params_for(self._app, self, params, has_key=True)
        if deadline is not OMITTED:
            options["deadline"] = moment_text(deadline, "deadline")
        who = caller(identity)
        statement = _sql.retry_task(self.queue, self.task_id, options, who)
        ((task_id, run_id, attempt, created),) = self._app.fetch(statement)
        return type(self)(
            self._app,
            self.queue,
            task_id,
            self.codec,
            run_id=run_id,
            attempt=attempt,
            created=created,
        )

    def children(self) -> list[TaskInfo]:
        """Return the tasks that it spawned, finished ones too, the first one first.

        They may live in other queues; those in queues that are not yours are left out.
        `app.handle(info.task_id, queue=info.queue)` leads on. Raises NotFound.
        """
        children: list[TaskInfo] = []
        after: UUID | None = None
        while True:
            statement = _sql.list_children(self.queue, self.task_id, after)
            rows = self._app.fetch(statement)
            children += [task_info(row[-1], row[:-1], self._vault) for row in rows]
            if len(rows) < _sql.LISTED_AT_ONCE:
                return children
            after = children[-1].task_id

    def history(self) -> list[HistoryEntry]:
        """Return what has happened to the task, in order; what goes on comes last.

        It is derived from what is kept anyway; the moments at which it was claimed
        again, suspended, woken or released are kept if its queue's `history` is "full".
        Raises NotFound.
        """
        statement = _sql.task_history(self.queue, self.task_id)
        rows = self._app.fetch(statement)
        return [history_entry(row, self._vault, self.queue) for row in rows]

    def export_history(self) -> dict[str, Any]:
        """Return the task and its checkpoints as plain JSON, for a replay elsewhere.

        The keys are version (1), queue, task_id, name, params, headers, attempt, and
        checkpoints: a list of name, position, after, state, value and attempt, in order
        of position. What is sealed is opened. Raises NotFound, and UnreadablePayload
        where a codec or a key is missing.
        """
        statement = _sql.export_history(self.queue, self.task_id)
        ((text,),) = self._app.fetch(statement)
        exported: dict[str, Any] = json.loads(self._vault.opened(text))
        return exported

    def fork(
        self,
        *,
        before: str | None = None,
        after: str | None = None,
        position: int | None = None,
        params: Any = OMITTED,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[R_co]:
        """Spawn a task that begins where this one stood: the client's `fork`."""
        place = forking.Place(before, after, position)
        return forking.fork(self._app, self, place, params, options)

    @property
    def _vault(self) -> Vault:
        return self._app.application.vault

    def _row(self) -> tuple[Any, ...]:
        statement = _sql.get_task_result(self.queue, self.task_id)
        rows = self._app.fetch(statement)
        if not rows:
            raise not_found(self.queue, self.task_id)
        return rows[0]
