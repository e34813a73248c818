"""Faults in two sizes, all from one seed, and counts of those survived.

    def test_survives(share: Share, random: Random, survived: Survived) -> None:
        for _ in range(share(quick=10, long=1000)):
            ...
            survived("cuts", 1)

`make test` plays the quick share, `make chaos` the long one. Both print the run's seed
and, at the end, the sum of what all tests survived.

DURABLE_CHAOS         long: the long share
DURABLE_TEST_SEED     the seed that a former run printed, to repeat its choices
DURABLE_SURVIVED      a page into which the counts are written, if nothing failed
"""

from __future__ import annotations

import os
import re
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol, TypeVar

import pytest

__all__ = ["Share", "Survived", "publish"]

T = TypeVar("T")

SEED: Final = "DURABLE_TEST_SEED"
PROPERTY: Final = "survived"


class Share(Protocol):
    """Chooses the size of a test by the share that is being run."""

    def __call__(self, *, quick: T, long: T) -> T:
        """Return the size for the selected share."""
        ...


class Survived(Protocol):
    """Counts what a test has survived, for the sum of the whole run."""

    def __call__(self, what: str, number: int = 1) -> None:
        """Add so many, under a plural that reads well after a number."""
        ...


def is_long() -> bool:
    return os.environ.get("DURABLE_CHAOS") == "long"


@pytest.fixture
def share() -> Share:
    """`share(quick=…, long=…)`: the size to play."""

    def choose(*, quick: T, long: T) -> T:
        return long if is_long() else quick

    return choose


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """A random generator for this test, seeded by the run's seed."""
    return Random(f"{os.environ[SEED]}/{request.node.name}")


@pytest.fixture
def survived(record_property: Callable[[str, object], None]) -> Survived:
    """`survived("kills", 3)` adds to what the run prints at its end."""

    def survived(what: str, number: int = 1) -> None:
        record_property(PROPERTY, [what, number])

    return survived


def pytest_configure() -> None:
    os.environ.setdefault(SEED, str(secrets.randbelow(10**6)))  # xdist inherits it


def pytest_report_header() -> str:
    return f"chaos: {'long' if is_long() else 'quick'} share, {SEED}={os.environ[SEED]}"


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int) -> None:
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == PROPERTY:
                what, number = value
                counts[what] += number
    if not counts:
        return
    terminalreporter.section(f"survived, {SEED}={os.environ[SEED]}")
    for what, number in sorted(counts.items()):
        terminalreporter.line(f"{number:>12,} {what}")
    page = os.environ.get("DURABLE_SURVIVED")
    if page and exitstatus == 0:
        publish(Path(page), "chaos", counts)


def publish(page: Path, part: str, counts: Counter[str]) -> None:
    """Put the counts into a page, between `<!-- part -->` and `<!-- /part -->`."""
    rows = [f"| {number:,} | {what} |" for what, number in sorted(counts.items())]
    table = "\n".join(["| | survived |", "|---:|---|", *rows, ""])
    between = re.compile(rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.DOTALL)
    text, found = between.subn(rf"\g<1>{table}\g<2>", page.read_text("utf-8"))
    if not found:
        raise ValueError(f"{page} has no place for {part}: <!-- {part} -->")
    page.write_text(text, "utf-8")
