"""Whether changed code still fits the histories of tasks under way, without a database.

The code runs as it does on a worker, and gets its recorded calls from the history. What
it would do that is not recorded is not done: there its branch stops, and when nothing
else can go on, the check ends.
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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast
from uuid import UUID, uuid4

from pydantic import BaseModel, Field, ValidationError

from durable._application import Application
from durable._http import Clients
from durable._worker.calls import Calls
from durable._worker.code import begun
from durable._worker.failures import is_recorded, leaves
from durable._worker.history import Call
from durable._worker.outcomes import joined, read
from durable._worker.publishing import Publishing
from durable._worker.replay import Past
from durable._worker.run import Claimed, Run
from durable._worker.saving import Write
from durable._worker.services import Services
from durable._worker.threads import Threads
from durable._worker.waits import Branch, Resolved, Wait
from durable.codecs import PayloadCodec
from durable.errors import InvalidArgument, Suspended
from durable.registry import AnyTask, TaskDefinition

__all__ = ["History", "check_replay"]

History: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str]"
"""The history of a task: as a mapping, as JSON text, or the path of a file of that."""

_SOME_MOMENT: Final = datetime(2000, 1, 1, tzinfo=UTC)  # nothing new is recorded
_END: Final = "the history ends"
_READERS: Final = {read.__code__, joined.__code__}


def check_replay(
    task: AnyTask,
    history: History,
    *,
    state: Any = None,
    tasks: Iterable[AnyTask] = (),
    codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
) -> None:
    """Check that the code of a task still fits what a task has recorded.

        check_replay(ProcessOrder, "tests/histories/order-4711.json")

    Recorded calls are served, nothing is done and nothing is saved; what the code does
    outside of durable calls it does here, too. New calls behind the history end the
    check. Raises NonDeterminism for a recorded call that is not made, made in another
    order, or made behind a new one, wherever that is certain, whatever `replay_check`
    the task has; pydantic's ValidationError for params or values that can no longer be
    read; InvalidArgument for what is no history of this task.

    `state` is what `ctx.state` is to be; `tasks` are those it spawns by their names;
    `codec` opens what is sealed in the history. What the code publishes is not heard.
    It may be called from a test of either colour.
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
            asyncio.run(_rehearse(recorded, definition, application, state))
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            ended.set_exception(error)
        else:
            ended.set_result(None)

    # a loop may be running in this thread
    threading.Thread(target=context.run, args=(work,), daemon=True).start()
    ended.result()


async def _rehearse(
    recorded: _Recorded,
    definition: TaskDefinition[Any, Any],
    application: Application,
    state: Any,
) -> None:
    text = application.vault.opened(json.dumps(recorded.params))
    params = definition.load_params(text)
    offline = cast("Services", _Offline(application, state))
    run = _Rehearsal(recorded.claimed(), definition, recorded.saved(), offline)
    run.history.open()
    body = definition.bind()
    run.task = asyncio.create_task(
        run.execute(lambda: begun(run, _Rehearsing(run), body, params))
    )
    await run.ended
    await offline.http.close()
    run.judge()


class _Offline:
    """What a run asks of `Services` before its first new call."""

    def __init__(self, application: Application, state: Any) -> None:
        self.application = application
        self.state = state
        self.lease = math.inf
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.threads = Threads()
        self.http = Clients()

    async def extend(self, _: Run) -> str:
        """Extend no lease."""
        return "ok"


class _Rehearsal(Run):
    """A run that is to show whether the code fits its past; its end is not saved."""

    __slots__ = ("_error", "ended")

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
        self.past: Past = Past(self.history, claimed, "strict")
        self._error: BaseException | None = None

    def publishing(self) -> Publishing:
        """Return where what the run publishes is not heard."""
        if self._publishing is None:
            self._publishing = _Unheard(self)
        return self._publishing

    async def _conclude(self, value: Any, error: BaseException | None) -> None:
        del value
        self._error = error
        # a recorded failure may cut off branches that went on when it was new
        if error is None or not is_recorded(error):
            self.past.verdict(None, self.root)

    def judge(self) -> None:
        """Raise what is wrong, if anything is."""
        error = self._error
        if isinstance(error, Exception):
            for leaf in leaves(error):
                if isinstance(leaf, ValidationError) and _was_recorded(leaf):
                    leaf.add_note("It was read from the history.")
                    raise leaf
        if self.past.refused is not None:
            cause = error if error is not self.past.refused else None
            raise self.past.refused from cause


class _Unheard(Publishing):
    """Nothing of this is saved."""

    def hand_in(self, what: str, *args: Any) -> None:
        """Know no more than that a stream is closed."""
        if what == "write" and args[-1] is None:
            self._closed.add(args[0])

    async def save(self, write: Write | None = None) -> str:
        """Save nothing."""
        del write
        return "ok"


class _Rehearsing(Calls):
    """Calls of which only the recorded ones are answered."""

    __slots__ = ("_rehearsal", "_stopped_at")

    def __init__(self, run: _Rehearsal) -> None:
        super().__init__(run)
        self._rehearsal = run
        self._stopped_at: list[str] = []

    async def begin(self, call: Call) -> tuple[Resolved | None, Branch]:
        """Begin a call; a new one never does."""
        saved, branch = await super().begin(call)
        if saved is None:
            self._stopped_at.append(call.key)
            wait = Wait(call.key, call.position, call.after)
            try:
                await self._waits.park(branch, wait, self)
            finally:
                self._waits.exit(branch)
        return saved, branch

    def replayed(self, call: Call) -> Resolved | None:
        """Return a recorded call's checkpoint; a new one ends a synchronous task."""
        saved = super().replayed(call)
        if saved is None:
            self._stopped_at.append(call.key)
            self._end()
            raise Suspended(_END)
        return saved

    async def suspend(self, waits: str) -> dict[str, Resolved] | None:
        """End the check: all that goes on are new calls."""
        del waits
        self._end()
        return None

    async def poll(self, waits: str) -> dict[str, Resolved]:
        """Find nothing new."""
        del waits
        return {}

    def _end(self) -> None:
        self._rehearsal.past.stuck(self._stopped_at[0])
        self.loop.call_soon_threadsafe(self._rehearsal.leave, _END)


class _Checkpoint(BaseModel):
    name: str
    position: int
    after: int
    state: Literal["done", "failed", "timed_out"] = "done"
    value: Any = None


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
        """Return the task as a worker would claim it now."""
        now = _SOME_MOMENT
        return Claimed(
            queue=self.queue,
            asked=time.monotonic(),
            task_id=self.task_id,
            claim=3,
            name=self.name,
            attempt=self.attempt,
            params="",
            headers=None if self.headers is None else json.dumps(self.headers),
            parent_task_id=None,
            spawned_at=now,
            deadline_at=None,
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
            for one in self.checkpoints
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
    """Whether it was raised where the value of a checkpoint is read."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code in _READERS for frame, _ in frames)
