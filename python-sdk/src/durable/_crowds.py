"""Who waits for which tasks, and when it is time to look for them. Does no I/O.

A look that somebody has not been part of from its beginning is never an answer to them:
what it saw may be older than their question.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from uuid import UUID

from durable._results import FINAL, not_found

__all__ = ["LAST_LOOK_SECONDS", "Crowd", "Row", "Waiter", "pause_after"]

Row: TypeAlias = tuple[Any, ...]

LAST_LOOK_SECONDS: Final = 1.0
_SHORTEST: Final = 0.005
_LONGEST: Final = 0.25
_HEARING: Final = 1.0  # between two looks while it is told when to look
# A look at many is followed by a rest, so that it takes a fraction of a processor.
_REST_PER_TASK: Final = 20e-6


def pause_after(looks: int) -> float:
    """Return the seconds to wait after so many looks in vain, with jitter."""
    longest: float = min(_SHORTEST * 1.5 ** min(looks, 20), _LONGEST)
    return longest * random.uniform(0.8, 1)  # noqa: S311 - no secret


@dataclass(eq=False, slots=True)
class Waiter:
    """One call that waits for a task to finish.

    When its time is over it hurries: it is told the state that the next look finds. The
    event is set when it is served, or is to lead.
    """

    queue: str
    task_id: UUID
    timeout: float | None
    event: Any
    since: float = field(default_factory=time.monotonic)
    hurries: bool = False
    row: Row | None = None
    error: BaseException | None = None
    served: bool = False

    @property
    def left(self) -> float | None:
        """The seconds it will go on waiting."""
        if self.timeout is None:
            return None
        extra = LAST_LOOK_SECONDS if self.hurries else 0
        return max(self.since + self.timeout + extra - time.monotonic(), 0)

    def saw(self, row: Row | None) -> None:
        """Take what a look has found: no row, or none with a state, is no task."""
        if row is None or row[1] is None:
            self.fail(not_found(self.queue, self.task_id))
        else:
            self.row = row
            if self.hurries or row[1] in FINAL:
                self.serve()

    def fail(self, error: BaseException) -> None:
        """Take an error for an answer."""
        self.error = error
        self.serve()

    def serve(self) -> None:
        """Have it wait no longer."""
        self.served = True
        self.event.set()

    def answer(self) -> Row:
        """Return the row of a task that has finished; raise what came instead."""
        if self.error is not None:
            raise self.error
        if self.row is None or self.row[1] not in FINAL:
            state = "out of reach" if self.row is None else f"still {self.row[1]}"
            raise TimeoutError(f"task {self.task_id} is {state}")
        return self.row


class Crowd:
    """All that wait for tasks of one queue.

    The fresh are looked for at once, alone; everybody when something was heard, and
    after a pause that grows.
    """

    def __init__(self) -> None:
        self._waiting: dict[Waiter, None] = {}
        self._fresh: dict[Waiter, None] = {}
        self._looks = 0
        self._due = math.inf
        self._rested = 0.0
        self._wants_door = True
        self.knocks = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, waiter: Waiter) -> None:
        """Add one that waits: at first, and once more when it hurries."""
        self._waiting[waiter] = None
        self._fresh[waiter] = None

    def discard(self, waiter: Waiter) -> None:
        """Forget one that waits no longer."""
        self._waiting.pop(waiter, None)
        self._fresh.pop(waiter, None)

    def fresh(self) -> list[Waiter]:
        """Return those that no look has been for yet."""
        return list(self._fresh)

    def everybody(self) -> list[Waiter]:
        """Return all."""
        return list(self._waiting)

    def last(self) -> Waiter:
        """Return who came last, and so will wait for long."""
        return next(reversed(self._waiting))

    @property
    def due(self) -> float:
        """When to look for everybody."""
        return max(self._due, self._rested)

    @property
    def told(self) -> bool:
        """Whether the next look is due because something was heard."""
        return self._due == 0

    def heard(self) -> None:
        """Look for everybody as soon as may be, also if that is done just now."""
        self._due = 0.0
        self.knocks += 1

    def wants_door(self) -> bool:
        """Whether to try the door: once before each look for everybody."""
        wants, self._wants_door = self._wants_door, False
        return wants

    def looked_for_fresh(self, fresh: list[Waiter], *, hearing: bool) -> None:
        """Begin anew with short pauses: who has just come may be served soon."""
        for waiter in fresh:
            self._fresh.pop(waiter, None)
        self._looks = 0
        self._due = min(self._due, self._next(hearing=hearing))

    def looked_for_all(
        self, waiters: list[Waiter], knocks: int, *, hearing: bool
    ) -> None:
        """Rest as befits the work, then pause, unless somebody has knocked since."""
        for waiter in waiters:
            self._fresh.pop(waiter, None)
        self._rested = time.monotonic() + len(waiters) * _REST_PER_TASK
        self._wants_door = True
        self._looks += 1
        if knocks == self.knocks:
            self._due = self._next(hearing=hearing)

    def _next(self, *, hearing: bool) -> float:
        pause = _HEARING * random.uniform(0.8, 1)  # noqa: S311 - no secret
        return time.monotonic() + (pause if hearing else pause_after(self._looks))
