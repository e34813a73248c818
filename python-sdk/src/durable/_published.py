"""What tasks have published, as values."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

__all__ = ["LogLine", "StreamEntry"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class StreamEntry(Generic[T_co]):
    """One entry of a stream.

    `offset` counts from 0; to go on behind it, follow from `offset + 1`. `step` is the
    step whose function wrote it, None if the task's own code did. `restarted` says that
    this step had to begin again: drop what you have of the same `step` before this.
    """

    offset: int
    value: T_co
    step: str | None
    attempt: int
    restarted: bool
    written_at: datetime


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a task's log.

    `level` is as in `logging`; `step` the step that was running, None between steps;
    `message` has the traceback if there was one.
    """

    at: datetime
    level: int
    logger: str
    step: str | None
    attempt: int
    message: str

    def __str__(self) -> str:
        level = logging.getLevelName(self.level)
        place = f" [{self.step}]" if self.step else ""
        return f"{self.at:%Y-%m-%d %H:%M:%S} {level}{place} {self.message}"
