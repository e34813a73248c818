"""The queue in which a scenario is played, before two calls meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from tests.chaos.interleavings.calls import FAR, WORKER, Call, Held

__all__ = ["HOUR", "Scenario", "Stage"]

HOUR: Final = datetime(2030, 1, 1, tzinfo=UTC)
OPTIONS: Final = {"max_attempts": 2, "retry": {"kind": "fixed", "base_seconds": 10}}
CLAIM: Final = """
select task_id, claim
from durable.claim_tasks(%(queue)s, %(worker)s, %(names)s, 1, %(lease)s)
"""


class Stage:
    """A queue in which a scenario is played, an hour before calls meet."""

    def __init__(self, session: psycopg.Connection, queue: str) -> None:
        self.queue = queue
        self.nicks: dict[str, str] = {}
        self._session = session
        self.at(-3600)
        policy = {"keep_tasks": 60, "keep_events": 60}
        self._rows("select durable.create_queue(%(queue)s, %(policy)s)", policy=policy)

    def _rows(self, query: str, **args: Any) -> list[tuple[Any, ...]]:
        args = {
            key: json.dumps(arg) if isinstance(arg, dict) else arg
            for key, arg in args.items()
        }
        self.at(self._seconds + 1)
        args = {"queue": self.queue, "far": f"{self.queue}{FAR}", **args}
        return self._session.execute(query, args).fetchall()

    def at(self, seconds: float) -> None:
        """Move the clock to so many seconds from the hour."""
        self._seconds = seconds
        moment = HOUR + timedelta(seconds=seconds)
        self._session.execute("select set_config('test.now', %s, false)", [str(moment)])

    def spawn(self, nick: str, parent: Held | None = None, **options: Any) -> Held:
        """Spawn a task whose name is its nickname."""
        if parent is not None:
            options["parent_task_id"] = str(parent.task_id)
        ((task_id,),) = self._rows(
            "select task_id from durable.spawn(%(queue)s, %(nick)s, '{}', %(options)s)",
            nick=nick,
            options=OPTIONS | options,
        )
        self.nicks[str(task_id)] = nick
        return Held(nick, task_id)

    def triggered(self, schedule: str) -> Held:
        """Trigger a schedule whose task has its name, and claim the task."""
        ((task_id,),) = self._rows(
            "select task_id from durable.trigger_schedule(%(queue)s, %(schedule)s)",
            schedule=schedule,
        )
        self.nicks[str(task_id)] = schedule
        return self.hold(Held(schedule, task_id))

    def hold(self, task: Held, *, lease: float = 10**5) -> Held:
        """Claim a task."""
        claimed = self._rows(CLAIM, worker=WORKER, names=[task.nick], lease=lease)
        ((task_id, claim),) = claimed
        assert task_id == task.task_id
        return Held(task.nick, task_id, claim)

    def held(
        self,
        nick: str,
        parent: Held | None = None,
        *,
        lease: float = 10**5,
        **more: Any,
    ) -> Held:
        """Spawn a task and claim it."""
        return self.hold(self.spawn(nick, parent, **more), lease=lease)

    def held_below(self, parent: Held, call: Call) -> Held:
        """Spawn a task's child by `spawn_far` or `spawn_back`, and claim it."""
        nick = call.name.split(" ")[-1]
        query = call.query.replace("select name, created", "select task_id")
        ((task_id,),) = self._rows(query, **call.args)
        self.nicks[str(task_id)] = nick
        child = Held(nick, task_id)
        where = "queue" if "in(%(far)s" in query else "far"
        claim = CLAIM.replace("%(queue)s", f"%({where})s")
        ((_, number),) = self._rows(claim, worker=WORKER, names=[nick], lease=10**5)
        assert parent.task_id < task_id
        return child._replace(claim=number)

    def reach_far(self) -> None:
        """Create the other queue."""
        policy = {"keep_tasks": 60, "keep_events": 60}
        self._rows("select durable.create_queue(%(far)s, %(policy)s)", policy=policy)

    def done(self, call: Call) -> None:
        """Make a call."""
        self._rows(call.query, **call.on(self.queue))

    def left_to_notes(self, call: Call) -> None:
        """Make a call outside READ COMMITTED, whose consequences are deferred."""
        self._session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with self._session.transaction():
            self.done(call)
        self._session.isolation_level = None


Scenario = Callable[[Stage], Sequence[Call]]
