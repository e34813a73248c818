"""Who may find a mutant: the model, interleavings, scripted races, tests of the SQL.

A judge looks for a problem in a database of its own, within a budget of its own unit,
and says what it found. Another one is a line in JUDGES.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import subprocess
from collections.abc import Mapping
from random import Random
from typing import Any, Final, Protocol

import psycopg

from tests import (
    test_bulk_races,
    test_cancelled_waits,
    test_cascade_races,
    test_claim_races,
    test_cleanup_races,
    test_event_races,
    test_join_races,
    test_key_races,
    test_lane_races,
    test_message_races,
    test_retry_races,
    test_unique_races,
)
from tests.chaos import interleavings
from tests.chaos.model.judge import find_problem
from tests.support.processes import ROOT
from tests.support.stage import Stage

__all__ = ["JUDGES", "Judge", "pgtap", "race"]


class Judge(Protocol):
    """Looks for a problem."""

    def __call__(self, dsn: str, random: Random, budget: int) -> str | None:
        """Return what is wrong, or None after that much effort."""
        ...


JUDGES: Final[Mapping[str, Judge]] = {
    "model": find_problem,
    "interleavings": interleavings.find_problem,
}

RACES: Final = (
    test_claim_races,
    test_cleanup_races,
    test_event_races,
    test_cascade_races,
    test_join_races,
    test_key_races,
    test_bulk_races,
    test_message_races,
    test_retry_races,
    test_cancelled_waits,
    test_lane_races,
    test_unique_races,
)


def race(dsn: str, script: str) -> str | None:
    """Play a test of one of RACES; what is wrong, or None."""
    test = next(vars(file)[script] for file in RACES if script in vars(file))
    with contextlib.ExitStack() as sessions:

        def connect() -> psycopg.Connection:
            return sessions.enter_context(psycopg.connect(dsn, autocommit=True))

        stage = Stage(connect)
        try:
            test(stage, *_first_case(test))
        except Exception as problem:  # noqa: BLE001 - whatever it is, it was found
            return f"{script}: {type(problem).__name__}: {problem}"
        finally:
            for session in stage.sessions:
                session.end()
    return None


def _first_case(test: Any) -> list[Any]:
    """Return the first case of a parametrized test."""
    more = list(inspect.signature(test).parameters)[1:]
    marks = {mark.args[0]: mark.args[1][0] for mark in getattr(test, "pytestmark", [])}
    return [marks[name] for name in more]


def pgtap(dsn: str, file: str) -> str | None:
    """Run a file of pgtap/ in this database; what is wrong, or None."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create extension if not exists pgtap")
    given = os.environ.get("DURABLE_TEST_PG_BIN", "")
    psql = shutil.which("psql", path=f"{given}{os.pathsep}{os.environ['PATH']}")
    assert psql, "psql is needed, beside the server's binaries or on the PATH"
    options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]
    stop = ["--set", "ON_ERROR_STOP=1", "--file", file]
    ran = subprocess.run(
        [psql, dsn, *options, *stop],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    wrong = [line for line in ran.stdout.splitlines() if line.startswith("not ok")]
    if ran.returncode == 0 and not wrong:
        return None
    return f"{file}: {wrong[0] if wrong else ran.stderr.strip()}"
