"""Which versions of an application work on a queue, and what waits for which."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from durable import _sql
from durable._async.connected import Connected
from durable._async.handle import AsyncTaskHandle
from durable._names import check_version
from durable._results import VersionStats
from durable.errors import InvalidArgument

__all__ = ["Versions"]


class Versions(Connected):
    """The versions of an application."""

    async def list_versions(self, queue: str | None = None) -> list[VersionStats]:
        """Return the versions that work on a queue, or that its live tasks are for.

        Those `stranded` have tasks and no workers. Reads all of the queue.
        """
        statement = _sql.list_versions(self._named(queue))
        return [VersionStats(*row) for row in await self._database.fetch(statement)]

    async def promote_version(self, version: str, *, queue: str | None = None) -> bool:
        """Make a version the latest of a queue, as after a rollback.

        Where the policy is "gate", tasks that no version spawned are for the latest.
        Returns False for a version that no worker has announced.
        """
        statement = _sql.promote_version(self._named(queue), check_version(version))
        ((promoted,),) = await self.fetch(statement)
        return bool(promoted)

    async def set_version(
        self,
        version: str | None,
        *,
        task: AsyncTaskHandle[Any] | UUID | str | None = None,
        from_version: str | None = None,
        queue: str | None = None,
    ) -> int:
        """Make a task, or all live tasks that are for another version, be for this one.

        From their next claim on; None: for none yet. Returns how many have been moved:
        of `from_version`, those that somebody held just then were left; say it again
        until it is 0. Raises InvalidArgument unless exactly one of `task` and
        `from_version` is given.
        """
        if (task is None) == (from_version is None):
            raise InvalidArgument("set_version takes either a task or a from_version")
        wanted = None if version is None else check_version(version)
        if task is not None:
            found = self._found(task, queue)
            one = _sql.set_version(found.queue, wanted, [found.task_id], None)
            ((moved,),) = await self.fetch(one)
            return int(moved)
        name, total, moved = self._named(queue), 0, 1
        while moved:
            some = _sql.set_version(name, wanted, None, from_version)
            ((moved,),) = await self.fetch(some)
            total += moved
        return total
