"""Families across two queues grow, wait, fail and are revived, all at random.

Nothing deadlocks; once deferred work is applied no task sleeps whose wait is resolved,
and none survives a failed or cancelled parent.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.chaos.promises import UNSEEN_WAIT, broken
from tests.support.survival import Share, Survived
from tests.support.wait import eventually

SESSIONS: Final = 6
QUEUES: Final = ("default", "far")
ERROR: Final = {"type": "E", "message": "no"}
LEVELS: Final = (None, None, None, IsolationLevel.REPEATABLE_READ)
EXPECTED: Final = {"40001", "55P03", "WFCAN", "WFFIN", "WFLST", "WFNFD"}
CLAIM: Final = "select task_id, claim from durable.claim_tasks(%s, 'w', null, 3, 60)"
LOAD: Final = "select name, value from durable.load_checkpoints(%s, %s)"
SPAWN_IN: Final = """
select name from durable.spawn_children_in(%s, %s, %s, %s, %s)
"""
SUSPEND: Final = "select outcome from durable.suspend_tasks(%s, %s)"
SPAWN: Final = """
select task_id from durable.spawn(%s, 'a', '{}',
  '{"max_attempts": 1, "execution_timeout": 0.5}')
"""
DEADLOCKS: Final = """
select deadlocks from pg_stat_database where datname = current_database()
"""


class Player(threading.Thread):
    """A session that is a worker, a client and a maintenance process in turn."""

    def __init__(self, dsn: str, seed: float, over: threading.Event) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._dsn = dsn
        self._random = Random(seed)
        self._over = over
        self._known: list[tuple[str, UUID]] = []

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn) as self._db:
                self._db.execute("set deadlock_timeout = '100ms'")
                self._db.commit()
                while not self._over.is_set():
                    self._move()
        except BaseException as failure:  # noqa: BLE001 - the test raises it again
            self.failure = failure

    def _move(self) -> None:
        moves: dict[Callable[[], Any], int] = {
            self._work: 30,
            self._spawn: 5,
            lambda: self._about("cancel_task", level=self._level()): 4,
            lambda: self._about("retry_task"): 5,
            lambda: self._house("apply_deferred_work"): 4,
            lambda: self._house("run_maintenance"): 2,
        }
        self._random.choices(list(moves), list(moves.values()))[0]()

    def _tell(
        self, query: str, *args: Any, level: IsolationLevel | None = None
    ) -> list[tuple[Any, ...]] | None:
        """Make a call; return None when it was refused, or rolled back at random."""
        self._db.isolation_level = level
        try:
            with self._db.transaction() as transaction:
                rows = self._db.execute(query, args).fetchall()
                if self._random.random() < 0.5:
                    time.sleep(self._random.random() * 0.003)
                if self._random.random() < 0.03:
                    raise psycopg.Rollback(transaction)
                return rows
        except psycopg.Error as refusal:
            self.count[str(refusal.sqlstate)] += 1
            if refusal.sqlstate not in EXPECTED:
                raise
        return None

    def _level(self) -> IsolationLevel | None:
        return self._random.choice(LEVELS)

    def _queue(self) -> str:
        return self._random.choice(QUEUES)

    def _spawn(self) -> None:
        queue = self._queue()
        for (task_id,) in self._tell(SPAWN, queue) or []:
            self._known.append((queue, task_id))
            self.count["spawned"] += 1

    def _about(self, function: str, level: IsolationLevel | None = None) -> None:
        if self._known:
            queue, task_id = self._random.choice(self._known[-30:])
            query = f"select durable.{function}(%s, %s)"
            self._tell(query, queue, task_id, level=level)

    def _house(self, function: str) -> None:
        self._tell(f"select durable.{function}(%s, 20)", self._queue())

    def _work(self) -> None:
        queue = self._queue()
        for held in self._tell(CLAIM, queue) or []:
            self._perform(queue, *held)

    def _perform(self, queue: str, task_id: UUID, claim: int) -> None:
        """Spawn children in both queues, wait for all or the first of them, and end."""
        held = {"task_id": str(task_id), "claim": claim}
        known = dict(self._tell(LOAD, queue, json.dumps([held])) or [])
        parental = self._random.random() < 0.4 or known
        if parental and "$wait" not in known and not self._waits(queue, held, known):
            return
        if self._random.random() < 0.2:
            end = "fail_tasks", {**held, "error": ERROR}
        else:
            end = "complete_tasks", held
        query = f"select outcome from durable.{end[0]}(%s, %s)"
        for (outcome,) in self._tell(query, queue, json.dumps([end[1]])) or []:
            self.count[f"{end[0]} {outcome}"] += 1

    def _waits(self, queue: str, held: dict[str, Any], known: dict[str, Any]) -> bool:
        """Whether the wait was resolved already."""
        for there in self._random.sample(QUEUES, 2):
            names = [f"$spawn:{there}#{number}" for number in range(2)]
            if names[0] in known:
                continue
            children = json.dumps(
                [
                    {"name": name, "task": "a", "options": {"max_attempts": 1}}
                    for name in names
                ]
            )
            if not self._tell(SPAWN_IN, queue, *held.values(), there, children):
                return False
            self.count["spawned"] += 2
        saved = self._tell(LOAD, queue, json.dumps([held])) or []
        spawned = [value for name, value in saved if name.startswith("$spawn")]
        ids = [value["task_id"] for value in spawned]
        self._known += [(v.get("queue", queue), UUID(v["task_id"])) for v in spawned]
        wait = {
            "name": "$wait",
            "task_ids": ids,
            "queues": [value.get("queue") for value in spawned],
            "any_of": UUID(held["task_id"]).int % 2 == 0 and bool(ids),
        }
        asked = json.dumps([{**held, "waits": [wait]}])
        rows = self._tell(SUSPEND, queue, asked, level=self._level())
        self.count[rows[0][0] if rows else "none"] += 1
        return bool(rows and rows[0][0] == "resolved")


@pytest.mark.slow
def test_families_of_two_queues_stay_consistent(
    dsn: str,
    db: psycopg.Connection,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    db.execute("select durable.create_queue('far', '{\"history\": \"full\"}')")
    over = threading.Event()
    players = [Player(dsn, random.random(), over) for _ in range(SESSIONS)]
    for player in players:
        player.start()
    over.wait(share(quick=4, long=120))
    over.set()
    count: Counter[str] = Counter()
    for player in players:
        player.join()
        if player.failure is not None:
            raise player.failure
        count += player.count
    print(dict(count))
    survived("tasks through random families of two queues", count["spawned"])

    def nothing_deferred() -> bool:
        for queue in QUEUES:
            db.execute("select durable.apply_deferred_work(%s, 1000)", [queue])
        return db.execute("select from durable.deferred_work").rowcount == 0

    eventually(nothing_deferred, what="all deferred work done")
    for queue in QUEUES:
        assert set(broken(db, queue)) <= {UNSEEN_WAIT}
    assert db.execute(DEADLOCKS).fetchone() == (0,)
    assert count["suspended"]
    assert count["resolved"]
