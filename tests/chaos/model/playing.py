"""Play a step: to the engine, then to the model, which must agree."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Final

from hypothesis.stateful import RuleBasedStateMachine

from tests.chaos.model.comparing import agree, check
from tests.chaos.model.drawing import Held, Json
from tests.chaos.model.engine import Engine
from tests.chaos.model.specification import Model
from tests.chaos.model.things import SECOND, Refused

__all__ = ["Player"]

NUMBERS = itertools.count()
START: Final = 1_900_000_000 * SECOND
EVEN: Final = 6  # beyond it a late caller uses any claim number of a task


class Player(RuleBasedStateMachine):
    """A queue of its own, and the model of it."""

    def __init__(self, engine: Engine, count: Counter[str]) -> None:
        super().__init__()
        self.engine = engine
        self.count = count
        self.model = Model(START)
        self.said: list[Callable[[], None]] = []
        self.claims: list[Held] = []
        self.revived: set[str] = set()
        self.engine.begin(f"q{next(NUMBERS)}", START)

    def play(
        self,
        ask: Callable[[], Json],
        expect: Callable[[Json], Json],
        *,
        old: bool = False,
    ) -> None:
        """Call the engine, then the model, which takes the engine's ids."""
        if old:
            self.engine.in_an_old_snapshot(begin=True)
        self.model.latest = not old
        try:
            told: Json = ask()
        except Refused as refusal:
            told = refusal
            if old:
                self.engine.give_up()
        else:
            if old:
                self.engine.in_an_old_snapshot(begin=False)
        try:
            expected: Json = expect(told)
        except Refused as refusal:
            expected = refusal
        if isinstance(told, Refused) and isinstance(expected, Refused):
            assert told.codes <= expected.codes, f"{told!r} instead of {expected!r}"
        else:
            assert told == expected, f"said {told!r} instead of {expected!r}"
        self.model.latest = True
        self.count["steps"] += 1
        agree(self.model, self.engine.look())
        check(self.model, self.revived)

    def tick(self) -> None:
        """Advance the clock: ids are in call order if each has its own millisecond."""
        self.model.now += SECOND // 1000
        self.engine.set_clock(self.model.now)

    def id(self, number: int) -> str:
        """Return one of the tasks, the youngest first; or of none."""
        ids = list(self.model.tasks)
        if not ids:
            return "00000000-0000-7000-8000-000000000000"
        return ids[-1 - number % len(ids)]

    def hold(self, which: tuple[bool, int]) -> Held:
        """Return a claim: one that holds; with `late` any there ever was, or none."""
        late, number = which
        if late and number > EVEN:
            task_id = self.id(number)
            return task_id, self.model.tasks[task_id].claim if self.model.tasks else 0
        running = [
            (task_id, task.claim)
            for task_id, task in self.model.tasks.items()
            if task.lease is not None
        ]
        some = self.claims if late or not running else running
        return some[-1 - number % len(some)]

    def holds(self, which: list[tuple[bool, int]]) -> list[Held]:
        return list(dict.fromkeys(map(self.hold, which)))

    def again(self, play: Callable[[], None]) -> None:
        """Play, and remember the call to repeat it later."""
        self.said.append(play)
        play()
