"""Scenarios in which two calls meet in a family of one queue: as in scenarios.py."""

from __future__ import annotations

from typing import Final

from tests.chaos.interleavings import calls as do
from tests.chaos.interleavings.calls import Call
from tests.chaos.interleavings.stage import Scenario, Stage

__all__ = ["TREES"]


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
    """Its watch is on a task that has finished since, and was retried."""
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
        do.apply_deferred_work,
        do.claim(),
    ]


def a_tree(stage: Stage) -> list[Call]:
    """With a child whose id is ahead of the clock that produced it."""
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
        do.run_maintenance,
        do.spawn("parent", idempotency_key="parent"),
        do.spawn("child", idempotency_key="child"),
        do.spawn("below", parent=parent),
        do.spawn("below-child", parent=child),
        do.suspend(outsider, waits=[do.join(parent, child)]),
        do.load(outsider),
        do.claim(),
    ]


TREES: Final[list[Scenario]] = [
    a_parent_asleep_until_its_children_end,
    a_parent_about_to_wait_for_its_children,
    a_parent_that_joins_again,
    a_tree,
    a_parent_that_failed_with_all_below_it,
]
