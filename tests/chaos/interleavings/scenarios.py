"""Situations in which two calls meet, and all calls that affect them.

A scenario plays up to the hour at which calls meet, `HOUR`; its own calls take place
before, a second apart, so that ids ascend. It returns the calls to play; each of them
meets each of them, itself too.
"""

from __future__ import annotations

from typing import Any, Final

from tests.chaos.interleavings import calls as do
from tests.chaos.interleavings.calls import Call
from tests.chaos.interleavings.stage import Scenario, Stage

__all__ = ["SCENARIOS"]


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
        do.run_maintenance,
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
        do.run_maintenance,
    ]


def events_nobody_waits_for_any_more(stage: Stage) -> list[Call]:
    gone, held = stage.held("gone"), stage.held("held")
    stage.done(do.poll(gone, waits=[do.event(), do.event("old")]))
    stage.done(do.emit("old"))
    stage.done(do.complete(gone))
    return [
        do.prune_events,
        do.cleanup,
        do.run_maintenance,
        do.emit(),
        do.emit("old"),
        do.emit_from(held),
        do.suspend(held, waits=[do.event()]),
        do.suspend(held, waits=[do.event("old"), do.event()]),
        do.await_event(held, "old"),
        do.poll(held, waits=[do.event()]),
        do.drop_queue,
    ]


