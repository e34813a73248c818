"""Log records with the ids of the task that they are about, and lines of JSON.

A record that `durable` writes about a task carries its ids. `TaskFields` adds them to
all records that are made while a task's code runs, by any logger. A record that is not
made, because its level is off, costs nothing.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from durable._task.current import current

__all__ = ["JSONFormatter", "TaskFields"]

_FIELDS: Final = (
    *("queue", "task_id", "task_name", "run_id", "attempt", "step"),
    *("trace_id", "span_id"),
)


class TaskFields(logging.Filter):
    """Adds the fields of the running task to each record, and of the current span.

        handler.addFilter(TaskFields())

    The fields are queue, task_id, task_name, run_id, attempt and step; with
    OpenTelemetry also trace_id and span_id. One that is not known is "".
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields to a record; it is always logged."""
        record.__dict__.update(dict.fromkeys(_FIELDS, "") | _fields() | record.__dict__)
        return True


class JSONFormatter(logging.Formatter):
    """Formats each record as one line of JSON, with the fields of `TaskFields`.

    The keys are time, level, logger, message, and exception if there is one; then the
    fields that are known.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        known = _fields() | record.__dict__
        line |= {name: known[name] for name in _FIELDS if known.get(name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields() -> dict[str, Any]:
    """Return the fields that the current context knows."""
    ctx = current(None)
    found: dict[str, Any] = {}
    if ctx is not None:
        run = ctx._run  # noqa: SLF001 - reading ctx.attempt has an effect
        found |= run.ids | {"step": run.info.step}
    tracing = sys.modules.get("opentelemetry.trace")  # without it, there is no span
    if tracing is not None:
        span = tracing.get_current_span().get_span_context()
        if span.is_valid:
            found["trace_id"] = tracing.format_trace_id(span.trace_id)
            found["span_id"] = tracing.format_span_id(span.span_id)
    return found
