"""The ledger: a file in which steps count their executions, as a side effect."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

__all__ = ["Entry", "Ledger", "Page"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One execution of one step, with its task and process."""

    task_id: UUID
    step: str
    pid: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """An append-only file with a line for each execution of a step."""

    path: Path

    def page(self, task_id: UUID) -> Page:
        """Return the part of the ledger to which one task's steps write."""
        return Page(self.path, task_id)

    def read(self) -> list[Entry]:
        """Return all entries, oldest first."""
        rows = map(json.loads, self.path.read_text().splitlines())
        return [Entry(UUID(task_id), step, pid) for task_id, step, pid in rows]


@dataclass(frozen=True, slots=True)
class Page:
    """The ledger for the steps of one task."""

    path: Path
    task_id: UUID

    def write(self, step: str) -> None:
        """Append an entry for a step that runs in this process."""
        line = json.dumps([str(self.task_id), step, os.getpid()])
        with self.path.open("a") as file:  # concurrent appends do not interleave
            file.write(f"{line}\n")
