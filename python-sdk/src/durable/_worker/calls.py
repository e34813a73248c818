"""The durable calls of one run: what its context asks for, and gets once.

A call takes its name when it is made and begins when it is awaited. What has a
checkpoint then is not done again; else it is done, and saved before the code goes on.
From its beginning to its end a call is busy: the run does not leave under it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from inspect import CO_COROUTINE
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from durable._messages import Message
from durable._names import Names
from durable._values import Codec, changed_in_roundtrip
from durable._worker.baggage import Baggage
from durable._worker.executing import Execution, inside_a_step
from durable._worker.history import Call
from durable._worker.lane import Lane
from durable._worker.outcomes import read
from durable._worker.transacting import AsyncTransacting
from durable._worker.waits import Branch, Resolved, Wait
from durable.errors import InvalidArgument, Suspended, UnreadablePayload

if TYPE_CHECKING:
    from durable._application import Application
    from durable._worker.run import Run

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

LONGEST_KEY: Final = 512
_COMPARED_AT_MOST: Final = 10_000
_REASONS: Final = {
    "suspended": "waiting",
    "cancelled": "cancelled",
    "lost": "lease lost",
}

_compared: set[tuple[str, str]] = set()


class WaitItem(NamedTuple):
    """What one run waits for, as JSON."""

    queue: str
    task_id: UUID
    claim: int
    waits: str


WaitLane: TypeAlias = Lane[WaitItem, tuple[str, dict[str, Resolved]]]


class Calls(Baggage):
    """What a context calls. Everything here happens on the worker's loop."""

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

    async def begin(self, call: Call) -> tuple[Resolved | None, Branch]:
        """Begin a call. Returns its checkpoint, if it has one; else it must `close`."""
        waits = self._waits
        branch = waits.arrive(self._run.root)
        if waits.gate is not None:
            await waits.gate_opens()
        waits.enter(branch)
        try:
            if time.monotonic() >= self._run.lease_until:
                self._run.leave("lease lost")
            self._run.refuse_unless_open()
        except BaseException:
            self._waits.exit(branch)
            raise
        if self._history.replays:
            self._history.asked(call.key)
        saved = self._history.saved.get(call.key)
        if saved is not None:
            self._waits.exit(branch)
        return saved, branch

    def replayed(self, call: Call) -> Resolved | None:
        """Return a call's checkpoint, if it has one. A thread may ask."""
        run = self._run
        if time.monotonic() >= run.lease_until:
            run.loop.call_soon_threadsafe(run.leave, "lease lost")
            raise Suspended("lease lost")
        run.refuse_unless_open()
        if self._history.replays:
            self._history.asked(call.key)
        return self._history.saved.get(call.key)

    async def _save(self, call: Call, value: str) -> Resolved:
        write = self._history.value(call, value)
        await self._run.refusable(self._run.save(write))
        return self._history.remember(call.key, Resolved("done", value))

    async def save_failures(self, before: float = float("inf")) -> None:
        """Save what the task has published, and the failed steps it caught, before."""
        write = self._history.failures(before)
        if write is not None or self._run.publishes:
            await self._run.refusable(self._run.save(write))

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
        """Save what a step returned. Returns it as every replay will see it."""
        text, value_read = codec.roundtrip(value)
        if value_read is not value:
            self._warn_if_changed(call.key, value, value_read)
        await self._save(call, text)
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
            return await result if inspect.isawaitable(result) else result
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

    async def emit(self, call: Call, event: str, payload: str) -> Resolved:
        """Emit an event, with the checkpoint that records it."""
        emit = self._run.services.emit
        return await self._tell(call, partial(emit, self.claimed, call, event, payload))

    async def send(self, call: Call, message: Message) -> Resolved:
        """Send a message, with the checkpoint that records it."""
        send = self._run.services.send
        return await self._tell(call, partial(send, self.claimed, call, message))

    async def _tell(
        self, call: Call, tell: Callable[[], Coroutine[Any, Any, str]]
    ) -> Resolved:
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            await self.save_failures(call.position)
            text = await self._run.refusable(tell())
            return self._history.remember(call.key, Resolved("done", text))
        finally:
            self._waits.exit(branch)

    async def spawn(self, call: Call, queue: str, child: str) -> Resolved:
        """Spawn a child, given as JSON, with the checkpoint that records it."""
        (saved,) = await self.spawn_all([(call, queue, child)])
        return saved

    async def spawn_all(
        self, children: Sequence[tuple[Call, str, str]]
    ) -> list[Resolved]:
        """Spawn children, in one statement for each queue, with their checkpoints."""
        if not children:
            return []
        known = self._history.saved
        missing = [call for call, *_ in children if call.key not in known]
        for call, *_ in children if self._history.replays else ():
            self._history.asked(call.key)
        saved, branch = await self.begin((missing or [children[0][0]])[0])
        if saved is None:
            try:
                await self._spawn_missing(children)
            finally:
                self._waits.exit(branch)
        return [known[call.key] for call, *_ in children]

    async def _spawn_missing(self, children: Sequence[tuple[Call, str, str]]) -> None:
        await self.save_failures(children[0][0].position)
        claimed, history, run = self.claimed, self._history, self._run
        missing = [asked for asked in children if asked[0].key not in history.saved]
        submitted = [
            run.services.spawn(claimed, queue, child) for _, queue, child in missing
        ]
        for (call, *_), answer in zip(missing, submitted, strict=True):
            text = await run.refusable(answer)
            history.remember(call.key, Resolved("done", text))

    def transacting(self, call: Call) -> AsyncTransacting:
        """Return what a transaction step needs of its run."""
        return AsyncTransacting(self, self._run, call)

    # -- publishing ----------------------------------------------------------------

    @property
    def logger(self) -> logging.Logger:
        """The run's own logger."""
        return self._run.logger

    def publish(
        self,
        kind: str,
        prefix: str,
        name: str,
        value: str | None,
        branch: Branch | None,
    ) -> None:
        """Hand in an entry of a stream, or a value. A step's function may do so, too.

        What the task's own code publishes takes a name, as every durable call does.
        """
        run = self._run
        run.refuse_unless_open()
        execution = inside_a_step.get()
        if execution is None or value is None:
            # it has no checkpoint, so it takes no place among those that have
            self._key(kind, f"{prefix}{name}", branch)
        elif execution.in_transaction:
            raise RuntimeError(
                f"{kind} {name!r} is published inside a transaction's function:"
                " publish it before or after the transaction"
            )
        publishing = run.publishing()
        publishing.refuse(name if kind == "stream" else "")
        if kind == "value":
            publishing.hand_in("set", f"{prefix}{name}", execution, value)
            return
        source = f"$stream:{prefix}{name}" if execution is None else execution.step
        publishing.hand_in("write", name, source, execution, value)

    @property
    def is_crowded(self) -> bool:
        """Whether who has published something should wait for it to be saved."""
        return self._run.publishes and self._run.publishing().is_crowded

    async def make_room(self) -> None:
        """Return when what was published is saved, as far as need be."""
        if self.is_crowded:
            await self._run.publishing().thins_out()
        self._run.refuse_unless_open()

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
        claimed = self.claimed
        item = WaitItem(claimed.queue, claimed.task_id, claimed.claim, waits)
        outcome, resolved = await self._run.refusable(lane.submit(item))
        if outcome in _REASONS:
            self._run.leave(_REASONS[outcome])
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
