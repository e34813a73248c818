"""Lives that end at a named boundary, and what must be true after recovery.

A story runs undisturbed first, which lists all boundaries there are. Then it runs
again, in a queue of its own, in a process that dies at one of them; other processes
continue it. In the end the database must hold what it would have held.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGTERM
from typing import Any, Final, TypeAlias

import psycopg

from durable import Durable
from durable.registry import AnyTask
from tests.chaos.promises import UNTOLD, broken
from tests.support.crashing import (
    FAR,
    LINES,
    ONCE,
    STEPS,
    TASKS,
    errand,
    ledger,
    saved,
)
from tests.support.forkserver import Child, ForkServer
from tests.support.wait import eventually

__all__ = ["DEAD", "Picture", "Points", "Stage", "Story", "enumerated"]
__all__ += ["sessions"]

Picture: TypeAlias = list[tuple[Any, ...]]

DEAD: Final = -SIGKILL
RECORDS: Final = 3
TRIES: Final = 5
# What depends on timing: a worker that is idle for long enough listens, and the number
# of its claims depends on how often it finds nothing.
UNCERTAIN: Final = re.compile(
    r"(register_listener|unregister_listener|listen|list_waiting_names)#"
    r"|claim_tasks#(?!1:)"
)
WORK: Final = "tests.support.crashing:work"
GHOST: Final = "the ghost"

PICTURE: Final = Path(__file__).with_name("picture.sql").read_text()
VARIES: Final = (
    "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9-]{10}T[0-9:.+]+|story-[0-9]+"
)
LIVE: Final = """
select from durable.tasks
where queue = %s and state not in ('completed', 'failed', 'cancelled')
"""
ATTEMPTS: Final = """
select name, tasks.attempt,
  array_remove(array_agg(runs.attempt order by runs.attempt), null),
  count(*) filter (where outcome = 'lease_lost'),
  count(*) filter (where outcome = 'failed')
from durable.tasks left join durable.runs using (queue, task_id)
where queue = %s
group by task_id, name, tasks.attempt
"""
EFFECTS: Final = """
select params #>> '{}', step, count(*)
from public.effects join durable.tasks using (task_id)
where queue = %s
group by 1, 2
"""
LOGGED: Final = """
select params #>> '{}', message, count(*)
from durable.log_lines join durable.tasks using (queue, task_id)
where queue = %s and tasks.name = %s
group by 1, 2
"""
SESSIONS: Final = """
select pid from pg_stat_activity
where datname = current_database() and backend_type = 'client backend'
"""
END_LEASES: Final = """
update durable.tasks set lease_expires_at = 'epoch'
where queue = %s and claim %% 2 = 1 and lease_expires_at > 'epoch'
  and split_part(worker, ':', 2) = any(%s)
"""
HAUNT: Final = """
select from durable.claim_tasks(%s, 'nobody', array['errand'], 1, 0.001)
"""


@dataclass(frozen=True)
class Story:
    """Tasks that are spawned together, and the worker that runs them first.

    The worker stops once all of `until` was passed, else when all tasks are final. A
    `ghost` is one more task, whose worker has died. If `far`, tasks run in a second
    queue too, which the workers also serve.
    """

    task: AnyTask
    name: str
    result: Any
    labels: Sequence[str] = ("a",)
    concurrency: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    until: frozenset[str] = frozenset()
    ghost: bool = False
    far: bool = False

    def effects(self) -> list[tuple[str, str]]:
        """Return the steps that have effects, each with the label of its task."""
        own = [(label, step) for label in self.labels for step in STEPS[self.name]]
        errands = [GHOST] if self.ghost else []
        if self.name.startswith(("journey", "relay", "tour")):
            errands += [f"{label}'s child" for label in self.labels]
        return own + [(label, step) for label in errands for step in STEPS["errand"]]


@dataclass(frozen=True)
class Points:
    """The boundaries of a story that always occur, and those that depend on timing."""

    certain: list[str]
    sometimes: list[str]

    def only(self, wanted: Callable[[str], bool]) -> Points:
        """Return those of them that are selected."""
        return Points(
            [point for point in self.certain if wanted(point)],
            [point for point in self.sometimes if wanted(point)],
        )

    def loosened(self) -> Points:
        """Rely only on the code's own boundaries, and on each call's first time."""
        firm = re.compile(r".*: |\w+#1:")
        return Points(
            certain=[point for point in self.certain if firm.match(point)],
            sometimes=[
                *(point for point in self.certain if not firm.match(point)),
                *self.sometimes,
            ],
        )

    def stripe(self, number: int, of: int) -> Points:
        """Return one test's share of so many, whichever others there are."""
        return self.only(lambda point: zlib.crc32(point.encode()) % of == number)

    def sample(self, random: Random, parts: int) -> Points:
        """Return one of so many of each, rounded up: all, if that is 1."""

        def some(points: list[str]) -> list[str]:
            return random.sample(points, math.ceil(len(points) / parts))

        return Points(some(self.certain), some(self.sometimes))

    def sweep(self, dies_at: Callable[[str], bool]) -> list[str]:
        """Die at each, and return those that occurred.

        A boundary that always occurs is tried until it does; one that depends on
        timing, once.
        """
        for point in self.certain:
            came = any(dies_at(point) for _ in range(TRIES))
            assert came, f"{point} never came"
        return [*self.certain, *(point for point in self.sometimes if dies_at(point))]


