# Made from _async/queues.py by tools/async_to_sync.py: edit that, not this.
"""The schema, and the queues in it."""

from __future__ import annotations

from typing import Unpack

from durable import _sql
from durable._policy import QueuePolicy, checked
from durable._results import QueueStats
from durable._sync.connected import Connected
from durable.errors import UnknownQueue

__all__ = ["Queues"]


class Queues(Connected):
    """The queues of an application."""

    def migrate(self) -> None:
        """Install or upgrade the schema, and create `default` and the app's own queue.

        All or nothing, whoever else does the same at the same time.
        """
        self._database.migrate({"default", self.queue})

    def create_queue(
        self, queue: str | None = None, **policy: Unpack[QueuePolicy]
    ) -> bool:
        """Create a queue, or change the policy of one; return whether it is new.

        Raises InvalidArgument for a name or a policy it cannot have, and Forbidden
        where the role has no right to this.
        """
        statement = _sql.create_queue(self._named(queue), checked(policy))
        ((created,),) = self.fetch(statement)
        return bool(created)

    def drop_queue(self, queue: str | None = None) -> bool:
        """Delete a queue and everything in it; return whether there was one."""
        statement = _sql.drop_queue(self._named(queue))
        ((dropped,),) = self._database.fetch(statement)
        return bool(dropped)

    def list_queues(self) -> list[str]:
        """Return the names of all queues."""
        return [name for (name,) in self.fetch(_sql.list_queues())]

    def queue_stats(self, queue: str | None = None) -> QueueStats:
        """Count what a queue holds. Reads all of it: for people, not for loops.

        Raises UnknownQueue.
        """
        name = self._named(queue)
        rows = self._database.fetch(_sql.queue_stats(name))
        if not rows:
            raise UnknownQueue(f'no queue "{name}"', hint="`create_queue` makes it.")
        return QueueStats(*rows[0])
