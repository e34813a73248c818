"""The durable calls of one run: what its context asks for, and gets once.

A call takes its name when it is made and begins when it is awaited. What has a
checkpoint then is not done again; else it is done, and saved before the code goes on.
From its beginning to its end a call is busy: the run does not leave under it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from inspect import CO_COROUTINE
from types import FunctionType
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from durable._values import Codec, changed_in_roundtrip
from durable._worker.executing import Execution, inside_a_step
from durable._worker.history import Call
from durable._worker.lane import Lane
from durable._worker.making import LONGEST_KEY
from durable._worker.outcomes import read
from durable._worker.telling import Telling
from durable._worker.transacting import AsyncTransacting
from durable._worker.waits import Resolved, Wait
from durable.errors import UnreadablePayload

__all__ = [
    "LONGEST_KEY",
    "Calls",
    "WaitItem",
    "WaitLane",
    "exit_refused",
    "inside_a_step",
    "is_async",
]

logger = logging.getLogger("durable.worker")

_COMPARED_AT_MOST: Final = 10_000
_REASONS: Final = {
    "suspended": "waiting",
    "cancelled": "cancelled",
    "lost": "lease lost",
}

_compared: set[tuple[str, str]] = set()


class WaitItem(NamedTuple):
    """What one run waits for, and what it has given up, as JSON."""

    queue: str
    task_id: UUID
    claim: int
    waits: str
    withdrawn: str = ""


WaitLane: TypeAlias = Lane[WaitItem, tuple[str, dict[str, Resolved]]]


class Calls(Telling):
    """What a context calls. Everything here happens on the worker's loop."""

    __slots__ = ()

    # -- steps ---------------------------------------------------------------------

    async def step(
        self,
        call: Call,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Callable[[Exception], None] | None = None,
    ) -> Any:
        """Call a step's function, unless it is saved, and save what it returns.

        What it raises is told to `failed`, else it is kept as the step's failure.
        """
        saved, branch = await self.begin(call)
        if saved is not None:
            return read(saved, codec)
        try:
            try:
                value = await self.invoke(function, args, Execution(call.key))
            except Exception as error:
                if failed is not None:
                    failed(error)
                else:
                    self.keep_failure(call, error)
                raise
            return await self._save_value(call, value, codec)
        finally:
            self._waits.exit(branch)

    async def save_step(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save what a step's function has returned elsewhere."""
        saved, branch = await self.begin(call)
        if saved is not None:
            return read(saved, codec)
        try:
            return await self._save_value(call, value, codec)
        finally:
            self._waits.exit(branch)

    def is_saved(self, key: str) -> bool:
        """Whether there is a checkpoint of this name."""
        return key in self._history.saved

    def keep_failure(self, call: Call, error: Exception) -> None:
        """Keep a step's failure, to be saved with the next thing its task saves."""
        self._history.keep_failure(call, self._position, error)

    async def _save_value(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save what a step returned. Returns it as every replay will see it.

        What cannot be saved is the step's failure, and kept as that: it has been done.
        """
        try:
            text, value_read = codec.roundtrip(value)
            if value_read is not value:
                self._warn_if_changed(call.key, value, value_read)
            await self._save(call, text)
        except Exception as error:
            self.keep_failure(call, error)
            raise
        return value_read

    async def invoke(
        self, function: Callable[..., Any], args: Sequence[Any], execution: Execution
    ) -> Any:
        """Call a step's function: on the loop, or in a thread if it is synchronous."""
        token = inside_a_step.set(execution)
        try:
            if is_async(function):
                return await function(*args)
            result = await self._in_thread(function, args)
            if inspect.isawaitable(result):
                return await result
            return _complete(result, execution)
        except asyncio.CancelledError as error:
            raise self._run.left or error from None
        except SystemExit as error:  # in a branch, it would tear down the loop
            raise exit_refused(error) from error
        finally:
            inside_a_step.reset(token)

    async def _in_thread(
        self, function: Callable[..., Any], args: Sequence[Any]
    ) -> Any:
        """Call a function in a thread; the run is busy until it returns, whatever."""
        work = self._run.services.threads.run(function, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                self._waits.hold(work)
            raise

    async def begin_step(self, call: Call) -> Resolved | None:
        """Begin a step that stays open: until `complete_step`, the run is busy."""
        saved, branch = await self.begin(call)
        if saved is None:
            self._waits.open_steps[call.key] = branch
        return saved

    async def complete_step(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save the value of an open step, and close it."""
        self._run.refuse_unless_open()
        branch = self._waits.open_steps.pop(call.key, None)
        if branch is None:
            raise RuntimeError(f"step {call.key!r} is not open")
        try:
            return await self._save_value(call, value, codec)
        finally:
            self._waits.exit(branch)

    # -- everything else -----------------------------------------------------------

    def refuse_while_open(self) -> None:
        """Raise RuntimeError if this branch has a step open: it is going to wait."""
        if asyncio.current_task() in self._waits.open_steps.values() or (
            self._waits.open_steps and not self._run.definition.is_async
        ):
            opened = ", ".join(sorted(self._waits.open_steps))
            raise RuntimeError(f"a wait while a step is open: complete {opened} first")

    async def wait(self, call: Call, wait: Wait) -> Resolved:
        """Park until something happens. Ends in Suspended if the run leaves first."""
        self.refuse_while_open()
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            outcome = await self._waits.park(branch, wait, self)
            return self._history.remember(call.key, outcome)
        except asyncio.CancelledError:
            self._history.saved.pop(call.key, None)  # it came too late
            raise
        finally:
            self._waits.exit(branch)

    async def record(self, call: Call, value: str) -> Resolved:
        """Save a value that is JSON already."""
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            return await self._save(call, value)
        finally:
            self._waits.exit(branch)

    def transacting(self, call: Call) -> AsyncTransacting:
        """Return what a transaction step needs of its run."""
        return AsyncTransacting(self, self._run, call)

    async def heartbeat(self) -> None:
        """Extend the lease now. Raises Suspended if it is lost."""
        self._run.refuse_unless_open()
        asked = time.monotonic()
        if await self._run.refusable(self._run.services.extend(self._run)) == "ok":
            self._run.lease_until = asked + self._run.services.lease

    # -- where waits are registered ------------------------------------------------

    async def suspend(self, waits: str) -> dict[str, Resolved] | None:
        """Register all waits and end the claim; None if that has ended."""
        await self.save_failures()
        return await self._ask(self._run.services.suspending, waits)

    async def poll(self, waits: str) -> dict[str, Resolved] | None:
        """Register all waits, and keep the claim."""
        return await self._ask(self._run.services.polling, waits)

    async def _ask(self, lane: WaitLane, waits: str) -> dict[str, Resolved] | None:
        claimed, given_up = self.claimed, self._waits.withdrawn
        withdrawn = list(given_up.values())
        text = _withdrawn_json(withdrawn) if withdrawn else ""
        item = WaitItem(claimed.queue, claimed.task_id, claimed.claim, waits, text)
        self._waits.asking += 1
        try:
            outcome, resolved = await self._run.refusable(lane.submit(item))
        finally:
            self._waits.asking -= 1
        if outcome in _REASONS:
            self._run.leave(_REASONS[outcome])
        if not self._waits.asking:  # another one may be about one of these still
            for wait in withdrawn:
                del given_up[wait.key]
        for key in given_up:  # what these have got meanwhile will be given back
            resolved.pop(key, None)
        try:
            resolved = self._history.opened(resolved)
        except UnreadablePayload as error:
            self._run.leave_unreadable(error)
        self._history.saved.update(resolved)
        return None if self._run.left is not None else resolved

    def _warn_if_changed(self, key: str, before: object, after: object) -> None:
        step = (self.claimed.name, key.partition("#")[0])
        if step in _compared:
            return
        if len(_compared) >= _COMPARED_AT_MOST:
            _compared.clear()
        _compared.add(step)
        if changed_in_roundtrip(before, after):
            logger.warning(
                "step %r of %r returned %r, but its checkpoint reads back as %r: "
                "that is what the task gets, now and at every replay",
                key,
                self.claimed.name,
                before,
                after,
            )


def _withdrawn_json(waits: Sequence[Wait]) -> str:
    return json.dumps([wait.as_withdrawn() for wait in waits])


def _complete(result: Any, execution: Execution) -> Any:
    """Return what a synchronous function returned, if it can have done its work."""
    if execution.in_transaction:
        raise TypeError(
            "a transaction's function in an async task must be async: what it does on"
            " its connection has to be awaited"
        )
    return result


def exit_refused(error: SystemExit) -> RuntimeError:
    """Return what a step's function fails with that wants to end the process."""
    return RuntimeError(f"the step's function called sys.exit({error.code!r})")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await."""
    if type(function) is FunctionType and function.__code__.co_flags & CO_COROUTINE:
        return True
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object's own
    )
