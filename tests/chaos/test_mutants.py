"""The tests find every bug that is planted into the engine.

A surviving mutant shows what no test would notice. Each names the test that must find
it.
"""

from __future__ import annotations

from random import Random

import psycopg
import pytest

from tests.chaos.mutants import Mutant, mutated, plant
from tests.chaos.mutants.catalogue import MUTANTS
from tests.chaos.mutants.judges import JUDGES, pgtap, race
from tests.support.databases import Databases
from tests.support.survival import Share, Survived, is_long

EFFORT = 10  # programs of the model, or interleavings, until a judge gives up
PARTS = 4 if is_long() else 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_every_mutant_has_a_place_in_the_source(mutant: Mutant) -> None:
    assert mutated(mutant)


@pytest.fixture(params=range(PARTS))
def chosen(
    request: pytest.FixtureRequest, random: Random, share: Share
) -> list[Mutant]:
    """Return some of the mutants, or all of a part."""
    mine = MUTANTS[request.param :: PARTS]
    return share(quick=random.sample(mine, len(mine) // 5), long=mine)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_every_mutant(
    databases: Databases,
    worker_id: str,
    random: Random,
    chosen: list[Mutant],
    survived: Survived,
) -> None:
    alive = [
        mutant.breaks
        for mutant in chosen
        if find(mutant, databases, worker_id, random) is None
    ]
    assert alive == []
    survived("mutants of the engine, all killed", len(chosen))


def find(
    mutant: Mutant, databases: Databases, owner: str, random: Random
) -> str | None:
    """Return what the judge that must find it says, or None."""
    with databases.database(owner) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            plant(connection, mutant)
        return ask(mutant.killer, dsn, random, EFFORT)


def ask(killer: str, dsn: str, random: Random, effort: int) -> str | None:
    """Return what this judge finds wrong with an engine; None if nothing."""
    if killer in JUDGES:
        try:
            return JUDGES[killer](dsn, random, effort)
        except Exception as problem:  # noqa: BLE001 - it could not even set out
            return f"{type(problem).__name__}: {problem}"
    return pgtap(dsn, killer) if killer.startswith("pgtap/") else race(dsn, killer)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_finds_nothing_in_the_unchanged_engine(
    databases: Databases, worker_id: str, random: Random
) -> None:
    """A judge that always finds something would kill all mutants."""
    killers = {mutant.killer for mutant in MUTANTS}
    for killer in sorted(killers | JUDGES.keys()):
        with databases.database(worker_id) as dsn:
            problem = ask(killer, dsn, random, 2 * EFFORT)
        assert problem is None, killer
