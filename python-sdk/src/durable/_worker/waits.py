"""When a run may leave its worker.

A wait parks its branch on a future; it ends nothing. The run leaves when something is
parked and none of its durable calls is busy: at once if only the task's own coroutine
has made calls, for then nothing else can be going on; otherwise once no call has come
for 10 ms and for 30 turns of the loop (either alone was seen to leave too early). It
leaves by one statement that registers all its waits and ends the claim. If one of them
is over already the claim stays, and the branches go on.

While another branch is busy, parked waits are looked up when a sleep is due and at
least once a second; that registers them too, so that deadlines count from then on.

A wait whose branch is cancelled is given up: the next statement withdraws it, before it
looks for anything else. So it neither wakes the task, nor takes a message that a later
wait is for.

What asyncio tasks have been given to await begins while something is saved. At a replay
nothing is, so a few turns of the loop stand for that; and so they do when the code has
ended, before a call that nobody has begun counts as forgotten.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import time
from collections.abc import Container, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from durable.errors import Suspended

__all__ = ["Branch", "Resolved", "Wait", "Waits"]

_SETTLE_SECONDS: Final = 0.010
_SETTLE_TURNS: Final = 30
_BEGIN_TURNS: Final = 3  # one for a task, one for a task made by that, one to spare
_POLL_SECONDS: Final = 1.0
_POLL_AGAIN: Final = 0.02


class Resolved(NamedTuple):
    """A checkpoint: how a step or a wait has ended, and its value as JSON.

    One that was loaded has its place, too: see `durable._worker.replay`.
    """

    state: str
    value: str
    position: int = 0
    after: int = 0


@dataclass(slots=True)
class Wait:
    """What one branch waits for."""

    key: str
    position: int
    after: int
    event: str | None = None
    task_ids: Sequence[str] | None = None
    queues: Sequence[str | None] | None = None  # of each of them; None: the task's own
    any_of: bool = False  # the first of them ends the wait
    due: float | None = None  # by time.monotonic(); when a sleep ends, or a timeout
    until: str | None = None  # the same as a moment of the database's clock
    topic: str | None = None
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
        if self.topic is not None:
            spec["topic"] = self.topic
        if self.queues is not None:
            spec["queues"] = self.queues
        if self.any_of:
            spec["any_of"] = True
        if self.until is not None:
            spec["until"] = self.until
        elif self.due is not None:
            spec["seconds"] = max(self.due - now, 0.0)
        return spec

    def as_withdrawn(self) -> dict[str, Any]:
        """Return it as one that is given up, as `durable.suspend_tasks` takes it."""
        spec: dict[str, Any] = {"name": self.key, "position": self.position}
        if self.topic is not None:
            spec["topic"] = self.topic
        return spec


Branch = asyncio.Task[Any]


class Register(Protocol):
    """Where waits are registered, as JSON; what is resolved comes back by key."""

    async def suspend(self, waits: str) -> dict[str, Resolved] | None:
        """Register all waits and end the claim; None if that has ended."""

    async def poll(self, waits: str) -> dict[str, Resolved] | None:
        """Register all waits, and keep the claim."""


class Waits:
    """The branches of one run: which of them are busy, and which are parked."""

    __slots__ = (
        "_busy",
        "_busy_count",
        "_calls",
        "_had_turns",
        "_idle",
        "_leaving",
        "_loop",
        "_only_root",
        "_over",
        "_parked",
        "_polling",
        "_register",
        "_threads",
        "asking",
        "beginning",
        "gate",
        "made",
        "open_steps",
        "withdrawn",
    )
    _register: Register  # since something was parked

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.open_steps: dict[str, Branch] = {}
        self.made: dict[int, tuple[str, Coroutine[Any, Any, Any]]] = {}  # not begun yet
        self.beginning: asyncio.Task[None] | None = None  # while others may begin
        self._had_turns = 0  # all calls up to this position could begin
        self._threads: set[asyncio.Future[Any]] = set()
        self._parked: dict[str, Wait] = {}
        self.withdrawn: dict[str, Wait] = {}  # by key; to be, with the next statement
        self.asking = 0  # statements about waits that are under way
        self._busy: dict[Branch, int] = {}
        self._busy_count = 0
        self._calls = 0
        self._only_root = True
        self._over = False
        self.gate: asyncio.Future[None] | None = None  # closed while it leaves
        self._idle: asyncio.Future[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None

    async def others_begin(self) -> None:
        """Let whoever has been given a call begin it; those who ask go on in turn."""
        if self.beginning is None:
            latest = next(reversed(self.made))
            if latest <= self._had_turns:
                return
            self._had_turns = latest
            self.beginning = self._create_task(self._take_turns())
        await asyncio.shield(self.beginning)

    async def _take_turns(self) -> None:
        try:
            for _ in range(_BEGIN_TURNS):
                await asyncio.sleep(0)
        finally:
            self.beginning = None

    async def refuse_forgotten(self, saved: Container[str]) -> None:
        """Raise RuntimeError for calls that the code has made and nobody awaits.

        One that is saved has been done, and one that was cancelled before it began is
        not forgotten. While that is still under way its task may be another
        coroutine's, which has the call: then nobody is accused.
        """
        is_sure = not any(map(_is_cancelled_early, asyncio.all_tasks(self._loop)))
        await self.others_begin()
        forgotten = []
        for key, coroutine in self.made.values():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()  # or Python says so, too
                if key not in saved:
                    forgotten.append(repr(key))
        if forgotten and is_sure:
            raise RuntimeError(
                f"{', '.join(forgotten)}: called and never awaited, so it was not done;"
                " write await before the call"
            )

    def arrive(self, root: Branch | None) -> Branch:
        """Know that a durable call is about to begin, and return its branch.

        `root` is the branch that makes calls when no other does, None if this one is.
        """
        branch = asyncio.current_task(self._loop)
        if branch is None:
            raise RuntimeError("a durable call is awaited outside any asyncio task")
        self._calls += 1
        self._only_root = self._only_root and root in (None, branch)
        return branch

    async def gate_opens(self) -> None:
        """Return when the run is not about to leave."""
        while self.gate is not None:
            await asyncio.shield(self.gate)

    def enter(self, branch: Branch) -> None:
        """Begin a durable call, once the gate is open."""
        self._busy_count += 1
        self._busy[branch] = self._busy.get(branch, 0) + 1

    def exit(self, branch: Branch) -> None:
        """End a durable call."""
        calls = self._busy[branch]
        if calls == 1:
            del self._busy[branch]
        else:
            self._busy[branch] = calls - 1
        self._let_go()

    async def park(self, branch: Branch, wait: Wait, register: Register) -> Resolved:
        """Park a branch, which has entered, until its wait is over."""
        self._register = register
        wait.future = self._loop.create_future()
        self._parked[wait.key] = wait
        self.exit(branch)
        try:
            return await wait.future
        except asyncio.CancelledError:
            if wait.future.cancelled() or wait.future.exception() is None:
                self.withdrawn[wait.key] = wait  # else it is the run that has left
            raise
        finally:
            self._parked.pop(wait.key, None)
            self.enter(branch)

    async def idle(self) -> None:
        """Return when no call is busy; open steps and what is parked do not count."""
        while self.open_steps:
            _, branch = self.open_steps.popitem()
            self.exit(branch)
        while self._busy_count:
            if self._idle is None:
                self._idle = self._loop.create_future()
            await asyncio.shield(self._idle)

    def cancel_busy(self, *spared: Branch | None) -> None:
        """Cancel the branches that are in a durable call, but for these."""
        for branch in list(self._busy):
            if branch not in spared:
                branch.cancel()

    def hold(self, thread: asyncio.Future[Any]) -> None:
        """Count a thread as busy that no branch waits for any more."""
        self._busy_count += 1
        self._threads.add(thread)
        thread.add_done_callback(self._thread_returned)

    async def threads_have_returned(self) -> None:
        """Return when no thread is held: it cannot be cancelled."""
        while self._threads:
            await asyncio.wait(self._threads)

    def _thread_returned(self, thread: asyncio.Future[Any]) -> None:
        self._threads.discard(thread)
        self._let_go()
        if not thread.cancelled():
            thread.exception()  # what it brought is discarded

    def _let_go(self) -> None:
        self._busy_count -= 1
        if self._busy_count == 0 and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None
        self._consider()

    async def end(self) -> None:
        """End what is parked: the code is over, there is no leaving.

        Unless the run is on its way out already: then this returns when it has left,
        or has been told that it stays.
        """
        self._over = True
        leaving = self._leaving
        if leaving is not None and self.gate is not None:
            await asyncio.wait({leaving})
        self.release()

    def release(self, left: Suspended | None = None) -> None:
        """End all waits of the run as it has left, or ended; let nothing begin."""
        if self._parked:
            self._fail(left or Suspended("ended"))
        if self.gate is not None:
            self._open_gate()
        for task in (self._leaving, self._polling):
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    def _consider(self) -> None:
        if not self._parked or self._over or not self._pending():
            return
        if self._busy_count:
            if self._polling is None:
                self._polling = self._create_task(self._poll_parked())
        elif self._leaving is None:
            self._leaving = self._create_task(self._leave())

    def _create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin what is not the task's code, so not in the context of that."""
        return self._loop.create_task(work, context=contextvars.Context())

    async def _leave(self) -> None:
        try:
            while self._may_leave():
                if self._only_root or await self._settled():
                    await self._try_to_leave()
                await asyncio.sleep(0)  # whoever was resolved goes on first
        finally:
            self._leaving = None
        self._consider()  # a branch may have become busy: then others are looked up

    async def _settled(self) -> bool:
        calls = self._calls
        await asyncio.sleep(_SETTLE_SECONDS)
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        return calls == self._calls and self._may_leave()

    def _may_leave(self) -> bool:
        return bool(not self._over and not self._busy_count and self._pending())

    async def _try_to_leave(self) -> None:
        self.gate = self._loop.create_future()
        try:
            resolved = await self._register.suspend(self._as_json())
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
                if self._pending() and self.gate is None:
                    self._resolve(await self._register.poll(self._as_json()) or {})
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self._fail(error)
        finally:
            self._polling = None

    def _resolve(self, resolved: dict[str, Resolved]) -> None:
        for key, outcome in resolved.items():
            wait = self._parked.get(key)
            if wait is not None and not wait.future.done():
                wait.future.set_result(outcome)

    def _fail(self, error: BaseException) -> None:
        for wait in self._pending():
            wait.future.set_exception(error)

    def _open_gate(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None and not gate.done():
            gate.set_result(None)

    def _as_json(self) -> str:
        now = time.monotonic()
        return json.dumps([wait.as_json(now) for wait in self._pending()])

    def _pending(self) -> list[Wait]:
        return [wait for wait in self._parked.values() if not wait.future.done()]


def _is_cancelled_early(task: asyncio.Task[Any]) -> bool:
    """Whether a task is being cancelled that has not begun."""
    code = task.get_coro()
    return (
        task.cancelling() > 0
        and inspect.iscoroutine(code)
        and inspect.getcoroutinestate(code) == inspect.CORO_CREATED
    )
