"""Limits hold and nothing is stuck while workers are killed.

Eight processes claim, two spawn; one is killed every half second. Judged is what the
database has recorded: no more ran at once, and no more began in any period, than the
limits allow, and in the end everything has finished and nothing is left behind.
"""

from __future__ import annotations

import json
import time
from random import Random
from typing import Any

import psycopg
import pytest

from tests.chaos.limits import QUEUE, Seen, look, unfinished
from tests.chaos.mutants import Mutant, plant
from tests.chaos.mutants.limits import STRESSED
from tests.support.processes import Process, Processes
from tests.support.survival import Share, Survived, is_long

WORKERS = 8
POLICIES: dict[str, dict[str, Any]] = {
    "a partition's concurrency": {"partition_concurrency": 1},
    "both concurrencies": {"partition_concurrency": 2, "concurrency": 8},
    "rates": {
        "rate": {"starts": 60, "period": 1},
        "partition_rate": {"starts": 9, "period": 1},
    },
    "strict order": {"partition_order": "strict", "ageing": 0.1},
    "all limits": {
        "partition_concurrency": 2,
        "concurrency": 12,
        "rate": {"starts": 80, "period": 1},
        "partition_rate": {"starts": 12, "period": 1},
    },
}
LEFT = """
select
  (select count(*) from durable.lanes),
  (select count(*) from durable.deferred_work)
"""


class Scene:
    """A queue with a policy, and the processes that use it."""

    def __init__(
        self, db: psycopg.Connection, processes: Processes, random: Random
    ) -> None:
        self.db = db
        self.random = random
        self.kills = 0
        self._processes = processes
        self._ended: list[Process] = []

    def play(self, policy: dict[str, Any], seconds: float) -> None:
        """Spawn and claim for so long, and kill workers meanwhile."""
        call = "select durable.create_queue(%s, %s)"
        self.db.execute(call, [QUEUE, json.dumps({"history": "full"} | policy)])
        self.workers = [self._start("worker") for _ in range(WORKERS)]
        spawners = [self._start("spawner") for _ in range(2)]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(self.random.uniform(0.2, 0.8))
            victim = self.random.randrange(WORKERS)
            self._end(self.workers[victim])
            self.workers[victim] = self._start("worker")
            self.kills += 1
        for spawner in spawners:
            self._end(spawner)

    def drain(self, patience: float) -> int:
        """Let the workers finish everything; return what they could not."""
        until = time.monotonic() + patience
        while (left := unfinished(self.db)) and time.monotonic() < until:
            time.sleep(0.1)
        while self.db.execute(LEFT).fetchone() != (0, 0) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def stop(self) -> None:
        for worker in self.workers:
            self._end(worker)

    def errors(self) -> list[str]:
        """Return what processes have printed: a traceback for each error."""
        return [text for process in self._ended if (text := process.output())]

    def _start(self, what: str) -> Process:
        return self._processes.python("-m", "tests.chaos.limits", what)

    def _end(self, process: Process) -> None:
        process.kill()
        self._ended.append(process)


def allowed(policy: dict[str, Any]) -> Seen:
    unlimited = 10**9
    return Seen(
        policy.get("concurrency", unlimited),
        policy.get("partition_concurrency", unlimited),
        policy.get("rate", {}).get("starts", unlimited),
        policy.get("partition_rate", {}).get("starts", unlimited),
        1 if "partition_order" in policy else unlimited,
    )


def broken(policy: dict[str, Any], seen: Seen) -> list[str]:
    """Return the limits that were exceeded."""
    return [
        f"{field}: {most} of {limit}"
        for field, most, limit in zip(Seen._fields, seen, allowed(policy), strict=True)
        if most > limit
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", POLICIES)
def test_limits_hold_while_workers_are_killed(  # noqa: PLR0917 - fixtures
    db: psycopg.Connection,
    processes: Processes,
    random: Random,
    share: Share,
    survived: Survived,
    what: str,
) -> None:
    policy = POLICIES[what]
    scene = Scene(db, processes, random)
    scene.play(policy, share(quick=3.0, long=40.0))
    left = scene.drain(60)
    seen = look(db)
    scene.stop()
    assert scene.errors() == []
    assert left == 0
    assert db.execute(LEFT).fetchone() == (0, 0)
    assert broken(policy, seen) == []
    row = db.execute("select count(*) from durable.tasks").fetchone()
    assert row is not None
    survived("tasks of queues with limits, none of which was exceeded", row[0])
    survived("kills of their workers", scene.kills)


if is_long():  # test_mutants finds them in seconds, by other tests

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("mutant", STRESSED, ids=lambda mutant: mutant.breaks)
    def test_finds_planted_faults(
        db: psycopg.Connection,
        processes: Processes,
        random: Random,
        mutant: Mutant,
    ) -> None:
        """Without its locks the engine fails this test, so it would be noticed."""
        plant(db, mutant)
        scene = Scene(db, processes, random)
        policy = POLICIES["a partition's concurrency"]
        if "queue" in mutant.breaks:
            policy = POLICIES["both concurrencies"]
        scene.play(policy, 10)
        left = scene.drain(10)
        seen = look(db)
        scene.stop()
        assert left or broken(policy, seen)
