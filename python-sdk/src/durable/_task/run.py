"""The run of one claimed task on a worker, and the durable calls of its code.

A call takes its name when it is made and begins when it is awaited. A call that has a
checkpoint returns it. Any other call is performed, and saved before the task's code
continues. The run does not exit while a call is in progress.

A run ends in one of two ways:

- The task's code returns or raises. The run waits for the durable calls still in
  progress (or cancels them, if the code raised) and completes or fails the attempt.
- The run exits earlier: the task suspends, is cancelled or loses its lease, or the
  worker shuts down. The code gets `Suspended` in all four cases. The state of the run
  decides what happens next, not what the coroutine returns or raises.

One asyncio task executes the code and then saves its outcome. Cancelling that task is
meant for the code: a cancellation that arrives after the code has ended is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias, TypeVar
from uuid import UUID

import psycopg

from durable._core import sql
from durable._core.annotations import is_async
from durable._core.arguments import LONGEST_KEY, Names
from durable._core.messages import Message
from durable._core.outcomes import Resolved, read
from durable._core.recorded_errors import (
    error_json,
    error_text,
    is_final,
    mark_recorded,
)
from durable._core.sql import Statement
from durable._core.values import Codec, Unsavable
from durable._db.batcher import Batcher
from durable._db.forks import end_fork_of_worker
from durable._task.branches import Branch, Branches, Wait
from durable._task.checkpoints import (
    Call,
    Checkpoints,
    Execution,
    Failed,
    Write,
    WriteGate,
    inside_a_step,
)
from durable._task.publisher import Publisher, TaskLogger, current_run
from durable._task.replay import ReplayChecker, ReplayOrder, ResumeQueue
from durable.errors import (
    DurableError,
    InvalidArgument,
    LeaseLost,
    Suspended,
    TaskCancelled,
    UnreadablePayload,
)
from durable.middleware import Operation, RunInfo, Sending, around
from durable.registry import TaskDefinition

if TYPE_CHECKING:
    from durable._task.services import Services

__all__ = ["Child", "Claimed", "Run", "refused_exit"]

logger = logging.getLogger("durable.worker")
task_logger = logging.getLogger("durable.task")

# Errors with which the database refuses a call. The task's code may catch them.
_REFUSALS: Final = (DurableError, psycopg.Error)
_NO_HOOKS: Final = contextlib.nullcontext()
_FIRST_CLAIMS: Final = 1 << 30  # numbers above it are first claims
_EXIT_TIMEOUT: Final = 10.0  # seconds for the code to end after the run has exited
_MAX_REFUSALS: Final = 100  # refused calls; every further call blocks forever
_RELEASE_SECONDS: Final = 60.0  # until a task is claimed again
_REASONS: Final = {"suspended": "waiting", "lost": "lease lost"}
_publisher_lock: Final = threading.Lock()  # steps may publish from several threads

T = TypeVar("T")
Start: TypeAlias = "Callable[[Run, Callable[..., Any], Any], Awaitable[Any]]"


class Claimed(NamedTuple):
    """A row of `durable.claim_tasks`, with its queue and the time of the request.

    `requested_at` is the `time.monotonic()` at which the claim was sent. The run counts
    the lease from then, so that it ends here before it ends in the database.
    """

    queue: str
    requested_at: float
    task_id: UUID
    claim: int
    name: str
    attempt: int
    params: str
    headers: str | None
    parent_task_id: UUID | None
    spawned_at: datetime
    expires_at: datetime | None
    available_at: datetime
    claimed_at: datetime
    run_id: UUID

    @property
    def is_first_claim(self) -> bool:
        """True if the task was never claimed before, so it has no checkpoints."""
        return self.claim > _FIRST_CLAIMS


class Child(NamedTuple):
    """A child to be spawned; `text` is its request as JSON."""

    call: Call
    name: str
    task: str
    queue: str
    text: str
    codec: Codec[Any]


class Run:
    """One claim of a task, on the worker's loop.

    `code_ended` is called once, after the task's code has ended and before its outcome
    is saved. `ended` is called once, when the worker is done with the task.
    """

    def __init__(
        self,
        claimed: Claimed,
        definition: TaskDefinition[Any, Any],
        checkpoints: dict[str, Resolved],
        services: Services,
        *,
        code_ended: Callable[[], None] = lambda: None,
        ended: Callable[[Run], None] = lambda _: None,
    ) -> None:
        self.claimed = claimed
        self.definition = definition
        self.services = services
        self.loop = services.loop
        self.exit_reason: Suspended | None = None
        self.code_done = False  # its last durable calls may still be in progress
        self.completed = False  # by a transaction step
        self.is_runaway = False  # the code keeps making calls that are refused
        self.lease_until = claimed.requested_at + services.lease
        self.lease_pauses = 0  # while it is above 0, the lease is not extended
        self.unreadable: UnreadablePayload | None = None  # of a wait's result
        self.checkpoints = Checkpoints(
            claimed, checkpoints, services.application.payloads
        )
        self.checker: ReplayChecker | None = None  # a first claim has none
        if checkpoints:
            self.checker = ReplayChecker(
                self.checkpoints, claimed, definition.replay_check
            )
        self.branches = Branches(self)
        self.task: asyncio.Task[None] | None = None  # executes the run
        self._names = Names()
        self._position = 0  # of the last call
        self._thread: int | None = None  # that a synchronous task makes its calls in
        self._headers: Mapping[str, Any] | None = None
        self._write_gate = WriteGate(services.loop)
        self._resume_queue = ResumeQueue(services.loop)
        self._replay_order: ReplayOrder | None = None
        self._code_runs = False
        self._exit_timer: asyncio.TimerHandle | None = None
        self._refusals = 0
        self.context: Any = None  # that of the task's code, for middleware
        self.failed_tries: dict[str, int] = {}  # of steps with retries
        self._step_hooks = services.application.hooks.run_step
        self._spawns: dict[str, Batcher[str, str]] = {}  # by the children's queue
        self._logger: logging.Logger | None = None
        self._publisher: Publisher | None = None  # made on first use
        self._code_ended: Callable[[], None] | None = code_ended
        self._ended: Callable[[Run], None] | None = ended

    @property
    def root(self) -> Branch | None:
        """The asyncio task of the task's coroutine; None for a synchronous task."""
        return self.task if self.definition.is_async else None

    @property
    def is_replaying(self) -> bool:
        """Whether the last call was a recorded one, and more of those remain."""
        return self.checker is not None and self.checker.is_replaying

    @property
    def attempt(self) -> int:
        """The number of the attempt. Task code that reads it may depend on it."""
        if self.checker is not None and not inside_a_step.get():
            self.checker.note_attempt_read()
        return self.claimed.attempt

    @property
    def headers(self) -> Mapping[str, Any]:
        """The task's headers, with those that durable sets itself."""
        if self._headers is None:
            self._headers = json.loads(self.claimed.headers or "{}")
        return self._headers or {}

    @property
    def _claim(self) -> tuple[str, UUID, int]:
        """The claim, as statements take it."""
        return self.claimed.queue, self.claimed.task_id, self.claimed.claim

    @property
    def ids(self) -> dict[str, Any]:
        """The fields that identify the run in log records."""
        claimed = self.claimed
        return {
            "queue": claimed.queue,
            "task_id": str(claimed.task_id),
            "task_name": claimed.name,
            "run_id": str(claimed.run_id),
            "attempt": claimed.attempt,
        }

    @property
    def info(self) -> RunInfo:
        """The facts for middleware, with the step of the caller's context."""
        claimed, execution = self.claimed, inside_a_step.get()
        step = None if execution is None else execution.step
        return RunInfo(
            attempt=claimed.attempt,
            resumed=not claimed.is_first_claim,
            spawned_at=claimed.spawned_at,
            available_at=claimed.available_at,
            claimed_at=claimed.claimed_at,
            claim=claimed.claim,
            run_id=claimed.run_id,
            step=step,
            step_try=1 if step is None else self.failed_tries.get(step, 0) + 1,
        )

    def database_now(self) -> datetime:
        """Return the database's time: that of the claim plus the time since."""
        passed = time.monotonic() - self.claimed.requested_at
        return self.claimed.claimed_at + timedelta(seconds=passed)

    # -- making a call -------------------------------------------------------------

    def take(self, kind: str, name: str) -> Call:
        """Name a call that is being made. Raises Suspended if the run has exited."""
        if self.is_runaway:  # the call blocks when it is awaited
            return Call(name, self._position, 0, time.monotonic())
        key, branch = self._take_key(kind, name)
        return self._new_call(key, branch)

    def take_patch(self, name: str) -> Call | None:
        """Name a patch; return None if the task ran past it before it was added."""
        if self.is_runaway:
            return self.take("patch", name)
        key, branch = self._take_key("patch", name)
        checker = self.checker
        if checker is not None and checker.has_remaining and not checker.has(key):
            return None
        return self._new_call(key, branch)

    def accept_patch(self, name: str) -> None:
        """Replay a patch if it is recorded."""
        key, branch = self._take_key("patch", name)
        if self.checker is not None and self.checker.has(key):
            self._new_call(key, branch)
            if self._replay_order is not None:
                self._mark_replayed(key, self._replay_order)

    def _new_call(self, key: str, branch: Branch | None) -> Call:
        checkpoints, checker = self.checkpoints, self.checker
        position = self._position + 1
        if checker is not None:
            own = branch is self.root
            position = checker.check_call(key, position, branch, own=own)
            if self._replay_order is None and checker.has(key):
                checkpoints.uncounted -= 1
        self._position = position
        after = len(checkpoints.saved) - checkpoints.uncounted
        return Call(key, position, after, time.monotonic())

    def _take_key(self, kind: str, name: str) -> tuple[str, Branch | None]:
        """Return the key of a call, and the branch that makes it."""
        self.check_open()
        if inside_a_step.get() is not None:
            raise RuntimeError(
                f"{kind or 'step'} {name!r} is called inside a step's function: "
                "a step is a leaf, make durable calls from the task itself"
            )
        branch = self._calling_branch()
        key = self._names.take(kind, name, branch)
        # a character has at most four bytes
        if len(key) > LONGEST_KEY // 4 and len(key.encode()) > LONGEST_KEY:
            raise InvalidArgument(f"a name of over {LONGEST_KEY} bytes: {key[:40]!r}…")
        return key, branch

    def _calling_branch(self) -> Branch | None:
        """Return the asyncio task that makes a call; None in a synchronous task."""
        here = threading.get_ident()
        if not self.definition.is_async:
            self._thread = self._thread or here
            if self._thread == here:
                return None
        elif here == self.services.thread:
            branch = asyncio.current_task(self.loop)
            if branch is not None:
                return branch
        elif _has_loop():
            raise RuntimeError("the context is used in another event loop than its own")
        raise RuntimeError("the context is used in another thread than its own")

    # -- one call ------------------------------------------------------------------

    async def begin(self, call: Call) -> tuple[Resolved | None, Branch]:
        """Begin a call and return its checkpoint, if there is one.

        Otherwise the caller must end the call by `branches.exit(branch)`.
        """
        if self.is_runaway:
            await self._block_forever()
        branches = self.branches
        branches.unawaited.pop(call.position, None)
        branch = branches.try_enter(self.root) or await branches.enter_later()
        saved: Resolved | None = None
        try:
            if time.monotonic() >= self.lease_until:
                self.exit("lost")
            self.check_open()
            saved = self.checkpoints.saved.get(call.key)
            if saved is not None:
                await self._replay(call)
            elif self._replay_order:
                await self.under_claim(self._replay_order.wait_until_replayed())
        except BaseException:
            branches.exit(branch)
            raise
        if saved is not None:
            branches.exit(branch)
        return saved, branch

    async def _replay(self, call: Call) -> None:
        """Wait until it is the turn of a recorded call to return."""
        branches, order = self.branches, self._replay_order
        if branches.unawaited or branches.starting is not None:
            await self.under_claim(branches.let_others_start())
        if order is not None:
            at_once = branches.only_root and order.try_take(call.key)
            # if nothing is ready to run, there is nothing to yield to
            if not at_once or getattr(self.loop, "_ready", None):
                await self.under_claim(order.wait_turn(call.key))
            self._mark_replayed(call.key, order)

    def _mark_replayed(self, key: str, order: ReplayOrder) -> None:
        """Count a recorded call as complete in this run, too."""
        order.discard(key)
        if self.checker is not None and self.checker.has(key):
            self.checkpoints.uncounted -= 1

    async def resume(self, call: Call) -> None:
        """Wait until it is the turn of a saved call to return to the task's code."""
        if not self.branches.only_root:
            await self.under_claim(self._resume_queue.wait_turn(call.position))

    def check_open(self) -> None:
        """Raise if the run has ended.

        Raises Suspended if the run has exited, RuntimeError if its code has ended, and
        NonDeterminism again if the replay check has failed.
        """
        refused: BaseException | None = self.exit_reason
        if refused is None and self.checker is not None:
            refused = self.checker.refused
        if refused is None and (self.code_done or self.completed):
            refused = RuntimeError("the context is used after its run has ended")
        if refused is not None:
            self._refusals += 1
            self.is_runaway = self._refusals >= _MAX_REFUSALS
            raise refused

    # -- saving --------------------------------------------------------------------

    async def under_claim(self, answer: Awaitable[T]) -> T:
        """Await a write, and exit if it reports that the claim has ended."""
        try:
            outcome = await answer
        except LeaseLost:
            self._raise_claim_ended("lost")
        except TaskCancelled:
            self._raise_claim_ended("cancelled")
        except asyncio.CancelledError as error:
            raise self.exit_reason or error from None
        if outcome in ("cancelled", "lost"):
            self._raise_claim_ended(str(outcome))
        return outcome

    def _raise_claim_ended(self, outcome: str) -> NoReturn:
        self.exit(outcome)
        raise self.exit_reason or Suspended(_REASONS.get(outcome, outcome))

    async def write(
        self, group: str, send: Callable[..., Awaitable[T]], *args: Any
    ) -> T:
        """Write a checkpoint when it is the turn of its group of statements."""
        turn = self._write_gate.try_enter(group)
        if turn is None:
            turn = await self.under_claim(self._write_gate.enter(group))
        try:
            return await self.under_claim(send(*args))
        finally:
            self._write_gate.exit(turn)

    def save(self, write: Write | None = None) -> Awaitable[str]:
        """Save a write together with pending published entries, or only those."""
        if self._publisher is not None or write is None:
            return self.publisher().save(write)
        return self.services.flusher.submit(write)

    async def save_failures(self, before: float = float("inf")) -> None:
        """Save pending published entries, and failures caught before a position."""
        if self.checkpoints.failures or self._publisher is not None:
            write = self.checkpoints.failures_write(before)
            if write is not None or self._publisher is not None:
                await self.write("flush", self.save, write)
                self.checkpoints.forget_failures(before)

    async def _save_value(self, call: Call, value: str) -> Resolved:
        write = self.checkpoints.value_write(call, value)
        await self.write("flush", self.save, write)
        if self.checkpoints.failures:
            self.checkpoints.forget_failures(call.position)
        await self.resume(call)
        return self.checkpoints.add(call.key, Resolved("done", value))

    def keep_failure(self, call: Call, error: Exception) -> Exception:
        """Keep the failure of a call, to be saved with the next write of the task.

        Returns the exception to raise: the same that every replay will raise.
        """
        return self.checkpoints.keep_failure(call, self._position, error)

    async def record(self, call: Call, value: str) -> Resolved:
        """Save a value that is already JSON."""
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            return await self._save_value(call, value)
        finally:
            self.branches.exit(branch)

    # -- steps ---------------------------------------------------------------------

    async def step(
        self,
        call: Call,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Failed | None = None,
    ) -> Any:
        """Call a step's function, unless the step is saved, and save the return value.

        `failed` maps an exception of the function to the one that the task gets. The
        default is to keep the exception as the step's failure.
        """
        saved, branch = await self.begin(call)
        if saved is not None:
            return read(saved, codec)
        try:
            try:
                value = await self.invoke(function, args, Execution(call.key))
            except Exception as error:  # noqa: BLE001 - it is the user's own code
                await self.resume(call)
                raised = failed(error) if failed else self.keep_failure(call, error)
            else:
                return await self._save_result(call, value, codec)
            raise raised  # outside `except`, so that its recorded context is kept
        finally:
            self.branches.exit(branch)

    async def save_step(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save the return value of a step's function that ran in the task's thread."""
        saved, branch = await self.begin(call)
        if saved is not None:
            return read(saved, codec)
        try:
            return await self._save_result(call, value, codec)
        finally:
            self.branches.exit(branch)

    async def _save_result(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save a step's return value, and return it as every replay will.

        If the value cannot be saved, the error is kept as the step's failure, because
        the step's function has already run.
        """
        try:
            source = (call.key.partition("#")[0], self.claimed.name)
            text, value_read = codec.roundtrip(value, source)
            await self._save_value(call, text)
        except Exception as error:  # noqa: BLE001 - it is the user's own code
            raised = self.keep_failure(call, error)
        else:
            return value_read
        raise raised

    async def invoke(
        self, function: Callable[..., Any], args: Sequence[Any], execution: Execution
    ) -> Any:
        """Call a step's function on the loop, or in a thread if it is synchronous."""
        token = inside_a_step.set(execution)
        try:
            if self._step_hooks:
                with self.around_step(execution):
                    return await self._call(function, args, execution)
            if is_async(function):
                return await function(*args)
            return await self._call(function, args, execution)
        except asyncio.CancelledError as error:
            raise self.exit_reason or error from None
        except SystemExit as error:  # in a branch, it would stop the loop
            raise refused_exit(error) from error
        finally:
            inside_a_step.reset(token)

    async def _call(
        self, function: Callable[..., Any], args: Sequence[Any], execution: Execution
    ) -> Any:
        if is_async(function):
            return await function(*args)
        result = await self._in_thread(function, args)
        if inspect.isawaitable(result):
            return await result
        if execution.in_transaction:
            raise TypeError(
                "a transaction's function in an async task must be async: what it does"
                " on its connection has to be awaited"
            )
        return result

    def around_step(
        self, execution: Execution
    ) -> contextlib.AbstractContextManager[None]:
        """Return the middleware around a call of a step's function."""
        if not self._step_hooks:
            return _NO_HOOKS
        return around(self._step_hooks, self, self.context, execution.step)

    async def _in_thread(
        self, function: Callable[..., Any], args: Sequence[Any]
    ) -> Any:
        """Call a function in a thread. The run is busy until it returns."""
        work = self.services.threads.run(function, *args)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                self.branches.track_thread(work)
            raise

    def replayed(self, call: Call) -> Resolved | None:
        """Return the checkpoint of a call, if there is one. Safe in any thread."""
        if time.monotonic() >= self.lease_until:
            self.loop.call_soon_threadsafe(self.exit, "lost")
            raise Suspended(_REASONS["lost"])
        self.check_open()
        return self.checkpoints.saved.get(call.key)

    async def begin_step(self, call: Call) -> Resolved | None:
        """Begin a step that stays open. The run is busy until `complete_step`."""
        saved, branch = await self.begin(call)
        if saved is None:
            self.branches.open_steps[call.key] = branch
        return saved

    async def complete_step(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save the value of an open step, and close it."""
        if self.is_runaway:
            await self._block_forever()
        self.check_open()
        branch = self.branches.open_steps.pop(call.key, None)
        if branch is None:
            raise RuntimeError(f"step {call.key!r} is not open")
        try:
            return await self._save_result(call, value, codec)
        finally:
            self.branches.exit(branch)

    async def check_no_open_step(self) -> None:
        """Raise RuntimeError if this branch is about to wait while a step is open."""
        opened = self.branches.open_steps
        if opened and (
            not self.definition.is_async or asyncio.current_task() in opened.values()
        ):
            names = ", ".join(sorted(opened))
            raise RuntimeError(f"a step is open: complete {names} first")

    # -- transaction steps ---------------------------------------------------------

    async def begin_transaction(
        self, call: Call, *, completes: bool
    ) -> tuple[Resolved | None, Branch]:
        """Begin a transaction step and return its checkpoint, as `begin` does.

        Without one, the caller must end it by `end_transaction`. Raises NonDeterminism
        if the task would complete without recorded calls.
        """
        saved, branch = await self.begin(call)
        if saved is None:
            try:
                if completes and self.checker is not None:
                    self.checker.check_completion(branch if self.root else None)
                await self.save_failures(call.position)
            except BaseException:
                self.branches.exit(branch)
                raise
        return saved, branch

    async def end_transaction(
        self, call: Call, branch: Branch, saved: Resolved | None, refused: str | None
    ) -> None:
        """End a transaction step with the checkpoint that it has committed, if any.

        Exits and raises Suspended if its claim was `refused`: cancelled or lost.
        """
        try:
            if refused is not None:
                self._raise_claim_ended(refused)
            if saved is not None:
                await self.resume(call)
                self.checkpoints.add(call.key, saved)
        finally:
            self.branches.exit(branch)

    async def heartbeat(self) -> None:
        """Extend the lease now. Raises Suspended if it is lost."""
        if self.is_runaway:
            await self._block_forever()
        self.check_open()
        sent_at = time.monotonic()
        if await self.under_claim(self.services.extend(self.claimed)) == "ok":
            self.lease_until = sent_at + self.services.lease

    # -- waits, events, messages, children -----------------------------------------

    async def wait(self, wait: Wait) -> Resolved:
        """Park until the wait is resolved. Raises Suspended if the run exits first."""
        call = wait.call
        await self.check_no_open_step()
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            outcome = await self.branches.park(branch, wait)
            try:
                await self.resume(call)
            except asyncio.CancelledError:
                if self.exit_reason is None:
                    self.branches.withdraw(wait)
                raise
            return self.checkpoints.add(call.key, outcome)
        except _REFUSALS as error:
            refused = self.keep_failure(call, error)
        finally:
            self.branches.exit(branch)
        raise refused

    async def emit(self, call: Call, event: str, payload: str) -> Resolved:
        """Emit an event, with the checkpoint that records it."""

        def statement() -> Statement:
            sealed = self.services.application.payloads.encode(payload)
            place = call.position, call.after
            return sql.emit_from_task(*self._claim, call.key, event, sealed, *place)

        sending = self._sending("emit", self.claimed.queue, event)
        return await self._effect(call, statement, sending)

    async def send(self, call: Call, message: Message) -> Resolved:
        """Send a message, with the checkpoint that records it."""

        def statement() -> Statement:
            place = call.position, call.after
            return sql.send_from_task(*self._claim, call.key, *message, *place)

        queue, receiver = message.queue, [message.task_id]
        sending = self._sending("send", queue, message.topic, ids=receiver)
        own_queue = queue == self.claimed.queue
        return await self._effect(call, statement, sending, own_queue=own_queue)

    def _sending(
        self,
        operation: Operation,
        queue: str,
        name: str | None,
        count: int = 1,
        ids: Sequence[UUID] = (),
    ) -> contextlib.AbstractContextManager[Sending | None]:
        """Return the middleware around what the task sends."""
        hooks = self.services.application.hooks
        return hooks.sending(operation, queue, name, count, ids=ids, run=self)

    async def _effect(
        self,
        call: Call,
        statement: Callable[[], Statement],
        sending: contextlib.AbstractContextManager[Sending | None],
        *,
        own_queue: bool = True,
    ) -> Resolved:
        saved, branch = await self.begin(call)
        if saved is not None:
            return saved
        try:
            await self.save_failures(call.position)
            fetch = partial(self.services.call_connection.fetch, own_queue=own_queue)
            with sending:
                ((is_new,),) = await self.write("effect", fetch, statement())
            await self.resume(call)
            text = "true" if is_new else "false"
            return self.checkpoints.add(call.key, Resolved("done", text))
        except _REFUSALS as error:
            refused = self.keep_failure(call, error)
        finally:
            self.branches.exit(branch)
        raise refused

    async def spawn(self, children: Sequence[Child]) -> list[Resolved]:
        """Spawn children of one queue in one statement, with their checkpoints."""
        if not children:
            return []
        known = self.checkpoints.saved
        calls = [child.call for child in children]
        first = next((call for call in calls if call.key not in known), calls[0])
        if self._replay_order is not None:  # the others are replayed with the first
            for call in calls:
                if call.key in known and call is not first:
                    self._mark_replayed(call.key, self._replay_order)
        saved, branch = await self.begin(first)
        if saved is None:
            try:
                await self.save_failures(calls[0].position)
                await self._spawn([c for c in children if c.call.key not in known])
            finally:
                self.branches.exit(branch)
        return [known[call.key] for call in calls]

    async def _spawn(self, children: Sequence[Child]) -> None:
        queue, count = children[0].queue, len(children)
        tasks = {child.task for child in children}
        task = tasks.pop() if len(tasks) == 1 else None
        with self._sending("spawn", queue, task, count) as sending:
            answers = await self.write(
                f"spawn in {queue}", self._submit, queue, children
            )
            await self.resume(children[0].call)
            self._add_children(children, answers, sending)

    def _add_children(
        self,
        children: Sequence[Child],
        answers: Sequence[str | Exception],
        sending: Sending | None,
    ) -> None:
        """Add the checkpoints of spawned children; raise the first that was refused."""
        refused: Exception | None = None
        spawned: list[str] = []
        for child, answer in zip(children, answers, strict=True):
            if isinstance(answer, Exception):
                kept = self.keep_failure(child.call, answer)
                refused = refused or kept
            else:
                self.checkpoints.add(child.call.key, Resolved("done", answer))
                spawned.append(answer)
        if sending is not None:
            sending.task_ids = [UUID(json.loads(one)["task_id"]) for one in spawned]
        if refused is not None:
            raise refused

    async def _submit(
        self, queue: str, children: Sequence[Child]
    ) -> list[str | Exception]:
        """Return the checkpoint of each child, or the error that refuses it."""
        batcher = self._spawns.get(queue)  # branches share statements
        if batcher is None:
            send = partial(self.services.spawn, self.claimed, queue)
            batcher = self._spawns[queue] = Batcher(send, size=len)
        submitted = [batcher.submit(child.text) for child in children]
        answers: list[Any] = await asyncio.gather(*submitted, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, LeaseLost | TaskCancelled) or not isinstance(
                answer, (str, *_REFUSALS)
            ):
                raise answer
        return answers

    # -- publishing ----------------------------------------------------------------

    def publisher(self) -> Publisher:
        """Return the run's publisher. Safe to call from any thread."""
        if self._publisher is None:
            with _publisher_lock:
                if self._publisher is None:
                    self._publisher = Publisher(self)
        return self._publisher

    @property
    def logger(self) -> logging.Logger:
        """The logger whose lines are kept with the task."""
        if self._logger is None:
            self._logger = TaskLogger(self)
        return self._logger

    def publish(self, kind: str, scope: str, name: str, value: str | None) -> None:
        """Publish an entry of a stream, or a value. Step functions may do so, too.

        Outside of step functions, the call takes a name, as every durable call does.
        """
        if self.is_runaway:
            return  # the call blocks when it is awaited
        self.check_open()
        execution = inside_a_step.get()
        if execution is None or value is None:
            self._take_key(kind, f"{scope}{name}")  # no position: it is not a call
        elif execution.in_transaction:
            raise RuntimeError(
                f"{kind} {name!r} is published inside a transaction's function:"
                " publish it before or after the transaction"
            )
        self.publisher().publish(kind, scope, name, execution, value)

    @property
    def needs_room(self) -> bool:
        """Whether too many published entries are waiting to be saved."""
        return self._publisher is not None and self._publisher.is_full

    async def make_room(self) -> None:
        """Wait until few enough published entries are waiting to be saved."""
        if self.is_runaway:
            await self._block_forever()
        if self.needs_room:
            await self.publisher().wait_for_room()
        self.check_open()

    # -- exiting -------------------------------------------------------------------

    def exit(self, reason: str) -> None:
        """End the run before its code has ended, because the claim has ended."""
        if self.exit_reason is not None or self._ended is None:
            return
        self.exit_reason = Suspended(_REASONS.get(reason, reason))
        self.branches.close(self.exit_reason)
        self._cancel_branches()
        if self.root is not None and self._code_runs:
            self.root.cancel(self.exit_reason.reason)
            self._start_exit_timer()

    def _cancel_branches(self) -> None:
        """Cancel all busy branches except the root and the caller."""
        self.branches.cancel_busy(self.root, asyncio.current_task(self.loop))

    def _start_exit_timer(self) -> None:
        if self._exit_timer is None and self._ended is not None:
            self._exit_timer = self.loop.call_later(_EXIT_TIMEOUT, self._abandon)

    def _abandon(self) -> None:
        """End the run although its code still executes; later calls are refused."""
        refused = self.checker.refused if self.checker is not None else None
        left = self.exit_reason
        if self.task is not None:
            logger.error(
                "task %s has exited (%s), but its code is still running:"
                " left behind\n%s",
                self.claimed.task_id,
                left.reason if left is not None else type(refused).__name__,
                _stack(self.task),
            )
        if left is None and refused is not None:
            failing = self.loop.create_task(self._save_outcome(None, refused))
            failing.add_done_callback(lambda _: self._end_abandoned())
        else:
            self._end_abandoned()

    def _end_abandoned(self) -> None:
        self._end()
        if self.root is None and self.task is not None:
            self.task.cancel()  # stop awaiting the thread, which cannot be cancelled

    async def _block_forever(self) -> NoReturn:
        """Block a coroutine whose refused calls would otherwise keep the loop busy.

        The task is unregistered, so that closing the loop does not wait for it: its
        code may swallow every cancellation.
        """
        self._start_exit_timer()
        task: Any = asyncio.current_task()
        asyncio._unregister_task(task)  # noqa: SLF001 - see "Extending asyncio"
        task._log_destroy_pending = False  # noqa: SLF001 - it was logged already
        while True:
            await self.loop.create_future()

    def block_thread_if_runaway(self) -> None:
        """Block the thread of a synchronous task in the same way."""
        if self.is_runaway:
            self.loop.call_soon_threadsafe(self._start_exit_timer)
            while True:
                threading.Event().wait()

    # -- executing -----------------------------------------------------------------

    async def execute(self, start: Start, unloaded: Exception | None = None) -> None:
        """Run the task's code and save its outcome.

        `start` calls the task's function. `unloaded` says why the checkpoints could not
        be loaded: then the attempt fails.
        """
        try:
            if unloaded is not None:
                await self._fail(unloaded, final=False)
            elif self.exit_reason is None:
                await self._execute(start)
        except Exception:
            logger.exception("task %s could not be run", self.claimed.task_id)
        finally:
            self._end()
            # without reference cycles through the contexts of the tasks, memory is
            # freed at once and not by the garbage collector
            self._names, self.task = Names(), None
            self.branches.forget()

    async def _execute(self, start: Start) -> None:
        definition = self.definition
        if self.services.application.keep_logs is not None:
            current_run.set(self)
        try:
            params = definition.load_params(self._open_params())
            body = definition.bind()
        except UnreadablePayload as error:
            await self._release(error)
            return
        except Exception as error:  # noqa: BLE001 - models and constructors are the user's
            await self._fail(mark_recorded(error), final=True)
            return
        value, raised = await self._run_code(start, body, params)
        await self._wait_for_calls(raised)
        self._notify_code_ended()
        if self.exit_reason is None:
            await self._save_outcome(value, raised)
        elif self.unreadable is not None:
            await self._release(self.unreadable)

    def _open_params(self) -> str:
        """Decode the params and the checkpoints. Raises UnreadablePayload."""
        if self.checker is not None:
            self.checkpoints.decode_loaded()
        return self.services.application.payloads.decode(self.claimed.params)

    async def _run_code(
        self, start: Start, body: Callable[..., Any], params: Any
    ) -> tuple[Any, BaseException | None]:
        """Run the code. Any exception, even SystemExit, is returned as its outcome."""
        value, error = None, None
        self._begin_replay()
        self._code_runs = True
        try:
            value = await start(self, body, params)
            if self.branches.unawaited:
                await self.branches.raise_if_unawaited(self.checkpoints.saved)
        except GeneratorExit:  # the loop is closed, so nothing can be awaited
            raise
        except BaseException as caught:  # noqa: BLE001 - also SystemExit, cancellation
            if isinstance(caught, SystemExit):
                end_fork_of_worker(caught)
            error = caught
        self._code_runs = False
        self.code_done = True
        if self._exit_timer is not None:
            self._exit_timer.cancel()
        if self.task is not None and self.task.cancelling():
            if self.root is None:  # the thread is still running
                raise asyncio.CancelledError
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # drop it: it was meant for the code
        return value, error

    def _begin_replay(self) -> None:
        checker = self.checker
        if checker is not None:
            checker.begin()
            if self.definition.is_async:  # a synchronous task makes one call at a time
                self._replay_order = ReplayOrder(
                    self.loop,
                    self.checkpoints.saved,
                    tasks=checker.tasks,
                    parked=self.branches.parked,
                )

    async def _wait_for_calls(self, error: BaseException | None) -> None:
        if self.exit_reason is None:
            await self.branches.end()
            if error is not None:
                self._cancel_branches()
            await self.branches.wait_until_idle()
        await self.branches.wait_for_threads()

    # -- ending --------------------------------------------------------------------

    async def _save_outcome(self, value: Any, error: BaseException | None) -> None:
        if self.completed:
            self.log_debug("completed by its transaction")
            if error is not None:
                self._log_failure(error)
            return
        if self.checker is not None:
            error = self.checker.check_end(error, self.root)
        if error is None:
            try:
                result = self.definition.result_codec.dump(value)
                await self._save_end(self.checkpoints.completion_write(result))
            except (Unsavable, InvalidArgument, psycopg.Error) as refused:
                error = mark_recorded(refused)
            else:
                return
        original, definition = self.checkpoints.original, self.definition
        final = is_final(error, definition.non_retryable, original)
        step, error = self.checkpoints.failed_step(error), original(error)
        self._log_failure(error)
        text = error_json(error, step)
        write = self.checkpoints.failure_write(text, final=final)
        await self._save_end(write)

    async def _fail(self, error: Exception, *, final: bool) -> None:
        """Fail the attempt before the code has started; the task, if `final`."""
        self._notify_code_ended()
        write = self.checkpoints.failure_write(error_json(error), final=final)
        await self._save_end(write)

    async def _save_end(self, write: Write) -> None:
        outcome = await self.save(write)
        if outcome == "ok":
            self.log_debug("completed" if write.completion else "failed")
        else:
            task_id = self.claimed.task_id
            logger.warning("the outcome of task %s came too late: %s", task_id, outcome)

    async def _release(self, error: UnreadablePayload) -> None:
        """Release the claim for a while: this worker cannot decode the payloads."""
        self._notify_code_ended()
        claimed = self.claimed
        logger.error(
            "task %s of %r is released for %.0f s: %s",
            *(claimed.task_id, claimed.name, _RELEASE_SECONDS, error),
            extra=self.ids,
        )
        await self.services.release(claimed, _RELEASE_SECONDS)

    def _notify_code_ended(self) -> None:
        notify, self._code_ended = self._code_ended, None
        if notify is not None:
            notify()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        self.context = None
        if ended is not None:
            self.code_done = True
            self._notify_code_ended()
            self.branches.close(self.exit_reason)
            if self._publisher is not None:
                self._publisher.end()
            ended(self)

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended, so that nothing more is saved."""
        return self._ended is None

    def _log_failure(self, error: BaseException) -> None:
        claimed, text = self.claimed, error_text(error)
        task_logger.warning(
            "attempt %d of %s %s failed: %s",
            *(claimed.attempt, claimed.name, claimed.task_id, text),
            exc_info=error,
            extra=self.ids,
        )

    def log_debug(self, event: str) -> None:
        """Log an event of the task at level DEBUG."""
        if logger.isEnabledFor(logging.DEBUG):
            claimed = self.claimed
            known = (claimed.name, claimed.task_id, claimed.attempt)
            logger.debug("task %s %s, attempt %d: %s", *known, event, extra=self.ids)


def _has_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def refused_exit(error: SystemExit) -> RuntimeError:
    """Return the error of a step's function that called `sys.exit`.

    In a process that the function has forked, exit.
    """
    end_fork_of_worker(error)
    return RuntimeError(f"the step's function called sys.exit({error.code!r})")


def _stack(task: asyncio.Task[Any]) -> str:
    """Return a task's stack; `Task.print_stack` shows one frame of a coroutine."""
    lines: list[str] = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        lines += traceback.format_stack(frame, limit=1)
        awaited = awaited.cr_await
    return "".join(lines)
