"""When a run may leave its worker.

A wait parks its branch on a future; it ends nothing. The run leaves when something is
parked and none of its durable calls is busy: at once if only the task's own coroutine
has made calls, for then nothing else can be going on; otherwise once no call has come
for 10 ms and for 30 turns of the loop (either alone was seen to leave too early). It
leaves by one statement that registers all its waits and ends the claim. If one of them
is over already the claim stays, and the branches go on.

While another branch is busy, parked waits are looked up when a sleep is due and at
least once a second; that registers them too, so that deadlines count from then on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Resolved", "Wait", "Waits"]

_SETTLE_SECONDS: Final = 0.010
_SETTLE_TURNS: Final = 30
_POLL_SECONDS: Final = 1.0
_POLL_AGAIN: Final = 0.02


@dataclass(frozen=True, slots=True)
class Resolved:
    """A checkpoint: how a step or a wait has ended, and its value as JSON."""

    state: str
    value: str


@dataclass(slots=True)
class Wait:
    """What one branch waits for."""

    key: str
    position: int
    after: int
    event: str | None = None
    task_ids: Sequence[str] | None = None
    due: float | None = None  # by time.monotonic(); when a sleep ends, or a timeout
    until: str | None = None  # the same as a moment of the database's clock
    future: asyncio.Future[Resolved] = field(init=False)

    def as_json(self, now: float) -> dict[str, Any]:
        """Return it as `durable.suspend_tasks` takes it."""
        spec: dict[str, Any] = {
            "name": self.key,
            "position": self.position,
            "after": self.after,
        }
        if self.event is not None:
            spec["event"] = self.event
        if self.task_ids is not None:
            spec["task_ids"] = self.task_ids
        if self.until is not None:
            spec["until"] = self.until
        elif self.due is not None:
            spec["seconds"] = max(self.due - now, 0.0)
        return spec


Ask = Callable[[str], Awaitable[dict[str, Resolved] | None]]


class Waits:
    """The branches of one run.

    `suspend` and `poll` get the waits as JSON, and return what is resolved by key;
    `suspend` returns None when the claim has ended.
    """

    def __init__(self, suspend: Ask, poll: Ask) -> None:
        self._suspend = suspend
        self._poll = poll
        self._parked: dict[str, Wait] = {}
        self._busy: set[asyncio.Task[Any] | None] = set()
        self._busy_count = 0
        self._calls = 0
        self._only_root = True
        self._over = False
        self._gate: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None

    async def enter(self, root: asyncio.Task[Any] | None) -> None:
        """Begin a durable call; it waits while the run may be about to leave."""
        current = asyncio.current_task()
        self._calls += 1
        self._only_root = self._only_root and current is root
        while self._gate is not None:
            await asyncio.shield(self._gate)
        self._busy_count += 1
        self._busy.add(current)

    def exit(self, task: asyncio.Task[Any] | None) -> None:
        """End a durable call."""
        if task is None:  # a synchronous task ends its one call from outside
            self._busy.clear()
        self._busy.discard(task)
        self.let_go()

    async def park(self, wait: Wait) -> Resolved:
        """Park the calling branch, which has entered, until its wait is over."""
        wait.future = asyncio.get_running_loop().create_future()
        self._parked[wait.key] = wait
        task = asyncio.current_task()
        self.exit(task)
        try:
            return await wait.future
        finally:
            self._parked.pop(wait.key, None)
            self._busy_count += 1
            self._busy.add(task)

    async def idle(self) -> None:
        """Return when no durable call is busy. What is parked does not count."""
        while self._busy_count:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    def busy(self) -> list[asyncio.Task[Any] | None]:
        """Return the branches that are in a durable call."""
        return list(self._busy)

    def hold(self) -> None:
        """Count as busy what no branch waits for any more, until `let_go`."""
        self._busy_count += 1

    def let_go(self) -> None:
        """Count one call less as busy."""
        self._busy_count -= 1
        if self._busy_count == 0 and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None
        self._consider()

    async def end(self, error: BaseException) -> None:
        """End what is parked with an error: the code is over, there is no leaving.

        Unless the run is on its way out already: then this returns when it has left,
        or has been told that it stays.
        """
        self._over = True
        leaving = self._leaving
        if leaving is not None and self._gate is not None:
            await asyncio.wait({leaving})
        self.release(error)

    def release(self, error: BaseException) -> None:
        """End all waits of the run with an error, and let nothing begin."""
        for wait in list(self._parked.values()):
            if not wait.future.done():
                wait.future.set_exception(error)
        self._open_gate()
        for task in (self._leaving, self._polling):
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    def _consider(self) -> None:
        if self._over or not self._pending():
            return
        if self._busy_count:
            if self._polling is None:
                self._polling = asyncio.create_task(self._poll_parked())
        elif self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        try:
            while self._may_leave():
                if self._only_root or await self._settled():
                    await self._try_to_leave()
                await asyncio.sleep(0)  # whoever was resolved goes on first
        finally:
            self._leaving = None

    async def _settled(self) -> bool:
        calls = self._calls
        await asyncio.sleep(_SETTLE_SECONDS)
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        return calls == self._calls and self._may_leave()

    def _may_leave(self) -> bool:
        return bool(not self._over and not self._busy_count and self._pending())

    async def _try_to_leave(self) -> None:
        self._gate = asyncio.get_running_loop().create_future()
        try:
            resolved = await self._suspend(self._as_json())
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self._fail(error)
        except BaseException:
            self._open_gate()
            raise
        else:
            if resolved is None:
                return
            self._resolve(resolved)
        self._open_gate()

    async def _poll_parked(self) -> None:
        try:
            while self._pending() and self._busy_count:
                now = time.monotonic()
                due = [wait.due - now for wait in self._pending() if wait.due]
                await asyncio.sleep(max(min([_POLL_SECONDS, *due]), _POLL_AGAIN))
                if self._pending() and self._gate is None:
                    self._resolve(await self._poll(self._as_json()) or {})
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self._fail(error)
        finally:
            self._polling = None

    def _resolve(self, resolved: dict[str, Resolved]) -> None:
        for key, outcome in resolved.items():
            wait = self._parked.get(key)
            if wait is not None and not wait.future.done():
                wait.future.set_result(outcome)

    def _fail(self, error: Exception) -> None:
        for wait in self._pending():
            wait.future.set_exception(error)

    def _open_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None and not gate.done():
            gate.set_result(None)

    def _as_json(self) -> str:
        now = time.monotonic()
        return json.dumps([wait.as_json(now) for wait in self._pending()])

    def _pending(self) -> list[Wait]:
        return [wait for wait in self._parked.values() if not wait.future.done()]
