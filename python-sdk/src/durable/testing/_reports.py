"""Reports of crash tests: lives, their outcomes, and what was wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from durable.testing._boundaries import BEGIN, END

__all__ = ["CrashReport", "CrashUnsafe", "Life", "short"]

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a task: where its worker was killed, and the outcome.

    `point` is the boundary, None in the undisturbed life; `died` says whether it was
    reached, so that the worker was killed. `state`, `output` and `error` are the task's
    outcome, `effects` its side effects, `ran` how often each step ended, by name.
    `database` is the URL of the life's own database, which exists while `check` runs.
    """

    point: str | None
    died: bool
    state: str
    output: Any
    error: str | None
    effects: Any
    ran: Counter[str]
    attempts: int
    database: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CrashReport:
    """All lives of a crash test: the undisturbed one, and one per boundary.

    `missed` are boundaries that were not reached again, because they depend on timing.
    `str(report)` is a table.
    """

    task: str
    undisturbed: Life
    lives: Sequence[Life]
    missed: Sequence[str]

    def __str__(self) -> str:
        width = max((len(life.point or "") for life in self.lives), default=0)
        lines = [f"{self.task}: killed at {len(self.lives)} boundaries"]
        for life in self.lives:
            again = _again(life, self.undisturbed)
            lines.append(f"  {life.point or '':{width}}  {again or 'nothing repeated'}")
        lines += [f"  {point:{width}}  was not reached again" for point in self.missed]
        return "\n".join(lines)


class CrashUnsafe(AssertionError):
    """A task does not survive a kill of its worker; the message says where and how."""

    def __init__(self, task: str, faults: Sequence[tuple[Life, str]], of: int) -> None:
        self.points = [str(life.point) for life, _ in faults]
        head = f"{task} does not survive a kill at {len(faults)} of {of} boundaries:"
        lines = [head]
        for life, fault in faults[:_SHOWN]:
            lines += [f"\n{life.point}", *(f"  {line}" for line in fault.splitlines())]
            lines.append(f'  to reproduce: crash_at("{life.point}", …)')
        if len(faults) > _SHOWN:
            lines.append("\nalso at " + ", ".join(self.points[_SHOWN:]))
        super().__init__("\n".join(lines))


def _again(life: Life, undisturbed: Life) -> str:
    more = {
        step: f"{step} ran {times} times"
        for step, times in life.ran.items()
        if times > undisturbed.ran[step]
    }
    return ", ".join(more.values())


def short(point: str, task: str) -> str:
    """Return a boundary without the name of the tested task."""
    phase, _, rest = point.partition(":")
    return f"{phase}:{rest.removeprefix(f'{task}:')}"


def steps_that_ran(points: Sequence[str], task: str) -> Counter[str]:
    """Count the steps that ended, from the boundaries passed."""
    ran: Counter[str] = Counter()
    for point in points:
        phase, _, name = short(point.partition("@")[0], task).partition(":")
        call = name.rpartition(":")[2]
        if phase == "during" and "$" not in name and call not in {BEGIN, END}:
            ran[name] += 1
    return ran
