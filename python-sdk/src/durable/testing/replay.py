"""Checks changed code against the histories of running tasks, without a database.

The code runs as it does on a worker, and gets its recorded calls from the history. A
call that is not recorded is not performed: its branch stops there. When no branch can
continue, the check ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast
from uuid import UUID, uuid4

from pydantic import BaseModel, Field, ValidationError

from durable._core.outcomes import Resolved, read, resolve_join
from durable._core.recorded_errors import is_recorded, leaves
from durable._db.application import Application
from durable._task.branches import Branch, Branches, Wait
from durable._task.checkpoints import Call, Write
from durable._task.current import start_task_function
from durable._task.http_clients import Clients
from durable._task.publisher import Publisher
from durable._task.replay import ReplayChecker
from durable._task.run import Claimed, Run
from durable._task.services import Services
from durable._task.threads import Threads
from durable.codecs import PayloadCodec
from durable.errors import InvalidArgument, Suspended, UnreadablePayload
from durable.registry import AnyTask, TaskDefinition

__all__ = ["History", "check_replay"]

History: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str]"
"""The history of a task: a mapping, JSON text, or the path of a JSON file."""

_SOME_MOMENT: Final = datetime(2000, 1, 1, tzinfo=UTC)  # any: no time is recorded
_END: Final = "the history ends"
_READERS: Final = {read.__code__, resolve_join.__code__}


def check_replay(
    task: AnyTask,
    history: History,
    *,
    state: Any = None,
    tasks: Iterable[AnyTask] = (),
    codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
) -> None:
    """Check that the code of a task still fits a recorded history.

        check_replay(ProcessOrder, "tests/histories/order-4711.json")

    Recorded calls return their values. No call is performed and nothing is saved, but
    code outside of durable calls is executed. New calls after the history end the
    check. Whatever `replay_check` the task has, raises NonDeterminism for a recorded
    call that is not made, is made in another order, or is made after a new one,
    wherever that is certain. Raises pydantic's ValidationError for params or values
    that can no longer be read, and InvalidArgument for anything that is no history of
    this task.

    `state` is the value of `ctx.state`; `tasks` are those that it spawns by name;
    `codec` decodes the payloads of the history. What the code publishes is discarded.
    Works in async and sync tests.
    """
    recorded = _recorded(history)
    application = Application(
        None, recorded.queue, [task, *tasks], None, prepare=False, codec=codec
    )
    definition = application.registry.definition_for(task)
    if recorded.name != definition.name:
        raise InvalidArgument(
            f"a history of task {recorded.name!r}, not of {definition.name!r}"
        )
    ended: Future[None] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            asyncio.run(_replay(recorded, definition, application, state))
        except BaseException as error:  # noqa: BLE001 - passed to the future
            ended.set_exception(error)
        else:
            ended.set_result(None)

    # in a thread, because a loop may be running in this one
    threading.Thread(target=context.run, args=(work,), daemon=True).start()
    ended.result()


async def _replay(
    recorded: _Recorded,
    definition: TaskDefinition[Any, Any],
    application: Application,
    state: Any,
) -> None:
    offline = cast("Services", _Offline(application, state))
    run = _ReplayRun(recorded.claimed(), definition, recorded.saved(), offline)
    run.task = asyncio.create_task(run.execute(start_task_function))
    await run.ended
    await offline.http.close()
    run.raise_error()


class _Offline:
    """The part of `Services` that a run uses before its first new call."""

    def __init__(self, application: Application, state: Any) -> None:
        self.application = application
        self.state = state
        self.lease = math.inf
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.threads = Threads()
        self.http = Clients()

    async def extend(self, _: Claimed) -> str:
        return "ok"


class _ReplayRun(Run):
    """A run that checks the code against a history, and does not save its outcome.

    Only recorded calls are answered.
    """

    __slots__ = ("_error", "_stopped_at", "_unstarted", "ended")

    def __init__(
        self,
        claimed: Claimed,
        definition: TaskDefinition[Any, Any],
        saved: dict[str, Resolved],
        offline: Services,
    ) -> None:
        self.ended = offline.loop.create_future()
        super().__init__(
            claimed, definition, saved, offline, ended=self.ended.set_result
        )
        self.checker: ReplayChecker = ReplayChecker(self.checkpoints, claimed, "strict")
        self.branches = _ReplayBranches(self)
        self._error: BaseException | None = None
        self._unstarted: Exception | None = None
        self._stopped_at: list[str] = []

    async def begin(self, call: Call) -> tuple[Resolved | None, Branch]:
        """Begin a call. A new one parks until the check ends."""
        saved, branch = await super().begin(call)
        if saved is None:
            self._stopped_at.append(call.key)
            try:
                await self.branches.park(branch, Wait(call))
            finally:
                self.branches.exit(branch)
        return saved, branch

    def replayed(self, call: Call) -> Resolved | None:
        """Return a recorded call's checkpoint. A new one ends a synchronous task."""
        saved = super().replayed(call)
        if saved is None:
            self._stopped_at.append(call.key)
            self.end_check()
            raise Suspended(_END)
        return saved

    def end_check(self) -> None:
        """End the check: every branch waits at a new call."""
        self.checker.check_stuck(self._stopped_at[0])
        self.loop.call_soon_threadsafe(self.exit, _END)

    def publisher(self) -> Publisher:
        """Return a publisher that discards everything."""
        if self._publisher is None:
            self._publisher = _DiscardingPublisher(self)
        return self._publisher

    async def _fail(self, error: Exception, *, final: bool) -> None:
        del final
        self._unstarted = error

    async def _release(self, error: UnreadablePayload) -> None:
        self._unstarted = error

    async def _save_outcome(self, value: Any, error: BaseException | None) -> None:
        del value
        self._error = error
        # a recorded failure may end branches that continued when it was new
        if error is None or not is_recorded(error):
            self.checker.check_end(None, self.root)

    def raise_error(self) -> None:
        """Raise the error of the check, if there is one."""
        error = self._error
        if self._unstarted is not None:
            raise self._unstarted
        if isinstance(error, Exception):
            for leaf in leaves(error):
                if isinstance(leaf, ValidationError) and _was_recorded(leaf):
                    leaf.add_note("It was read from the history.")
                    raise leaf
        if self.checker.refused is not None:
            cause = error if error is not self.checker.refused else None
            raise self.checker.refused from cause


