"""Process statistics from Linux."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Usage", "family_cpu"]

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """The parent of a process, and the CPU seconds of it and its ended children."""

    parent: int
    own: float
    ended_children: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read it; a process that has ended has used nothing."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return cls(0, 0, 0)
        fields = stat.rpartition(")")[2].split()
        user, system, child_user, child_system = map(int, fields[11:15])
        return cls(
            int(fields[1]), (user + system) / TICKS, (child_user + child_system) / TICKS
        )


def family_cpu(pid: int) -> float:
    """Return the CPU seconds of a process and all its children, ended or not."""
    head = Usage.of(pid)
    others = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    children = [usage for other in others if (usage := Usage.of(other)).parent == pid]
    return head.own + head.ended_children + sum(child.own for child in children)
