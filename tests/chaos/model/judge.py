"""Check an engine against the specification, with any number of programs."""

from __future__ import annotations

import traceback
from collections import Counter
from random import Random

import psycopg
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.model.engine import Engine
from tests.chaos.model.machine import Machine

__all__ = ["find_problem", "play"]


def play(
    connection: psycopg.Connection,
    random: Random,
    *,
    programs: int,
    steps: int,
    shrink: bool = True,
) -> Counter[str]:
    """Play programs of so many steps; raise the first difference."""
    engine, count = Engine(connection), Counter[str]()

    @seed(random.getrandbits(32))
    class Played(Machine):
        def __init__(self) -> None:
            super().__init__(engine, count)

    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    how = settings(
        max_examples=programs,
        stateful_step_count=steps,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(Played, settings=how)
    return count


def find_problem(dsn: str, random: Random, budget: int) -> str | None:
    """Play so many programs; return the problem found, or None."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            play(connection, random, programs=budget, steps=40, shrink=False)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it was found
            return "".join(traceback.format_exception_only(problem))
    return None
