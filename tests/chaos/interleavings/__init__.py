"""Two calls of the engine, stopped wherever they can be, against each other.

points.py       where a call can be stopped
calls.py        every call that touches a task
stage.py        where a scenario is played
scenarios.py    what is there when two of them meet
trees.py        the same, of families in one queue
families.py     the same, across two queues
mail.py         the same, of messages
crossings.py    the same, where features meet
copies.py       a scenario's rows, once more for each pair
sessions.py     a session that stops where it is told to
pairs.py        two calls, and how they are played
judging.py      which outcomes are those of one call after the other
conductor.py    plays a pair, and has the outcome judged

`find_problem` does it all, on an engine with whatever functions a database has.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.chaos.interleavings.conductor import EVERY_SCENARIO, Conductor
from tests.chaos.interleavings.pairs import Interleaving, Pair
from tests.chaos.interleavings.stage import Scenario

__all__ = ["Conductor", "Interleaving", "Pair", "find_problem"]


def find_problem(
    dsn: str,
    random: Random,
    budget: int,
    scenarios: Sequence[Scenario] = EVERY_SCENARIO,
) -> str | None:
    """Play so many interleavings at most, of pairs chosen by `random`.

    Returns the first thing that is wrong, or None. The engine of this database gets
    points, and its clock stands still: give it one of its own.
    """
    with Conductor(dsn, scenarios) as conductor:
        pairs = conductor.pairs()
        for _ in range(budget):
            pair = random.choice(pairs)
            way = random.choice([conductor.some_stop, conductor.some_way])(pair, random)
            if problem := conductor.problem(way):
                return problem
    return None
