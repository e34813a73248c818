"""Messages: what a task sends to others, and receives."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar, overload

from durable._async.calling import Calling
from durable._messages import Message, Recipient, message
from durable._names import check_topic
from durable._time import seconds
from durable._values import PLAIN, UNTYPED, Codec, codec
from durable._worker.history import Call
from durable._worker.outcomes import heard, read
from durable._worker.waits import Wait

__all__ = ["Mail"]

T = TypeVar("T")


class Mail(Calling):
    """The messages of a task."""

    def send(
        self,
        to: Recipient,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        queue: str | None = None,
        as_type: Any = None,
    ) -> Coroutine[Any, Any, bool]:
        """Send a message to a live task, which gets it once with `recv(topic)`.

        `to` is a child, a handle, or the id of a task of this queue, or of `queue`; the
        task's own parent is found wherever it is. It is sent once, together with the
        checkpoint that says so. Returns False if a message with this `dedup_key` was
        sent to that task before. Raises NotFound, UnknownQueue, and AlreadyFinished if
        the task is over.
        """
        home = self.queue if queue is None else queue
        sent = message(to, home, topic, payload, dedup_key=dedup_key, as_type=as_type)
        sealed = sent.sealed(self._run.application.vault)
        call = self._take("send", topic)
        return self._made(call, self._send(call, sealed))

    async def _send(self, call: Call, sent: Message) -> bool:
        return bool(read(await self._run.send(call, sent), PLAIN))

    @overload
    async def recv(
        self, topic: str, *, timeout: timedelta | float | None = ..., as_type: type[T]
    ) -> T: ...
    @overload
    async def recv(
        self, topic: str, *, timeout: timedelta | float | None = ..., as_type: Any = ...
    ) -> Any: ...
    def recv(
        self,
        topic: str,
        *,
        timeout: timedelta | float | None = None,
        as_type: Any = UNTYPED,
    ) -> Any:
        """Wait for the next message of a topic; return its payload, read as `as_type`.

        Messages come in the order in which they were sent, each to one `recv`; what
        was sent before this call counts. Raises the builtin TimeoutError after
        `timeout`, a timedelta or seconds; that is recorded, so every replay sees it.
        """
        limit = seconds(timeout, "timeout")
        kind = codec(as_type)
        call = self._take("recv", check_topic(topic))
        wait = Wait(call.key, call.position, call.after, topic=topic)
        wait.due = None if limit is None else call.made + limit
        return self._made(call, self._recv(call, wait, kind))

    async def _recv(self, call: Call, wait: Wait, kind: Codec[Any]) -> Any:
        outcome = await self._run.wait(call, wait)
        return heard(outcome, f"a message on {wait.topic!r}", kind)
