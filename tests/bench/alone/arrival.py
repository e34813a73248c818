"""An empty database fills up under a running worker."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tests.bench.alone.arrange import spawn, vacuum
from tests.bench.contenders import OURS
from tests.bench.place import Place, Section
from tests.bench.results import Comparison, Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["cold"]

BATCH: Final = 100
FEW: Final = 12  # tasks until all statements of a worker have a cached plan
SECOND: Final = 1_000_000_000
SLOW: Final = 20.0  # milliseconds
CALL: Final = re.compile(
    r"^\[(\S+)\] LOG:  duration: ([0-9.]+) ms  (?:execute \S+|statement): (.*)",
    re.MULTILINE,
)


def cold(place: Place, sizes: Sizes) -> Figure:
    """Start a worker on an empty database, and then let many tasks arrive."""
    figure = Figure(
        key="cold",
        title="An empty database that fills",
        how=f"A worker, {BATCH} tasks at once, has had a few tasks; then many arrive in"
        " one transaction, and nobody has analysed anything. The same number again,"
        " after ANALYZE, is warm. Calls are timed by the server's log; shorter ones"
        " than 1 ms are not in it.",
        series={},
    )
    measures: dict[str, Callable[[], Mapping[str, float]]] = {}
    for batch_size in sizes.arrivals:
        of = f"{batch_size:,}: "
        for name, unit in [
            ("slowest call", "ms"),
            ("calls above 20 ms", "calls"),
            ("cold, first second", "tasks/s"),
            ("warm, first second", "tasks/s"),
            ("cold", "tasks/s"),
            ("warm", "tasks/s"),
        ]:
            figure.series[of + name] = Series(unit)
        figure.comparisons += [
            Comparison(
                f"{of}slowest call, ms", f"{of}slowest call", 20, at_least=False
            ),
            Comparison(
                f"{of}first second, of warm",
                f"{of}cold, first second",
                0.9,
                f"{of}warm, first second",
            ),
            Comparison(f"{of}of warm", f"{of}cold", 0.9, f"{of}warm"),
        ]
        measures[f"{of}slowest call"] = partial(_arrive, place, batch_size, of)
    return figure.in_turns(sizes.rounds, measures)


def _arrive(place: Place, batch_size: int, of: str) -> Mapping[str, float]:
    with place.database(OURS) as dsn:
        name = str(conninfo_to_dict(dsn)["dbname"])
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                f'alter database "{name}" set log_min_duration_statement = 1'
            )
        quantities = (FEW, batch_size, batch_size)
        with place.worker(OURS, dsn, "noop", *quantities, concurrency=BATCH) as worker:
            for _ in range(FEW):
                spawn(dsn, 1)
            worker.section(0)
            spawn(dsn, batch_size)
            arrived = worker.section(1)
            calls = _calls(place.server_log(), name)
            vacuum(dsn)
            spawn(dsn, batch_size)
            again = worker.section(2)
    return {
        f"{of}slowest call": max(calls, default=0.0),
        f"{of}calls above 20 ms": float(sum(call > SLOW for call in calls)),
        f"{of}cold, first second": _first_second(arrived),
        f"{of}warm, first second": _first_second(again),
        f"{of}cold": arrived.rate(),
        f"{of}warm": again.rate(),
    }


def _calls(log: str, database: str) -> list[float]:
    """Return the durations of a worker's calls in a database, in milliseconds."""
    return [
        float(took)
        for name, took, statement in CALL.findall(log)
        if name == database and "spawn" not in statement
    ]


def _first_second(section: Section) -> float:
    last = section.ended[-1] + 1
    return section.rate_between(section.first, min(section.first + SECOND, last))