class _DiscardingPublisher(Publisher):
    """A publisher that saves nothing."""

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Note that a stream is closed, and discard everything else."""
        if function == self._write and args[-1] is None:
            self._closed.add(args[0])

    async def save(self, write: Write | None = None) -> str:
        """Save nothing."""
        del write
        return "ok"


class _ReplayBranches(Branches):
    """Branches that register no waits."""

    __slots__ = ("_replay_run",)

    def __init__(self, run: _ReplayRun) -> None:
        super().__init__(run)
        self._replay_run = run

    async def suspend(self) -> dict[str, Resolved] | None:
        """End the check: every branch waits at a new call."""
        self._replay_run.end_check()
        return None

    async def poll(self) -> dict[str, Resolved]:
        """Resolve no wait."""
        return {}


class _Checkpoint(BaseModel):
    name: str
    position: int
    after: int
    state: Literal["done", "failed", "timed_out"] = "done"
    value: Any = None
    order: int = 0  # of saving; if omitted, the order of the list


class _Recorded(BaseModel):
    version: Literal[1]
    queue: str = "default"
    task_id: UUID = Field(default_factory=uuid4)
    name: str
    params: Any = Field(default_factory=dict)
    headers: dict[str, Any] | None = None
    attempt: int = 1
    checkpoints: list[_Checkpoint] = Field(default_factory=list)

    def claimed(self) -> Claimed:
        """Return the task as if it had just been claimed."""
        now = _SOME_MOMENT
        return Claimed(
            queue=self.queue,
            requested_at=time.monotonic(),
            task_id=self.task_id,
            claim=3,
            name=self.name,
            attempt=self.attempt,
            params=json.dumps(self.params),
            headers=None if self.headers is None else json.dumps(self.headers),
            parent_task_id=None,
            spawned_at=now,
            expires_at=None,
            available_at=now,
            claimed_at=now,
            run_id=uuid4(),
        )

    def saved(self) -> dict[str, Resolved]:
        """Return the checkpoints as a worker would load them."""
        return {
            one.name: Resolved(
                one.state, json.dumps(one.value), one.position, one.after
            )
            for one in sorted(self.checkpoints, key=lambda one: one.order)
        }


def _recorded(history: History) -> _Recorded:
    try:
        if isinstance(history, Mapping):
            return _Recorded.model_validate(dict(history))
        text = os.fspath(history)
        if not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        return _Recorded.model_validate_json(text)
    except ValidationError as error:
        raise InvalidArgument(f"this is no history of a task: {error}") from error


def _was_recorded(error: BaseException) -> bool:
    """Whether the error was raised while the value of a checkpoint was read."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code in _READERS for frame, _ in frames)
