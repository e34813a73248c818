"""Pictures of figures, as plain SVG: one bar for each series, with its spread."""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from tests.bench.contenders import PEERS
from tests.bench.results import Figure, Results, Series

__all__ = ["plots"]

PLOTTED: Final = ("noop", "steps", "spawn", "spawn_many", "wal", "backlog", "two")
WIDTH: Final = 740
LEFT: Final = 220
SPAN: Final = 400
BAR: Final = 20
GAP: Final = 10
TOP: Final = 34
HEAD: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    ' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">'
)
OURS: Final = "#2f6f4f"
THEIRS: Final = "#9aa5b1"
OTHERS: Final = (*(peer.key for peer in PEERS), "bare")
INK: Final = "#222222"


def plots(results: Results) -> dict[str, str]:
    """Return a picture for each figure whose series can stand side by side."""
    return {
        f"{figure.key}.svg": _plot(figure)
        for figure in results.figures
        if figure.key in PLOTTED and any(one.values for one in figure.series.values())
    }


def _plot(figure: Figure) -> str:
    unit = next(iter(figure.series.values())).unit
    shown = {name: one for name, one in figure.series.items() if one.unit == unit}
    longest = max(max(one.values, default=0) for one in shown.values()) or 1
    height = TOP + len(shown) * (BAR + GAP) + GAP
    lines = [
        HEAD.format(width=WIDTH, height=height),
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 20, f"{figure.title}, {unit}"),
    ]
    for index, (name, series) in enumerate(shown.items()):
        lines += _bar(TOP + index * (BAR + GAP), name, series, longest)
    return "\n".join([*lines, "</svg>", ""])


def _bar(top: int, name: str, series: Series, longest: float) -> list[str]:
    baseline = top + BAR - 5
    lines = [_text(LEFT - 8, baseline, name, anchor="end")]
    if series.median is None:
        return [*lines, _text(LEFT, baseline, series.error or "not measured")]
    width, low, high = (
        round(SPAN * value / longest, 1)
        for value in (series.median, min(series.values), max(series.values))
    )
    colour = THEIRS if name.startswith(OTHERS) else OURS
    middle = top + BAR / 2
    lines.append(
        f'<rect x="{LEFT}" y="{top}" width="{width}" height="{BAR}" fill="{colour}"/>'
    )
    lines.append(
        f'<path d="M{LEFT + low} {middle}H{LEFT + high}" stroke="{INK}"'
        ' stroke-width="2"/>'
    )
    return [*lines, _text(LEFT + high + 8, baseline, f"{series.median:,.0f}")]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{INK}">'
        f"{escape(text)}</text>"
    )
