"""Replay: recorded calls return in their recorded order, and changed code is detected.

*Order.* Branches of a task can observe which of their calls returned first: by
`asyncio.wait`, through a queue or a lock, in a list. So a replay returns checkpoints in
the order in which they were saved, one at a time, and lets the code settle before the
next one. A new call begins after all recorded ones have returned. On the first run,
too, calls that were saved by one commit return in the order in which they were made. A
recorded call may never be made again, because the code has changed or its branch was
cancelled. When no other code can make progress, the replay skips the call.

*Check.* Recorded calls are looked up by name, so most changes of order do no harm. The
check reports a difference only if it is certain, that is, if unchanged code could not
cause it. Two rules are certain:

- A recorded call is a *barrier* if every recorded call with a smaller position was
  complete when it was made. If the task's own coroutine makes it, and no other branch
  is active, all of those must have been made before.
- A recorded call has *no room* before it if the number of recorded calls with a smaller
  position equals the number of calls its run had made. A new call ahead of it is one
  that its run did not make.

Both follow from what `Run` counts: a position is greater than that of every call the
run had made or replayed before, and `after` is the number of those that were complete.
Branches have no order among each other. After a branch was cancelled, or if the code
has read the number of its attempt, unchanged code may take another path.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import logging
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from durable._core.outcomes import Resolved
from durable._task.checkpoints import INTERNAL, Checkpoints
from durable.errors import NonDeterminism

if TYPE_CHECKING:
    from durable._task.branches import Branch
    from durable._task.run import Claimed
    from durable.options import ReplayCheck

__all__ = ["ReplayChecker", "ReplayOrder", "ResumeQueue"]

logger = logging.getLogger("durable.task")

# Turns of the loop until a call's return is visible to other code: one for the task
# that awaits it, two more for each asyncio.wait, gather or wait_for around it.
_SETTLE_TURNS: Final = 6
_OTHERS_TURNS: Final = 2  # one to wake another task, one for a task that it wakes
_MISSED_SECONDS: Final = 1.0  # to wait for a recorded call that was not made yet
_MISSED_AGAIN_SECONDS: Final = 0.01  # the same, after the first one was skipped
_CHECK_SECONDS: Final = 0.002
_HINT: Final = (
    "Give the call its name and place back, or put the change under"
    ' `if await ctx.patched("…"):` and keep the old code in the else branch.'
)
_WARNED_AT_MOST: Final = 10_000
_warned: set[tuple[str, str, str | None]] = set()
# Set where the code of a run with recorded calls starts; its branches inherit it.
_checker: contextvars.ContextVar[ReplayChecker | None] = contextvars.ContextVar(
    "durable.replay_checker", default=None
)


class ReplayOrder:
    """The recorded calls of one run that have not returned yet.

    `tasks` returns the run's asyncio tasks, `parked` the futures on which they wait.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        saved: dict[str, Resolved],
        *,
        tasks: Callable[[], list[asyncio.Task[Any]]],
        parked: Callable[[], set[asyncio.Future[Any]]],
    ) -> None:
        self._loop = loop
        self._order = deque(_recorded_order(saved))
        self._remaining = set(self._order)
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._new_calls: deque[asyncio.Future[None]] = deque()
        self._tasks = tasks
        self._parked = parked
        self._changes = 0
        self._timeout = _MISSED_SECONDS
        self._dispatcher: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._remaining)

    def try_take(self, key: str) -> bool:
        """Return True if the call may return now, without waiting for its turn."""
        if key in self._remaining:
            if self._head() != key or self._dispatcher is not None:
                return False
            self._remaining.discard(key)
        return True

    def discard(self, key: str) -> None:
        """Forget a recorded call that returns without waiting for its turn."""
        self._remaining.discard(key)

    async def wait_turn(self, key: str) -> None:
        """Wait for the turn of a recorded call; of any other, let other code run."""
        if key not in self._remaining:
            for _ in range(_OTHERS_TURNS):
                await asyncio.sleep(0)
            return
        self._waiting[key] = future = self._new_waiter()
        try:
            await future
        finally:
            self._waiting.pop(key, None)
            self._remaining.discard(key)

    async def wait_until_replayed(self) -> None:
        """Wait until all recorded calls have returned."""
        if self._remaining:
            future = self._new_waiter()
            self._new_calls.append(future)
            await future

    def _new_waiter(self) -> asyncio.Future[None]:
        self._changes += 1
        if self._dispatcher is None:
            self._dispatcher = self._loop.create_task(
                self._dispatch(), context=contextvars.Context()
            )
        return self._loop.create_future()

    async def _dispatch(self) -> None:
        try:
            while self._waiting or self._new_calls:
                await self._settle()
                head = self._head()
                if head is None:
                    self._resume_all()
                elif head in self._waiting:
                    self._resume(head)
                elif await self._is_missed():
                    self._skip_missed()
        finally:
            self._dispatcher = None

    async def _settle(self) -> None:
        turns = 0
        while turns < _SETTLE_TURNS:
            before = self._changes
            await asyncio.sleep(0)
            turns = turns + 1 if before == self._changes else 0

    def _head(self) -> str | None:
        while self._order and self._order[0] not in self._remaining:
            self._order.popleft()
        return self._order[0] if self._order else None

    def _resume(self, key: str) -> None:
        self._remaining.discard(key)
        _wake(self._waiting.pop(key))

    def _resume_all(self) -> None:
        for future in (*self._waiting.values(), *self._new_calls):
            _wake(future)
        self._waiting.clear()
        self._new_calls.clear()

    async def _is_missed(self) -> bool:
        """Whether the next recorded call is not going to be made."""
        before, until = self._changes, time.monotonic() + self._timeout
        while before == self._changes and self._head() not in self._waiting:
            if not (self._waiting or self._new_calls):
                return False
            if self._is_deadlocked() or time.monotonic() >= until:
                return True
            await asyncio.sleep(_CHECK_SECONDS)
        return False

    def _is_deadlocked(self) -> bool:
        """Whether all tasks of the run wait for a turn, or for a task that does."""
        waiting = {*self._waiting.values(), *self._new_calls, *self._parked()}
        waiters = [getattr(task, "_fut_waiter", None) for task in self._tasks()]
        return all(
            one in waiting or isinstance(one, asyncio.Task) or hasattr(one, "_children")
            for one in waiters
        )

    def _skip_missed(self) -> None:
        """Skip the recorded calls before the next one that is waiting."""
        self._timeout = _MISSED_AGAIN_SECONDS
        while (head := self._head()) is not None and head not in self._waiting:
            self._remaining.discard(head)


