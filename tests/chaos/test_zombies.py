"""A worker that was stopped for longer than its lease can no longer write.

It is stopped just before a call, other sessions act on its task, and it resumes: no row
of the database changes, whatever it sends, and its code gets an exception. If nobody
took the task over, it continues as if nothing had happened.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from signal import SIGCONT
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from durable import Durable, TaskContext, task
from tests.support.forkserver import (
    Child,
    ForkServer,
    forkserver,
    resume,
    wait_for_a_stop,
)
from tests.support.lingering import DEEDS, MANNERS, linger, mind
from tests.support.processes import Processes
from tests.support.survival import Share, Survived
from tests.support.wait import eventually

LEASE: Final = 2.0
HOUR: Final = 3600.0
TABLES: Final = [
    *["tasks", "runs", "checkpoints", "waits", "idempotency_keys", "deferred_work"],
    "unique_keys",
    *["messages", "message_keys"],
    *["task_values", "stream_entries", "log_lines", "claim_log"],
]
# All rows of a queue as they are, except for events that were not emitted. Such a row
# is the place where a wait registers: a refused wait may leave one until it is pruned.
ROWS: Final = (
    "select '{0}', rows::text from durable.{0} as rows where queue = %(queue)s"
)
DUMP: Final = " union all ".join(map(ROWS.format, TABLES))
EMITTED: Final = (
    "select from durable.events where queue = %s and emitted_at is not null"
)


# -- what others do meanwhile ----------------------------------------------------------


class Others:
    """All other sessions: they take tasks over as workers do, among other things."""

    def __init__(self, db: psycopg.Connection, queue: str, task_id: UUID) -> None:
        self.db = db
        self.queue = queue
        self.task_id = task_id

    def ask(self, call: str, *args: Any) -> None:
        """Call a function of the engine on the task's queue."""
        marks = ", ".join(["%s"] * (len(args) + 1))
        query = f"select from durable.{call}({marks})"
        self.db.execute(query, [self.queue, *args])

    def write(self, **extra: Any) -> str:
        """Return the statement by which the holding worker writes for its task."""
        row = self.db.execute(
            "select claim from durable.tasks where queue = %s and task_id = %s",
            [self.queue, self.task_id],
        ).fetchone()
        assert row is not None
        return json.dumps([{"task_id": str(self.task_id), "claim": row[0], **extra}])

    def lease_ends(self) -> None:
        self.db.execute(
            "update durable.tasks set lease_expires_at = 'epoch'"
            " where queue = %s and claim %% 2 = 1",
            [self.queue],
        )
        self.ask("expire_leases")

    def take_over(self) -> None:
        """Expire the lease and claim in one transaction, before a late claim can."""
        with self.db.transaction():
            self.lease_ends()
            self.claim()

    def claim(self) -> None:
        self.ask("claim_tasks", "other", ["linger", "mind"], 1, HOUR)
        self.ask("load_checkpoints", self.write())

    def save(self) -> None:
        self.take_over()
        saved = self.write(name="late", value="the other's", position=1)
        self.db.execute(
            "select from durable.flush(%s, %s::text::json, null, null)",
            [self.queue, saved],
        )

    def complete(self) -> None:
        self.take_over()
        self.db.execute(
            "select from durable.flush(%s, null, %s::text::json, null)",
            [self.queue, self.write(result="the other's")],
        )

    def fail(self, *, retryable: bool) -> None:
        self.take_over()
        error = {"type": "Error", "message": "the other's"}
        self.db.execute(
            "select from durable.flush(%s, null, null, %s::text::json)",
            [self.queue, self.write(error=error, retryable=retryable)],
        )

    def sleep(self) -> None:
        self.take_over()
        waits = [{"name": "$sleep:other", "seconds": HOUR, "position": 1, "after": 0}]
        self.db.execute(
            "select from durable.suspend_tasks(%s, %s::text::json)",
            [self.queue, self.write(waits=waits)],
        )

    def cancel(self) -> None:
        self.ask("cancel_task", self.task_id)

    def revive(self) -> None:
        with self.db.transaction():
            self.cancel()
            self.ask("retry_task", self.task_id)
            self.claim()

    def lose_the_last_attempt(self) -> None:
        self.db.execute(
            "update durable.tasks set max_attempts = 1 where queue = %s", [self.queue]
        )
        self.lease_ends()

    def delete(self) -> None:
        self.complete()
        self.db.execute(
            "update durable.tasks set finished_at = 'epoch' where queue = %s"
            " and finished_at is not null",
            [self.queue],
        )
        self.ask("cleanup")


