"""How the command line shows what it has found: tables, JSON, and errors in a line."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pydantic

from durable._results import QueueStats
from durable.errors import DurableError

__all__ = ["columns", "moment", "one_line", "table", "to_json"]


def table(rows: list[QueueStats]) -> str:
    """Return a table of what the queues hold."""
    names = ["queue", "pending", "running", "sleeping"]
    names += ["completed", "failed", "cancelled", "ready"]
    lines = [names, *([str(getattr(row, name)) for name in names] for row in rows)]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([name.ljust(first), *map(str.rjust, counts, rest)])
        for name, *counts in lines
    )


def to_json(rows: Iterable[Any]) -> str:
    """Return dataclasses as a JSON array."""
    told = [dataclasses.asdict(row) for row in rows]
    return json.dumps(told, indent=2, default=str)


def moment(at: datetime | None) -> str:
    """Return a moment to the millisecond, in UTC."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def columns(lines: list[list[str]]) -> str:
    """Return a table of text, without the columns in which nothing is said."""
    said = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in said]
    return "\n".join(
        "  ".join(map(str.ljust, line, widths)).rstrip()
        for line in zip(*said, strict=True)
    )


def one_line(error: Exception) -> str:
    """Return what went wrong, and where if nobody foresaw it."""
    text = str(error).replace("\nHint:", ". Hint:")
    if isinstance(error, psycopg.Error):
        text = error.diag.message_primary or text
    text = " ".join(text.split())
    expected = (DurableError, psycopg.Error, TimeoutError, pydantic.ValidationError)
    if text and isinstance(error, expected):
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {text} ({last.filename}:{last.lineno})"
