"""The limits of the machine, Postgres and the driver, in the same run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

import psycopg

from tests.bench.contenders import OURS
from tests.bench.contenders.program import run
from tests.bench.place import Place
from tests.bench.race import CLIENTS, percentiles
from tests.bench.results import Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["BARE", "BARE_INSERT", "bare_rows", "floor"]

ROWS: Final = 1000
BARE: Final = """
create table public.bare (like durable.tasks including all) with (fillfactor = 50)
"""
BARE_INSERT: Final = """
insert into public.bare
  (task_id, spawned_at, queue, name, params, max_attempts, available_at)
select id, now(), 'default', 'noop', params, 5, now()
from unnest(%s::uuid[], %s::jsonb[]) as given (id, params)
"""
ONE: Final = "create table public.one (id uuid primary key, at bigint, value json)"
ONE_INSERT: Final = "insert into public.one values (%s, %s, %s)"
ONE_BENCH: Final = """
insert into public.one values (gen_random_uuid(), 1, '{"number": 1}');
"""


def bare_rows(batch_size: int = ROWS) -> list[list[Any]]:
    """Return ascending ids, like those of a uuid v7, and params."""
    begin = time.time_ns() << 32
    ids = [uuid.UUID(int=(begin + index) % 2**128) for index in range(batch_size)]
    return [ids, ["{}"] * batch_size]


def floor(place: Place, sizes: Sizes) -> Figure:
    """Measure bare statements."""
    figure = Figure(
        key="floor",
        title="The floor",
        how="Bare statements, nothing of anybody's engine: what any of them can reach.",
        series={
            "unnest": Series("rows/s", "1,000 rows an insert, indexes of a task"),
            "insert p50": Series("ms", "one row, autocommit, asynchronous psycopg"),
            "insert p99": Series("ms", "one row, autocommit, asynchronous psycopg"),
            "select 1 p50": Series("ms", "one round trip, asynchronous psycopg"),
            "pgbench insert": Series("transactions/s", f"{CLIENTS} connections"),
            "pgbench select 1": Series("transactions/s", f"{CLIENTS} connections"),
        },
    )

    def measure() -> Mapping[str, float]:
        found: dict[str, float] = {}
        with place.database(OURS) as dsn:
            run(_measure(dsn, sizes, found))
            for name, script in [("insert", ONE_BENCH), ("select 1", "select 1;")]:
                rate = place.pgbench(dsn, script, CLIENTS, sizes.seconds)
                found[f"pgbench {name}"] = rate
        return found

    return figure.in_turns(sizes.rounds, {"unnest": measure})


async def _measure(dsn: str, sizes: Sizes, found: dict[str, float]) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
        await session.execute(BARE)
        await session.execute(ONE)
        chunks = [bare_rows() for _ in range(sizes.calls)]
        begun = time.monotonic_ns()
        for chunk in chunks:
            await session.execute(BARE_INSERT, chunk)
        rows = ROWS * sizes.calls
        found["unnest"] = rows / ((time.monotonic_ns() - begun) / 1e9)
        inserts, trips = [], []
        for index in range(max(sizes.lonely, 2)):
            begun = time.monotonic_ns()
            await session.execute(ONE_INSERT, [uuid.uuid4(), index, '{"number": 1}'])
            inserted = time.monotonic_ns()
            await session.execute("select 1")
            trips.append(time.monotonic_ns() - inserted)
            inserts.append(inserted - begun)
    found["insert p50"], found["insert p99"] = percentiles(inserts)
    found["select 1 p50"], _ = percentiles(trips)