MEANWHILE: Final[dict[str, Callable[[Others], None]]] = {
    "another holds it": Others.take_over,
    "another has saved the same step": Others.save,
    "another has completed it": Others.complete,
    "another has failed it for good": lambda others: others.fail(retryable=False),
    "it waits for its next attempt": lambda others: others.fail(retryable=True),
    "it sleeps": Others.sleep,
    "it was cancelled": Others.cancel,
    "it was cancelled, revived and taken": Others.revive,
    "that was its last attempt": Others.lose_the_last_attempt,
    "it was deleted": Others.delete,
}
ALL: Final = list(itertools.product(DEEDS, MEANWHILE))


# -- the former holder -----------------------------------------------------------------


@pytest.fixture
def forks(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ForkServer]:
    """The fork server that starts the workers to be stopped."""
    monkeypatch.setenv("DURABLE_DATABASE_URL", dsn)
    with forkserver(tmp_path) as started:
        yield started


class Scene:
    """One task, its former holder, and the others."""

    def __init__(self, dsn: str, db: psycopg.Connection, forks: ForkServer) -> None:
        self.db = db
        self.forks = forks
        self.app = Durable(dsn, tasks=[linger, mind])
        self.numbers = itertools.count(1)

    def stop(self, kind: Any, params: str, point: str) -> tuple[Child, Others]:
        """Start a worker that takes the task and stops itself at this point."""
        queue = f"scene-{next(self.numbers)}"
        with self.app as app:
            app.create_queue(queue)
            handle = app.spawn(kind, params, queue=queue)
        others = Others(self.db, queue, handle.task_id)
        if point.startswith("load_checkpoints"):  # it was held before
            others.ask("claim_tasks", "first", ["linger"], 1, HOUR)
            others.ask("release_tasks", others.write())
        lease = LEASE if params == "has its lease extended" else HOUR
        at_once = point.startswith("release_tasks")
        child = self.forks.fork(
            "tests.support.lingering:work",
            f"stop={point}",
            queue=queue,
            lease=lease,
            poll=HOUR,
            shutdown_timeout=0 if at_once else 30,
        )
        if at_once:
            eventually(lambda: "begins" in child.passed(), deadline=30)
            child.terminate()
        wait_for_a_stop(child)
        return child, others

    def resume(self, child: Child, others: Others, call: str) -> list[str]:
        """Let the worker end, which must change nothing; return what its code saw."""
        self.db.execute("select durable.apply_deferred_work(%s)", [others.queue])
        before = self.dump(others.queue)
        resume(child)
        eventually(
            lambda: f"{call}:after" in child.passed(),
            deadline=60,
            what=f"the end of {call}",
        )
        if not call.startswith("release_tasks"):
            child.terminate()
        assert child.wait(deadline=60) == 0, self.forks.output()
        assert self.dump(others.queue) == before
        assert self.db.execute(EMITTED, [others.queue]).rowcount == 0
        return [one for one in child.passed() if one.startswith("saw ")]

    def dump(self, queue: str) -> list[Any]:
        return sorted(self.db.execute(DUMP, {"queue": queue}).fetchall())


@pytest.fixture
def scene(dsn: str, db: psycopg.Connection, forks: ForkServer) -> Scene:
    return Scene(dsn, db, forks)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_writes_nothing_after_another_worker_took_the_task(
    scene: Scene, share: Share, random: Random, survived: Survived, number: int
) -> None:
    """Every kind of late write, after every kind of change to the task."""
    some = share(quick=covering(random), long=ALL)[number::2]
    for deed, meanwhile in some:
        call, _ = DEEDS[deed]
        child, others = scene.stop(linger, deed, f"{call}:before")
        MEANWHILE[meanwhile](others)
        saw = scene.resume(child, others, call)
        assert saw == [expected(deed, meanwhile)], (deed, meanwhile)
    survived("late writes of stopped workers, all refused", len(some))


