"""Limits hold, and no task is forgotten, whichever transaction commits first.

Each test is one interleaving of claims, spawns, ends and changes of limits.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from psycopg import IsolationLevel
from psycopg.errors import DatabaseError

from tests.support.stage import OLD_SNAPSHOTS, QUEUE, Session, Stage

KEY: Any = {"partition_key": "key"}


def limit(session: Session, **policy: Any) -> None:
    call = "select durable.create_queue(%s, %s)"
    session.rows(call, QUEUE, json.dumps(policy))


def ids(session: Session, name: str | None = None, batch_size: int = 100) -> list[UUID]:
    return [held.task_id for held in session.claim(name, batch_size)]


def begin_partition(stage: Stage) -> None:
    """Start and end a task, so that the partition has its row."""
    stage.db.complete(stage.held(**KEY))


def test_counts_what_another_claim_is_starting_in_a_partition(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=1)
    begin_partition(stage)
    one, two = stage.db.spawn("one", **KEY), stage.db.spawn("two", **KEY)
    a, b = stage.session(), stage.session()
    assert ids(a, "one") == [one]
    assert ids(b, "two") == []
    a.commit()
    assert ids(b, "two") == []
    assert two not in ids(stage.db)


def test_counts_what_another_claim_is_starting_in_a_new_partition(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=1)
    one, _ = stage.db.spawn("one", **KEY), stage.db.spawn("two", **KEY)
    a, b = stage.session(), stage.session()
    assert ids(a, "one") == [one]
    assert ids(b, "two") == []
    a.commit()
    assert ids(b, "two") == []
    assert ids(stage.db) == []


def test_claims_of_new_partitions_never_wait_for_each_other(stage: Stage) -> None:
    """Whatever the order in which they come to them."""
    limit(stage.db, partition_concurrency=1)
    for name, key in (("a", "1"), ("b", "2"), ("c", "1"), ("d", "2")):
        stage.db.spawn(name, partition_key=key)
    a, b = stage.session(), stage.session()
    assert len(ids(a, "a")) == len(ids(b, "b")) == 1
    assert ids(a, "d") == ids(b, "c") == []
    a.commit()
    b.commit()


@pytest.mark.parametrize(
    "policy", [{"concurrency": 1}, {"rate": {"starts": 1, "period": 3600}}], ids=str
)
def test_counts_what_another_claim_is_starting_in_the_queue(
    stage: Stage, policy: dict[str, Any]
) -> None:
    limit(stage.db, **policy)
    one, _ = stage.db.spawn("one"), stage.db.spawn("two")
    a, b = stage.session(), stage.session()
    assert ids(a, "one") == [one]
    assert ids(b, "two") == []
    a.commit()
    assert ids(b, "two") == []
    assert ids(stage.db) == []


def test_counts_the_starts_of_another_claim_in_a_partition(stage: Stage) -> None:
    limit(stage.db, partition_rate={"starts": 2, "period": 3600})
    begin_partition(stage)
    one, _ = stage.db.spawn("one", **KEY), stage.db.spawn("two", **KEY)
    a, b = stage.session(), stage.session()
    assert ids(a, "one") == [one]
    assert ids(b, "two") == []
    a.commit()
    assert ids(b, "two") == []
    assert ids(stage.db) == []


def test_keeps_a_lane_to_which_a_transaction_is_adding(stage: Stage) -> None:
    limit(stage.db, priorities=True)
    first = stage.db.spawn(**KEY)
    client = stage.session()
    second = client.spawn(**KEY)
    assert ids(stage.db) == [first]
    assert ids(stage.db) == []
    client.commit()
    assert ids(stage.db) == [second]


def test_finds_what_was_added_while_its_lane_was_deleted(stage: Stage) -> None:
    limit(stage.db, priorities=True)
    first = stage.db.spawn(**KEY)
    worker, client = stage.session(), stage.session()
    assert ids(worker) == [first]  # deletes the lane
    second = client.spawn(**KEY)
    client.commit()
    worker.commit()
    assert ids(stage.db) == [second]


def test_finds_what_is_due_earlier_than_the_rest_of_its_lane(stage: Stage) -> None:
    limit(stage.db, priorities=True)
    stage.db.spawn(delay=3600, **KEY)
    client = stage.session()
    now = client.spawn(**KEY)
    assert ids(stage.db) == []
    client.commit()
    assert ids(stage.db) == [now]


def test_spawns_in_two_open_transactions_do_not_wait(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=1)
    a, b = stage.session(), stage.session()
    spawned = set()
    for first, second in ((a, b), (b, a)):
        for key in ("a", "b") if first is a else ("b", "a"):
            spawned.add(first.spawn(partition_key=key))
            spawned.add(second.spawn(partition_key=key))
    assert ids(stage.db) == []
    a.commit()
    b.commit()
    done = set()
    while helds := stage.db.claim():
        assert len(helds) == 2
        done |= {held.task_id for held in helds}
        stage.db.complete(*helds)
    assert done == spawned


def test_wakes_a_partition_whose_task_ends_while_a_claim_finds_it_full(
    stage: Stage,
) -> None:
    limit(stage.db, partition_concurrency=1)
    held, waits = stage.held(**KEY), stage.db.spawn(**KEY)
    claim = stage.session()
    assert ids(claim) == []
    assert stage.db.complete(held) == "ok"
    claim.commit()
    stage.db.apply_deferred_work()
    assert ids(stage.db) == [waits]


def test_a_partition_whose_task_is_just_ending_keeps_its_turn(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=1)
    held, waits = stage.held(**KEY), stage.db.spawn(**KEY)
    worker = stage.session()
    assert worker.complete(held) == "ok"
    assert ids(stage.db) == []
    worker.commit()
    assert stage.db.deferred_work() == 0
    assert ids(stage.db) == [waits]


def test_wakes_a_partition_if_the_first_of_two_ends_rolls_back(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=2)
    one, two = stage.held(**KEY), stage.held(**KEY)
    waits = stage.db.spawn(**KEY)
    assert ids(stage.db) == []
    a = stage.session()
    assert a.complete(one) == "ok"
    assert stage.db.complete(two) == "ok"
    a.rollback()
    stage.db.apply_deferred_work()
    assert ids(stage.db) == [waits]


@pytest.mark.parametrize("isolation", OLD_SNAPSHOTS)
def test_ends_and_spawns_under_old_snapshots(
    stage: Stage, isolation: IsolationLevel
) -> None:
    limit(stage.db, partition_concurrency=1)
    held, waits = stage.held(**KEY), stage.db.spawn(**KEY)
    old = stage.session(isolation)
    assert ids(stage.db) == []
    assert old.complete(held) == "ok"
    more = old.spawn(partition_key="other")
    old.commit()
    stage.db.apply_deferred_work()
    assert {*ids(stage.db)} == {waits, more}
    with pytest.raises(DatabaseError, match="cannot see what was just committed"):
        stage.session(isolation).claim()


def test_gives_partitions_that_a_claim_finds_full_a_turn_under_a_new_limit(
    stage: Stage,
) -> None:
    limit(stage.db, partition_concurrency=1)
    stage.held(**KEY)
    waits = stage.db.spawn(**KEY)
    claim, operator = stage.session(), stage.session()
    assert ids(claim) == []
    change = operator.waiting(limit, operator, partition_concurrency=2)
    claim.commit()
    change.result()
    assert ids(stage.db) == []
    operator.commit()
    assert ids(stage.db) == [waits]


def test_a_claim_does_not_wait_for_a_limit_that_changes(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=1)
    held, waits = stage.held(**KEY), stage.db.spawn(**KEY)
    operator = stage.session()
    operator.rows("select durable.set_partition_limit(%s, 'key', '{}')", QUEUE)
    assert stage.db.complete(held) == "ok"
    assert ids(stage.db) == []
    operator.commit()
    stage.db.apply_deferred_work()
    assert ids(stage.db) == [waits]


def test_starts_one_task_of_a_partition_in_strict_order(stage: Stage) -> None:
    limit(stage.db, partition_order="strict")
    begin_partition(stage)
    one, two = stage.db.spawn("one", **KEY), stage.db.spawn("two", **KEY)
    a, b = stage.session(), stage.session()
    assert ids(a, "one") == [one]
    assert ids(b, "two") == []
    a.commit()
    assert ids(b, "two") == []
    assert two not in ids(stage.db)


def test_starts_the_next_in_order_though_its_predecessor_ends_meanwhile(
    stage: Stage,
) -> None:
    limit(stage.db, partition_order="strict")
    held, waits = stage.held("one", **KEY), stage.db.spawn("two", **KEY)
    claim = stage.session()
    assert ids(claim) == []
    assert stage.db.complete(held) == "ok"
    claim.commit()
    stage.db.apply_deferred_work()
    assert ids(stage.db) == [waits]


def test_keeps_the_turn_of_a_lane_to_which_the_next_task_is_being_added(
    stage: Stage,
) -> None:
    """It was spawned before the task that a claim takes for the next one."""
    limit(stage.db, partition_order="strict")
    held, gone = stage.held("two", **KEY), stage.db.spawn("two", **KEY)
    client = stage.session()
    early = client.spawn("two", **KEY)
    assert stage.db.complete(held) == "ok"
    stage.db.spawn("one", **KEY)
    stage.db.spawn("two", **KEY)
    assert stage.db.cancel(gone)
    assert ids(stage.db, "two") == []
    client.commit()
    assert ids(stage.db, "two") == [early]


def test_drops_a_queue_whose_lane_a_spawn_holds(stage: Stage) -> None:
    limit(stage.db, partition_concurrency=1)
    held = stage.held(**KEY)
    stage.db.spawn(**KEY)
    client, operator = stage.session(), stage.session()
    client.spawn(**KEY)
    drop = operator.waiting(operator.drop_queue)
    assert client.cancel(held.task_id) is True
    client.commit()
    assert drop.result() is True
    operator.commit()