def what_time_ends(stage: Stage) -> list[Call]:
    waiting = stage.held("waiting", execution_timeout=20)
    late = stage.spawn("late", start_timeout=5)
    below = stage.held("below", late, max_attempts=1, lease=10)
    running = stage.held("running", execution_timeout=10)
    stage.done(do.suspend(waiting, waits=[do.join(running), do.event(seconds=900)]))
    return [
        do.expire_tasks,
        do.expire_leases,
        do.run_maintenance,
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


def tasks_that_have_not_started(stage: Stage) -> list[Call]:
    ready = stage.spawn("ready", delay=60, start_timeout=7200)
    later = stage.spawn("later", delay=7200)
    overdue = stage.spawn("overdue", start_timeout=60)
    return [
        do.reschedule(ready, 60),
        do.reschedule(ready, -60),
        do.reschedule(later, 0),
        do.reschedule(later, 60),
        do.reschedule(overdue, 60),
        do.claim(),
        do.cancel(ready),
        do.cancel(overdue),
        do.expire_tasks,
        do.run_maintenance,
        do.spawn("below", parent=ready),
        do.retry(overdue),
        do.fork(later),
        do.delete_many(),
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
        do.apply_deferred_work,
        do.run_maintenance,
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
        do.run_maintenance,
        do.retry(old),
        do.retry(old, spawn_new=True),
        do.complete(held),
        do.cancel(held),
    ]


def unique_keys_and_their_tasks(stage: Stage) -> list[Call]:
    def unique(key: str, on_conflict: str = "return") -> dict[str, Any]:
        return {"unique": {"key": key, "on_conflict": on_conflict}}

    over = stage.spawn("over", **unique("k"))
    stage.done(do.cancel(over))
    waits = stage.spawn("waits", **unique("k"))
    other = stage.spawn("waits", **unique("l"))
    stage.nicks[str(other.task_id)] = "other"  # judged by itself
    held = stage.held("held", lease=10, **unique("k"))
    debounce: dict[str, Any] = {"debounce": {"key": "k", "delay": 5, "max_wait": 9000}}
    stage.spawn("quiet", **debounce)
    return [
        do.spawn("over", **unique("k")),
        do.spawn("over", **unique("k", "reject")),
        do.spawn("waits", **unique("k", "replace")),
        do.spawn("held", **unique("k", "replace")),
        do.spawn("over", throttle={"key": "k", "period": 60}),
        do.spawn("quiet", **debounce),
        do.spawn_many("waits", unique("k", "replace"), unique("l", "replace")),
        do.spawn_many("waits", unique("l", "replace"), unique("k", "replace")),
        do.claim(),
        do.cancel(waits),
        do.retry(over),
        do.retry_many(over),
        do.delete_many(),
        do.cancel_many(waits),
        do.complete(held),
        do.fail(held),
        do.expire_leases,
        do.spawn("below", parent=waits),
        do.cleanup,
        do.run_maintenance,
        do.drop_queue,
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
        do.announce("2", "another"),
        do.announce("3"),
        do.remove_worker("2"),
        do.announce_definitions("2"),
        do.promote("2"),
        do.set_version("2", mine, running),
        do.set_version("1", theirs),
        do.move_version("3", "1"),
        do.versions(None),
        do.release(running),
        do.complete(running),
        do.fail(running, retryable=True),
        do.expire_leases,
        do.run_maintenance,
        do.cancel(mine),
    ]


def schedules_that_are_due(stage: Stage) -> list[Call]:
    for schedule, overlap in (("s", "cancel"), ("t", "skip")):
        definition = {"task": schedule, "every": 3600, "overlap": overlap}
        stage.done(do.create_schedule(schedule, **definition))
    last = stage.triggered("s")
    stage.held("below", last)
    stage.done(do.with_schedule("pause_schedule", "t"))
    stage.done(do.apply_schedules("u"))
    return [
        do.fire_schedules,
        do.run_maintenance,
        do.create_schedule("s", task="s", every=60),
        do.create_schedule("new", task="new", every=60),
        do.apply_schedules("s", "new"),
        do.announce_schedules("t", "s"),
        do.with_schedule("drop_schedule", "s"),
        do.with_schedule("pause_schedule", "s"),
        do.with_schedule("resume_schedule", "t"),
        do.trigger_schedule("s"),
        do.backfill_schedule("s"),
        do.spawn("s", idempotency_key="schedule/s/2030-01-01T00:00:00Z"),
        do.complete(last),
        do.save(last),
        do.cancel(last),
        do.claim(),
        do.drop_queue,
    ]


def a_tick_that_waits_for_the_last_task(stage: Stage) -> list[Call]:
    definition = {"task": "s", "every": 3600, "overlap": "buffer_one"}
    stage.done(do.create_schedule("s", **definition))
    last = stage.triggered("s")
    return [
        do.fire_schedules,
        do.run_maintenance,
        do.create_schedule("s", overlap="skip"),
        do.with_schedule("pause_schedule", "s"),
        do.trigger_schedule("s"),
        do.complete(last),
        do.fail(last, retryable=False),
        do.cancel(last),
        do.retry(last),
        do.delete_many(last),
        do.claim(),
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
        do.run_maintenance,
        do.recount_totals,
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
        do.recount_totals,
        do.measure,
    ]


def a_queue_that_is_paused(stage: Stage) -> list[Call]:
    held = stage.held("held")
    sleeper = stage.held("sleeper")
    stage.done(do.suspend(sleeper, waits=[do.event()]))
    stage.spawn("ready")
    stage.spawn("late", start_timeout=60)
    stage.done(do.pause("ready"))
    return [
        do.pause(),
        do.pause("held"),
        do.resume(),
        do.resume("ready"),
        do.claim(),
        do.release(held),
        do.complete(held),
        do.emit(),
        do.spawn("new"),
        do.expire_tasks,
        do.run_maintenance,
        do.announce_definitions("1"),
        do.versions("pin"),
        do.drop_queue,
    ]


def a_partition_that_is_full(stage: Stage) -> list[Call]:
    # A lost lease ends `held`: if it were due again, it would compete with the next
    # one, and either may be claimed.
    stage.done(do.limits(partition_concurrency=1, priorities=True))
    held = stage.held("held", lease=10, partition_key="k", max_attempts=1)
    next_one = stage.spawn("next", partition_key="k")
    asleep = stage.held("asleep", partition_key="a")
    stage.done(do.suspend(asleep, waits=[do.event()]))
    busy = stage.held("busy", partition_key="a")
    stage.done(do.claim())
    return [
        do.complete(held),
        do.fail(held),
        do.fail(held, retryable=True),
        do.suspend(held, waits=[do.sleep(5)]),
        do.suspend(held, waits=[do.event()]),
        do.complete(busy),
        do.fail(busy, retryable=True),
        do.cancel(held),
        do.cancel(next_one),
        do.expire_leases,
        do.run_maintenance,
        do.claim(),
        do.emit(),
        do.spawn("more", partition_key="k", priority=-1),
        do.spawn("below", parent=held, partition_key="new"),
        do.reschedule(next_one, 60),
        do.reprioritize(next_one, -1),
        do.limit_partition("k", concurrency=2),
        do.limit_partition("new", concurrency=1),
        do.limits(partition_concurrency=None),
    ]


def a_queue_that_is_full(stage: Stage) -> list[Call]:
    stage.done(do.limits(concurrency=1))
    held = stage.held("held", lease=10)
    next_one = stage.spawn("next")
    return [
        do.complete(held),
        do.fail(held),
        do.suspend(held, waits=[do.sleep(5)]),
        do.cancel(held),
        do.cancel(next_one),
        do.expire_leases,
        do.claim(),
        do.spawn("more", priority=-1),
        do.limits(concurrency=2),
        do.limits(rate={"starts": 1, "period": 7200}),
    ]


def a_partition_in_strict_order(stage: Stage) -> list[Call]:
    stage.done(do.limits(partition_order="strict", ageing=5, priorities=True))
    held = stage.held("held", lease=10, partition_key="k")
    next_one = stage.spawn("next", partition_key="k")
    stage.spawn("last", partition_key="k", priority=-1)
    first = stage.spawn("first", partition_key="l")
    stage.spawn("second", partition_key="l", priority=1)
    stage.done(do.claim())
    return [
        do.complete(held),
        do.fail(held),
        do.fail(held, retryable=True),
        do.suspend(held, waits=[do.sleep(5)]),
        do.cancel(held),
        do.cancel(next_one),
        do.expire_leases,
        do.run_maintenance,
        do.claim(),
        do.spawn("more", partition_key="k", priority=-1),
        do.reschedule(next_one, 60),
        do.reprioritize(next_one, -1),
        do.reprioritize(first, 2),
        do.limits(partition_order=None),
    ]


SCENARIOS: Final[list[Scenario]] = [
    a_running_task_that_may_be_lost,
    a_lost_lease_without_attempts_left,
    an_event_and_those_who_wait_for_it,
    events_nobody_waits_for_any_more,
    what_time_ends,
    tasks_that_have_not_started,
    what_was_left_to_notes,
    keys_and_those_who_have_them,
    unique_keys_and_their_tasks,
    two_tasks_in_one_batch,
    what_is_for_one_version,
    schedules_that_are_due,
    a_tick_that_waits_for_the_last_task,
    a_queue_on_its_way_out,
    many_at_once,
    a_queue_that_is_paused,
    a_partition_that_is_full,
    a_queue_that_is_full,
    a_partition_in_strict_order,
]
