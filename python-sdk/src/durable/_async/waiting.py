"""Waiting, without holding a worker: for a time, or for an event."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from durable._async.calling import Calling
from durable._names import check_event_name, check_step_name
from durable._time import moment, required_seconds, seconds
from durable._values import UNTYPED, Codec, codec
from durable._worker.history import Call
from durable._worker.outcomes import heard
from durable._worker.waits import Wait

__all__ = ["Waiting"]

T = TypeVar("T")


class Waiting(Calling):
    """The waits of a task."""

    def sleep_for(
        self, name: str, duration: timedelta | float
    ) -> Coroutine[Any, Any, None]:
        """Sleep for a while: a timedelta or seconds. It holds no worker meanwhile."""
        length = required_seconds(duration, "duration")
        call = self._take("sleep", check_step_name(name))
        wait = Wait(call.key, call.position, call.after, due=call.made + length)
        return self._made(
            call, self._sleep(call, wait)
        )  # sync: return self._sleep(call, wait)

    def sleep_until(self, name: str, until: datetime) -> Coroutine[Any, Any, None]:
        """Sleep until a moment, an aware datetime, of the database's clock."""
        at = moment(until, "until")
        call = self._take("sleep", check_step_name(name))
        left = (at - self._run.database_now()).total_seconds()
        wait = Wait(call.key, call.position, call.after, due=call.made + max(left, 0))
        wait.until = at.isoformat()
        return self._made(
            call, self._sleep(call, wait)
        )  # sync: return self._sleep(call, wait)

    async def _sleep(self, call: Call, wait: Wait) -> None:
        await self._run.wait(call, wait)

    @overload
    async def await_event(
        self, event: str, *, timeout: timedelta | float | None = ..., as_type: type[T]
    ) -> T: ...
    @overload
    async def await_event(
        self,
        event: str,
        *,
        timeout: timedelta | float | None = ...,
        as_type: Any = ...,
    ) -> Any: ...
    def await_event(
        self,
        event: str,
        *,
        timeout: timedelta | float | None = None,
        as_type: Any = UNTYPED,
    ) -> Any:
        """Wait until an event of the task's queue is emitted; return its payload.

        The payload is read as `as_type`. Raises the builtin TimeoutError after
        `timeout`, a timedelta or seconds; that is recorded, so every replay sees it.
        """
        limit = seconds(timeout, "timeout")
        kind = codec(as_type)
        call = self._take("event", check_event_name(event))
        wait = Wait(call.key, call.position, call.after, event=event)
        wait.due = None if limit is None else call.made + limit
        return self._made(call, self._await_event(call, wait, kind))

    async def _await_event(self, call: Call, wait: Wait, kind: Codec[Any]) -> Any:
        outcome = await self._run.wait(call, wait)
        return heard(outcome, f"event {wait.event!r}", kind)
