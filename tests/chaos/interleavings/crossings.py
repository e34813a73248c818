"""Scenarios in which calls of several features meet: as in scenarios.py."""

from __future__ import annotations

from typing import Final

from tests.chaos.interleavings import calls as do
from tests.chaos.interleavings.calls import FAR, Call
from tests.chaos.interleavings.stage import Scenario, Stage

__all__ = ["CROSSINGS"]

JUST_BEFORE: Final = "2029-12-31 23:59:50+00"  # the hour at which calls meet
LATER: Final = "2031-01-01 00:00:00+00"


def many_that_are_at_work(stage: Stage) -> list[Call]:
    held = stage.held("held", lease=10)
    below = stage.held("below", held)
    asleep = stage.held("asleep")
    stage.done(do.suspend(asleep, waits=[do.message(), do.event()]))
    return [
        do.cancel_many(held, asleep),
        do.cancel_many(),
        do.retry_many(),
        do.delete_many(),
        do.flush(held, below),
        do.flush(below, held),
        do.publish(held, below, below),
        do.publish(below, held),
        do.suspend(held, waits=[do.event("later"), do.message()]),
        do.send(asleep),
        do.send_from(held, asleep),
        do.emit_from(below),
        do.fork(held),
        do.expire_leases,
        do.cancel(held),
        do.claim(),
    ]


def what_two_want_to_delete(stage: Stage) -> list[Call]:
    over = stage.held("over", idempotency_key="k")
    child = stage.held("child", over)
    waiter, about = stage.held("waiter"), stage.held("about")
    stage.done(do.publish(over, child))
    stage.done(do.send(over, key="m"))
    stage.done(do.suspend(waiter, waits=[do.first(over, about)]))
    stage.done(do.complete(child))
    stage.done(do.complete(over))
    stage.at(-10)
    return [
        do.delete_many(over),
        do.delete_many(child, over),
        do.delete_many(),
        do.cleanup,
        do.run_maintenance,
        do.retry_many(),
        do.fork(over),
        do.send(over),
        do.send_from(about, over),
        do.suspend(about, waits=[do.first(over, child)]),
        do.spawn("over", idempotency_key="k"),
        do.spawn("below", parent=over),
        do.complete(about),
        do.load(waiter),
        do.claim(),
        do.cancel(waiter),
    ]


def a_family_with_one_deadline(stage: Stage) -> list[Call]:
    """Its deadline has just passed, in both queues."""
    stage.reach_far()
    parent = stage.held("parent", deadline=JUST_BEFORE)
    near = stage.held("near", parent)
    far = stage.held_below(parent, do.spawn_far(parent, "far"))
    joins = do.mixed(do.join(near, far), None, FAR)
    return [
        do.expire_tasks,
        do.far(do.expire_tasks),
        do.cancel(parent),
        do.cancel(near),
        do.far(do.cancel(far)),
        do.cancel_many(parent),
        do.retry(parent, deadline=LATER),
        do.retry_many(),
        do.suspend(parent, waits=[joins]),
        do.complete(near),
        do.far(do.complete(far)),
        do.fail(parent, retryable=True),
        do.spawn("below", parent=parent),
        do.spawn_children(near, "grandchild"),
        do.spawn_back(far, "back"),
        do.apply_deferred_work,
        do.far(do.apply_deferred_work),
    ]


def many_of_a_family_of_two_queues(stage: Stage) -> list[Call]:
    stage.reach_far()
    parent = stage.held("parent")
    far = stage.held_below(parent, do.spawn_far(parent, "far"))
    back = stage.held_below(far, do.spawn_back(far, "back"))
    other = stage.held("other")
    stage.done(do.fail(parent))
    return [
        do.retry_many(parent),
        do.retry_many(),
        do.cancel_many(),
        do.delete_many(),
        do.far(do.retry_many()),
        do.far(do.cancel_many(far)),
        do.far(do.delete_many()),
        do.retry(parent),
        do.fork(parent),
        do.complete(back),
        do.far(do.complete(far)),
        do.suspend(other, waits=[do.mixed(do.first(far, back), FAR, None)]),
        do.spawn_far(other, "more"),
        do.cleanup,
        do.far(do.run_maintenance),
        do.apply_deferred_work,
        do.far(do.apply_deferred_work),
    ]


def a_version_and_what_is_made_of_its_tasks(stage: Stage) -> list[Call]:
    held = stage.held("held")
    failed = stage.held("failed", max_attempts=1)
    stage.done(do.fail(failed))
    for task in (held, failed):
        stage.done(do.set_version("1", task))
    stage.done(do.versions("gate"))
    stage.done(do.announce("2"))
    stage.done(do.announce("1"))
    return [
        do.fork(held),
        do.retry(failed),
        do.retry_many(),
        do.set_version("2", held, failed),
        do.move_version("2", "1"),
        do.promote("2"),
        do.spawn_children(held, "child"),
        do.suspend(held, waits=[do.first(failed)]),
        do.release(held),
        do.claim_as("1"),
        do.claim_as("2"),
        do.cancel_many(held),
        do.delete_many(),
    ]


def a_history_that_is_full(stage: Stage) -> list[Call]:
    stage.done(do.history("full"))
    held, asleep = stage.held("held"), stage.held("asleep")
    stage.done(do.suspend(asleep, waits=[do.event()]))
    lost = stage.held("lost", lease=10)
    return [
        do.claim(),
        do.claim_as("2"),
        do.suspend(held, waits=[do.event()]),
        do.release(held),
        do.emit(),
        do.expire_leases,
        do.release_unknown(),
        do.cancel(asleep),
        do.complete(held),
        do.complete(lost),
        do.history("brief"),
        do.delete_many(),
    ]


CROSSINGS: Final[list[Scenario]] = [
    many_that_are_at_work,
    what_two_want_to_delete,
    a_family_with_one_deadline,
    many_of_a_family_of_two_queues,
    a_version_and_what_is_made_of_its_tasks,
    a_history_that_is_full,
]
