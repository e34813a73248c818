"""The checkpoints of a task: what is saved, and the writes that save more.

A step's failure is kept in memory, and saved together with the task's next write: only
then is it certain that the task has caught it. A failure that ends the attempt is not
saved, so the next attempt runs its step again. A saved failure is final, because every
replay raises it again. It is added to every write until one of them is known to be
committed, since a write may be cancelled. The task gets the exception restored from
JSON, as in a replay.

The writes of all tasks that are ready go in one statement and one commit per queue. A
batch that fails is divided until the write at fault is alone. If a batch meets a row
that is locked by another session, each of its writes is retried later in a statement of
its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from uuid import UUID

from durable._core import sql
from durable._core.outcomes import Resolved
from durable._core.payloads import PayloadConverter
from durable._core.recorded_errors import restore, step_error_json
from durable._db.batcher import RETRY, Batcher, Outcomes
from durable._db.reconnecting import ReconnectingConnection, is_busy

if TYPE_CHECKING:
    from durable._task.run import Claimed

__all__ = [
    "INTERNAL",
    "Call",
    "CheckpointFlusher",
    "Checkpoints",
    "Execution",
    "Failed",
    "Write",
    "WriteGate",
    "inside_a_step",
]

INTERNAL: Final = ("$try:", "$retry:")  # checkpoints that are not calls of their own
_FULL_BATCH: Final = 4 * 1024 * 1024
_LARGE: Final = 256 * 1024  # a larger write counts as a full batch, so it is sent alone
_TURN_SECONDS: Final = 2.0  # a statement waits so long for those of another group
_quoted: Final = json.JSONEncoder().encode

# Maps the exception of a step's function to the one that the task gets.
Failed: TypeAlias = Callable[[Exception], Exception]


class Call(NamedTuple):
    """A durable call of a run.

    Its `position` is greater than that of every earlier call; `after` is the number of
    calls that were complete when it was made.
    """

    key: str
    position: int
    after: int
    made: float  # by time.monotonic()


class Execution(NamedTuple):
    """One call of a step's function; a step that is retried has several.

    Nothing can be saved during a transaction step, because it locks the task's row.
    """

    step: str
    in_transaction: bool = False


# Set while a step's function runs, on the loop or in a thread, to refuse nested calls.
inside_a_step: contextvars.ContextVar[Execution | None] = contextvars.ContextVar(
    "durable.inside_a_step", default=None
)


class Write(NamedTuple):
    """One write of a run: checkpoints, published entries, perhaps its outcome.

    Checkpoints, completion and failure are JSON as `durable.flush` takes it: elements
    separated by commas, empty if there is none. `published` is one element as
    `durable.publish` takes it.
    """

    queue: str
    task_id: UUID
    checkpoints: str
    completion: str = ""
    failure: str = ""
    published: str = ""


@dataclass(slots=True)
class _Failure:
    """A failed step, and the number of calls made before it failed.

    `error` is the exception that the task got, `original` the one the step raised;
    `step` is None for a call that is no step.
    """

    position: int
    checkpoint: str
    error: Exception
    original: Exception
    step: str | None
    is_sent: bool = False  # part of a write


class Checkpoints:
    """The checkpoints of one task by key, and the writes that add to them.

    `uncounted` is the number of checkpoints that are not complete calls of this run: it
    has not replayed them yet, or they are internal. A kept failure counts as complete.
    `failures` are those not known to be saved.
    """

    def __init__(
        self, claimed: Claimed, saved: dict[str, Resolved], payloads: PayloadConverter
    ) -> None:
        self.saved = saved
        self._payloads = payloads
        self.uncounted = len(saved)
        self._claimed = claimed
        self._claim_head = f'{{"task_id":"{claimed.task_id}","claim":{claimed.claim},'
        self.failures: list[_Failure] = []
        self._tries: dict[str, int] | None = None  # loaded on first use

    def last_try(self, tries: str) -> int:
        """Return the number of the last failed try that was loaded, 0 if none was."""
        if self._tries is None:
            self._tries = {}
            for key in self.saved:
                if key.startswith("$try:"):
                    name, _, number = key.removeprefix("$try:").rpartition(".")
                    self._tries[name] = max(self._tries.get(name, 0), int(number))
        return self._tries.get(tries, 0)

    def decode_loaded(self) -> None:
        """Decode the loaded checkpoints. Raises UnreadablePayload."""
        self.saved = self.decoded(self.saved)

    def decoded(self, loaded: dict[str, Resolved]) -> dict[str, Resolved]:
        """Return checkpoints with decoded payloads. Raises UnreadablePayload."""
        decode = self._payloads.decode
        changed = {
            key: saved._replace(value=text)
            for key, saved in loaded.items()
            if (text := decode(saved.value)) is not saved.value
        }
        return loaded | changed if changed else loaded

    def add(self, key: str, saved: Resolved) -> Resolved:
        """Add a committed checkpoint."""
        self.saved[key] = saved
        if key[0] == "$" and key.startswith(INTERNAL):
            self.uncounted += 1
        return saved

    def keep_failure(self, call: Call, position: int, error: Exception) -> Exception:
        """Keep a step's failure until a call after `position` is saved.

        Returns the exception that every replay will raise, with the traceback of the
        original.
        """
        payloads, place = self._payloads, len(self.saved) - self.uncounted
        value = payloads.encode_error(step_error_json(error, place))
        restored = restore(payloads.decode(value)).with_traceback(error.__traceback__)
        text = self._checkpoint(call, "failed", value)
        step = None if call.key.startswith("$") else call.key
        self.failures.append(_Failure(position, text, restored, error, step))
        self.uncounted -= 1
        return restored

    def original(self, error: BaseException) -> BaseException:
        """Return the original of a failure that is not saved; else the error."""
        for kept in self.failures:
            if kept.error is error and not kept.is_sent:
                raised = kept.original.with_traceback(error.__traceback__)
                return self.original(raised)
        return error

    def failed_step(self, error: BaseException | None) -> str | None:
        """Return the step whose failure this error is, unless that is saved."""
        for kept in self.failures:
            if kept.error is error:
                return kept.step
        return None

    def value_write(self, call: Call, value: str) -> Write:
        """Return the write of a call's value, with the failures caught before it."""
        text = self._checkpoint(call, "done", self._payloads.encode(value))
        if self.failures:
            text = ",".join((*self._caught(before=call.position), text))
        return Write(self._claimed.queue, self._claimed.task_id, text)

    def failures_write(self, before: float) -> Write | None:
        """Return the write of the failures caught before a call, if there are any."""
        caught = ",".join(self._caught(before))
        return self.empty_write()._replace(checkpoints=caught) if caught else None

    def empty_write(self) -> Write:
        """Return a write of this task, to be filled."""
        return Write(self._claimed.queue, self._claimed.task_id, "")

    def completion_write(self, result: str) -> Write:
        """Return the write that completes the task."""
        return Write(
            self._claimed.queue,
            self._claimed.task_id,
            ",".join(self._caught()),
            completion=f'{self._claim_head}"result":{self._payloads.encode(result)}}}',
        )

    def failure_write(self, error: str, *, final: bool) -> Write:
        """Return the write that fails the attempt; the task, if `final`."""
        retryable = "false" if final else "true"
        error = self._payloads.encode_error(error)
        failure = f'{self._claim_head}"retryable":{retryable},"error":{error}}}'
        return self.empty_write()._replace(failure=failure)

    def claim_json(self, *parts: str) -> str:
        """Return a JSON object that identifies the claim, with these members added."""
        return f"{','.join((self._claim_head[:-1], *parts))}}}"

    def _caught(self, before: float = float("inf")) -> list[str]:
        """Return the checkpoints of the failures caught before a position."""
        caught = [kept for kept in self.failures if kept.position < before]
        for kept in caught:
            kept.is_sent = True
        return [kept.checkpoint for kept in caught]

    def forget_failures(self, before: float) -> None:
        """Drop the failures caught before a call, which are saved."""
        self.failures = [kept for kept in self.failures if kept.position >= before]

    def checkpoint(self, call: Call, value: str) -> str:
        """Return a call's value as `durable.save_checkpoints` takes it."""
        return self._checkpoint(call, "done", self._payloads.encode(value))

    def _checkpoint(self, call: Call, state: str, value: str) -> str:
        took = round((time.monotonic() - call.made) * 1000)
        return (
            f'{self._claim_head}"name":{_quoted(call.key)},"state":"{state}",'
            f'"position":{call.position},"after":{call.after},'
            f'"duration_ms":{took},"value":{value}}}'
        )