class ResumeQueue:
    """Resumes calls that have just been saved, one at a time.

    Calls that were saved by one commit resume in the order in which they were made.
    """

    __slots__ = ("_arriving", "_loop", "_queue", "_turns")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arriving: list[tuple[int, asyncio.Future[None]]] = []
        self._queue: deque[asyncio.Future[None]] = deque()
        self._turns = 0  # until the code has settled

    async def wait_turn(self, position: int) -> None:
        """Wait for the turn of a call that has just been saved."""
        if not self._arriving:  # calls of one commit arrive in one turn of the loop
            self._loop.call_soon(self._close)
        future: asyncio.Future[None] = self._loop.create_future()
        self._arriving.append((position, future))
        await future

    def _close(self) -> None:
        latest, self._arriving = self._arriving, []
        self._queue += [future for _, future in sorted(latest, key=lambda one: one[0])]
        if not self._turns:
            self._resume_next()

    def _resume_next(self) -> None:
        while self._queue and self._queue[0].done():  # cancelled
            self._queue.popleft()
        if self._queue:
            _wake(self._queue.popleft())
            self._turns = _SETTLE_TURNS
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._turns -= 1
        if self._turns:
            self._loop.call_soon(self._settle)
        else:
            self._resume_next()


def _recorded_order(saved: dict[str, Resolved]) -> list[str]:
    """Return the keys of checkpoints in the order in which their calls returned.

    `saved` is in the order in which they were saved. A failure is saved with a later
    call, so its `place` says how many calls had returned before it.
    """
    order, failed = [], []
    for key, one in saved.items():
        place = _place(one.value) if one.state == "failed" else None
        if place is not None:
            failed.append((place, one.position, key))
        elif not key.startswith(INTERNAL):
            order.append(key)
    for place, _, key in sorted(failed):
        order.insert(place, key)
    return order


