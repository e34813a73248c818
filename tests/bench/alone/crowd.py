"""Several workers: on the children of one parent, and two against one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Final

from tests.bench.alone.arrange import row, spawn
from tests.bench.contenders import OURS
from tests.bench.contenders.program import Kind
from tests.bench.place import Place
from tests.bench.results import Comparison, Figure, Series
from tests.bench.sizes import Sizes

__all__ = ["fanin", "two"]

WORKERS: Final = 4
PAUSE: Final = 0.1  # seconds between two counts: a count costs as much as it reads
CLAIMS_OF_PARENT: Final = "select times_claimed from durable.tasks where name = 'fan'"
STAMPED: Final = """
select count(*) / extract(epoch from max(tasks.finished_at) - min(tasks.started_at))
from durable.tasks
where tasks.name in ('noop', 'busy') and tasks.state = 'completed'
"""


def fanin(place: Place, sizes: Sizes) -> Figure:
    """Finish many children of one parent that waits for them."""
    figure = Figure(
        key="fanin",
        title="Many children of one parent",
        how=f"{WORKERS} workers do {sizes.children:,} children of a parent that waits"
        " for all of them, in turns with as many tasks that have none; by the"
        " database's own stamps, from the first start to the last end.",
        series={
            "children": Series("tasks/s"),
            "no parent": Series("tasks/s"),
            "parent woken": Series("times"),
        },
        comparisons=[
            Comparison("of tasks without a parent", "children", 0.9, "no parent"),
            Comparison("parent woken", "parent woken", 1, at_least=False),
        ],
    )

    def finish(dsn: str, batch_size: int) -> float:
        with place.workers(OURS, dsn, "noop", batch_size, count=WORKERS):
            place.until_counted(OURS, dsn, batch_size, pause=PAUSE)
        (rate,) = row(dsn, STAMPED)
        return float(rate)

    def children() -> Mapping[str, float]:
        with place.database(OURS) as dsn:
            place.run(OURS, "fan-out", dsn, sizes.children)
            rate = finish(dsn, sizes.children + 1)
            (claims,) = row(dsn, CLAIMS_OF_PARENT)
        return {"children": rate, "parent woken": claims - 1}

    def none() -> Mapping[str, float]:
        with place.database(OURS) as dsn:
            spawn(dsn, sizes.children)
            return {"no parent": finish(dsn, sizes.children)}

    return figure.in_turns(sizes.rounds, {"children": children, "no parent": none})


def two(place: Place, sizes: Sizes) -> Figure:
    """Compare two worker processes with one."""
    batch_size = sizes.measured * 2
    figure = Figure(
        key="two",
        title="Two worker processes",
        how=f"{batch_size:,} tasks by one worker process and by two, on"
        f" {os.cpu_count()} cores; by the database's own stamps. The tasks compute for"
        " a fraction of a millisecond, so that one process is busy before Postgres is;"
        " beside them tasks that do nothing. CPU is that of all workers and of all the"
        " server's processes; cores in use are both over the time it took: near the"
        " machine's cores, a second process cannot help.",
        series={
            f"{name}{what}": Series(unit)
            for name in ("one", "two", "no-op, one", "no-op, two")
            for what, unit in [
                ("", "tasks/s"),
                (", workers' CPU", "s/10,000 tasks"),
                (", server's CPU", "s/10,000 tasks"),
                (", cores in use", "cores"),
            ]
        },
        comparisons=[Comparison("of one", "two", 1.6, "one")],
    )

    def measure(name: str, kind: Kind, count: int) -> Mapping[str, float]:
        with place.database(OURS) as dsn:
            spawn(dsn, batch_size, kind)
            before = place.server_cpu()
            with place.workers(OURS, dsn, kind, batch_size, count=count) as workers:
                idle = sum(worker.cpu for worker in workers)
                place.until_counted(OURS, dsn, batch_size, pause=PAUSE)
                busy = sum(worker.cpu for worker in workers)
                server = place.server_cpu() - before
            (rate,) = row(dsn, STAMPED)
        return {
            name: float(rate),
            f"{name}, workers' CPU": (busy - idle) / batch_size * 10_000,
            f"{name}, server's CPU": server / batch_size * 10_000,
            f"{name}, cores in use": (busy - idle + server) / batch_size * float(rate),
        }

    return figure.in_turns(
        sizes.rounds,
        {
            "one": partial(measure, "one", "busy", 1),
            "two": partial(measure, "two", "busy", 2),
            "no-op, one": partial(measure, "no-op, one", "noop", 1),
            "no-op, two": partial(measure, "no-op, two", "noop", 2),
        },
    )