class WriteGate:
    """Lets the statements of one group at a time save calls of a run.

    Calls are saved by different statements: steps by one; spawns, waits and events by
    others, some of them over another connection. Two statements may commit in one order
    and be answered in another. So a statement begins only when those of other groups
    have been answered. Statements of one group are answered in order. They overlap, so
    that they can share commits.

    Groups take turns in the order in which they arrive. A statement may wait for a lock
    that is released only after another call of the run has been saved, so it blocks
    other groups for a limited time.
    """

    __slots__ = ("_active", "_group", "_loop", "_timer", "_turn", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._group = ""  # the one that has the turn
        self._turn = 0
        self._active = 0  # statements of this turn
        self._waiting: dict[str, list[asyncio.Future[int]]] = {}
        self._timer: asyncio.TimerHandle | None = None  # set while any group waits

    def try_enter(self, group: str) -> int | None:
        """Begin a statement and return its turn, or None if it must wait."""
        if self._active and (self._waiting or self._group != group):
            return None
        self._group = group
        self._active += 1
        return self._turn

    async def enter(self, group: str) -> int:
        """Begin a statement when it is the turn of its group. Returns the turn."""
        future: asyncio.Future[int] = self._loop.create_future()
        self._waiting.setdefault(group, []).append(future)
        if self._timer is None:
            self._timer = self._loop.call_later(_TURN_SECONDS, self._next_turn)
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # it just got its turn
                self.exit(future.result())
            raise

    def exit(self, turn: int) -> None:
        """End a statement that was answered or cancelled."""
        if turn == self._turn:
            self._active -= 1
            if not self._active and self._waiting:
                self._next_turn()

    def _next_turn(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._turn += 1
        self._active = 0
        while self._waiting and not self._active:
            self._group = next(iter(self._waiting))
            for future in self._waiting.pop(self._group):
                if not future.done():
                    future.set_result(self._turn)
                    self._active += 1
        if self._waiting:
            self._timer = self._loop.call_later(_TURN_SECONDS, self._next_turn)


class CheckpointFlusher:
    """Saves the writes of all runs.

    The outcome of `submit` is ok, cancelled or lost; or an error, if the database
    refuses the content of the write.
    """

    def __init__(self, connection: ReconnectingConnection) -> None:
        self._connection = connection
        self._batchers: dict[str, Batcher[Write, str]] = {}

    def submit(self, write: Write) -> asyncio.Future[str]:
        """Submit a write. The future is done once it is committed or refused."""
        batcher = self._batchers.get(write.queue)
        if batcher is None:
            batcher = Batcher(partial(self._save, write.queue), size=_size)
            self._batchers[write.queue] = batcher
        return batcher.submit(write)

    async def close(self) -> None:
        """Cancel the writes that are not committed."""
        for batcher in self._batchers.values():
            await batcher.close()

    async def _save(self, queue: str, writes: Sequence[Write]) -> Outcomes:
        _, _, *columns = zip(*writes, strict=True)
        *parts, published = map(_array, columns)
        statement = (
            sql.flush(queue, *parts)
            if published is None
            else sql.publish(queue, published, *parts)
        )
        try:
            rows = await self._connection.fetch(statement, retry_busy=False)
        except Exception as error:
            if is_busy(error):  # dividing the batch would wait again for each part
                return [RETRY] * len(writes)
            raise
        refused = dict(rows)
        if not refused:
            return ["ok"] * len(writes)
        times = Counter(write.task_id for write in writes)
        if max(times[task_id] for task_id in refused) > 1:
            return await self._save_each(queue, writes)
        return [refused.get(write.task_id, "ok") for write in writes]

    async def _save_each(self, queue: str, writes: Sequence[Write]) -> Outcomes:
        """Send each write alone, because the answer does not say which was refused.

        An earlier run of a task may still write at the same time as the current one. A
        write that was saved already is ok again.
        """
        return [
            outcome for write in writes for outcome in await self._save(queue, [write])
        ]


def _size(write: Write) -> int:
    """Return the approximate size in bytes."""
    size = len(write.checkpoints) + len(write.completion) + len(write.failure)
    size += len(write.published)
    return _FULL_BATCH if size > _LARGE else size


def _array(texts: Sequence[str]) -> str | None:
    elements = ",".join(filter(None, texts))
    return f"[{elements}]" if elements else None
