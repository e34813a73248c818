"""A database that lost its last commits refuses the claims that it lost.

That happens with synchronous_commit = off and a crash, when an asynchronous standby is
promoted, and when a backup is restored while workers are running.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from durable.embedded import Postgres
from tests.support.databases import install

# Commits are acknowledged at once, and reach the disk ten seconds later.
FORGETFUL: Final = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
TASKS: Final = 20

# The next claim number, for any former one and any random number.
NEXT_CLAIMS: Final = """
select count(*), bool_and(next % 2 = 1), bool_and(next > 4 or claim < 5),
  bool_and(next not in (claim, claim - 1)),
  bool_and((next > 1073741824) = (claim = 0)),
  max(next) < 2147483647
from unnest(array[0, 1, 2, 3, 4, 5, 6, 7,
  1073741821, 1073741822, 1073741829, 1073741830,
  2147483645, 2147483646]) as former (claim)
cross join (
  select uuid_hash(gen_random_uuid()) from generate_series(1, 1000)
  union all
  select unnest(array[-2147483648, -536870908,
    -1, 0, 1, 536870907, 536870908, 2147483647])
) as drawn (random)
cross join lateral durable._next_claim(former.claim, drawn.random) as next
"""


@pytest.fixture
def forgetful() -> Iterator[Postgres]:
    """Run a server that loses its last commits when it crashes."""
    binaries = os.environ.get("DURABLE_TEST_PG_BIN")
    with Postgres.start(binaries=binaries, fast=True, settings=FORGETFUL) as server:
        with _connect(server) as session:
            install(session)
        yield server


def _connect(server: Postgres) -> psycopg.Connection:
    return psycopg.connect(server.conninfo(), autocommit=True)


def _claim(session: psycopg.Connection, worker: str) -> dict[UUID, int]:
    rows = session.execute(
        "select task_id, claim from durable.claim_tasks('default', %s, null, %s)",
        [worker, TASKS],
    )
    return dict(rows.fetchall())


def _call(
    session: psycopg.Connection, function: str, held: dict[UUID, int], **said: Any
) -> list[str]:
    tasks = [
        {"task_id": str(task_id), "claim": n, **said} for task_id, n in held.items()
    ]
    rows = session.execute(
        f"select outcome from durable.{function}('default', %s::json)",
        [json.dumps(tasks)],
    )
    return [outcome for (outcome,) in rows]


def _spawn_for_good(session: psycopg.Connection) -> None:
    with session.transaction():
        session.execute("set local synchronous_commit = on")
        session.execute(
            "select durable.spawn('default', 'job', '1') from generate_series(1, %s)",
            [TASKS],
        )


def _crash(server: Postgres) -> None:
    server.restart("immediate")


@pytest.mark.parametrize("claims_before", [0, 1])
def test_reuses_no_claim_number_whose_commit_was_lost(
    forgetful: Postgres, claims_before: int
) -> None:
    """The second holder's claims differ from those that the crash has undone."""
    with _connect(forgetful) as session:
        for _ in range(claims_before):
            _spawn_for_good(session)
            with session.transaction():
                session.execute("set local synchronous_commit = on")
                _call(session, "release_tasks", _claim(session, "earlier"))
        if not claims_before:
            _spawn_for_good(session)
        first = _claim(session, "first")
    assert len(first) == TASKS
    _crash(forgetful)

    with _connect(forgetful) as session:
        row = session.execute(
            "select count(*) from durable.tasks where state = 'running'"
        ).fetchone()
        assert row == (0,), "the crash has undone the claims"
        second = _claim(session, "second")
        assert second.keys() == first.keys()
        assert not set(first.items()) & set(second.items())
        step = {"name": "step", "value": "first"}
        assert _call(session, "save_checkpoints", first, **step) == ["lost"] * TASKS
        assert _call(session, "extend_leases", first) == ["lost"] * TASKS
        assert _call(session, "complete_tasks", first) == ["lost"] * TASKS
        assert _call(session, "complete_tasks", second) == ["ok"] * TASKS
        assert _call(session, "complete_tasks", first) == ["lost"] * TASKS


def test_draws_odd_numbers_that_differ_from_the_former_one(
    db: psycopg.Connection,
) -> None:
    """They and their successors fit an integer; only first claims are above 2^30."""
    row = db.execute(NEXT_CLAIMS).fetchone()
    assert row == (14 * 1008, True, True, True, True, True)
