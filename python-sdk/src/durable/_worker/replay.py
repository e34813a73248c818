"""Whether a task's code still makes the calls that its history holds, in their order.

A call is served by its name, so what matters is only what is certain: an accusation is
true of every run of unchanged code, or it is not made. Two facts are certain.

- A recorded call is a *barrier* if every recorded call with a smaller position was
  complete when it was made. Where the task's own coroutine asks for it, and nothing
  goes on beside that, all of those have been asked for before.
- A recorded call has *no room* before it if as many recorded calls have a smaller
  position as its run had made. A new call ahead of it is one that its run did not make.

Both hold for what `Calls` counts: a position is greater than that of every call the run
had made or met before, and `after` counts the calls it had made or met that were
complete. Branches have no order among them; a branch that was cancelled, and code that
asked which attempt it is, may go another way each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from durable._worker.history import INTERNAL, History
from durable.errors import NonDeterminism

if TYPE_CHECKING:
    from durable._worker.run import Claimed
    from durable._worker.waits import Branch
    from durable.options import ReplayCheck

__all__ = ["Past"]

logger = logging.getLogger("durable.task")

_HINT: Final = (
    "Give the call its name and place back, or put the change under"
    ' `if await ctx.patched("…"):` and keep the old code in the else branch.'
)
_WARNED_AT_MOST: Final = 10_000
_warned: set[tuple[str, str, str | None]] = set()
# Set where the code of a run begins that has a past; its branches inherit it.
_past: contextvars.ContextVar[Past | None] = contextvars.ContextVar(
    "durable.past", default=None
)


class Past:
    """What was recorded before this run began, and how far the run has come in it.

    `replays` says that the last call made is a recorded one, and not the last of those.
    `refused` is what a strict run was refused for: from then on it is over.
    """

    __slots__ = (
        "_added",
        "_attempt_counts",
        "_beside",
        "_branches",
        "_check",
        "_claimed",
        "_frontier",
        "_history",
        "_index",
        "_keys",
        "_met",
        "_positions",
        "_unmet",
        "refused",
        "replays",
    )

    def __init__(self, history: History, claimed: Claimed, check: ReplayCheck) -> None:
        saved = history.saved
        keys = [key for key in saved if not key.startswith(INTERNAL)]
        keys.sort(key=lambda key: saved[key].position)
        self._keys = keys
        self._positions = [saved[key].position for key in keys]
        self._index = {key: index for index, key in enumerate(keys)}
        self._met = bytearray(len(keys))
        self._unmet = len(keys)
        self.replays = bool(keys)
        self._frontier = 0  # all before it were asked for, or missed
        self._added: str | None = None  # the first new call since that moved
        self._history = history
        self._claimed = claimed
        self._check = check
        self._attempt_counts = False
        self._branches: set[Branch] = set()
        self._beside: Branch | None = None
        self.refused: NonDeterminism | None = None

    # -- what a run does with it ---------------------------------------------------

    def begin(self) -> None:
        """Begin the run's code, in the context that its branches will inherit."""
        _past.set(self)

    def knows(self, key: str) -> bool:
        """Whether the call is recorded."""
        return key in self._index

    @property
    def to_come(self) -> bool:
        """Whether recorded calls have not been asked for yet."""
        return self._frontier < len(self._keys)

    def attempt_counts(self) -> None:
        """Know that the code has asked which attempt it is, and may go by that."""
        self._attempt_counts = self._claimed.attempt > 1

    def meet(self, key: str, position: int, branch: Branch | None, *, own: bool) -> int:
        """Take note of a call that is being made; return its position.

        `own` says that the task's own coroutine, or thread, makes it. Raises
        NonDeterminism where a strict task may not go on.
        """
        if not own and branch is not None:
            self._branches.add(branch)
        index = self._index.get(key)
        if index is None:
            self.replays = False
            if self._frontier < len(self._keys):
                self._add(key, branch, own=own)
            return position
        self._history.aside -= 1
        self._met[index] = True
        self._unmet -= 1
        self.replays = self._unmet > 0
        if index == self._frontier:
            self._advance()
        elif index > self._frontier and own:
            self._pass(index, branch)
        return max(position, self._positions[index])

    def verdict(
        self, error: BaseException | None, root: Branch | None
    ) -> BaseException | None:
        """Judge a run whose code has ended; return what its attempt fails with."""
        ended = self.refused is None and error is None
        if ended and self.to_come and self._is_certain(root):
            with contextlib.suppress(NonDeterminism):  # it is kept as `refused`
                self._accuse(None)
        return self.refused or error

    def ends(self, branch: Branch | None) -> None:
        """Judge a run whose task is about to complete, before its code has ended.

        Raises NonDeterminism where a strict task may not go on.
        """
        if self.to_come and self._is_certain(branch):
            self._accuse(None)

    def stuck(self, key: str) -> None:
        """Judge a run that can go no further without new calls, of which this is one.

        It is refused if recorded calls are to come that it would have met by now.
        """
        if self.to_come and not self._may_differ() and self._has_no_room():
            with contextlib.suppress(NonDeterminism):
                self._accuse(key)

    # -- what is certain -----------------------------------------------------------

    def _add(self, key: str, branch: Branch | None, *, own: bool) -> None:
        """Meet a new call while recorded ones are to come: strict code adds none."""
        self._added = self._added or key
        refusable = self._check == "strict" and own and self._has_no_room()
        if refusable and self._is_certain(branch):
            self._accuse(key)

    def _pass(self, index: int, branch: Branch | None) -> None:
        """Meet a recorded call while one of smaller position has not been met."""
        position = self._positions[index]
        if self._positions[self._frontier] >= position:
            return
        after = self._history.saved[self._keys[index]].after
        is_barrier = bisect_left(self._positions, position) <= after < position
        if is_barrier and self._is_certain(branch):
            self._accuse(self._keys[index])
            self._frontier = bisect_left(self._positions, position)
            self._advance()

    def _has_no_room(self) -> bool:
        """Whether a new call cannot be one that was made and not recorded."""
        position = self._positions[self._frontier]
        return bisect_left(self._positions, position) == position - 1

    def _is_certain(self, branch: Branch | None) -> bool:
        """Whether what this branch, the task's own, does tells all that is going on."""
        if self._may_differ():
            return False
        if branch is None:  # a synchronous task makes one call at a time
            return True
        if self._beside is None or self._beside.done():
            others = asyncio.all_tasks(branch.get_loop()) - {branch}
            self._beside = next(filter(self._is_mine, others), None)
        return self._beside is None

    def _may_differ(self) -> bool:
        """Whether unchanged code may go another way than it went before."""
        return self._attempt_counts or any(one.cancelled() for one in self._branches)

    def _is_mine(self, task: Branch) -> bool:
        return any(context.get(_past) is self for context in _contexts(task))

    def _advance(self) -> None:
        while self._frontier < len(self._keys) and self._met[self._frontier]:
            self._frontier += 1
        self._added = None

    # -- what is said --------------------------------------------------------------

    def _accuse(self, met: str | None) -> None:
        """Name the recorded call that is missing, and what came instead of it."""
        expected, found = self._keys[self._frontier], self._added or met
        position, task = self._positions[self._frontier], self._claimed.name
        accusation = NonDeterminism(
            f"the history of task {task!r} has {expected!r} as its call {position}, "
            + (f"its code makes {found!r}" if found else "its code ends without it"),
            expected=expected,
            found=found,
            position=position,
            hint=_HINT,
        )
        if self._check == "strict":
            self.refused = accusation
            raise accusation
        if self._check == "warn" and _is_news((task, expected, found)):
            claimed = self._claimed
            logger.warning(
                "%s",
                accusation,
                extra={
                    "queue": claimed.queue,
                    "task_id": str(claimed.task_id),
                    "run_id": str(claimed.run_id),
                    "attempt": claimed.attempt,
                },
            )


def _contexts(task: Branch) -> list[contextvars.Context]:
    """Return the contexts that a task runs in, and reports to."""
    # `Task.get_context` came with Python 3.12
    found = gc.get_referents(task)
    return [one for one in found if isinstance(one, contextvars.Context)]


def _is_news(difference: tuple[str, str, str | None]) -> bool:
    """Whether nobody has been warned of this in this process."""
    if difference in _warned:
        return False
    if len(_warned) >= _WARNED_AT_MOST:
        _warned.clear()
    _warned.add(difference)
    return True