def _place(value: str) -> int | None:
    place = json.loads(value).get("place")
    return place if isinstance(place, int) else None


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class ReplayChecker:
    """Compares the calls of one run with those recorded before it.

    `is_replaying` is true if the last call was a recorded one and more of them remain.
    `refused` is the error of a strict run that differs: it ends the run.
    """

    def __init__(
        self, checkpoints: Checkpoints, claimed: Claimed, check: ReplayCheck
    ) -> None:
        saved = checkpoints.saved
        keys = [key for key in saved if not key.startswith(INTERNAL)]
        keys.sort(key=lambda key: saved[key].position)
        self._keys = keys
        self._positions = [saved[key].position for key in keys]
        self._index = {key: index for index, key in enumerate(keys)}
        self._seen = bytearray(len(keys))
        self._unseen = len(keys)
        self.is_replaying = bool(keys)
        self._frontier = 0  # all calls before it were made or reported
        self._added: str | None = None  # the first new call at this frontier
        self._checkpoints = checkpoints
        self._claimed = claimed
        self._check = check
        self._attempt_was_read = False
        self._branches: set[Branch] = set()
        self._other_branch: Branch | None = None
        self.refused: NonDeterminism | None = None

    # -- called by the run ---------------------------------------------------------

    def begin(self) -> None:
        """Mark the current context, which the run's branches inherit."""
        _checker.set(self)

    def has(self, key: str) -> bool:
        """Whether the call is recorded."""
        return key in self._index

    @property
    def has_remaining(self) -> bool:
        """Whether recorded calls have not been made yet."""
        return self._frontier < len(self._keys)

    def note_attempt_read(self) -> None:
        """Note that the code has read the number of its attempt."""
        self._attempt_was_read = self._claimed.attempt > 1

    def check_call(
        self, key: str, position: int, branch: Branch | None, *, own: bool
    ) -> int:
        """Check a call that is being made, and return its position.

        `own` says that the task's own coroutine or thread makes it. Raises
        NonDeterminism for a difference in a strict task.
        """
        if not own and branch is not None:
            self._branches.add(branch)
        index = self._index.get(key)
        if index is None:
            self.is_replaying = False
            if self._frontier < len(self._keys):
                self._check_new(key, branch, own=own)
            return position
        self._seen[index] = True
        self._unseen -= 1
        self.is_replaying = self._unseen > 0
        if index == self._frontier:
            self._advance()
        elif index > self._frontier and own:
            self._check_skip(index, branch)
        return max(position, self._positions[index])

    def check_end(
        self, error: BaseException | None, root: Branch | None
    ) -> BaseException | None:
        """Check a run whose code has ended; return the error its attempt fails with."""
        ended = self.refused is None and error is None
        if ended and self.has_remaining and self._is_certain(root):
            with contextlib.suppress(NonDeterminism):  # it is kept as `refused`
                self._report(None)
        return self.refused or error

    def check_completion(self, branch: Branch | None) -> None:
        """Check a run whose task completes in a transaction step.

        Raises NonDeterminism for a difference in a strict task.
        """
        if self.has_remaining and self._is_certain(branch):
            self._report(None)

    def check_stuck(self, key: str) -> None:
        """Check a run that makes only new calls from here on, `key` being one of them.

        It is refused if recorded calls remain that it should have made by now.
        """
        if self.has_remaining and not self._may_differ() and self._has_no_room():
            with contextlib.suppress(NonDeterminism):
                self._report(key)

    # -- rules ---------------------------------------------------------------------

    def _check_new(self, key: str, branch: Branch | None, *, own: bool) -> None:
        """Check a new call while recorded ones remain."""
        if own:  # a new call of a branch may come at any time
            self._added = self._added or key
        refusable = self._check == "strict" and own and self._has_no_room()
        if refusable and self._is_certain(branch):
            self._report(key)

    def _check_skip(self, index: int, branch: Branch | None) -> None:
        """Check a recorded call while one of smaller position was not made."""
        position = self._positions[index]
        if self._positions[self._frontier] >= position:
            return
        after = self._checkpoints.saved[self._keys[index]].after
        is_barrier = bisect_left(self._positions, position) <= after < position
        if is_barrier and self._is_certain(branch):
            self._report(self._keys[index])
            self._frontier = bisect_left(self._positions, position)
            self._advance()

    def _has_no_room(self) -> bool:
        """Whether a new call cannot be one that was made but not recorded."""
        position = self._positions[self._frontier]
        return bisect_left(self._positions, position) == position - 1

    def _is_certain(self, branch: Branch | None) -> bool:
        """Whether this branch, the task's own, is the only active one."""
        if self._may_differ():
            return False
        if branch is None:  # a synchronous task makes one call at a time
            return True
        if self._other_branch is None or self._other_branch.done():
            others = asyncio.all_tasks(branch.get_loop()) - {branch}
            self._other_branch = next(filter(self._owns, others), None)
        return self._other_branch is None

    def _may_differ(self) -> bool:
        """Whether unchanged code may take another path than before."""
        return self._attempt_was_read or any(one.cancelled() for one in self._branches)

    def tasks(self) -> list[Branch]:
        """Return the asyncio tasks of the run that are not done."""
        return list(filter(self._owns, asyncio.all_tasks()))

    def _owns(self, task: Branch) -> bool:
        return any(context.get(_checker) is self for context in _contexts(task))

    def _advance(self) -> None:
        while self._frontier < len(self._keys) and self._seen[self._frontier]:
            self._frontier += 1
        self._added = None

    # -- reports -------------------------------------------------------------------

    def _report(self, found_key: str | None) -> None:
        """Report the recorded call that is missing, and the call made instead."""
        expected, found = self._keys[self._frontier], self._added or found_key
        position, task = self._positions[self._frontier], self._claimed.name
        error = NonDeterminism(
            f"the history of task {task!r} has {expected!r} as its call {position}, "
            + (f"its code makes {found!r}" if found else "its code ends without it"),
            expected=expected,
            found=found,
            position=position,
            hint=_HINT,
        )
        if self._check == "strict":
            self.refused = error
            raise error
        if self._check == "warn" and _is_first_report((task, expected, found)):
            claimed = self._claimed
            logger.warning(
                "%s",
                error,
                extra={
                    "queue": claimed.queue,
                    "task_id": str(claimed.task_id),
                    "run_id": str(claimed.run_id),
                    "attempt": claimed.attempt,
                },
            )


def _contexts(task: Branch) -> list[contextvars.Context]:
    """Return the contexts that a task refers to, its own among them."""
    # `Task.get_context` came with Python 3.12
    found = gc.get_referents(task)
    return [one for one in found if isinstance(one, contextvars.Context)]


def _is_first_report(difference: tuple[str, str, str | None]) -> bool:
    """Whether this difference was not logged before in this process."""
    if difference in _warned:
        return False
    if len(_warned) >= _WARNED_AT_MOST:
        _warned.clear()
    _warned.add(difference)
    return True
