"""Scenarios in which calls meet in a family across two queues: as in scenarios.py."""

from __future__ import annotations

from typing import Final

from tests.chaos.interleavings import calls as do
from tests.chaos.interleavings.calls import FAR, Call
from tests.chaos.interleavings.stage import Scenario, Stage

__all__ = ["FAMILIES"]


def a_parent_asleep_until_its_children_elsewhere_end(stage: Stage) -> list[Call]:
    stage.reach_far()
    parent = stage.held("parent", max_attempts=1)
    near = stage.held("near", parent)
    far = stage.held_below(parent, do.spawn_far(parent, "far", max_attempts=1))
    back = stage.held_below(far, do.spawn_back(far, "back"))
    both = do.mixed(do.join(near, far), None, FAR)
    stage.done(do.suspend(parent, waits=[both, do.event()]))
    return [
        do.complete(near),
        do.cancel(near),
        do.far(do.complete(far)),
        do.far(do.fail(far)),
        do.far(do.cancel(far)),
        do.far(do.spawn_children(far, "more")),
        do.spawn_back(far, "more-back"),
        do.complete(back),
        do.suspend(back, waits=[do.event("more")]),
        do.cancel(parent),
        do.emit(),
        do.claim(),
        do.far(do.claim()),
        do.apply_deferred_work,
        do.far(do.apply_deferred_work),
    ]


def a_parent_about_to_wait_for_the_first(stage: Stage) -> list[Call]:
    stage.reach_far()
    parent = stage.held("parent", max_attempts=1)
    near = stage.held("near", parent)
    far = stage.held_below(parent, do.spawn_far(parent, "far"))
    third = stage.held("third", parent)
    race = do.mixed(do.first(near, far, third), None, FAR, None)
    both = do.mixed(do.join(far, near), FAR, None)
    return [
        do.suspend(parent, waits=[race]),
        do.suspend(parent, waits=[race, both, do.event()]),
        do.poll(parent, waits=[race, both]),
        do.load(parent),
        do.fail(parent),
        do.complete(parent),
        do.cancel(parent),
        do.spawn_far(parent, "other"),
        do.complete(third, near),
        do.fail(near),
        do.far(do.complete(far)),
        do.far(do.cancel(far)),
        do.far(do.release(far)),
        do.far(do.drop_queue),
        do.far(do.run_maintenance),
        do.emit(),
    ]


def a_family_of_two_queues_that_failed(stage: Stage) -> list[Call]:
    stage.reach_far()
    parent = stage.held("parent")
    far = stage.held_below(parent, do.spawn_far(parent, "far"))
    back = stage.held_below(far, do.spawn_back(far, "back"))
    below = stage.held("below", back)
    over = stage.held_below(parent, do.spawn_far(parent, "over"))
    stage.done(do.far(do.complete(over)))
    stage.done(do.fail(parent))
    return [
        do.retry(parent),
        do.retry(back),
        do.far(do.retry(far)),
        do.cancel(parent),
        do.complete(below),
        do.far(do.complete(far)),
        do.cleanup,
        do.far(do.cleanup),
        do.apply_deferred_work,
        do.far(do.apply_deferred_work),
        do.claim(),
        do.far(do.claim()),
    ]


FAMILIES: Final[list[Scenario]] = [
    a_parent_asleep_until_its_children_elsewhere_end,
    a_parent_about_to_wait_for_the_first,
    a_family_of_two_queues_that_failed,
]
