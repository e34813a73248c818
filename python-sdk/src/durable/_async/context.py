"""What a running task is given: steps, waits, children, and what time it is.

Names are taken when a call is made, not when it is awaited, so the methods are plain
functions that return something to await. What is decided is decided by the run.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import Any, Generic
from uuid import UUID

import typing_extensions

from durable._async.family import Family
from durable._async.http import Requests
from durable._async.mail import Mail
from durable._async.patching import Patching
from durable._async.publishing import Publishing
from durable._async.steps import OpenStep, Steps
from durable._async.waiting import Waiting
from durable._ids import uuid7
from durable._names import check_event_name, check_step_name
from durable._values import PLAIN, codec
from durable._worker.history import Call
from durable._worker.outcomes import read
from durable.options import JSON

__all__ = ["OpenStep", "TaskContext"]

State_co = typing_extensions.TypeVar("State_co", default=Any, covariant=True)


class TaskContext(
    Steps, Waiting, Family, Mail, Publishing, Patching, Generic[State_co]
):
    """What a task does so that it survives.

    Whatever it awaits of this may end in `Suspended`: let it pass.
    """

    def __repr__(self) -> str:
        claimed = self._run.claimed
        name = type(self).__name__
        return f"<{name} of {claimed.task_id}, attempt {claimed.attempt}>"

    @property
    def task_id(self) -> UUID:
        """The task."""
        return self._run.claimed.task_id

    @property
    def run_id(self) -> UUID:
        """This attempt at it."""
        return self._run.run_id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1.

        Code that asks may go another way in each; so the order of its calls is not
        checked in later attempts.
        """
        return self._run.attempt

    @property
    def parent_task_id(self) -> UUID | None:
        """The task that spawned it, if one did."""
        return self._run.claimed.parent_task_id

    @property
    def deadline(self) -> datetime | None:
        """When the task is cancelled unless it has finished; None: never.

        The earliest of its own deadline, its ancestors', and its max_duration.
        """
        return self._run.claimed.deadline_at

    @property
    def version(self) -> str | None:
        """The version of the application that runs it, if that has one."""
        return self._run.application.version

    @property
    def headers(self) -> Mapping[str, JSON]:
        """What was spawned with the task beside its params."""
        return self._run.headers

    @property
    def identity(self) -> Mapping[str, JSON] | None:
        """Who asked for the task, or for the one that spawned it; None: nobody said."""
        return self._run.identity

    @property
    def state(self) -> State_co:
        """What the application's `lifespan` yielded to this worker."""
        found: State_co = self._run.state
        return found

    @property
    def http(self) -> Requests:
        """HTTP requests that are steps: their responses are recorded. Needs httpx."""
        return Requests(self._run, self._prefix)

    def scope(self, name: str) -> TaskContext[State_co]:
        """Return the same context with `name/` before every name: for a branch."""
        check_step_name(name)
        return type(self)(self._run, f"{self._prefix}{name}/")

    def emit_event(
        self, event: str, payload: Any = None, *, as_type: Any = None
    ) -> Coroutine[Any, Any, bool]:
        """Emit an event in the task's queue; return whether it was the first time.

        It is emitted once, together with the checkpoint that says so.
        """
        check_event_name(event)
        text = codec(as_type or type(payload)).dump(payload)
        call = self._take("emit", event)
        return self._made(call, self._emit(call, event, text))

    async def _emit(self, call: Call, event: str, payload: str) -> bool:
        return bool(read(await self._run.emit(call, event, payload), PLAIN))

    async def heartbeat(self) -> None:
        """Extend the lease now, and end here if it is lost.

        A worker extends the leases of what it runs by itself.
        """
        await self._run.heartbeat()

    def now(self) -> Coroutine[Any, Any, datetime]:
        """Return the time of the database, aware: the same at every replay."""
        return self._recorded("now", self._run.database_now, codec(datetime))

    def random(self) -> Coroutine[Any, Any, float]:
        """Return a random number from 0 to 1: the same at every replay."""
        return self._recorded("random", random.random, codec(float))

    def uuid7(self) -> Coroutine[Any, Any, UUID]:
        """Return a new uuid v7: the same at every replay."""

        def make() -> UUID:
            return uuid7(int(self._run.database_now().timestamp() * 1000))

        return self._recorded("uuid7", make, codec(UUID))
