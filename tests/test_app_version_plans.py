"""Tasks for another version do not slow down a claim, whatever the statistics are."""

from __future__ import annotations

import json

import psycopg

from tests.test_plans import BATCH, MOST_ROWS_PER_TASK, Worker

FOREIGN = """
insert into durable.tasks (
  queue, task_id, spawned_at, params, name, state, available_at, version)
select 'default', durable._uuid7(durable._id_microseconds(now()), n), now(), '{}', 'a',
  'pending', now() - interval '1 hour', 'old'
from generate_series(1, %s) as n
"""
CROWD = 10_000
SOME = 100
"""Rows that a call may visit though it finds nothing."""


def versioned(db: psycopg.Connection, policy: str) -> Worker:
    """Return a worker of version new that has called every function on empty tables."""
    for table in ("queues", "tasks", "versions"):
        db.execute(f"alter table durable.{table} set (autovacuum_enabled = false)")
    said = json.dumps({"versions": policy})
    db.execute("select durable.create_queue('default', %s)", [said])
    worker = Worker(db, batch=3)
    for _ in range(12):
        ask(worker)
        worker.spawn()
        claim(worker)
        worker.spawn(version="new")
        claim(worker)
    worker.costs.clear()
    return worker


def ask(worker: Worker) -> None:
    worker.function("announce_worker", "w", '{"version": "new"}')
    worker.function("promote_version", "new")
    worker.function("get_next_due", ["a"], "new")
    worker.function("list_waiting_names")


def claim(worker: Worker) -> int:
    arguments = ("w", ["a"], worker.batch, 60, None, None, "new")
    return len(worker.function("claim_tasks", *arguments))


def test_claims_as_fast_beside_a_crowd_of_another_version(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as db:
        worker = versioned(db, "gate")
        db.execute(FOREIGN, [CROWD])
        worker.batch = BATCH
        ask(worker)
        assert claim(worker) == 0
        for call, cost in worker.costs.items():
            assert cost.rows <= SOME, call
        worker.spawn()
        assert claim(worker) == BATCH
        worker.costs.clear()
        worker.spawn(version="new")
        assert claim(worker) == BATCH
        assert worker.costs["claim_tasks"].rows <= 5 * BATCH


def test_moves_and_forgets_a_few_of_many(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as db:
        worker = versioned(db, "pin")
        db.execute(FOREIGN, [CROWD])
        task = "select task_id from durable.tasks where version = 'old' limit 1"
        ((task_id,),) = db.execute(task).fetchall()
        worker.function("set_version", "new", [task_id])
        assert worker.costs["set_version"].rows <= SOME
        worker.function("set_version", "new", None, "old", BATCH, what="of a version")
        db.execute("select durable.create_queue('default', '{\"versions\": null}')")
        worker.function("run_maintenance", BATCH)
        assert worker.costs["run_maintenance"].rows <= MOST_ROWS_PER_TASK * BATCH
        ((left,),) = db.execute(
            "select count(*) from durable.tasks where version = 'old'"
        ).fetchall()
        assert CROWD - 2 * BATCH <= left <= CROWD - BATCH


def test_finds_the_few_tasks_of_a_version_among_many_of_another(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as db:
        worker = versioned(db, "pin")
        db.execute(FOREIGN, [CROWD])
        worker.spawn()
        db.execute("update durable.tasks set version = 'few' where version = ''")
        db.execute("analyze durable.tasks")
        for moved in (worker.batch, 0):
            arguments = ("new", None, "few", BATCH)
            assert worker.function("set_version", *arguments) == [(moved,)]
            assert worker.costs.pop("set_version").rows <= SOME
