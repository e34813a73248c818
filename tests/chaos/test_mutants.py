"""The tests find every bug that is planted into the engine.

A mutant that lives shows what no test would notice. Each names who must find it; the
long share asks all judges, and prints who found what.
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


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.breaks)
def test_has_a_place_in_the_source(mutant: Mutant) -> None:
    assert mutated(mutant)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kills_every_mutant(
    databases: Databases,
    worker_id: str,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    chosen = share(quick=random.sample(MUTANTS, len(MUTANTS) // 5), long=MUTANTS)
    found = {
        mutant.breaks: find(mutant, databases, worker_id, random) for mutant in chosen
    }
    for breaks, finders in sorted(found.items()):
        print(f"{breaks}: {', '.join(finders) or 'NOBODY'}")
    assert [breaks for breaks, finders in found.items() if not finders] == []
    survived("mutants of the engine, all killed", len(chosen))


def find(
    mutant: Mutant, databases: Databases, owner: str, random: Random
) -> dict[str, str]:
    """Return who has found it, and how; the one who must, if nobody else is asked."""
    asked = {mutant.killer, *(JUDGES if is_long() else [])}
    found: dict[str, str | None] = {}
    for killer in sorted(asked):
        with databases.database(owner) as dsn:
            with psycopg.connect(dsn, autocommit=True) as connection:
                plant(connection, mutant)
            found[killer] = ask(killer, dsn, random, EFFORT)
    if found[mutant.killer] is None:
        return {}
    return {name: problem for name, problem in found.items() if problem}


def ask(killer: str, dsn: str, random: Random, effort: int) -> str | None:
    """Return what this one finds wrong with an engine; None if nothing."""
    if killer in JUDGES:
        try:
            return JUDGES[killer](dsn, random, effort)
        except Exception as problem:  # noqa: BLE001 - it could not even set out
            return f"{type(problem).__name__}: {problem}"
    return pgtap(dsn, killer) if killer.startswith("pgtap/") else race(dsn, killer)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_finds_nothing_in_the_engine_as_it_is(
    databases: Databases, worker_id: str, random: Random, share: Share
) -> None:
    """Else a judge that always finds something would kill them all."""
    killers = {mutant.killer for mutant in MUTANTS}
    for killer in sorted(killers | JUDGES.keys()):
        with databases.database(worker_id) as dsn:
            problem = ask(killer, dsn, random, share(quick=20, long=200))
        assert problem is None, killer
