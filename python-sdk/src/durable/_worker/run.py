"""One task on this worker, from its claim to its end there.

A run ends in one of two ways. Its code ends: then its durable calls are waited for (or
cancelled, if it raised), and the attempt is completed or failed. Or it leaves before
that: it waits, was cancelled, lost its lease, or the worker shuts down. To the code all
four are one, `Suspended`; what counts is the state of the run, never what comes out of
the coroutine.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from durable._json import Unsavable
from durable._names import Names
from durable._values import Codec, changed_in_roundtrip
from durable._worker.failures import (
    error_json,
    is_final,
    mark_recorded,
    step_error_json,
)
from durable._worker.lane import Lane
from durable._worker.saving import Write, checkpoint_json
from durable._worker.waits import Resolved, Wait, Waits
from durable.errors import InvalidArgument, LeaseLost, Suspended, TaskCancelled
from durable.registry import TaskDefinition

if TYPE_CHECKING:
    from durable._application import Application
    from durable._worker.services import Services

__all__ = [
    "Call",
    "Claimed",
    "Run",
    "WaitItem",
    "WaitLane",
    "current_branch",
    "exit_refused",
    "inside_a_step",
]

logger = logging.getLogger("durable.worker")
task_logger = logging.getLogger("durable.task")

_LONGEST_KEY: Final = 512
_PATIENCE: Final = 10.0  # seconds a coroutine may take to end after its run has left

# Set while a step's function runs: steps are leaves.
inside_a_step: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "durable.inside_a_step", default=False
)
_compared: set[tuple[str, str]] = set()

_REASONS: Final = {"cancelled": "cancelled", "lost": "lease lost"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WaitItem:
    """What one run waits for, as JSON."""

    queue: str
    task_id: UUID
    claim: int
    waits: str


WaitLane: TypeAlias = Lane[WaitItem, tuple[str, dict[str, Resolved]]]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A row of `durable.claim_tasks`, its queue, and when it was asked for.

    `asked` is by `time.monotonic()`: the lease counts from then, to be safe.
    """

    queue: str
    asked: float
    task_id: UUID
    claim: int
    name: str
    attempt: int
    params: str
    headers: str | None
    parent_task_id: UUID | None
    spawned_at: datetime
    deadline_at: datetime | None
    available_at: datetime
    claimed_at: datetime
    run_id: UUID


@dataclass(frozen=True, slots=True)
class Call:
    """One durable call of a run: its key, and what was known when it was made."""

    key: str
    position: int
    after: int
    made: float


