"""Eight sessions make random calls: nothing deadlocks, is lost or left behind.

Transactions pause and roll back at random, leases expire, snapshots are old. The order
in which threads run is not repeatable, but the calls that each of them chooses are.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.chaos.promises import UNSEEN_WAIT, broken
from tests.support.survival import Share, Survived
from tests.support.wait import eventually

SESSIONS = 8
EVENTS = 300
ERROR = {"type": "E", "message": "no"}
LEVELS = [None, None, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]

# Errors that the loser of a race may get; any other fails the test.
EXPECTED = {"40001", "55P03", "WFCAN", "WFFIN", "WFLST", "WFNFD", "WFQUE"}

# Deleted tasks are counted too.
GRAVEYARD = """
create table public.buried (state text not null);

create function public.bury() returns trigger language plpgsql security definer
as $$ begin insert into public.buried values (old.state); return null; end $$;

create trigger bury after delete on durable.tasks
for each row when (old.queue = 'default') execute function public.bury();

select durable.create_queue('default', '{"keep_tasks": 0.5, "keep_events": 0.5}');
"""
COUNT = """
select count(*) from (
  select state::text from durable.tasks where queue = 'default'
  union all select state from public.buried
) as tasks
where state like %s
"""
CLAIM = """
select task_id, claim from durable.claim_tasks('default', 'w', null, %s, %s)
"""
SPAWN_CHILDREN = """
select name, created from durable.spawn_children('default', %s, %s, %s)
"""
RELEASE_UNKNOWN = "select durable.release_unknown('default', 'w', '{}')"
EMIT_FROM_TASK = """
select durable.emit_from_task('default', %s, %s, '$emit', %s)
"""
SEND = "select durable.send_message('default', %s, 't', %s::text::jsonb, %s)"
SEND_FROM_TASK = """
select durable.send_from_task(
  'default', %s, %s, '$send', 'default', %s, 't', %s::text::jsonb)
