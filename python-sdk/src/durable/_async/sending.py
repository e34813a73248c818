"""What a client sends to tasks that are there: messages."""

from __future__ import annotations

from typing import Any

from durable import _foreign, _sql
from durable._async.connected import Connected
from durable._messages import Recipient, message

__all__ = ["Sending"]


class Sending(Connected):
    """What tasks are told."""

    async def send(
        self,
        task: Recipient,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send a message to a live task, in a transaction of its own.

        The task receives it once, with `ctx.recv(topic)`, after those that were sent
        before it. The payload is anything pydantic can serialise, as `as_type` if it is
        given, else as its class. Returns False if a message with this `dedup_key` was
        sent to the task before: nothing is sent then. Raises NotFound, UnknownQueue,
        and AlreadyFinished if the task is over.
        """
        home = self._named(queue)
        sent = message(task, home, topic, payload, dedup_key=dedup_key, as_type=as_type)
        sealed = sent.sealed(self.application.vault)
        ((is_new,),) = await self.fetch(_sql.send_message(sealed))
        return bool(is_new)

    async def send_with(
        self,
        conn: object,
        task: Recipient,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send a message in the transaction of the application's own connection.

        As `spawn_with`: it is sent if and when that transaction commits. Until then,
        others who send to the task on this topic wait.
        """
        home = self._named(queue)
        sent = message(task, home, topic, payload, dedup_key=dedup_key, as_type=as_type)
        sealed = sent.sealed(self.application.vault)
        row = await _foreign.execute_async(conn, _sql.send_message(sealed))
        return bool(row[0])
