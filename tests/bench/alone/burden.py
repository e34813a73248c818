"""Conditions that must not make it slower: a backlog, a held snapshot, cleanup."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Final

import psycopg

from tests.bench.alone.arrange import SPARE, preload, spawn, vacuum
from tests.bench.contenders import OURS
from tests.bench.place import Place
from tests.bench.results import Comparison, Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["backlog", "cleanup", "snapshot"]

SECOND: Final = 1_000_000_000
OLD_ONES: Final = """
select count(*) from durable.tasks
where task_id < '00000000-0001-7000-8000-000000000000'
"""


def backlog(place: Place, sizes: Sizes) -> Figure:
    """Measure the cost of millions of other tasks."""
    figure = Figure(
        key="backlog",
        title="A backlog",
        how=f"{sizes.measured:,} tasks of one worker, with {sizes.pending:,} pending,"
        f" {sizes.sleeping:,} sleeping and {sizes.finished:,} finished ones in the"
        " table, in turns with none.",
        series={"full": Series("tasks/s"), "empty": Series("tasks/s")},
        comparisons=[Comparison("of an empty table", "full", 0.8, "empty")],
    )

    def rate(dsn: str) -> float:
        with place.worker(OURS, dsn, "noop", sizes.measured) as worker:
            return worker.section().rate()

    def empty() -> Mapping[str, float]:
        with place.database(OURS) as dsn:
            spawn(dsn, sizes.measured + SPARE)
            return {"empty": rate(dsn)}

    with contextlib.ExitStack() as ending:

        @functools.cache
        def full() -> str:
            dsn = ending.enter_context(place.database(OURS))
            preload(dsn, "completed", sizes.finished)
            preload(dsn, "sleeping", sizes.sleeping)
            enough = (sizes.measured + SPARE) * sizes.rounds
            preload(dsn, "pending", max(sizes.pending, enough))
            vacuum(dsn)
            return dsn

        return figure.in_turns(
            sizes.rounds, {"full": lambda: {"full": rate(full())}, "empty": empty}
        )


def snapshot(place: Place, sizes: Sizes) -> Figure:
    """Measure the cost of a snapshot that another session holds."""
    figure = Figure(
        key="snapshot",
        title="A held snapshot",
        how="Another session holds a REPEATABLE READ snapshot while one worker does"
        f" {sizes.before_snapshot:,} tasks; then {sizes.measured:,} more are measured,"
        " in turns with none held.",
        series={"held": Series("tasks/s"), "none": Series("tasks/s")},
        comparisons=[Comparison("of none held", "held", 0.9, "none")],
    )

    def rate(name: str) -> Mapping[str, float]:
        quantities = (sizes.before_snapshot, sizes.measured)
        holding = _hold if name == "held" else contextlib.nullcontext
        with (
            place.database(OURS) as dsn,
            holding(dsn),
            place.worker(OURS, dsn, "noop", *quantities) as worker,
        ):
            spawn(dsn, sizes.before_snapshot)
            worker.section(0)
            spawn(dsn, sizes.measured)
            return {name: worker.section(1).rate()}

    return figure.in_turns(
        sizes.rounds,
        {
            "held": functools.partial(rate, "held"),
            "none": functools.partial(rate, "none"),
        },
    )


@contextlib.contextmanager
def _hold(dsn: str) -> Iterator[None]:
    with psycopg.connect(dsn) as session:
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        session.execute("select count(*) from durable.tasks")
        yield


def cleanup(place: Place, sizes: Sizes) -> Figure:
    """Clean up many finished tasks beside a worker."""
    figure = Figure(
        key="cleanup",
        title="Cleanup beside a worker",
        how=f"One worker does tasks while its own maintenance deletes {sizes.old:,}"
        " others that finished 40 days ago; in turns with as many that finished just"
        " now, which stay.",
        series={
            "cleaning": Series("tasks/s"),
            "not": Series("tasks/s"),
            "cleanup": Series("deleted/s"),
        },
        comparisons=[Comparison("of its speed", "cleaning", 0.8, "not")],
    )

    def measure(name: str, age: str) -> Mapping[str, float]:
        first, then = sizes.measured // 5 or 1, sizes.measured * 6
        with place.database(OURS) as dsn:
            preload(dsn, "completed", sizes.old, age)
            vacuum(dsn)
            spawn(dsn, first + then + SPARE)
            with place.worker(OURS, dsn, "noop", first, then) as worker:
                begun, before = worker.section(0).ended[-1], _old_ones(dsn)
                section = worker.section(1)
                seconds = (section.ended[-1] - begun) / SECOND
                deleted = before - _old_ones(dsn)
        found = {name: len(section.ended) / seconds}
        return found | {"cleanup": deleted / seconds} if deleted else found

    return figure.in_turns(
        sizes.rounds,
        {
            "cleaning": functools.partial(measure, "cleaning", "40 days"),
            "not": functools.partial(measure, "not", "0"),
        },
    )


def _old_ones(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(OLD_ONES).fetchone()
    assert row is not None
    return int(row[0])
