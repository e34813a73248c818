"""Measure, and write the results and their page.

python -m tests.bench [--full] [--only KEY ...] [--rounds N] [--out DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

import psycopg

from tests.bench import floor, race
from tests.bench.alone import arrival, burden, cost, crowd, limits
from tests.bench.page import publish
from tests.bench.place import Place
from tests.bench.results import Figure, Results, machine
from tests.bench.sizes import FULL, QUICK, Sizes
from tests.support.processes import ROOT

__all__ = ["FIGURES", "measure"]

Measure: TypeAlias = Callable[[Place, Sizes], Figure]

PUBLISHED: Final = ROOT / "python-sdk" / "docs" / "benchmarks"
FIGURES: Final[dict[str, Measure]] = {
    "noop": race.noop,
    "steps": race.steps,
    "lonely_step": cost.lonely_step,
    "spawn_many": cost.spawn_many,
    "spawn": race.spawn,
    "wake": race.wake,
    "backlog": burden.backlog,
    "snapshot": burden.snapshot,
    "limits": limits.limits,
    "limits_snapshot": limits.limits_snapshot,
    "wal": cost.wal,
    "cold": arrival.cold,
    "fanin": crowd.fanin,
    "two": crowd.two,
    "cleanup": burden.cleanup,
    "floor": floor.floor,
}


def measure(place: Place, sizes: Sizes, keys: Iterable[str]) -> Results:
    """Measure figures one after the other, reporting progress."""
    with psycopg.connect(place.dsn) as connection:
        results = Results(sizes.mode, machine(connection))
    load = {"before": results.machine.pop("load")}
    for key in keys:
        begun = time.monotonic()
        figure = FIGURES[key](place, sizes)
        results.figures.append(figure)
        report(figure, time.monotonic() - begun)
    load["after"] = [round(one, 2) for one in os.getloadavg()]
    results.machine["load"] = load
    return results


def report(figure: Figure, took: float) -> None:
    """Print the result of a figure."""
    print(f"{figure.key} ({took:.0f} s)")
    for name, series in figure.series.items():
        found = series.error if series.median is None else f"{series.median:,.3f}"
        print(f"  {name}: {found} {series.unit}")
    for comparison in figure.comparisons:
        value = comparison.value(figure.series)
        shown = "not measured" if value is None else f"{value:,.2f}"
        print(f"  {comparison.label}: {shown} (aim {comparison.aim})", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--full", action="store_true", help="larger, more rounds")
    parser.add_argument("--only", action="append", choices=FIGURES, metavar="KEY")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path, help="instead of the published page")
    chosen = parser.parse_args()
    sizes = FULL if chosen.full else QUICK
    if chosen.rounds:
        sizes = dataclasses.replace(sizes, rounds=chosen.rounds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # those it was started with
    with Place.own() as place:
        results = measure(place, sizes, chosen.only or FIGURES)
    if chosen.out or not chosen.only:
        publish(results, chosen.out or PUBLISHED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