def enumerated(record: Callable[[], Iterable[str]]) -> Points:
    """Run undisturbed a few times, and return the boundaries that were passed."""
    records = [dict.fromkeys(record()) for _ in range(RECORDS)]
    union = {point: None for passed in records for point in passed}
    always = {
        point
        for point in set.intersection(*map(set, records))
        if not UNCERTAIN.match(point)
    }
    return Points(
        certain=[point for point in union if point in always],
        sometimes=[point for point in union if point not in always],
    )


class Stage:
    """A database on which stories are played, each in a queue of its own."""

    def __init__(
        self, dsn: str, db: psycopg.Connection, forkserver: ForkServer
    ) -> None:
        self.db = db
        self.forkserver = forkserver
        self.app = Durable(dsn, tasks=TASKS, lifespan=ledger)
        self._numbers = itertools.count(1)

    def undisturbed(self, story: Story) -> tuple[Points, Picture]:
        """Return the boundaries of a story, and the final state of the database."""
        pictures: list[Picture] = []

        def record() -> list[str]:
            queue = self.begin(story)
            child = self.live(story, queue)
            assert child.exit_code == 0, self.forkserver.output()
            self.recover(queue, [])
            pictures.append(self.picture(queue))
            return child.passed()

        points = enumerated(record)
        assert pictures == pictures[:1] * RECORDS
        results = [row[4] for row in pictures[0] if row[:2] == ("task", story.name)]
        assert results == [json.dumps(story.result)] * len(story.labels)
        # a worker of two queues looks into each as often as the other one lets it
        return points.loosened() if story.far else points, pictures[0]

    def survive(
        self, story: Story, expected: Picture, *points: str
    ) -> tuple[list[Child], Counter[str]]:
        """Die at these points, one after the other; recover, and check the final state.

        Returns the lives, and how many steps had their effect twice, by label.
        """
        queue = self.begin(story)
        lives: list[Child] = []
        for point in points:
            lives.append(self.live(story, queue, f"kill={point}", dead=lives))
        self.recover(queue, lives)
        assert self.picture(queue) == expected, points
        assert UNTOLD not in broken(self.db, queue), points
        self.check_attempts(story, queue, lives)
        self.check_lines(story, queue, lives)
        return lives, self.check_effects(story, queue, lives)

    # -- a life --------------------------------------------------------------------

    def new_queue(self) -> str:
        """Return a new, empty queue."""
        number = next(self._numbers)
        queue, policy = f"story-{number}", {"history": ["brief", "full"][number % 2]}
        create = "select durable.create_queue(%s, %s)"
        self.db.execute(create, [queue, json.dumps(policy)])
        return queue

    def begin(self, story: Story) -> str:
        """Spawn the tasks of a story, and return their queue."""
        queue = self.new_queue()
        if story.far:
            self.db.execute("select durable.create_queue(%s)", [f"{queue}{FAR}"])
        with self.app as app:
            app.emit_event("go", "heard", queue=queue)
            app.spawn_many(story.task, list(story.labels), queue=queue)
            if story.ghost:
                app.spawn(errand, GHOST, queue=queue)
                self.db.execute(HAUNT, [queue])
        return queue

    def live(
        self, story: Story, queue: str, *orders: str, dead: Sequence[Child] = ()
    ) -> Child:
        """Run a worker until it dies, or has nothing left to do."""

        def has_done_its_part() -> bool:
            self.end_leases(queue, dead)
            if story.until:
                return story.until <= set(child.passed())
            return self.is_over(queue)

        others = sessions(self.db)
        options = {"lease": 60, "shutdown_timeout": 0, **story.options}
        if story.far:
            options["queues"] = queues(queue)
        child = self.forkserver.fork(
            WORK, *orders, queue=queue, concurrency=story.concurrency, **options
        )
        eventually(
            lambda: child.has_ended(within=0.02) or has_done_its_part(),
            deadline=60,
            what=f"the end of a life with {orders}",
        )
        if not child.has_ended():
            with suppress(ProcessLookupError):
                child.terminate()
        code = child.wait(deadline=60)  # it may be signalled before it handles signals
        assert code in {0, DEAD, -SIGTERM}, self.forkserver.output()
        # Let no lease end before the dead worker's last requests have arrived: a claim
        # may be among them.
        eventually(lambda: sessions(self.db) <= others, what="the worker's sessions")
        return child

    def recover(self, queue: str, dead: Sequence[Child]) -> None:
        """Continue in this process, until all tasks are final."""

        def is_recovered() -> bool:
            self.end_leases(queue, dead)
            return self.is_over(queue)

        if not is_recovered():
            known = "select queue from durable.queues where queue = any(%s)"
            there = [name for (name,) in self.db.execute(known, [queues(queue)])]
            with self.app.worker(queues=there, concurrency=10, poll=0.05):
                eventually(is_recovered, deadline=60)

    def is_over(self, queue: str) -> bool:
        """Whether all tasks are final."""
        return all(not self.db.execute(LIVE, [q]).rowcount for q in queues(queue))

    def end_leases(self, queue: str, dead: Sequence[Child]) -> None:
        """Expire the leases of dead workers at once."""
        pids = [str(child.pid) for child in dead]
        for place in queues(queue) if pids else ():
            if self.db.execute(END_LEASES, [place, pids]).rowcount:
                self.db.execute("select durable.expire_leases(%s)", [place])

    # -- what must be true in the end ----------------------------------------------

    def picture(self, queue: str) -> Picture:
        """Return all rows of a queue, once its deferred work is applied."""
        rows: Picture = []
        for place in queues(queue):
            self.db.execute("select durable.apply_deferred_work(%s)", [place])
            of = {"queue": place, "varies": VARIES}
            rows += self.db.execute(PICTURE, of).fetchall()
        return sorted(rows, key=repr)

    def check_attempts(self, story: Story, queue: str, lives: Sequence[Child]) -> None:
        """Check that each attempt but the last has a row; a crash costs one at most."""
        crashes = sum(child.exit_code != 0 for child in lives)
        rows = [row for q in queues(queue) for row in self.db.execute(ATTEMPTS, [q])]
        for name, attempt, numbers, lost, failed in rows:
            assert numbers == list(range(1, attempt)), name
            assert lost <= crashes or story.ghost
            assert failed <= (name in {"journey", "herald", "tour"})
            assert attempt == 1 + lost + failed

    def check_lines(self, story: Story, queue: str, lives: Sequence[Child]) -> None:
        """Check that a line repeats only in a life that did not know it was saved."""
        after = LINES.get(story.name, {})
        for label, line, times in self.db.execute(LOGGED, [queue, story.name]):
            if line in after:
                known = saved(label, after[line])
                knew = [known in child.passed() for child in lives] + [True]
                assert 1 <= times <= 1 + knew.index(True), (label, line, times)

    def check_effects(
        self, story: Story, queue: str, lives: Sequence[Child]
    ) -> Counter[str]:
        """Check that steps known to be saved had one effect; return repeated ones.

        A step in flight may have had its effect once in every life that began it, and
        once more.
        """
        rows = [row for q in queues(queue) for row in self.db.execute(EFFECTS, [q])]
        found = {(label, step): times for label, step, times in rows}
        repeated: Counter[str] = Counter()
        for label, step in story.effects():
            begun, known = 0, False
            for child in lives:
                passed = child.passed()
                begins = f"{label}: before the effect of {step}" in passed
                assert not (known and begins), f"{label} began {step} again"
                begun += begins
                known = known or saved(label, step) in passed
            times = found.pop((label, step))
            most = 1 if step in ONCE else begun + (not known)
            assert 1 <= times <= most, (label, step, times)
            if times > 1 and step != "refused":  # saved together with the next one
                repeated[label] += 1
        assert not found, found
        return repeated


def sessions(db: psycopg.Connection) -> set[int]:
    """Return the processes that serve this database's clients."""
    return {pid for (pid,) in db.execute(SESSIONS).fetchall()}


def queues(queue: str) -> list[str]:
    """Return a story's queue, and the second one, which may not exist."""
    return [queue, f"{queue}{FAR}"]
