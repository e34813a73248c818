"""The results of a run: raw values per round, and claims computed from them alone.

A comparison is made round by round, between neighbours in time. Its aim is part of the
JSON, so that a page can be made again from the file and from nothing else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from tests.bench.contenders import OURS, PEERS
from tests.bench.place import SETTINGS, Failed

__all__ = ["Comparison", "Figure", "Results", "Series", "machine"]

SHOWN: Final = (*SETTINGS, "synchronous_commit", "autovacuum", "wal_compression")


@dataclass(slots=True)
class Series:
    """One measured batch_size, a value for each round; or why there is none."""

    unit: str
    settings: str = ""
    values: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float | None:
        """The middle value, if there is any."""
        return statistics.median(self.values) if self.values else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A claim and its aim: one series, or its ratio to another one, per round."""

    label: str
    series: str
    aim: float
    against: str | None = None
    at_least: bool = True

    def rounds(self, series: Mapping[str, Series]) -> list[float]:
        """Return the result of each round: none where a side failed."""
        ours = series[self.series]
        if self.against is None:
            return [] if ours.error else ours.values
        theirs = series[self.against]
        if ours.error or theirs.error:
            return []
        return [
            mine / other
            for mine, other in zip(ours.values, theirs.values, strict=False)
            if other
        ]

    def value(self, series: Mapping[str, Series]) -> float | None:
        """Return the median of the rounds, if there is any."""
        found = self.rounds(series)
        return statistics.median(found) if found else None

    def is_met(self, series: Mapping[str, Series]) -> bool | None:
        """Whether the aim is met, or None without a result."""
        found = self.value(series)
        if found is None:
            return None
        return found >= self.aim if self.at_least else found <= self.aim


@dataclass(slots=True)
class Figure:
    """One question about performance."""

    key: str
    title: str
    how: str
    series: dict[str, Series]
    comparisons: list[Comparison] = field(default_factory=list)

    def in_turns(
        self, rounds: int, measures: Mapping[str, Callable[[], Mapping[str, float]]]
    ) -> Self:
        """Measure alternately; a contender that fails has its error in its series."""
        for _ in range(rounds):
            for name, measure in measures.items():
                if not self.series[name].error:
                    self._measure(name, measure)
        return self

    def _measure(self, name: str, measure: Callable[[], Mapping[str, float]]) -> None:
        try:
            found = measure()
        except (Failed, psycopg.Error, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.series[name].error = lines[0]
            return
        for series, value in found.items():
            self.series[series].values.append(value)


@dataclass(slots=True)
class Results:
    """Everything a run found."""

    mode: str
    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the JSON."""
        path.write_text(json.dumps(_rounded(asdict(self)), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it back."""
        found = json.loads(path.read_text())
        figures = [
            Figure(
                figure["key"],
                figure["title"],
                figure["how"],
                {name: Series(**one) for name, one in figure["series"].items()},
                [Comparison(**one) for one in figure["comparisons"]],
            )
            for figure in found["figures"]
        ]
        return cls(found["mode"], found["machine"], figures)


def machine(connection: psycopg.Connection) -> dict[str, Any]:
    """Describe the machine of a run."""
    settings = {}
    for name in SHOWN:
        row = connection.execute("select current_setting(%s)", [name]).fetchone()
        settings[name] = row[0] if row else ""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "kernel": platform.release(),
        "postgres": connection.info.parameter_status("server_version"),
        "settings": settings,
        "python": platform.python_version(),
        "packages": _versions(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _versions() -> dict[str, str]:
    packages = [OURS.package, *(peer.package for peer in PEERS)]
    packages += ["absurdctl", "psycopg", "asyncpg", "uvloop", "pydantic"]
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _rounded(value: Any) -> Any:
    """Keep four digits: the others are noise."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case list() | tuple():
            return [_rounded(one) for one in value]
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
    return value
