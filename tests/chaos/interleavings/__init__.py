"""Interleavings of any two calls of the engine, stopped at every possible point.

points.py       the points at which a call can be stopped
calls.py        every call that touches a task
stage.py        the queue in which a scenario is played
scenarios.py    the situations in which two calls meet
trees.py        the same, for families in one queue
families.py     the same, for families across two queues
mail.py         the same, for messages
crossings.py    the same, for combinations of features
copies.py       copies of a scenario's rows, one for each pair
sessions.py     a session that stops at a chosen point
pairs.py        two calls, and how they are interleaved
judging.py      which outcomes are those of one call after the other
conductor.py    plays a pair, and has the outcome judged

`find_problem` does all of this, with the functions that a database has.
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

    Returns the first problem found, or None. The engine of this database gets points,
    and its clock stands still: give it one of its own.
    """
    with Conductor(dsn, scenarios) as conductor:
        pairs = conductor.pairs()
        for _ in range(budget):
            pair = random.choice(pairs)
            way = random.choice([conductor.some_stop, conductor.some_way])(pair, random)
            if problem := conductor.problem(way):
                return problem
    return None
