"""durable against similar systems, alternately on the same server.

A rate is taken from the first start of a task in a worker whose interpreter is up until
the database counts all tasks as finished.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from tests.bench.contenders import ABSURD, OURS, PEERS, Contender
from tests.bench.contenders.program import STEPS, WARM_UP
from tests.bench.place import Place
from tests.bench.results import Comparison, Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["noop", "percentiles", "spawn", "steps", "wake"]

SPAWN: Final = "select durable.spawn('default', 'noop', '{}');"
SPAWN_ABSURD: Final = "select absurd.spawn_task('default', 'noop', '{}', '{}');"
CLIENTS: Final = 8


def percentiles(moments: Iterable[int]) -> tuple[float, float]:
    """Return the median and the 99th percentile of nanoseconds, in milliseconds."""
    cuts = statistics.quantiles(
        [moment / 1e6 for moment in moments], n=100, method="inclusive"
    )
    return cuts[49], cuts[98]


def noop(place: Place, sizes: Sizes) -> Figure:
    """Tasks that do nothing, in one worker process."""
    contenders = [OURS, *PEERS]
    figure = Figure(
        key="noop",
        title="Tasks that do nothing",
        how=f"{sizes.waiting:,} tasks wait when one worker process begins; tasks/s from"
        " the first start until the database counts as many as finished as keep it busy"
        " for some seconds. DBOS starts its workflows"
        " itself, not through its queues, which are polled.",
        series={one.key: Series("tasks/s", one.settings) for one in contenders},
        comparisons=[
            Comparison("times absurd", "durable", 50, "absurd"),
            Comparison("times DBOS", "durable", 25, "dbos"),
            Comparison("times pgqueuer", "durable", 2, "pgqueuer"),
            Comparison("times awa", "durable", 2, "awa"),
        ],
    )
    return figure.in_turns(
        sizes.rounds,
        {one.key: partial(_rate, place, sizes, one, "noop") for one in contenders},
    )


def steps(place: Place, sizes: Sizes) -> Figure:
    """Tasks of ten steps, in one worker process."""
    contenders = [one for one in (OURS, *PEERS) if "steps" in one.quick]
    without = [one for one in PEERS if "steps" not in one.quick]
    figure = Figure(
        key="steps",
        title="Steps, ten to a task",
        how="Tasks of ten steps that do nothing, all waiting when one worker process"
        " begins; steps/s from the first start until the database counts all tasks.",
        series={one.key: Series("steps/s", one.settings) for one in contenders}
        | {one.key: Series("steps/s", error="has no steps") for one in without},
        comparisons=[
            Comparison("times absurd", "durable", 30, "absurd"),
            Comparison("times DBOS", "durable", 50, "dbos"),
        ],
    )
    return figure.in_turns(
        sizes.rounds,
        {one.key: partial(_rate, place, sizes, one, "steps") for one in contenders},
    )


def _rate(
    place: Place, sizes: Sizes, contender: Contender, kind: str
) -> Mapping[str, float]:
    batch_size = max(round(contender.quick[kind] * sizes.scale), 1)
    waiting = sizes.waiting if kind == "noop" else 0
    with place.database(contender) as dsn:
        place.run(contender, "spawn", dsn, kind, max(batch_size, waiting))
        with place.worker(contender, dsn, kind, batch_size) as worker:
            section = worker.section()
            end = place.until_counted(contender, dsn, batch_size)
    return {contender.key: section.rate(end) * max(STEPS[kind], 1)}


def spawn(place: Place, sizes: Sizes) -> Figure:
    """Single spawns from eight connections."""
    figure = Figure(
        key="spawn",
        title="Single spawns",
        how=f"pgbench, {CLIENTS} connections, one call a transaction; spawns/s.",
        series={
            "durable": Series("spawns/s", f"`{SPAWN}`"),
            "absurd": Series("spawns/s", f"`{SPAWN_ABSURD}`"),
            "tensorzero": Series(
                "spawns/s", error="its SQL is not available from a package index"
            ),
        },
        comparisons=[
            Comparison("times absurd", "durable", 2, "absurd"),
            Comparison("times tensorzero", "durable", 2, "tensorzero"),
        ],
    )

    def rate(contender: Contender, script: str) -> Mapping[str, float]:
        with place.database(contender) as dsn:
            found = place.pgbench(dsn, script, CLIENTS, sizes.seconds)
        return {contender.key: found}

    return figure.in_turns(
        sizes.rounds,
        {
            "durable": partial(rate, OURS, SPAWN),
            "absurd": partial(rate, ABSURD, SPAWN_ABSURD),
        },
    )


def wake(place: Place, sizes: Sizes) -> Figure:
    """From the commit of a spawn until the task's code runs, on an idle worker."""
    names = ["durable", "durable, one process", "absurd"]
    trips = ["select 1 beside durable", "select 1 beside durable, one process"]
    figure = Figure(
        key="wake",
        title="From spawn to start on an idle worker",
        how="A client spawns a task, with pauses of 20 to 60 ms, until the task's code"
        " runs in the worker, which is another process or the same: counted from when"
        " the spawn has returned, so has committed, and from when it was called. After"
        " pauses of the same length the client measures a round trip of `select 1`.",
        series={
            f"{name} {which}": Series("ms", settings)
            for name, settings in [
                (names[0], "client and worker in two processes"),
                (f"{names[0]} from the call", "the same"),
                (names[1], "client and worker in one event loop"),
                (f"{names[1]} from the call", "the same"),
                (names[2], "two processes, its default `poll_interval=0.25`"),
                (trips[0], "psycopg, prepared"),
                (trips[1], "psycopg, prepared, in the worker's loop"),
            ]
            for which in ("p50", "p99")
        },
        comparisons=[
            Comparison(
                f"{which}, {where}, in round trips",
                f"{name} {which}",
                aim,
                f"{trip} p50",
                at_least=False,
            )
            for name, where, trip in [
                (names[0], "two processes", trips[0]),
                (names[1], "one process", trips[1]),
            ]
            for which, aim in [("p50", 5), ("p99", 15)]
        ]
        + [Comparison("absurd's p50 in ours", "absurd p50", 20, "durable p50")],
    )

    def two(contender: Contender, wakes: int) -> Mapping[str, float]:
        with (
            place.database(contender) as dsn,
            place.worker(contender, dsn, "wake", WARM_UP + wakes) as worker,
        ):
            trips, calls = json.loads(place.run(contender, "wake", dsn, wakes))
            delays = worker.section().delays
        return _wakes(contender.key, delays, trips, calls)

    def one() -> Mapping[str, float]:
        with place.database(OURS) as dsn:
            section, (trips, calls) = place.wake_here(OURS, dsn, sizes.wakes)
        return _wakes(names[1], section.delays, trips, calls)

    def theirs() -> Mapping[str, float]:
        found = two(ABSURD, max(sizes.wakes // 3, 2))
        return {name: found[name] for name in ("absurd p50", "absurd p99")}

    return figure.in_turns(
        sizes.rounds,
        {
            "durable p50": partial(two, OURS, sizes.wakes),
            "durable, one process p50": one,
            "absurd p50": theirs,
        },
    )


def _wakes(
    name: str, delays: list[int], trips: list[int], calls: list[int]
) -> dict[str, float]:
    called = list(zip(delays, calls, strict=True))[WARM_UP:]
    return {
        **_named(name, [delay - call for delay, call in called]),
        **_named(f"{name} from the call", [delay for delay, _ in called]),
        **_named(f"select 1 beside {name}", trips[WARM_UP:]),
    }


def _named(name: str, moments: Iterable[int]) -> dict[str, float]:
    middle, late = percentiles(moments)
    return {f"{name} p50": middle, f"{name} p99": late}
