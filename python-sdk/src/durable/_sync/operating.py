# Made from _async/operating.py by tools/async_to_sync.py: edit that, not this.
"""What is done to tasks that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar, Unpack
from uuid import UUID

from durable._json import JSON
from durable._requests import OMITTED
from durable._results import TaskResult
from durable._sync import forking
from durable._sync.connected import Connected
from durable._sync.handle import TaskHandle
from durable.options import SpawnOptions

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
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Cancel a task and all that lives below it; return whether it was live.

        At once: what their workers write from now on is refused. `identity` is who asks
        for it, such as {"user": "ada"}, for the task's history. Raises NotFound.
        """
        return self._found(task, queue).cancel(reason=reason, identity=identity)

    def retry(
        self,
        task: TaskHandle[R] | UUID | str,
        *,
        queue: str | None = None,
        max_attempts: int | None = None,
        params: Any = OMITTED,
        spawn_new: bool = False,
        deadline: datetime | None = OMITTED,
        identity: Mapping[str, JSON] | None = None,
    ) -> TaskHandle[R]:
        """Give a failed or cancelled task one more attempt, with its checkpoints.

        Tasks below it that its end had cancelled are revived with it. A task that
        sleeps until its next attempt starts that now. `params` are its params from now
        on, validated if the task is registered here; its idempotency key stands for
        these then. `deadline` is a new one, or None for none; left out it stays, and
        one that has passed is refused with InvalidArgument. `spawn_new` makes a new
        task of the same name and params instead. `identity` is who asks for it, as in
        `cancel`. Raises NotFound, and AlreadyFinished for a task in any other state.
        """
        return self._found(task, queue).retry(
            max_attempts=max_attempts,
            params=params,
            spawn_new=spawn_new,
            deadline=deadline,
            identity=identity,
        )

    def fork(
        self,
        task: TaskHandle[R] | UUID | str,
        *,
        before: str | None = None,
        after: str | None = None,
        position: int | None = None,
        params: Any = OMITTED,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[R]:
        """Spawn a task that begins where another one stood, whatever became of it.

        It has the other's name, params and options, unless others are given, and copies
        of its checkpoints: all there are; those that were complete when the call of
        checkpoint `before` was made, or the one at `position`; or those saved up to
        checkpoint `after`. Its children are the other's. `queue` is also where an id
        is looked up, and a handle's fork may go to another. Raises NotFound,
        InvalidArgument for a place there is not, naming those there are, and what
        `spawn` raises.
        """
        found = self._found(task, options.get("queue"))
        place = forking.Place(before, after, position)
        return forking.fork(self, found, place, params, options)

    def export_history(
        self, task: TaskHandle[Any] | UUID | str, *, queue: str | None = None
    ) -> dict[str, Any]:
        """Return a task's `export_history`. Raises NotFound."""
        return self._found(task, queue).export_history()

    def get_result(
        self, task: TaskHandle[R] | UUID | str, *, queue: str | None = None
    ) -> TaskResult[R]:
        """Return where a task stands, without waiting. Raises NotFound."""
        return self._found(task, queue).snapshot()
