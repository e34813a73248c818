"""Metrics in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from durable.telemetry.instruments import Instrument

__all__ = ["CONTENT_TYPE", "Registry"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_TYPES: Final = {"updown": "gauge"}

Labels: TypeAlias = tuple[tuple[str, str], ...]


class Registry:
    """A meter that keeps values in memory. Safe to use in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families: dict[Instrument, dict[Labels, list[float]]] = {}

    def add(
        self, instrument: Instrument, value: float, labels: Mapping[str, str]
    ) -> None:
        """Add to a counter, observe a value of a histogram, or set a gauge."""
        key = tuple(sorted(labels.items()))
        size = len(instrument.buckets) + 2  # one beyond the last limit, and the sum
        with self._lock:
            series = self._families.setdefault(instrument, {})
            values = series.setdefault(key, [0.0] * size)
            if instrument.kind == "histogram":
                values[bisect_left(instrument.buckets, value)] += 1
                values[-1] += value
            elif instrument.kind == "gauge":
                values[0] = float(value)
            else:
                values[0] += value

    def text(self) -> str:
        """Return all values as text."""
        with self._lock:
            families = [
                (one, [(key, list(values)) for key, values in series.items()])
                for one, series in self._families.items()
            ]
        return "".join(line for family in families for line in _lines(*family))


def _lines(
    instrument: Instrument, series: Iterable[tuple[Labels, list[float]]]
) -> Iterator[str]:
    name = instrument.prometheus_name
    yield f"# HELP {name} {instrument.description}\n"
    yield f"# TYPE {name} {_TYPES.get(instrument.kind, instrument.kind)}\n"
    for labels, values in series:
        if instrument.kind != "histogram":
            yield _line(name, labels, values[0])
            continue
        count = 0.0
        limits = [*map(str, instrument.buckets), "+Inf"]
        for limit, one in zip(limits, values[:-1], strict=True):
            count += one
            yield _line(f"{name}_bucket", (*labels, ("le", limit)), count)
        yield _line(f"{name}_sum", labels, values[-1])
        yield _line(f"{name}_count", labels, count)


def _line(name: str, labels: Labels, value: float) -> str:
    pairs = ",".join(f'{key.replace(".", "_")}="{_escaped(v)}"' for key, v in labels)
    return f"{name}{{{pairs}}} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
