"""Two calls that meet in a scenario, and how they are interleaved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from psycopg import IsolationLevel

from tests.chaos.interleavings.calls import Call

__all__ = ["IN_READ_COMMITTED", "LEVELS", "Interleaving", "Levels", "Pair"]

LEVELS: Final = (
    None,
    IsolationLevel.REPEATABLE_READ,
    IsolationLevel.SERIALIZABLE,
)
IN_READ_COMMITTED: Final = (None, None)

Levels = tuple[IsolationLevel | None, IsolationLevel | None]


@dataclass(frozen=True)
class Pair:
    """Two calls in a scenario. A comes first, and is the one that is stopped."""

    scenario: str
    a: Call
    b: Call

    def __str__(self) -> str:
        told = self.scenario.replace("_", " ")
        return f"in {told}: {self.a.name} / {self.b.name}"


@dataclass(frozen=True)
class Interleaving:
    """How a pair is interleaved.

    stop_a, stop_b: at which point each stops to let the other continue; 0: at none.
    b_stays: B keeps its transaction open until A has ended.
    """

    pair: Pair
    stop_a: int
    stop_b: int = 0
    levels: Levels = IN_READ_COMMITTED
    a_commits: bool = True
    b_stays: bool = False

    def __str__(self) -> str:
        told = [str(self.pair), f"A stops at {self.stop_a}"]
        if self.stop_b:
            told.append(f"B stops at {self.stop_b}")
        if self.levels != IN_READ_COMMITTED:
            told += [level.name if level else "READ_COMMITTED" for level in self.levels]
        if not self.a_commits:
            told.append("A rolls back")
        if self.b_stays:
            told.append("B commits last")
        return ", ".join(told)