def expected(deed: str, meanwhile: str) -> str:
    """Return how the task's code sees its end."""
    if deed == "completes":
        return "saw nothing"
    if deed.startswith("fails"):
        kind = "ValueError" if deed == "fails" else "NonRetryable"
        return f"saw {kind}: of the former holder"
    if deed == "is given back":
        return "saw Suspended: shutdown"
    if (deed, meanwhile) == ("loads its past", "another has saved the same step"):
        return "saw nothing"  # because it is in its history by now
    if meanwhile == "it was cancelled":
        return "saw Suspended: cancelled"
    return "saw Suspended: lease lost"


def covering(random: Random) -> list[tuple[str, str]]:
    """Return pairs that cover every late write and every change at least once."""
    deeds, meanwhile = list(DEEDS), list(MEANWHILE)
    random.shuffle(deeds)
    random.shuffle(meanwhile)
    return list(zip(deeds, itertools.cycle(meanwhile), strict=False))


@pytest.mark.slow
def test_accepts_a_late_answer_and_writes_nothing_more(
    scene: Scene, share: Share, random: Random, survived: Survived
) -> None:
    """What was saved before the stop is saved; later writes are refused."""
    meanwhile = list(MEANWHILE)
    some = share(quick=random.sample(meanwhile, 3), long=meanwhile)
    for what in some:
        child, others = scene.stop(linger, "saves a step", "flush#1:sent")
        eventually(partial(has_saved, others), deadline=30)
        MEANWHILE[what](others)
        assert scene.resume(child, others, "flush#2") == ["saw nothing"]
        assert "flush#1:after" in child.passed()
    survived("late writes of stopped workers, all refused", len(some))


def has_saved(others: Others) -> bool:
    query = "select from durable.checkpoints where queue = %s"
    return others.db.execute(query, [others.queue]).rowcount == 1


@pytest.mark.slow
@pytest.mark.parametrize("manner", MANNERS)
def test_code_of_a_former_holder_cannot_end_the_task(
    scene: Scene, survived: Survived, manner: str
) -> None:
    """Whatever it does with the exception that ends it."""
    child, others = scene.stop(mind, manner, "flush#1:before")
    others.take_over()
    saw = scene.resume(child, others, "flush#1")
    assert set(saw) == {"saw Suspended: lease lost"}
    survived("exceptions of former holders that failed nobody's run", 1)


# -- nobody took over ------------------------------------------------------------------


@task(max_attempts=1)
async def wait_for_a_file(path: str, ctx: TaskContext) -> int:
    """Hold the worker until a file exists."""
    return await ctx.step("wait", until_exists, path, ctx.attempt)


def until_exists(path: str, attempt: int) -> int:
    eventually(Path(path).exists, deadline=60)
    return attempt


app = Durable(tasks=[wait_for_a_file])


@pytest.mark.parametrize("moment", ["extend_leases#1:before", "run_maintenance#2:sent"])
def test_continues_if_nobody_took_the_task_over(
    dsn: str,
    db: psycopg.Connection,
    processes: Processes,
    tmp_path: Path,
    survived: Survived,
    *,
    moment: str,
) -> None:
    """It stops before it has extended its lease, and extends it when it resumes."""

    def is_true(condition: str) -> bool:
        return db.execute(f"select from durable.tasks where {condition}").rowcount == 1

    file = tmp_path / "go on"
    with Durable(dsn) as client:
        handle = client.spawn(wait_for_a_file, str(file))
        options = ["--lease", str(LEASE), "--concurrency", "1"]
        worker = processes.durable(
            *["worker", f"{__name__}:app", *options],
            env={"DURABLE_FAILPOINT": f"stop={moment}"},
        )
        eventually(partial(has_stopped, worker.pid), deadline=60)
        eventually(lambda: is_true("lease_expires_at < clock_timestamp()"), deadline=60)
        os.kill(worker.pid, SIGCONT)
        eventually(lambda: is_true("lease_expires_at > clock_timestamp()"), deadline=60)
        file.touch()
        assert handle.result(timeout=60) == 1
    survived("leases that ran out and nobody took", 1)


def has_stopped(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
