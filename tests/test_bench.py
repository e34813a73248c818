"""The benchmark measures what it claims, and its page reports what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.__main__ import FIGURES, PUBLISHED, measure
from tests.bench.page import RESULTS, page, publish
from tests.bench.place import Place, Section
from tests.bench.plots import plots
from tests.bench.results import Comparison, Figure, Results, Series
from tests.bench.sizes import TINY
from tests.support.servers import Server

SECOND = 1_000_000_000
MACHINE = {
    **dict.fromkeys(("date", "cpu", "cores", "kernel", "python", "postgres"), "-"),
    "load": {"before": [0.0]},
    "settings": {"fsync": "on"},
    "packages": {"durable": "0"},
}


@pytest.fixture
def place(server: Server, tmp_path: Path) -> Iterator[Place]:
    """The server that tests share, as a place to measure on."""
    made = Place(server.dsn, tmp_path, None)
    yield made
    made.drop_templates()


def results(**series: Series) -> Results:
    """Make up results: one figure that compares the first two series."""
    ours, theirs = list(series)[:2]
    comparison = Comparison("times theirs", ours, 2, theirs)
    figure = Figure("noop", "Tasks", "How.", series, [comparison])
    return Results("made-up", MACHINE, [figure])


@pytest.mark.slow
def test_measures_durable_and_writes_the_page_of_it(
    place: Place, tmp_path: Path
) -> None:
    keys = ["spawn_many", "snapshot", "limits", "limits_snapshot"]
    found = measure(place, TINY, keys)
    publish(found, tmp_path)
    measured = [
        len(one.values) for figure in found.figures for one in figure.series.values()
    ]
    assert measured == [1] * 11
    written = (tmp_path / "README.md").read_text()
    for figure in Results.read(tmp_path / RESULTS).figures:
        assert f"## {figure.title}" in written
        for series in figure.series.values():
            assert series.error == ""


def test_counts_from_the_first_start_until_the_last_commit() -> None:
    section = Section(first=SECOND, ended=[2 * SECOND, 3 * SECOND], delays=[])
    assert section.rate() == 1
    assert section.rate(until=5 * SECOND) == 0.5
    assert section.rate_between(SECOND, 3 * SECOND) == 0.5


def test_reports_whether_an_aim_is_met() -> None:
    theirs = Series("t/s", "", [20, 10, 20])
    ahead = page(results(ours=Series("t/s", "", [30, 40, 40]), theirs=theirs))
    found = "| Tasks | times theirs | 40 t/s | 20 t/s | 2 (1.5 to 4) | ≥ 2 | yes |"
    assert found in ahead
    behind = page(results(ours=Series("t/s", "", [90, 19, 39]), theirs=theirs))
    assert "| 1.95 (1.9 to 4.5) | ≥ 2 | **no** |" in behind


def test_shows_which_contender_failed_and_why() -> None:
    shown = page(
        results(ours=Series("t/s", "", [1]), theirs=Series("t/s", error="it fell over"))
    )
    assert "| it fell over | - | ≥ 2 | not measured |" in shown
    assert "| theirs | - | t/s | it fell over |" in shown
    halfway = Series("t/s", "", [9], error="it fell over later")
    assert "| not measured |" in page(
        results(ours=halfway, theirs=Series("t/s", "", [1]))
    )


@pytest.mark.slow
def test_names_an_unknown_contender(place: Place) -> None:
    figure = FIGURES["steps"](place, TINY)
    for peer in ("absurd", "dbos"):
        assert "No module named" in figure.series[peer].error
    assert figure.series["durable"].values


def test_publishes_only_what_was_measured() -> None:
    found = Results.read(PUBLISHED / RESULTS)
    assert (PUBLISHED / "README.md").read_text() == page(found)
    pictures = {path.name: path.read_text() for path in PUBLISHED.glob("*.svg")}
    assert pictures == plots(found)
