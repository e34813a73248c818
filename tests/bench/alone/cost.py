"""The cost of single operations: a step, a thousand spawns, the WAL of a task."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial

import psycopg

from tests.bench.alone.arrange import CHUNK, SPAWN_MANY, checkpoint, row, spawn
from tests.bench.contenders import ABSURD, OURS, Contender
from tests.bench.floor import BARE, BARE_INSERT, bare_rows
from tests.bench.place import Place
from tests.bench.race import percentiles
from tests.bench.results import Comparison, Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["lonely_step", "spawn_many", "wal"]


def lonely_step(place: Place, sizes: Sizes) -> Figure:
    """Measure one task's sequential steps against one-row inserts."""
    figure = Figure(
        key="lonely_step",
        title="A lonely step",
        how="One task on one worker saves steps, one after the other; after each it"
        " inserts a row in autocommit through a connection of the same driver.",
        series={
            f"{name} {which}": Series("ms", settings)
            for name, settings in [
                ("step", "`await ctx.step(…)`"),
                ("insert", "one row, asynchronous psycopg, prepared"),
            ]
            for which in ("p50", "p99")
        },
        comparisons=[
            Comparison(
                f"step in inserts, {which}",
                f"step {which}",
                1.5,
                f"insert {which}",
                at_least=False,
            )
            for which in ("p50", "p99")
        ],
    )

    def measure() -> Mapping[str, float]:
        with place.database(OURS) as dsn:
            found = json.loads(place.run(OURS, "lonely", dsn, sizes.lonely))
        series: dict[str, float] = {}
        for name, moments in found.items():
            middle, late = percentiles(moments)
            series |= {f"{name} p50": middle, f"{name} p99": late}
        return series

    return figure.in_turns(sizes.rounds, {"step p50": measure})


def spawn_many(place: Place, sizes: Sizes) -> Figure:
    """Spawn a thousand tasks a call, against a bare insert of the same rows."""
    figure = Figure(
        key="spawn_many",
        title="Spawning a thousand a call",
        how="One call through psycopg spawns 1,000 tasks without options; in turns with"
        " an `insert … select from unnest` of 1,000 rows into a table with the same"
        " columns and indexes.",
        series={
            "durable": Series("rows/s", "`select durable.spawn_many(…)`"),
            "bare": Series("rows/s", "`insert … select from unnest(…)`"),
        },
        comparisons=[Comparison("of the bare insert", "durable", 0.5, "bare")],
    )

    def measure() -> Mapping[str, float]:
        text = json.dumps([{"task": "noop", "params": {}}] * CHUNK)
        spent = {"durable": 0.0, "bare": 0.0}
        with (
            place.database(OURS) as dsn,
            psycopg.connect(dsn, autocommit=True) as connection,
        ):
            connection.execute(BARE)
            for _ in range(sizes.calls):
                rows = bare_rows(CHUNK)
                begun = time.monotonic()
                connection.execute(SPAWN_MANY, [text])
                spawned = time.monotonic()
                connection.execute(BARE_INSERT, rows)
                spent["bare"] += time.monotonic() - spawned
                spent["durable"] += spawned - begun
        return {name: CHUNK * sizes.calls / took for name, took in spent.items()}

    return figure.in_turns(sizes.rounds, {"durable": measure})


def wal(place: Place, sizes: Sizes) -> Figure:
    """Count the WAL of a task, from spawn to end."""
    kinds: dict[str, tuple[Contender, str, str | None]] = {
        "no step": (OURS, "noop", None),
        "one step": (OURS, "step", None),
        "1,500-byte params": (OURS, "noop", secrets.token_hex(750)),
        "absurd, one step": (ABSURD, "step", None),
    }
    figure = Figure(
        key="wal",
        title="WAL of a task",
        how="Everything a database writes from spawn to the last end, divided by the"
        " number of tasks; one worker, batched. full_page_writes is off; full pages: it"
        " is on, and a checkpoint comes between spawn and work: the worst case.",
        series={
            name + after: Series("bytes/task")
            for after in ("", ", full pages")
            for name in kinds
        },
        comparisons=[
            Comparison(name, name, aim, at_least=False)
            for name, aim in [
                ("no step", 950),
                ("one step", 1280),
                ("1,500-byte params", 2500),
            ]
        ],
    )

    def measure(name: str, pages: str, after: str) -> Mapping[str, float]:
        contender, kind, params = kinds[name]
        batch_size = max(round(contender.quick[kind] * sizes.scale), 1)
        with place.setting("full_page_writes", pages), place.database(contender) as dsn:
            begun = _written(dsn)
            if contender is OURS:
                spawn(dsn, batch_size, kind, params)
            else:
                place.run(contender, "spawn", dsn, kind, batch_size)
            if pages == "on":
                checkpoint(dsn)
            with place.worker(contender, dsn, kind, batch_size) as worker:
                worker.section()
                place.until_counted(contender, dsn, batch_size)
                written = _written(dsn) - begun
        return {name + after: written / batch_size}

    measures: dict[str, Callable[[], Mapping[str, float]]] = {}
    for pages, after in [("off", ""), ("on", ", full pages")]:
        for name in kinds:
            measures[name + after] = partial(measure, name, pages, after)
    return figure.in_turns(min(sizes.rounds, 2), measures)


def _written(dsn: str) -> int:
    """Return the current WAL position, in bytes."""
    (position,) = row(dsn, "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    return int(position)
