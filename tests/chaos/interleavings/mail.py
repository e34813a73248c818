"""Scenarios in which two calls about messages meet: as in scenarios.py."""

from __future__ import annotations

from typing import Final

from tests.chaos.interleavings import calls as do
from tests.chaos.interleavings.calls import Call
from tests.chaos.interleavings.stage import Scenario, Stage

__all__ = ["MAIL"]


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
        do.withdraw(listener, ear, waits=[do.event()]),
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
        do.run_maintenance,
        do.drop_queue,
        do.apply_deferred_work,
        do.claim(),
        do.send(old),
        do.send(asleep),
        do.send_from(held, old),
        do.send_from(held, asleep, key="k"),
        do.recv(old),
        do.recv(held),
        do.cancel(asleep),
    ]


MAIL: Final[list[Scenario]] = [
    messages_and_those_who_wait_for_them,
    messages_that_were_left_and_go_with_their_task,
]
