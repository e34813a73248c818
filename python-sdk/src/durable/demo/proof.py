"""Check durable's claims against the evidence of a run.

The evidence has three sources: the ledger, with a line for each execution of a step;
Postgres, with every attempt and checkpoint; and a plain count without durable. `prove`
decides on this evidence alone.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple
from uuid import UUID

from durable.demo.census import Count, Report
from durable.demo.ledger import Entry
from durable.demo.records import Attempt, Checkpoint

__all__ = ["Claim", "Evidence", "Step", "prove"]

FIRST: Final = 1
SECOND: Final = 2


class Step(NamedTuple):
    """A step of a task."""

    task_id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim about durable, whether it holds, and the facts that show it."""

    text: str
    holds: bool
    because: str


@dataclass(frozen=True)
class Evidence:
    """The data collected after the run.

    `killed` and `successor` are the pids of the two workers, beside their exit codes.
    """

    report: Report
    written: str
    direct: dict[str, int]
    ledger: list[Entry]
    attempts: list[Attempt]
    checkpoints: list[Checkpoint]
    killed: int
    killed_exit: int | None
    successor: int
    successor_exit: int | None

    @cached_property
    def ran(self) -> dict[Step, list[int]]:
        """Every executed step, with the processes that ran it, in order."""
        found: dict[Step, list[int]] = {}
        for entry in self.ledger:
            found.setdefault(Step(entry.task_id, entry.step), []).append(entry.pid)
        return found

    @cached_property
    def saved(self) -> dict[Step, int]:
        """Every saved step, with the attempt that saved it."""
        return {
            Step(one.task_id, one.name): one.attempt
            for one in self.checkpoints
            if not one.name.startswith("$")
        }

    @cached_property
    def twice(self) -> list[Step]:
        """The steps that were executed more than once."""
        return [step for step, pids in self.ran.items() if len(pids) > 1]

    @cached_property
    def last(self) -> dict[UUID, Attempt]:
        """Each task's last attempt."""
        return {one.task_id: one for one in self.attempts}

    @cached_property
    def lost(self) -> dict[UUID, Attempt]:
        """The attempts that ended because their worker lost its lease."""
        return {
            one.task_id: one for one in self.attempts if one.outcome == "lease_lost"
        }

    def describe(self, step: Step) -> str:
        """Return a readable name of a step."""
        module = self.last[step.task_id].module
        return step.name if "." in step.name else f"{step.name} {module or 'census'}"


def prove(evidence: Evidence) -> Iterator[Claim]:
    """Yield every claim, decided."""
    yield _totals(evidence)
    yield _report(evidence)
    yield _tasks(evidence)
    yield _workers(evidence)
    yield _repeated_runs(evidence)
    yield _replayed_steps(evidence)
    yield _steps(evidence)


def _totals(evidence: Evidence) -> Claim:
    total = evidence.report.total
    holds = evidence.direct == total.model_dump() and total.files > 0
    holds &= total == sum(evidence.report.modules.values(), start=Count())
    because = (
        f"{total.files:,} files, {total.lines:,} lines, "
        f"{total.functions:,} functions, {total.classes:,} classes"
    )
    if not holds:
        because += f"; but without durable {evidence.direct}"
    return Claim("The totals equal a plain count", holds, because)


def _report(evidence: Evidence) -> Claim:
    report = evidence.report
    return Claim(
        "The report says the same",
        Report.model_validate_json(evidence.written) == report,
        f"{len(report.modules)} modules, approved by {report.approved_by}",
    )


def _tasks(evidence: Evidence) -> Claim:
    states = Counter(one.outcome for one in evidence.last.values())
    return Claim(
        "Every task completed",
        states == {"completed": len(evidence.report.modules) + 1},
        f"{states['completed']} of {states.total()}, the parent included",
    )


def _workers(evidence: Evidence) -> Claim:
    ran = Counter(entry.pid for entry in evidence.ledger)
    killed, successor = evidence.killed, evidence.successor
    return Claim(
        "kill -9 ended one of two workers",
        set(ran) == {killed, successor}
        and evidence.killed_exit == -signal.SIGKILL
        and evidence.successor_exit == 0,
        f"{ran[killed]:,} steps by {killed}, {ran[successor]:,} by {successor}",
    )


def _repeated_runs(evidence: Evidence) -> Claim:
    """Check that second attempts are those of the interrupted tasks only."""
    repeated = {task for task, one in evidence.last.items() if one.attempt > FIRST}
    holds = repeated == evidence.lost.keys() and bool(repeated)
    for task_id, lost in evidence.lost.items():
        second = evidence.last[task_id]
        holds &= (lost.attempt, lost.pid) == (FIRST, evidence.killed)
        holds &= (second.attempt, second.pid) == (SECOND, evidence.successor)
    because = f"{len(repeated)} of {len(evidence.last)} tasks, by the other worker"
    return Claim("Only what it ran was run again", holds, because)


def _replayed_steps(evidence: Evidence) -> Claim:
    """Check the tasks that one worker started and the other finished."""
    replayed = [
        step
        for step, attempt in evidence.saved.items()
        if evidence.last[step.task_id].pid == evidence.successor
        and (
            attempt < evidence.last[step.task_id].attempt
            or evidence.ran.get(step, [0])[-1] == evidence.killed
        )
    ]
    tasks = {step.task_id for step in replayed}
    return Claim(
        "What was saved was replayed",
        bool(replayed)
        and all(evidence.ran.get(step) == [evidence.killed] for step in replayed),
        f"{len(replayed)} steps of {len(tasks)} tasks",
    )


def _steps(evidence: Evidence) -> Claim:
    """Allow a second run only for a step killed between effect and checkpoint.

    Then the task was interrupted, the checkpoint is of its second attempt, and there is
    no other such step in that task.
    """
    holds = evidence.ran.keys() == evidence.saved.keys()
    for step in evidence.twice:
        holds &= evidence.ran[step] == [evidence.killed, evidence.successor]
        holds &= step.task_id in evidence.lost and evidence.saved.get(step) == SECOND
    holds &= len({step.task_id for step in evidence.twice}) == len(evidence.twice)
    once, twice = len(evidence.ran) - len(evidence.twice), len(evidence.twice)
    because = f"{once:,} once; {twice} twice, under way then"
    return Claim("Steps ran once, but for the kill", holds, because)
