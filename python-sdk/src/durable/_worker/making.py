"""How a durable call of a run is made: under which name, and in which place.

A call takes its name when it is made and begins when it is awaited. Its position is
greater than that of every call made before; `after` counts those that are complete.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from durable._names import Names
from durable._values import Codec
from durable._worker.baggage import Baggage
from durable._worker.executing import inside_a_step
from durable._worker.history import Call
from durable._worker.waits import Branch, Resolved
from durable.errors import InvalidArgument, Suspended

if TYPE_CHECKING:
    from durable._application import Application
    from durable._worker.run import Run

__all__ = ["LONGEST_KEY", "Making"]

LONGEST_KEY: Final = 512


class Making(Baggage):
    """What all calls have in common. Everything here happens on the worker's loop."""

    __slots__ = (
        "_history",
        "_names",
        "_position",
        "_waits",
    )

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._history = run.history
        self._names = Names()
        self._position = 0
        self._waits = run.waits
        if run.past is not None:
            run.past.begin()

    def end(self) -> None:
        """Let go of the asyncio tasks of a run that has ended.

        Their contexts hold what holds these calls: memory is freed at once, as long as
        none of it waits for the garbage collector.
        """
        self._names = Names()
        self._waits.made.clear()
        self._run.task = None

    # -- what is known ------------------------------------------------------------

    @property
    def run_id(self) -> UUID:
        """The id of this attempt."""
        return self.claimed.run_id

    @property
    def attempt(self) -> int:
        """Which attempt this is; code that asks, but for a step's, may go by it."""
        if self._run.past is not None and not inside_a_step.get():
            self._run.past.attempt_counts()
        return self.claimed.attempt

    @property
    def state(self) -> Any:
        """What the application's lifespan yielded."""
        return self._run.services.state

    @property
    def application(self) -> Application:
        """The application whose worker this is."""
        return self._run.services.application

    @property
    def result_codec(self) -> Codec[Any]:
        """How the task's result is written."""
        return self._run.definition.result_codec

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The worker's loop."""
        return self._run.loop

    @property
    def left(self) -> Suspended | None:
        """Why the run has left, if it has."""
        return self._run.left

    def database_now(self) -> datetime:
        """Return the time of the database: that of the claim, and what passed since."""
        return self._run.database_now()

    # -- one call ------------------------------------------------------------------

    def take(self, kind: str, name: str, branch: Branch | None) -> Call:
        """Take the name of a call that is being made; Suspended once it is over."""
        return self._make(self._key(kind, name, branch), branch)

    def take_patch(self, name: str, branch: Branch | None) -> Call | None:
        """Take the name of a patch; None if the task went past it without one."""
        key = self._key("patch", name, branch)
        past = self._run.past
        if past is not None and past.to_come and not past.knows(key):
            return None
        return self._make(key, branch)

    def accept_patch(self, name: str, branch: Branch | None) -> None:
        """Meet a patch if it is recorded."""
        key = self._key("patch", name, branch)
        if self._run.past is not None and self._run.past.knows(key):
            self._make(key, branch)

    def _make(self, key: str, branch: Branch | None) -> Call:
        history, past = self._history, self._run.past
        position = self._position + 1
        if past is not None:
            own = branch is self._run.root
            position = past.meet(key, position, branch, own=own)
        self._position = position
        after = len(history.saved) - history.aside
        return Call(key, position, after, time.monotonic())

    def _key(self, kind: str, name: str, branch: Branch | None) -> str:
        run = self._run
        run.refuse_unless_open()
        if inside_a_step.get() is not None:
            raise RuntimeError(
                f"{kind or 'step'} {name!r} is called inside a step's function: "
                "a step is a leaf, make durable calls from the task itself"
            )
        if branch is None:
            if run.definition.is_async:
                raise RuntimeError("the context is used on another thread than its own")
        elif branch.get_loop() is not run.loop:
            raise RuntimeError("the context is used on another event loop than its own")
        key = self._names.take(kind, name, branch)
        # a character has at most four bytes
        if len(key) > LONGEST_KEY // 4 and len(key.encode()) > LONGEST_KEY:
            raise InvalidArgument(f"a name of over {LONGEST_KEY} bytes: {key[:40]!r}…")
        return key

    def branch(self) -> Branch | None:
        """Return the asyncio task that makes a call; none on a thread with no loop."""
        run = self._run
        if threading.get_ident() == run.services.thread:
            return asyncio.current_task(run.loop)
        try:
            return asyncio.current_task()
        except RuntimeError:
            return None

    def made(self, call: Call, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Know the coroutine of a call until it begins."""
        self._waits.made[call.position] = (call.key, coroutine)

    async def begin(self, call: Call) -> tuple[Resolved | None, Branch]:
        """Begin a call. Returns its checkpoint, if it has one; else it must `close`."""
        waits = self._waits
        waits.made.pop(call.position, None)
        branch = waits.arrive(self._run.root)
        if waits.gate is not None:
            await waits.gate_opens()
        waits.enter(branch)
        try:
            if time.monotonic() >= self._run.lease_until:
                self._run.leave("lease lost")
            self._run.refuse_unless_open()
        except BaseException:
            waits.exit(branch)
            raise
        saved = self._history.saved.get(call.key)
        if saved is not None:
            try:
                if waits.made or waits.beginning is not None:
                    await self._run.refusable(waits.others_begin())
            finally:
                waits.exit(branch)
        return saved, branch

    def replayed(self, call: Call) -> Resolved | None:
        """Return a call's checkpoint, if it has one. A thread may ask."""
        run = self._run
        if time.monotonic() >= run.lease_until:
            run.loop.call_soon_threadsafe(run.leave, "lease lost")
            raise Suspended("lease lost")
        run.refuse_unless_open()
        return self._history.saved.get(call.key)

    async def _save(self, call: Call, value: str) -> Resolved:
        write = self._history.value(call, value)
        await self._run.refusable(self._run.save(write))
        self._history.forget_failures(call.position)
        return self._history.remember(call.key, Resolved("done", value))

    async def save_published(self) -> None:
        """Save what the task has published."""
        if self._run.publishes:
            await self._run.refusable(self._run.save())

    async def save_failures(self, before: float = float("inf")) -> None:
        """Save what the task has published, and the failed steps it caught, before."""
        write = self._history.failures(before)
        if write is not None or self._run.publishes:
            await self._run.refusable(self._run.save(write))
            self._history.forget_failures(before)
