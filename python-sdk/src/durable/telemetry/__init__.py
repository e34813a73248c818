"""Telemetry: traces, metrics and logs for the tools of operators.

`durable.telemetry.otel` needs the extra `otel`, and the rest nothing.
"""

from __future__ import annotations

from durable.telemetry.logs import JSONFormatter, TaskFields

__all__ = ["JSONFormatter", "TaskFields"]
