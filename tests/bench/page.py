"""Write the page of a run from its JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.bench.plots import plots
from tests.bench.results import Comparison, Figure, Results, Series

__all__ = ["RESULTS", "page", "publish"]

RESULTS: Final = "results.json"
NOTHING: Final = "-"
HEAD: Final = """\
# Benchmarks

This page and its pictures are made from [{results}]({results}), which holds every
round's raw values; `make bench` writes them anew, `make bench-full` with larger sizes
and more rounds. This was a {mode} run.

What is compared ran on the same Postgres in the same run, in turns, each round in a new
database of its own. Values are medians over the rounds, with the smallest and the
largest. A ratio is taken in each round, between neighbours in time; ratios are what to
look at, since absolute numbers are those of one machine on one day. Peers are set up
as their documents advise for speed. Who could not do something has its error in the
table.
"""


def publish(results: Results, directory: Path) -> None:
    """Write the JSON, the page and its pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    results.write(directory / RESULTS)
    again = Results.read(directory / RESULTS)
    (directory / "README.md").write_text(page(again))
    for name, picture in plots(again).items():
        (directory / name).write_text(picture)


def page(results: Results) -> str:
    """Return the page as Markdown."""
    parts = [HEAD.format(results=RESULTS, mode=results.mode)]
    parts += ["## Aims\n", *_aims(results)]
    pictures = plots(results)
    for figure in results.figures:
        parts += [f"## {figure.title}\n", f"{figure.how}\n"]
        if f"{figure.key}.svg" in pictures:
            parts.append(f"![{figure.title}]({figure.key}.svg)\n")
        parts += _series(figure)
    parts += ["## The machine\n", *_machine(results.machine)]
    return "\n".join(parts)


def _aims(results: Results) -> Iterator[str]:
    yield "| figure | | ours | beside | found | aim | met |"
    yield "|---|---|---|---|---|---|---|"
    for figure in results.figures:
        for comparison in figure.comparisons:
            yield _aim(figure, comparison)
    yield ""


def _aim(figure: Figure, comparison: Comparison) -> str:
    ours = figure.series[comparison.series]
    beside = ""
    if comparison.against is not None:
        beside = _shown(figure.series[comparison.against])
    met = {True: "yes", False: "**no**", None: "not measured"}
    cells = [
        figure.title,
        comparison.label,
        _shown(ours),
        beside,
        _spread(comparison.rounds(figure.series)),
        f"{'≥' if comparison.at_least else '≤'} {number(comparison.aim)}",
        met[comparison.is_met(figure.series)],
    ]
    return _row(cells)


def _series(figure: Figure) -> Iterator[str]:
    yield "| | median (smallest to largest) | unit | |"
    yield "|---|---|---|---|"
    for name, series in figure.series.items():
        notes = [note for note in (series.settings, series.error) if note]
        shown = "; ".join(notes)
        yield _row([name, _spread(series.values), series.unit, shown])
    yield ""


def _machine(machine: dict[str, Any]) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name in ("date", "cpu", "cores", "kernel", "python", "postgres"):
        yield _row([name, str(machine[name])])
    for name, loads in machine["load"].items():
        yield _row([f"load {name}", ", ".join(map(str, loads))])
    for name, value in {**machine["settings"], **machine["packages"]}.items():
        yield _row([f"`{name}`", value])


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _shown(series: Series) -> str:
    if series.median is None:
        return series.error or NOTHING
    return f"{number(series.median)} {series.unit}"


def _spread(values: list[float]) -> str:
    """Return the median, with the smallest and the largest where there are several."""
    if not values:
        return NOTHING
    middle = number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Return a number with its significant digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
