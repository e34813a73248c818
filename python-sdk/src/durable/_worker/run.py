"""One task on this worker, from its claim to its end there.

A run ends in one of two ways. Its code ends: then its durable calls are waited for (or
cancelled, if it raised), and the attempt is completed or failed. Or it leaves before
that: it waits, was cancelled, lost its lease, or the worker shuts down. To the code all
four are one, `Suspended`; what counts is the state of the run, never what comes out of
the coroutine.

The code and what comes after it are one asyncio task. A cancellation is for the code:
one that comes too late for it is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar
from uuid import UUID

import psycopg

from durable._json import Unsavable
from durable._worker.failures import error_json, is_final, mark_recorded, said
from durable._worker.history import History
from durable._worker.logs import TaskLogger
from durable._worker.publishing import Publishing
from durable._worker.replay import Past
from durable._worker.saving import Write
from durable._worker.waits import Branch, Resolved, Waits
from durable.errors import LeaseLost, Suspended, TaskCancelled, UnreadablePayload
from durable.registry import TaskDefinition

if TYPE_CHECKING:
    from durable._worker.services import Services

__all__ = ["Claimed", "Run"]

logger = logging.getLogger("durable.worker")
task_logger = logging.getLogger("durable.task")

_PATIENCE: Final = 10.0  # seconds a coroutine may take to end after its run has left
_ASIDE: Final = 60.0  # seconds until anybody may try again to open a task's values
_REASONS: Final = {"cancelled": "cancelled", "lost": "lease lost"}
_making: Final = threading.Lock()  # two steps' threads may be the first to publish

T = TypeVar("T")


class Claimed(NamedTuple):
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


def _nothing() -> None:
    """Be what is called where nobody wants to be told."""


class Run:
    """One claim of a task, on the worker's loop.

    `code_ended` is called once, when the task's code has ended and before that is
    saved; `ended` once, when the worker has nothing to do with the task any more.
    """

    __slots__ = (
        "_code_ended",
        "_code_runs",
        "_ended",
        "_logger",
        "_patience",
        "_publishing",
        "claimed",
        "completed",
        "definition",
        "history",
        "lease_until",
        "left",
        "loop",
        "over",
        "past",
        "resting",
        "services",
        "task",
        "unreadable",
        "waits",
    )

    def __init__(
        self,
        claimed: Claimed,
        definition: TaskDefinition[Any, Any],
        checkpoints: dict[str, Resolved],
        services: Services,
        *,
        code_ended: Callable[[], None] = _nothing,
        ended: Callable[[Run], None] = lambda _: None,
    ) -> None:
        self.claimed = claimed
        self.definition = definition
        self.services = services
        self.loop = services.loop
        self.left: Suspended | None = None
        self.over = False  # the code has ended, its last calls perhaps not
        self.completed = False  # by a transaction of the code's own
        self.lease_until = claimed.asked + services.lease
        self.resting = 0  # reasons for which its lease is not to be extended just now
        self.unreadable: UnreadablePayload | None = None  # why it is put aside
        self.history = History(claimed, checkpoints, services.application.vault)
        self.past: Past | None = None  # a first claim has none
        if checkpoints:
            self.past = Past(self.history, claimed, definition.replay_check)
        self.waits = Waits(services.loop)
        self.task: asyncio.Task[None] | None = None  # in which it is executed
        self._code_runs = False
        self._patience: asyncio.TimerHandle | None = None
        self._logger: logging.Logger | None = None
        self._publishing: Publishing | None = None  # since something was published
        self._code_ended = code_ended
        self._ended: Callable[[Run], None] | None = ended

    @property
    def root(self) -> Branch | None:
        """The asyncio task of the task's own coroutine; a synchronous task has none."""
        return self.task if self.definition.is_async else None

    # -- leaving -------------------------------------------------------------------

    def leave(self, reason: str) -> None:
        """End the run here before its code has ended: the claim is over."""
        if self.left is not None or self._ended is None:
            return
        self.left = Suspended(reason)
        self.waits.release(self.left)
        self._cancel_branches()
        if self.root is not None and self._code_runs:
            self.root.cancel(reason)
            self._patience = self.loop.call_later(_PATIENCE, self._leave_behind)

    def _cancel_branches(self) -> None:
        """Cancel what is busy, but not the task's own coroutine, nor the caller."""
        self.waits.cancel_busy(self.root, asyncio.current_task(self.loop))

    def _leave_behind(self) -> None:
        """Let go of code that does not end; its calls are refused."""
        if self.task is not None and self.left is not None:
            logger.error(
                "task %s has left (%s), but its code goes on: left behind\n%s",
                self.claimed.task_id,
                self.left.reason,
                _stack(self.task),
            )
        self._end()

    # -- saving --------------------------------------------------------------------

    def publishing(self) -> Publishing:
        """Return where the run hands in what it publishes. Any thread may ask."""
        if self._publishing is None:
            with _making:
                if self._publishing is None:
                    self._publishing = Publishing(self)
        return self._publishing

    @property
    def logger(self) -> logging.Logger:
        """The run's own logger, whose lines are kept with the task."""
        if self._logger is None:
            self._logger = TaskLogger(self)
        return self._logger

    @property
    def replays(self) -> bool:
        """Whether its code repeats what is recorded, and has made no new call yet."""
        return self.past is not None and self.past.replays

    @property
    def publishes(self) -> bool:
        """Whether the run has published anything."""
        return self._publishing is not None

    def save(self, write: Write | None = None) -> Awaitable[str]:
        """Save a write, with what was published before; or only that."""
        if self._publishing is not None or write is None:
            return self.publishing().save(write)
        return self.services.saving.submit(write)

    # -- ending --------------------------------------------------------------------

    async def execute(self, code: Callable[[], Awaitable[Any]]) -> None:
        """Run the task's code, and save how it ended."""
        try:
            if self.left is None:
                value, error = await self._outcome(code)
                await self._calls_have_ended(error)
                self._tell_code_ended()
                if self.left is None:
                    await self._conclude(value, error)
                elif self.unreadable is not None:
                    await self._put_aside(self.unreadable)
        finally:
            self._end()

    async def fail(self, error: BaseException) -> None:
        """Fail the task for good, before its code has begun."""
        try:
            self._tell_code_ended()
            await self._save_end(self.history.failure(error_json(error), final=True))
        finally:
            self._end()

    def open_params(self) -> str:
        """Return the params as JSON, and open what was loaded; UnreadablePayload."""
        if self.past is not None:
            self.history.open()
        return self.services.application.vault.opened(self.claimed.params)

    async def put_aside(self, error: UnreadablePayload) -> None:
        """Give the task back for a while: here is not what opens its values."""
        try:
            self._tell_code_ended()
            await self._put_aside(error)
        finally:
            self._end()

    async def _put_aside(self, error: UnreadablePayload) -> None:
        claimed = self.claimed
        logger.error(
            "task %s of %r is put aside for %.0f s: %s",
            claimed.task_id,
            claimed.name,
            _ASIDE,
            error,
            extra={"queue": claimed.queue, "task_id": str(claimed.task_id)},
        )
        await self.services.put_back(claimed, _ASIDE)

    def leave_unreadable(self, error: UnreadablePayload) -> None:
        """Leave, for what the task has waited for cannot be opened here."""
        self.unreadable = error
        self.leave("unreadable")

    async def _outcome(
        self, code: Callable[[], Awaitable[Any]]
    ) -> tuple[Any, BaseException | None]:
        """Run the code; whatever comes out is an outcome, never an upheaval."""
        value, error = None, None
        self._code_runs = True
        try:
            value = await code()
            if self.waits.made:
                await self.waits.refuse_forgotten(self.history.saved)
        except GeneratorExit:  # the loop is gone, and nothing can be awaited
            raise
        except BaseException as caught:  # noqa: BLE001 - also SystemExit, cancellation
            error = caught
        self._code_runs = False
        self.over = True
        if self._patience is not None:
            self._patience.cancel()
        if self.task is not None and self.task.cancelling():
            if self.root is None:  # its thread goes on
                raise asyncio.CancelledError
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)  # it was for the code
        return value, error

    async def _calls_have_ended(self, error: BaseException | None) -> None:
        if self.left is None:
            await self.waits.end()
            if error is not None:
                self._cancel_branches()
            await self.waits.idle()
        await self.waits.threads_have_returned()

    async def _conclude(self, value: Any, error: BaseException | None) -> None:
        if self.completed:
            if error is not None:
                self._log_failure(error)
            return
        if self.past is not None:
            error = self.past.verdict(error, self.root)
        if error is None:
            try:
                await self._complete(value)
            except (Unsavable, psycopg.Error) as refused:
                error = mark_recorded(refused)
            else:
                return
        final = is_final(error, self.definition.no_retry)
        self._log_failure(error)
        await self._save_end(self.history.failure(error_json(error), final=final))

    async def _complete(self, value: Any) -> None:
        result = self.definition.result_codec.dump(value)
        await self._save_end(self.history.completion(result))

    async def _save_end(self, write: Write) -> None:
        outcome = await self.save(write)
        if outcome != "ok":
            logger.warning(
                "the end of task %s came too late: %s", self.claimed.task_id, outcome
            )

    def _tell_code_ended(self) -> None:
        tell, self._code_ended = self._code_ended, _nothing
        tell()

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            self.over = True
            self._tell_code_ended()
            self.waits.release(self.left)
            if self._publishing is not None:
                self._publishing.end()
            ended(self)

    @property
    def has_ended(self) -> bool:
        """Whether nothing of the run is saved any more."""
        return self._ended is None

    def _log_failure(self, error: BaseException) -> None:
        claimed = self.claimed
        task_logger.warning(
            "attempt %d of %s %s failed: %s",
            claimed.attempt,
            claimed.name,
            claimed.task_id,
            said(error),
            exc_info=error,
            extra=self.ids,
        )

    @property
    def ids(self) -> dict[str, Any]:
        """What a log record says of the run."""
        claimed = self.claimed
        return {
            "queue": claimed.queue,
            "task_id": str(claimed.task_id),
            "run_id": str(claimed.run_id),
            "attempt": claimed.attempt,
        }

    def database_now(self) -> datetime:
        """Return the time of the database: that of the claim, and what passed since."""
        passed = time.monotonic() - self.claimed.asked
        return self.claimed.claimed_at + timedelta(seconds=passed)

    # -- what the claim allows -----------------------------------------------------

    def refuse_unless_open(self) -> None:
        """Raise Suspended if the run has left, RuntimeError if its code has ended.

        Raises NonDeterminism, once more, if the run was refused for that.
        """
        if self.left is not None:
            raise self.left
        if self.past is not None and self.past.refused is not None:
            raise self.past.refused
        if self.over or self.completed:
            raise RuntimeError("the context is used after its run has ended")

    async def refusable(self, answer: Awaitable[T]) -> T:
        """Await a write under the claim; if that is over, so is the run."""
        try:
            outcome = await answer
        except (LeaseLost, TaskCancelled) as error:
            self.give_up("cancelled" if isinstance(error, TaskCancelled) else "lost")
        except asyncio.CancelledError as error:
            raise self.left or error from None
        if outcome in ("cancelled", "lost"):
            self.give_up(str(outcome))
        return outcome

    def lose(self, outcome: str) -> None:
        """Leave, for the claim is over: cancelled or lost."""
        self.leave(_REASONS[outcome])

    def give_up(self, outcome: str) -> NoReturn:
        """Leave, for the claim is over: cancelled or lost. Raises Suspended."""
        self.lose(outcome)
        raise self.left or Suspended(_REASONS[outcome])


def _stack(task: asyncio.Task[Any]) -> str:
    """Return where a task is; of a coroutine, its own `print_stack` shows one frame."""
    lines: list[str] = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        lines += traceback.format_stack(frame, limit=1)
        awaited = awaited.cr_await
    return "".join(lines)
