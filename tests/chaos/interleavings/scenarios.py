"""Where two calls meet: what is there before, and every call that has to do with it.

A scenario plays up to the hour at which calls meet, `HOUR`; what it does takes place
before, a second apart, so that ids ascend. It returns the calls; each of them meets
each of them, itself too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from tests.chaos.interleavings import calls as do
from tests.chaos.interleavings.calls import FAR, WORKER, Call, Held

__all__ = ["HOUR", "SCENARIOS", "Scenario", "Stage"]

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
        """Move to so many seconds from the hour."""
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
        """Let a task have a child by `spawn_far` or `spawn_back`, and claim that."""
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
        """Make a call outside READ COMMITTED: what follows from it is left to notes."""
        self._session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with self._session.transaction():
            self.done(call)
        self._session.isolation_level = None


Scenario = Callable[[Stage], Sequence[Call]]


def a_running_task_that_may_be_lost(stage: Stage) -> list[Call]:
    held = stage.held("held", lease=10, idempotency_key="k")
    stage.done(do.save(held, name="before"))
    stage.spawn("idle")
    return [
        do.save(held),
        do.complete(held),
        do.fail(held),
        do.fail(held, retryable=True),
        do.flush(held, held),
        do.publish(held, held),
        do.publish(held, held, held),
        do.extend(held),
        do.release(held),
        do.release_unknown(),
        do.suspend(held, waits=[do.sleep(5)]),
        do.sleep_until(held),
        do.load(held),
        do.hold(held),
        do.spawn_children(held, "child"),
        do.emit_from(held),
        do.cancel(held),
        do.retry(held),
        do.claim(),
        do.expire_leases,
        do.keep_house,
        do.spawn("below", parent=held),
        do.spawn("held", idempotency_key="k"),
        do.spawn_many("more", {}, {"parent_task_id": str(held.task_id)}),
    ]


def a_lost_lease_without_attempts_left(stage: Stage) -> list[Call]:
    outsider = stage.held("outsider")
    parent = stage.held("parent", lease=10, max_attempts=1)
    child = stage.held("child", parent)
    stage.done(do.suspend(outsider, waits=[do.join(parent, child)]))
    return [
        do.expire_leases,
        do.complete(parent),
        do.save(parent),
        do.suspend(parent, waits=[do.join(child)]),
        do.spawn("below", parent=parent),
        do.spawn_children(child, "grandchild"),
        do.complete(child),
        do.fail(child),
        do.cancel(parent),
        do.cancel(child),
        do.cancel(outsider),
        do.retry(parent),
        do.claim(),
    ]


def an_event_and_those_who_wait_for_it(stage: Stage) -> list[Call]:
    sleeper = stage.held("sleeper")
    timed = stage.held("timed")
    about = stage.held("about")
    stage.done(do.suspend(sleeper, waits=[do.event(), do.event("other")]))
    stage.done(do.suspend(timed, waits=[do.event(seconds=5)]))
    stage.done(do.poll(about, waits=[do.event("gone")]))
    stage.done(do.emit("gone"))
    waits = [do.event(), do.event("other")]
    return [
        do.emit(),
        do.emit("other"),
        do.emit_from(about),
        do.suspend(about, waits=waits),
        do.suspend(about, waits=[do.event("gone"), do.event()]),
        do.await_event(about),
        do.poll(about, waits=waits[::-1]),
        do.load(about),
        do.complete(about),
        do.cancel(sleeper),
        do.cancel(about),
        do.claim(),
        do.prune_events,
        do.keep_house,
    ]


def events_nobody_waits_for_any_more(stage: Stage) -> list[Call]:
    gone, held = stage.held("gone"), stage.held("held")
    stage.done(do.poll(gone, waits=[do.event(), do.event("old")]))
    stage.done(do.emit("old"))
    stage.done(do.complete(gone))
    return [
        do.prune_events,
        do.cleanup,
        do.keep_house,
        do.emit(),
        do.emit("old"),
        do.emit_from(held),
        do.suspend(held, waits=[do.event()]),
        do.suspend(held, waits=[do.event("old"), do.event()]),
        do.await_event(held, "old"),
        do.poll(held, waits=[do.event()]),
        do.drop_queue,
    ]


def a_parent_asleep_until_its_children_end(stage: Stage) -> list[Call]:
    parent = stage.held("parent")
    first = stage.held("first", parent)
    second = stage.held("second", parent, max_attempts=1, lease=10)
    stage.done(do.suspend(parent, waits=[do.join(first, second)]))
    return [
        do.complete(first),
        do.complete(second),
        do.complete(second, first),
        do.fail(first),
        do.flush(second, first),
        do.flush(first, first, second),
        do.publish(second, first, first),
        do.cancel(parent),
        do.cancel(first),
        do.cancel(second),
        do.expire_leases,
        do.suspend(first, waits=[do.join(second)]),
        do.release(second),
        do.spawn_children(first, "grandchild"),
        do.spawn("below", parent=parent),
        do.claim(),
    ]


def a_parent_about_to_wait_for_its_children(stage: Stage) -> list[Call]:
    parent = stage.held("parent", max_attempts=1)
    live = stage.held("live", parent)
    over = stage.held("over", parent)
    stage.done(do.complete(over))
    both = [do.join(live, over)]
    return [
        do.suspend(parent, waits=both),
        do.suspend(parent, waits=[*both, do.event()]),
        do.await_tasks(parent, live),
        do.poll(parent, waits=both),
        do.load(parent),
        do.complete(live),
        do.fail(live),
        do.fail(live, retryable=True),
        do.suspend(live, waits=[do.event()]),
        do.cancel(live),
        do.cancel(parent),
        do.complete(parent),
        do.fail(parent),
        do.spawn_children(parent, "child"),
        do.spawn("below", parent=parent),
        do.emit(),
        do.extend(live, parent),
        do.release(parent),
    ]


def a_parent_that_joins_again(stage: Stage) -> list[Call]:
    """Its watch is on a task that has finished since, and was tried again."""
    parent = stage.held("parent")
    first = stage.held("first", parent)
    last = stage.held("last", parent)
    both = [do.join(first, last), do.event()]
    stage.done(do.suspend(parent, waits=both))
    stage.done(do.emit())
    parent = stage.hold(parent)
    stage.done(do.cancel(last))
    stage.done(do.retry(last))
    again = stage.hold(last)
    return [
        do.suspend(parent, waits=both[:1]),
        do.load(parent),
        do.poll(parent, waits=both[:1]),
        do.complete(first),
        do.complete(again),
        do.complete(first, again),
        do.fail(again),
        do.cancel(first),
        do.cancel(again),
        do.cancel(parent),
        do.retry(last),
        do.release(again),
        do.apply_notes,
        do.claim(),
    ]


def a_tree(stage: Stage) -> list[Call]:
    """With a child whose id is ahead of the clock that gave it."""
    root = stage.held("root", max_attempts=1)
    left = stage.held("left", root)
    right = stage.held("right", root, max_attempts=1)
    leaf = stage.held("leaf", left)
    stage.done(do.suspend(leaf, waits=[do.event()]))
    stage.at(3600)
    ahead = stage.spawn("ahead", root)
    stage.at(-1000)
    return [
        do.cancel(root),
        do.cancel(left),
        do.cancel(ahead),
        do.fail(root),
        do.fail(root, right),
        do.fail(right),
        do.complete(root),
        do.complete(left),
        do.complete(left, right),
        do.suspend(root, waits=[do.join(left, ahead, right)]),
        do.spawn("below-root", parent=root),
        do.spawn("below-leaf", parent=leaf),
        do.spawn("below-ahead", parent=ahead),
        do.spawn_children(left, "child"),
        do.spawn_many(
            "two",
            {"parent_task_id": str(ahead.task_id)},
            {"parent_task_id": str(left.task_id)},
        ),
        do.emit(),
        do.claim(),
        do.release_unknown(),
    ]


def a_parent_that_failed_with_all_below_it(stage: Stage) -> list[Call]:
    outsider = stage.held("outsider")
    parent = stage.held("parent", idempotency_key="parent")
    child = stage.held("child", parent, idempotency_key="child")
    stage.spawn("grandchild", child)
    over = stage.held("over", parent)
    stage.done(do.complete(over))
    stage.done(do.fail(parent))
    return [
        do.retry(parent),
        do.retry(parent, spawn_new=True),
        do.retry(parent, max_attempts=9),
        do.retry(child),
        do.retry(over),
        do.cancel(parent),
        do.complete(child),
        do.cleanup,
        do.keep_house,
        do.spawn("parent", idempotency_key="parent"),
        do.spawn("child", idempotency_key="child"),
        do.spawn("below", parent=parent),
        do.spawn("below-child", parent=child),
        do.suspend(outsider, waits=[do.join(parent, child)]),
        do.load(outsider),
        do.claim(),
    ]


def what_time_ends(stage: Stage) -> list[Call]:
    waiting = stage.held("waiting", max_duration=20)
    late = stage.spawn("late", max_delay=5)
    below = stage.held("below", late, max_attempts=1, lease=10)
    running = stage.held("running", max_duration=10)
    stage.done(do.suspend(waiting, waits=[do.join(running), do.event(seconds=900)]))
    return [
        do.expire_deadlines,
        do.expire_leases,
        do.keep_house,
        do.claim(),
        do.cancel(late),
        do.cancel(waiting),
        do.complete(running),
        do.fail(running, retryable=True),
        do.save(running),
        do.extend(running),
        do.release(running),
        do.suspend(running, waits=[do.event()]),
        do.complete(below),
        do.complete(below, running),
        do.spawn("more", parent=late),
        do.spawn("deeper", parent=below),
        do.spawn_children(running, "child"),
        do.emit(),
        do.retry(late),
    ]


def what_was_left_to_notes(stage: Stage) -> list[Call]:
    joiner, child = stage.held("joiner"), stage.held("child")
    sleeper, failed = stage.held("sleeper"), stage.held("failed")
    below = stage.held("below", failed)
    stage.done(do.suspend(joiner, waits=[do.join(child, below)]))
    stage.done(do.suspend(sleeper, waits=[do.event(), do.event("more")]))
    for call in (do.emit(), do.complete(child), do.fail(failed)):
        stage.left_to_notes(call)
    return [
        do.apply_notes,
        do.keep_house,
        do.claim(),
        do.cancel(joiner),
        do.cancel(sleeper),
        do.cancel(below),
        do.retry(failed),
        do.complete(below),
        do.fail(below),
        do.suspend(below, waits=[do.event(), do.event("more")]),
        do.spawn_children(below, "deeper"),
        do.spawn("deep", parent=below),
        do.emit(),
        do.emit("more"),
        do.cleanup,
        do.prune_events,
        do.drop_queue,
    ]


def keys_and_those_who_have_them(stage: Stage) -> list[Call]:
    held = stage.held("held")
    old = stage.spawn("new", idempotency_key="a")
    stage.done(do.cancel(old))
    both = [{"idempotency_key": key} for key in "ba"]
    return [
        do.spawn("new", idempotency_key="a"),
        do.spawn("new", idempotency_key="b"),
        do.spawn("new", idempotency_key="b", fingerprint="f"),
        do.spawn("other", idempotency_key="b"),
        do.spawn_many("new", *both),
        do.spawn_many("new", *both[::-1]),
        do.spawn_children(held, "new", idempotency_key="b"),
        do.cleanup,
        do.keep_house,
        do.retry(old),
        do.retry(old, spawn_new=True),
        do.complete(held),
        do.cancel(held),
    ]


def two_tasks_in_one_batch(stage: Stage) -> list[Call]:
    one, two = stage.held("one"), stage.held("two", lease=10, max_attempts=1)
    stage.done(do.poll(one, two, waits=[do.event("was")]))
    stage.done(do.emit("was"))
    waits = [do.event("y"), do.event("x")]
    return [
        do.complete(two, one),
        do.complete(one),
        do.save(two, one),
        do.fail(two, one),
        do.flush(two, one),
        do.flush(one, one, two),
        do.extend(two, one),
        do.release(two, one),
        do.load(two, one),
        do.suspend(two, one, waits=waits),
        do.poll(one, two, waits=waits[::-1]),
        do.cancel(one),
        do.cancel(two),
        do.expire_leases,
        do.release_unknown(),
        do.emit("x"),
        do.emit_from(two, "y"),
        do.drop_queue,
    ]


def what_is_for_one_version(stage: Stage) -> list[Call]:
    running = stage.held("running", max_attempts=None, lease=10)
    stage.done(do.set_version("1", running))
    stage.done(do.versions("gate"))
    for version in ("2", "1"):  # so 1 is the latest
        stage.done(do.announce(version))
    mine, theirs = stage.spawn("mine", version="1"), stage.spawn("theirs", version="2")
    stage.spawn("anybody's")
    return [
        do.claim(),
        do.claim_as("1"),
        do.claim_as("2"),
        do.announce("2"),
        do.announce("3"),
        do.promote("2"),
        do.set_version("2", mine, running),
        do.set_version("1", theirs),
        do.move_version("3", "1"),
        do.versions(None),
        do.release(running),
        do.complete(running),
        do.fail(running, retryable=True),
        do.expire_leases,
        do.keep_house,
        do.cancel(mine),
    ]


def a_queue_on_its_way_out(stage: Stage) -> list[Call]:
    held = stage.held("held", idempotency_key="k")
    sleeper = stage.held("sleeper", held)
    over = stage.spawn("over")
    stage.done(do.suspend(sleeper, waits=[do.event()]))
    stage.done(do.cancel(over))
    return [
        do.drop_queue,
        do.create_queue,
        do.spawn("new"),
        do.spawn("below", parent=held),
        do.spawn("held", idempotency_key="k"),
        do.spawn_many("new", {"idempotency_key": "l"}),
        do.spawn_children(held, "child"),
        do.complete(held),
        do.fail(held),
        do.save(held),
        do.load(held),
        do.hold(held),
        do.suspend(held, waits=[do.join(sleeper), do.event("more")]),
        do.emit(),
        do.emit("fresh"),
        do.emit_from(held),
        do.claim(),
        do.cancel(held),
        do.retry(over),
        do.cleanup,
        do.prune_events,
        do.keep_house,
    ]


def messages_and_those_who_wait_for_them(stage: Stage) -> list[Call]:
    sleeper, about = stage.held("sleeper"), stage.held("about")
    timed, full = stage.held("timed"), stage.held("full")
    stage.done(do.suspend(sleeper, waits=[do.message(), do.message("other")]))
    stage.done(do.suspend(timed, waits=[do.message(seconds=5)]))
    for key in ("k", None, None):
        stage.done(do.send(full, key=key))
    both = [do.message(), do.message(name="$recv:b/")]
    listener, ear = stage.held("listener"), do.message(name="$recv:ear")
    stage.done(do.send(listener))
    stage.done(do.poll(listener, waits=[ear]))
    return [
        do.send(sleeper),
        do.send(sleeper, "other", key="k"),
        do.send(sleeper, key="k"),
        do.send(timed),
        do.send(about),
        do.send(full, key="k"),
        do.send_from(about, sleeper, key="k"),
        do.send_from(about, about),
        do.send_from(full, about),
        do.suspend(about, waits=both[:1]),
        do.suspend(about, full, waits=[*both, do.event()]),
        do.recv(about),
        do.poll(full, about, waits=both[::-1]),
        do.withdraw(listener, ear, waits=both),
        do.send(listener),
        do.load(full),
        do.complete(about),
        do.cancel(sleeper),
        do.cancel(about),
        do.retry(sleeper),
        do.claim(),
    ]


def messages_that_were_left_and_go_with_their_task(stage: Stage) -> list[Call]:
    old, asleep = stage.held("old"), stage.held("asleep")
    held = stage.held("held")
    stage.done(do.suspend(asleep, waits=[do.message()]))
    stage.left_to_notes(do.send(asleep, key="k"))
    stage.done(do.send(old, key="k"))
    stage.done(do.complete(old))
    return [
        do.cleanup,
        do.keep_house,
        do.drop_queue,
        do.apply_notes,
        do.claim(),
        do.send(old),
        do.send(asleep),
        do.send_from(held, old),
        do.send_from(held, asleep, key="k"),
        do.recv(old),
        do.recv(held),
        do.cancel(asleep),
    ]


def many_at_once(stage: Stage) -> list[Call]:
    held = stage.held("held", idempotency_key="k")
    stage.done(do.save(held, name="before"))
    below = stage.held("below", held)
    failed = stage.held("failed", max_attempts=1)
    taken = stage.spawn("taken", failed)
    stage.done(do.fail(failed))
    later = stage.held("later")
    stage.done(do.fail(later, retryable=True))
    return [
        do.cancel_many(held, later),
        do.cancel_many(),
        do.retry_many(failed, later),
        do.retry_many(),
        do.delete_many(failed, taken),
        do.delete_many(),
        do.fork(held),
        do.fork(failed, idempotency_key="f"),
        do.retry(failed),
        do.retry(later),
        do.cancel(held),
        do.save(held),
        do.complete(held),
        do.complete(below),
        do.spawn_children(held, "child"),
        do.spawn("more", parent=failed),
        do.suspend(held, waits=[do.join(below, failed)]),
        do.claim(),
    ]


SCENARIOS: Final[list[Scenario]] = [
    a_running_task_that_may_be_lost,
    a_lost_lease_without_attempts_left,
    an_event_and_those_who_wait_for_it,
    events_nobody_waits_for_any_more,
    a_parent_asleep_until_its_children_end,
    a_parent_about_to_wait_for_its_children,
    a_parent_that_joins_again,
    a_tree,
    a_parent_that_failed_with_all_below_it,
    what_time_ends,
    what_was_left_to_notes,
    keys_and_those_who_have_them,
    two_tasks_in_one_batch,
    what_is_for_one_version,
    a_queue_on_its_way_out,
    messages_and_those_who_wait_for_them,
    messages_that_were_left_and_go_with_their_task,
    many_at_once,
]