"""
RECEIVED = """
from durable.checkpoints where starts_with(name, '$recv') and state = 'done'
"""
RECV_MESSAGE = """
select outcome from durable.recv_message('default', %s, %s, '$recv', 't')
"""
AWAIT_EVENT = """
select outcome from durable.await_event('default', %s, %s, '$event', %s, %s)
"""
AWAIT_TASKS = """
select outcome from durable.await_tasks('default', %s, %s, '$join', %s)
"""
FLUSH = "select task_id from durable.flush('default', %s, %s, %s)"
DEADLOCKS = """
select deadlocks from pg_stat_database where datname = current_database()
"""


class Player(threading.Thread):
    """A session that is a client, a worker and a maintenance process in turn."""

    def __init__(self, dsn: str, seed: float, over: threading.Event) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._dsn = dsn
        self._random = Random(seed)
        self._over = over
        self._roots: list[UUID] = []

    def run(self) -> None:
        try:
            with psycopg.connect(self._dsn) as self._db:
                self._db.execute("set deadlock_timeout = '100ms'")
                self._db.commit()
                while not self._over.is_set():
                    self._move()
        except psycopg.OperationalError as failure:
            self.failure = failure
        except BaseException as failure:  # noqa: BLE001 - the test raises it again
            self.failure = failure

    def _move(self) -> None:
        moves: list[tuple[int, Callable[[], Any]]] = [
            (6, self._emit),
            (14, self._send),
            (5, self._cancel),
            (3, self._retry),
            (10, self._spawn),
            (
                4,
                lambda: self._tell("select durable.apply_deferred_work('default', 20)"),
            ),
            (4, lambda: self._tell("select durable.expire_leases('default')")),
            (2, lambda: self._tell("select durable.expire_tasks('default')")),
            (1, lambda: self._tell("select durable.prune_events('default')")),
            (1, lambda: self._tell("select durable.cleanup('default')")),
            (1, lambda: self._tell("select durable.run_maintenance('default')")),
            (1, lambda: self._tell(RELEASE_UNKNOWN)),
            (2, self._spawn_many),
            (2, self._come_and_go),
            (30, self._work),
        ]
        weights = [weight for weight, _ in moves]
        self._random.choices([move for _, move in moves], weights)[0]()

    def _tell(
        self, query: str, *args: Any, level: IsolationLevel | None = None
    ) -> list[tuple[Any, ...]] | None:
        """Make a call; return None when it was refused, or rolled back at random."""
        self._db.isolation_level = level
        try:
            with self._db.transaction() as transaction:
                if level is not None:
                    self._db.execute("select from durable.queues")
                    self._pause()
                rows = self._db.execute(query, args).fetchall()
                self._pause()
                if self._random.random() < 0.03:
                    raise psycopg.Rollback(transaction)
                return rows
        except psycopg.Error as refusal:
            self.count[str(refusal.sqlstate)] += 1
            if refusal.sqlstate not in EXPECTED:
                raise
        self.count["rolled back"] += 1
        return None

    def _pause(self) -> None:
        if self._random.random() < 0.5:
            time.sleep(self._random.random() * 0.003)

    def _event(self) -> str:
        return f"event-{self._random.randrange(EVENTS)}"

    def _level(self) -> IsolationLevel | None:
        return self._random.choice(LEVELS)

    # Clients

    def _emit(self) -> None:
        emit = "select durable.emit_event('default', %s)"
        self._tell(emit, self._event(), level=self._level())

    def _send(self) -> None:
        if self._roots:
            to = self._random.choice(self._roots[-30:])
            key = self._random.choice([None, "k", "l"])
            self._tell(SEND, to, self._payload(), key, level=self._level())

    def _payload(self) -> str:
        return str(self._random.getrandbits(60))

    def _cancel(self) -> None:
        if self._roots:
            cancel = "select durable.cancel_task('default', %s)"
            self._tell(
                cancel, self._random.choice(self._roots[-30:]), level=self._level()
            )

    def _retry(self) -> None:
        if self._roots:
            retry = "select durable.retry_task('default', %s)"
            self._tell(retry, self._random.choice(self._roots[-30:]))

    def _spawn(self) -> None:
        chance = self._random.random()
        options: dict[str, Any] = {"retry": {"kind": "fixed", "base_seconds": 0.01}}
        if chance < 0.3 and self._roots:
            options["parent_task_id"] = str(self._random.choice(self._roots[-10:]))
        elif chance < 0.5:
            options["idempotency_key"] = f"key-{self._random.randrange(10**4)}"
        elif chance < 0.6:
            options["execution_timeout"] = self._random.random() * 0.1
        spawn = "select task_id, created from durable.spawn('default', 'a', '{}', %s)"
        rows = self._tell(spawn, json.dumps(options), level=self._level())
        for task_id, created in rows or []:
            self.count["spawned"] += created
            if "parent_task_id" not in options:
                self._roots.append(task_id)

    def _spawn_many(self) -> None:
        keys = self._random.sample(range(10**4), 3)
        tasks = [
            {"task": "a", "options": {"idempotency_key": f"key-{key}"}} for key in keys
        ]
        spawn = "select task_id, created from durable.spawn_many('default', %s)"
        for task_id, created in self._tell(spawn, json.dumps(tasks)) or []:
            self.count["spawned"] += created
            self._roots.append(task_id)

    def _come_and_go(self) -> None:
        """Work in a queue that is dropped and created again repeatedly."""
        calls = [
            "select durable.drop_queue('passing')",
            "select durable.create_queue('passing')",
            "select durable.spawn('passing', 'a', '{}', '{\"start_timeout\": 0}')",
            "select durable.spawn('passing', 'a')",
            "select durable.emit_event('passing', 'event')",
            "select durable.claim_tasks('passing', 'w', null, 9)",
            "select durable.release_unknown('passing', 'w', '{}')",
            "select durable.run_maintenance('passing')",
        ]
        self._tell(self._random.choice(calls))

    # Workers

    def _work(self) -> None:
        claim = CLAIM
        lease = self._random.choice([0.005, 60, 60, 60])
        helds = self._tell(claim, self._random.randint(1, 6), lease)
        done = [held for held in helds or [] if self._goes_on(*held)]
        while done:
            failed = done[::5] if self._random.random() < 0.2 else []
            completed = [held for held in done if held not in failed]
            refused = self._tell(
                FLUSH,
                self._elements(done, name="step", value=1),
                self._elements(completed, result=1),
                self._elements(failed, error=ERROR, retryable=False),
            )
            if refused is not None:
                lost = {task_id for (task_id,) in refused}
                self.count["completed"] += sum(
                    task_id not in lost for task_id, _ in completed
                )
                break
            done = done[1:]

    def _goes_on(self, task_id: UUID, claim: int) -> bool:  # noqa: PLR0911 - by kind
        """Run this task; return whether it has finished."""
        held = [(task_id, claim)]
        load = "select name, value from durable.load_checkpoints('default', %s)"
        rows = self._tell(load, self._elements(held))
        if rows is None:
            return False
        known = dict(rows)
        kind = Random(str(task_id)).random()
        if kind < 0.3:
            return self._join(task_id, claim, known)
        if kind < 0.55:
            waits = self._receive if task_id.int % 5 < 3 else self._hear
            return waits(task_id, claim, known, kind)
        if kind < 0.6:
            failed = self._elements(held, retryable=kind < 0.58, error=ERROR)
            self._tell("select * from durable.fail_tasks('default', %s)", failed)
            return False
        if kind < 0.65:
            self._tell(
                "select * from durable.extend_leases('default', %s)",
                self._elements(held),
            )
        elif kind < 0.7:
            release = "select * from durable.release_tasks('default', %s)"
            return claim < 2**30 or self._tell(release, self._elements(held)) is None
        elif kind < 0.75:
            return self._say(task_id, claim)
        return kind < 0.98 or self._random.random() < 0.5  # the rest vanishes

    def _say(self, task_id: UUID, claim: int) -> bool:
        if task_id.int % 2 == 0:
            return self._tell(EMIT_FROM_TASK, task_id, claim, self._event()) is not None
        to = self._random.choice([task_id, *self._roots[-10:]])
        sent = self._tell(SEND_FROM_TASK, task_id, claim, to, self._payload())
        return sent is not None

    def _hear(
        self, task_id: UUID, claim: int, known: dict[str, Any], kind: float
    ) -> bool:
        timeout = 0.02 if kind < 0.4 else None
        event = f"event-{int(kind * 1e6) % EVENTS}"
        if "$event" in known:
            return True
        if task_id.int % 2 == 0:
            return self._outcome(AWAIT_EVENT, task_id, claim, event, timeout)
        wait: dict[str, Any] = {"name": "$event", "event": event}
        if timeout is not None:
            wait["seconds"] = timeout
        return self._suspend([(task_id, claim)], wait)

    def _receive(
        self, task_id: UUID, claim: int, known: dict[str, Any], _: float
    ) -> bool:
        if "$recv" in known:
            return True
        if task_id.int % 2 == 0:
            return self._outcome(RECV_MESSAGE, task_id, claim)
        one: dict[str, Any] = {"name": "$recv", "topic": "t", "position": 2}
        other = one | {"name": "$recv#2", "position": 1, "seconds": 0.02}
        return self._suspend([(task_id, claim)], one, other)

    def _join(self, task_id: UUID, claim: int, known: dict[str, Any]) -> bool:
        if "$join" in known:
            return True
        names = [f"$child#{n}" for n in range(1 + task_id.int % 4)]
        if "$child#0" not in known:
            children = [{"name": name, "task": "child"} for name in names]
            spawn = SPAWN_CHILDREN
            rows = self._tell(spawn, task_id, claim, json.dumps(children))
            if rows is None:
                return False
            self.count["spawned"] += len(rows)
            load = "select name, value from durable.load_checkpoints('default', %s)"
            known = dict(self._tell(load, self._elements([(task_id, claim)])) or [])
        ids = [known[name]["task_id"] for name in names if name in known]
        waits = [{"name": "$join", "task_ids": ids}]
        if task_id.int % 3 == 0:
            event = f"event-{task_id.int // 3 % EVENTS}"  # the same in every attempt
            waits.append({"name": "$event", "event": event})
        if task_id.int % 5 == 0:
            polled = self._elements([(task_id, claim)], waits=waits)
            self._tell("select * from durable.poll_waits('default', %s)", polled)
        if len(waits) == 1 and task_id.int % 7 == 0:
            return self._outcome(AWAIT_TASKS, task_id, claim, ids)
        return self._suspend([(task_id, claim)], *waits)

    def _suspend(self, held: list[tuple[UUID, int]], *waits: dict[str, Any]) -> bool:
        suspend = "select outcome from durable.suspend_tasks('default', %s)"
        return self._outcome(
            suspend, self._elements(held, waits=waits), level=self._level()
        )

    def _outcome(
        self, query: str, *args: Any, level: IsolationLevel | None = None
    ) -> bool:
        """Return whether a wait was resolved already."""
        rows = self._tell(query, *args, level=level)
        outcome = rows[0][0] if rows else "none"
        self.count[outcome] += 1
        return bool(outcome == "resolved")

    @staticmethod
    def _elements(helds: list[tuple[UUID, int]], **more: Any) -> str:
        return json.dumps([{"task_id": str(i), "claim": n, **more} for i, n in helds])


@pytest.mark.slow
def test_keeps_every_promise_under_random_concurrent_calls(
    dsn: str,
    db: psycopg.Connection,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    db.execute(GRAVEYARD)
    over = threading.Event()
    players = [Player(dsn, random.random(), over) for _ in range(SESSIONS)]
    for player in players:
        player.start()
    over.wait(share(quick=6, long=180))
    over.set()
    count: Counter[str] = Counter()
    for player in players:
        player.join()
        if player.failure is not None:
            raise player.failure
        count += player.count
    print(dict(count))
    survived("tasks through random races", count["spawned"])

    def value(query: str, *args: Any) -> int:
        row = db.execute(query, args).fetchone()
        assert row is not None
        return int(row[0])

    def nothing_deferred() -> bool:
        db.execute("select durable.apply_deferred_work('default', 1000)")
        return (
            value("select count(*) from durable.deferred_work where queue = 'default'")
            == 0
        )

    eventually(nothing_deferred, what="all deferred work done")
    assert set(broken(db, "default")) <= {UNSEEN_WAIT}
    assert value(DEADLOCKS) == 0
    received = value(f"select count(*) {RECEIVED}")
    assert received == value(f"select count(distinct value::text) {RECEIVED}")
    survived("messages received once in random races", received)
    assert value(COUNT, "%") == count["spawned"]
    assert value(COUNT, "completed") == count["completed"]
