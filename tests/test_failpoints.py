"""A process dies where its environment says; without that, nothing is instrumented."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.support.processes import Processes

UNTOUCHED: Final = """
import psycopg, sys
kinds = psycopg.AsyncConnection, psycopg.Connection
before = [dict(vars(kind)) for kind in kinds]
import durable
assert [dict(vars(kind)) for kind in kinds] == before
assert "durable.testing._failpoints" not in sys.modules
print("untouched")
"""
STATEMENT: Final = """
import os, durable, psycopg
with psycopg.connect(os.environ["DURABLE_DATABASE_URL"]) as connection:
    connection.execute("create table public.t ()")
print("never printed, if it dies")
"""
WATCHED: Final = [
    *["connect#1:before", "connect#1:sent", "connect#1:after"],
    # the first statement begins the transaction
    *["create#1:before", "create#1:sent", "create#1:sent2", "create#1:after"],
    *["commit#1:before", "commit#1:sent", "commit#1:after"],
]


def test_leaves_psycopg_unchanged_by_default(processes: Processes) -> None:
    process = processes.python("-c", UNTOUCHED, env={"DURABLE_FAILPOINT": ""})
    assert process.wait() == 0, process.output()


def test_records_every_boundary(processes: Processes, tmp_path: Path) -> None:
    passed = tmp_path / "passed"
    process = processes.python(
        "-c", STATEMENT, env={"DURABLE_FAILPOINT": f"record={passed}"}
    )
    assert process.wait() == 0, process.output()
    assert passed.read_text().splitlines() == WATCHED


def test_dies_at_the_named_boundary(processes: Processes, tmp_path: Path) -> None:
    passed = tmp_path / "passed"
    orders = f"record={passed};kill=commit#1:sent"
    process = processes.python("-c", STATEMENT, env={"DURABLE_FAILPOINT": orders})
    assert process.wait() == -9
    assert passed.read_text().splitlines() == WATCHED[:-1]


def test_refuses_an_invalid_value(processes: Processes) -> None:
    process = processes.python(
        "-c", STATEMENT, env={"DURABLE_FAILPOINT": "explode=here"}
    )
    assert process.wait() == 1
    assert "DURABLE_FAILPOINT does not know 'explode=here'" in process.output()
