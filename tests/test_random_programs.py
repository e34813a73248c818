"""Unchanged code never fails the replay check.

Changed code does where order is certain.
"""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from durable import Durable, NonDeterminism, TaskFailed
from durable.testing import check_replay
from tests.support.changing import exported
from tests.support.programs import (
    ORDERS,
    calls_of,
    play,
    programs,
    racing_programs,
    renamed,
    swaps,
    without,
)

REFUSALS = """
select error ->> 'message'
from (select error from durable.runs union all select error from durable.tasks) as ended
where error ->> 'traceback' like '%NonDeterminism%'
"""
SOME = 3  # changes of each program
WITHIN = settings(
    deadline=None,
    max_examples=4,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
)


def several(*, steady: bool) -> st.SearchStrategy[list[Any]]:
    """Return programs to be played concurrently, which is quicker."""
    return st.lists(programs(steady=steady), min_size=8, max_size=16)


def played(dsn: str, several: list[Any], *, waits: bool) -> list[Any]:
    params = [{"program": one, "dsn": dsn, "waits": waits} for one in several]
    with Durable(dsn, tasks=[play]) as app, app.worker() as worker:
        handles = app.spawn_many(play, params)
        for one in [] if waits else handles:
            with contextlib.suppress(TaskFailed):  # a branch continued beside a failure
                one.result(timeout=60)
        worker.drain()
    return handles


@WITHIN
@given(several=several(steady=False))
def test_never_reports_unchanged_code(
    dsn: str, db: psycopg.Connection, several: list[Any]
) -> None:
    """Whatever it does, however often and wherever it is restarted."""
    handles = played(dsn, several, waits=False)
    assert db.execute(REFUSALS).fetchall() == []
    for handle, program in zip(handles, several, strict=True):
        note(f"{program}")
        check_replay(play, exported(db, handle.task_id))


@WITHIN
@given(several=st.lists(racing_programs(), min_size=8, max_size=16))
def test_every_replay_sees_the_same_order(
    dsn: str, db: psycopg.Connection, several: list[Any]
) -> None:
    """In any order of its branches: a replay goes through all in the same order."""
    for handle, program in zip(played(dsn, several, waits=True), several, strict=True):
        note(f"{program}")
        check_replay(play, exported(db, handle.task_id))
        first, *others = sorted(ORDERS.pop(handle.task_id), key=len, reverse=True)
        for other in others:
            assert first[: len(other)] == other


@WITHIN
@given(several=several(steady=True), random=st.randoms())
def test_reports_changed_code(
    dsn: str, db: psycopg.Connection, several: list[Any], random: Random
) -> None:
    for handle, program in zip(played(dsn, several, waits=True), several, strict=True):
        history = exported(db, handle.task_id)
        check_replay(play, history)
        indexes = range(len(list(calls_of(program))))
        others = [change(program, i) for change in (without, renamed) for i in indexes]
        others += swaps(program)
        for other in random.sample(others, min(SOME, len(others))):
            note(f"{program} changed to {other}")
            history["params"] = {"program": other, "waits": True}
            with pytest.raises(NonDeterminism):
                check_replay(play, history)
