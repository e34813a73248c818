"""Where steps leave a mark outside the database: their side effect, to be counted."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

__all__ = ["Entry", "Ledger", "Page"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One execution of one step: of which task, under which name, by which process."""

    task_id: UUID
    step: str
    pid: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """A file to which each execution of a step adds a line; nothing takes one away."""

    path: Path

    def page(self, task_id: UUID) -> Page:
        """Return where the steps of one task write."""
        return Page(self.path, task_id)

    def read(self) -> list[Entry]:
        """Return every line, oldest first."""
        rows = map(json.loads, self.path.read_text().splitlines())
        return [Entry(UUID(task_id), step, pid) for task_id, step, pid in rows]


@dataclass(frozen=True, slots=True)
class Page:
    """The ledger, as the steps of one task see it."""

    path: Path
    task_id: UUID

    def write(self, step: str) -> None:
        """Note that a step runs, in this process, now."""
        line = json.dumps([str(self.task_id), step, os.getpid()])
        with self.path.open("a") as file:  # one write, at the end, whoever else writes
            file.write(f"{line}\n")