class Run:
    """What a context calls. Everything here happens on the worker's loop."""

    def __init__(
        self,
        claimed: Claimed,
        definition: TaskDefinition[Any, Any],
        checkpoints: dict[str, Resolved],
        services: Services,
    ) -> None:
        self.claimed = claimed
        self.definition = definition
        self.services = services
        self.loop = asyncio.get_running_loop()
        self.left: Suspended | None = None
        self.lease_until = claimed.asked + services.lease
        self._open_steps: dict[str, asyncio.Task[Any] | None] = {}
        self._threads: set[asyncio.Future[Any]] = set()
        self._checkpoints = checkpoints
        self._failures: list[tuple[int, str, Exception]] = []
        self._names = Names()
        self._position = 0
        self._root: asyncio.Task[tuple[Any, BaseException | None]] | None = None
        self._over = False  # the code has ended, its last calls perhaps not
        self._ended = False
        self._waits = Waits(self._suspend, self._poll)

    # -- what a context calls ------------------------------------------------------

    @property
    def run_id(self) -> UUID:
        """The id of this attempt."""
        return self.claimed.run_id

    @cached_property
    def headers(self) -> Mapping[str, Any]:
        """What was spawned with the task beside its params."""
        found: Mapping[str, Any] = json.loads(self.claimed.headers or "{}")
        return found

    @property
    def state(self) -> Any:
        """What the application's lifespan yielded."""
        return self.services.state

    @property
    def application(self) -> Application:
        """The application whose worker this is."""
        return self.services.application

    def take(self, kind: str, name: str, branch: object) -> Call:
        """Take the name of a call that is being made; Suspended once it is over."""
        self._refuse_unless_open()
        if inside_a_step.get():
            raise RuntimeError(
                f"{kind or 'step'} {name!r} is called inside a step's function: "
                "a step is a leaf, make durable calls from the task itself"
            )
        if branch is None and self.definition.is_async:
            raise RuntimeError("the context is used on another thread than its own")
        if branch is not None and asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("the context is used on another event loop than its own")
        key = self._names.take(kind, name, branch)
        if len(key.encode()) > _LONGEST_KEY:
            raise InvalidArgument(f"a name of over {_LONGEST_KEY} bytes: {key[:40]!r}…")
        self._position += 1
        return Call(key, self._position, len(self._checkpoints), time.monotonic())

    async def begin(self, call: Call) -> Resolved | None:
        """Begin a call. Returns its checkpoint, if it has one; else it must `close`."""
        await self._waits.enter(self._own_branch())
        try:
            if time.monotonic() >= self.lease_until:
                self.leave("lease lost")
            self._refuse_unless_open()
        except BaseException:
            self.close()
            raise
        saved = self._checkpoints.get(call.key)
        if saved is not None:
            self.close()
        return saved

    def close(self) -> None:
        """End a call that has begun."""
        self._waits.exit(asyncio.current_task())

    async def invoke(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call a step's function: on the loop, or in a thread if it is synchronous."""
        token = inside_a_step.set(True)
        try:
            if _is_async(function):
                return await function(*args)
            result = await self._in_thread(function, args)
            return await result if inspect.isawaitable(result) else result
        except asyncio.CancelledError as error:
            raise self.left or error from None
        except SystemExit as error:  # in a branch, it would tear down the loop
            raise exit_refused(error) from error
        finally:
            inside_a_step.reset(token)

    async def _in_thread(
        self, function: Callable[..., Any], args: Sequence[Any]
    ) -> Any:
        """Call a function in a thread; the run is busy until it returns, whatever."""
        work = self.services.threads.run(function, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                self._waits.hold()
                self._threads.add(work)
                work.add_done_callback(self._thread_returned)
            raise

    def _thread_returned(self, work: asyncio.Future[Any]) -> None:
        self._threads.discard(work)
        self._waits.let_go()
        if not work.cancelled():
            work.exception()  # what it brought is discarded

    async def save_value(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save what a step returned. Returns it as every replay will see it."""
        text, read = codec.roundtrip(value)
        self._warn_if_changed(call.key, value, read)
        await self._save(call, text)
        return read

    def keep_failure(self, call: Call, error: Exception) -> None:
        """Keep a step's failure, to be saved with the next thing its task saves.

        Only a call made after it shows that the task has caught it; a failure that
        ends the attempt is not saved, and the step is tried again.
        """
        text = self._checkpoint(call, "failed", step_error_json(error))
        self._failures.append((self._position, text, error))

    async def begin_step(self, call: Call) -> Resolved | None:
        """Begin a step that stays open: until `complete_step`, the run is busy."""
        saved = await self.begin(call)
        if saved is None:
            self._open_steps[call.key] = asyncio.current_task()
        return saved

    async def complete_step(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save the value of an open step, and close it."""
        self._refuse_unless_open()
        if call.key not in self._open_steps:
            raise RuntimeError(f"step {call.key!r} is not open")
        del self._open_steps[call.key]
        try:
            return await self.save_value(call, value, codec)
        finally:
            self.close()

    async def wait(self, call: Call, wait: Wait) -> Resolved:
        """Park until something happens. Ends in Suspended if the run leaves first."""
        if asyncio.current_task() in self._open_steps.values() or (
            self._open_steps and not self.definition.is_async
        ):
            opened = ", ".join(sorted(self._open_steps))
            raise RuntimeError(f"a wait while a step is open: complete {opened} first")
        saved = await self.begin(call)
        if saved is not None:
            return saved
        try:
            return self._remember(call.key, await self._waits.park(wait))
        finally:
            self.close()

    async def record(self, call: Call, value: str) -> Resolved:
        """Save a value that is JSON already."""
        saved = await self.begin(call)
        if saved is not None:
            return saved
        try:
            return await self._save(call, value)
        finally:
            self.close()

    async def emit(self, call: Call, event: str, payload: str) -> Resolved:
        """Emit an event, with the checkpoint that records it."""
        saved = await self.begin(call)
        if saved is not None:
            return saved
        try:
            await self._save_failures()
            emitting = self.services.emit(self.claimed, call, event, payload)
            text = await self._refusable(emitting)
            return self._remember(call.key, Resolved("done", text))
        finally:
            self.close()

    async def spawn(self, call: Call, child: str) -> Resolved:
        """Spawn a child, given as JSON, with the checkpoint that records it."""
        (saved,) = await self.spawn_all([(call, child)])
        return saved

    async def spawn_all(self, children: Sequence[tuple[Call, str]]) -> list[Resolved]:
        """Spawn children in one statement, each with its checkpoint."""
        if not children:
            return []
        missing = [call for call, _ in children if call.key not in self._checkpoints]
        if await self.begin((missing or [children[0][0]])[0]) is None:
            try:
                await self._spawn_missing(children)
            finally:
                self.close()
        return [self._checkpoints[call.key] for call, _ in children]

    async def _spawn_missing(self, children: Sequence[tuple[Call, str]]) -> None:
        await self._save_failures()
        claimed = self.claimed
        missing = [pair for pair in children if pair[0].key not in self._checkpoints]
        submitted = [
            self.services.spawning.submit(
                (claimed.queue, claimed.task_id, claimed.claim, child)
            )
            for _, child in missing
        ]
        for (call, _), answer in zip(missing, submitted, strict=True):
            text = await self._refusable(answer)
            self._remember(call.key, Resolved("done", text))

    async def heartbeat(self) -> None:
        """Extend the lease now. Raises Suspended if it is lost."""
        self._refuse_unless_open()
        await self._refusable(self.services.extend(self))

    def database_now(self) -> datetime:
        """Return the time of the database: that of the claim, and what passed since."""
        passed = time.monotonic() - self.claimed.asked
        return self.claimed.claimed_at + timedelta(seconds=passed)

    # -- what the worker calls -----------------------------------------------------

    def leave(self, reason: str) -> None:
        """End the run here before its code has ended: the claim is over."""
        if self.left is not None or self._ended:
            return
        self.left = Suspended(reason)
        self._waits.release(self.left)
        self._cancel_branches()
        if self._root is not None and self.definition.is_async:
            self._root.cancel(reason)

    async def execute(self, body: Callable[[], Any]) -> None:
        """Run the task's code, and save how it ended."""
        self._root = asyncio.create_task(
            _outcome(body), name=f"durable {self.claimed.name}"
        )
        try:
            value, error = await self._until_it_ends(self._root)
            if self.left is None:
                await self._conclude(value, error)
            while self._threads:
                await asyncio.wait(self._threads)
        finally:
            self._over = self._ended = True
            self._waits.release(Suspended("ended"))

    async def _until_it_ends(
        self, root: asyncio.Task[tuple[Any, BaseException | None]]
    ) -> tuple[Any, BaseException | None]:
        while not root.done():
            timeout = (
                _PATIENCE if self.left is not None and self.definition.is_async else 1.0
            )
            done, _ = await asyncio.wait({root}, timeout=timeout)
            if not done and self.left is not None and timeout == _PATIENCE:
                logger.error(
                    "task %s has left (%s), but its code goes on: left behind\n%s",
                    self.claimed.task_id,
                    self.left.reason,
                    _stack(root),
                )
                return None, self.left
        if root.cancelled():
            return None, asyncio.CancelledError("cancelled from outside")
        return root.result()

    async def _conclude(self, value: Any, error: BaseException | None) -> None:
        self._over = True
        await self._waits.end(Suspended("ended"))
        if error is not None:
            self._cancel_branches()
        while self._open_steps:
            self._open_steps.popitem()
            self._waits.let_go()
        await self._waits.idle()
        if self.left is not None:
            return None
        if error is None:
            try:
                return await self._end(result=self.definition.result_codec.dump(value))
            except (Unsavable, psycopg.Error) as refused:
                error = mark_recorded(refused)
        final = is_final(error, self.definition.no_retry)
        self._log_failure(error)
        return await self._end(error=error_json(error), final=final)

    def _cancel_branches(self) -> None:
        """Cancel what is busy, but not the task's own coroutine, nor the caller."""
        spared = (self._root, asyncio.current_task())
        for task in {*self._waits.busy(), *self._open_steps.values()}:
            if task is not None and task not in spared:
                task.cancel()

    def adopt(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a call that a synchronous task has made from its thread."""
        return self.loop.create_task(call)

    def _log_failure(self, error: BaseException) -> None:
        claimed = self.claimed
        task_logger.warning(
            "attempt %d of %s %s failed: %s",
            claimed.attempt,
            claimed.name,
            claimed.task_id,
            error,
            exc_info=error,
            extra={
                "queue": claimed.queue,
                "task_id": str(claimed.task_id),
                "run_id": str(claimed.run_id),
                "attempt": claimed.attempt,
            },
        )

    async def fail(self, error: BaseException) -> None:
        """Fail the task for good, before its code has begun."""
        await self._end(error=error_json(error), final=True)

    async def _end(self, **ending: Any) -> None:
        caught = self._caught() if "result" in ending else ()
        outcome = await self.services.saving.submit(self._write(caught, **ending))
        if outcome != "ok":
            logger.warning(
                "the end of task %s came too late: %s", self.claimed.task_id, outcome
            )

    # -- saving, under the claim ---------------------------------------------------

    async def _save(self, call: Call, value: str) -> Resolved:
        caught = self._caught(before=call.position)
        mine = self._checkpoint(call, "done", value)
        await self._refusable(self.services.saving.submit(self._write((*caught, mine))))
        return self._remember(call.key, Resolved("done", value))

    async def _save_failures(self) -> None:
        caught = self._caught()
        if caught:
            await self._refusable(self.services.saving.submit(self._write(caught)))

    def _caught(self, before: int | None = None) -> tuple[str, ...]:
        """Take the failures that the task has caught. Recorded, they are final."""
        caught = [kept for kept in self._failures if before is None or kept[0] < before]
        self._failures = [kept for kept in self._failures if kept not in caught]
        for _, _, error in caught:
            mark_recorded(error)
        return tuple(text for _, text, _ in caught)

    async def _suspend(self, waits: str) -> dict[str, Resolved] | None:
        await self._save_failures()
        return await self._ask(self.services.suspending, waits)

    async def _poll(self, waits: str) -> dict[str, Resolved] | None:
        return await self._ask(self.services.polling, waits)

    async def _ask(self, lane: WaitLane, waits: str) -> dict[str, Resolved] | None:
        claimed = self.claimed
        item = WaitItem(claimed.queue, claimed.task_id, claimed.claim, waits)
        outcome, resolved = await self._refusable(lane.submit(item))
        if outcome == "suspended":
            self.leave("waiting")
        elif outcome in ("cancelled", "lost"):
            self.leave(_REASONS[outcome])
        self._checkpoints.update(resolved)
        return None if self.left is not None else resolved

    async def _refusable(self, answer: Awaitable[T]) -> T:
        """Await a write; if the claim is over, so is the run."""
        try:
            outcome = await answer
        except (LeaseLost, TaskCancelled) as error:
            self._give_up("cancelled" if isinstance(error, TaskCancelled) else "lost")
        except asyncio.CancelledError as error:
            raise self.left or error from None
        if outcome in ("cancelled", "lost"):
            self._give_up(str(outcome))
        return outcome

    def _give_up(self, outcome: str) -> NoReturn:
        self.leave(_REASONS[outcome])
        raise self.left or Suspended(_REASONS[outcome])

    def _own_branch(self) -> asyncio.Task[Any] | None:
        """Return the asyncio task that makes calls when no branch does."""
        return self._root if self.definition.is_async else asyncio.current_task()

    def _refuse_unless_open(self) -> None:
        if self.left is not None:
            raise self.left
        if self._over:
            raise RuntimeError("the context is used after its run has ended")

    def _remember(self, key: str, saved: Resolved) -> Resolved:
        self._checkpoints[key] = saved
        return saved

    def _write(self, checkpoints: tuple[str, ...], **ending: Any) -> Write:
        claimed = self.claimed
        return Write(
            claimed.queue, claimed.task_id, claimed.claim, checkpoints, **ending
        )

    def _checkpoint(self, call: Call, state: str, value: str) -> str:
        return checkpoint_json(
            self.claimed.task_id,
            self.claimed.claim,
            call.key,
            value,
            state=state,
            position=call.position,
            after=call.after,
            duration_ms=round((time.monotonic() - call.made) * 1000),
        )

    def _warn_if_changed(self, key: str, before: object, after: object) -> None:
        step = (self.claimed.name, key.partition("#")[0])
        if step in _compared:
            return
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


def current_branch() -> asyncio.Task[Any] | None:
    """Return the asyncio task that makes a call; None on a thread without a loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def exit_refused(error: SystemExit) -> RuntimeError:
    """Return what a step's function fails with that wants to end the process."""
    return RuntimeError(f"the step's function called sys.exit({error.code!r})")


async def _outcome(body: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Run a task's code; whatever comes out of it is an outcome, never an upheaval."""
    try:
        result = body()
        return (await result if inspect.isawaitable(result) else result), None
    except BaseException as error:  # noqa: BLE001 - also SystemExit and cancellation
        return None, error


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object's own
    )


def _stack(task: asyncio.Task[Any]) -> str:
    """Return where a task is; of a coroutine, its own `print_stack` shows one frame."""
    lines: list[str] = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        lines += traceback.format_stack(frame, limit=1)
        awaited = awaited.cr_await
    return "".join(lines)
