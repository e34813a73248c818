"""Decide whether the outcome of two calls is that of one call after the other.

Which of two ends of one task came first is open, and so is its reason: it is left out
of the comparison where two calls, or deferred work and the clock, may have given it.
That the reason is true is checked separately (tests/chaos/promises.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from tests.chaos.interleavings.calls import Call
from tests.chaos.interleavings.pairs import IN_READ_COMMITTED, Interleaving

__all__ = ["Outcome", "difference", "is_legal", "orders"]

# The facts about each subject: a task with all its rows, an event, ...
Outcome = tuple[tuple[str, str], ...]

ABOVE: Final = r'\{"by": "[^"]*", "type": "\$CancelledByParent"[^}]*\}'
LATE: Final = (
    r'\{"type": "\$DeadlineExceeded", "limit": "deadline",'
    r' "message": "not finished by its deadline"\}'
)
ALONE: Final = (
    r'\{"by": \{"user": "[^"]*"\}, "type": "\$Cancelled", "message": "cancelled"\}'
)
BY_TIME: Final = re.compile(f"{ABOVE}|{LATE}")
BY_MANY: Final = re.compile(f"{ABOVE}|{ALONE}")
IS_LATE: Final = re.compile(LATE)
UNDO_ONE_ANOTHER: Final = {"retry_tasks", "cancel_tasks"}


def orders(way: Interleaving) -> tuple[str, ...]:
    """Return in which orders the calls may have been made; only B, if A rolls back.

    Two calls that undo one another, and skip locked rows, are repeated in the end, A
    and then B: which is the last for a task depends on which of them had skipped it.
    """
    if not way.a_commits:
        return ("b",)
    verbs = {call.name.split(" ")[0] for call in (way.pair.a, way.pair.b)}
    return ("ab", "ba", "a", "b", "") if verbs == UNDO_ONE_ANOTHER else ("ab", "ba")


def is_legal(way: Interleaving, outcome: Outcome, legal: list[Outcome]) -> bool:
    """Whether it is one of the outcomes; of divisible calls, subject by subject."""
    outcome, *legal = _with_reasons_open(way, [outcome, *legal])
    pair = way.pair
    if outcome in legal or pair.a.composite or pair.b.composite:
        return True
    if not any(call.tries or call.divisible for call in (pair.a, pair.b)):
        return False
    subjects = {subject for known in (outcome, *legal) for subject, _ in known}
    return all(
        _about(subject, outcome) in [_about(subject, known) for known in legal]
        for subject in subjects
    )


def _with_reasons_open(way: Interleaving, outcomes: list[Outcome]) -> list[Outcome]:
    """Leave out which of two reasons came first for a task that was cancelled.

    Of a parent's end and the deadline that both have, either comes first. Of several
    tasks cancelled at once, each ends by itself or with one above it that is among
    them.
    """
    if way.levels != IN_READ_COMMITTED or any(map(_is_late, outcomes)):
        outcomes = [_leave_out(BY_TIME, outcome, _anybody) for outcome in outcomes]
    for call in (way.pair.a, way.pair.b):
        if call.cancels:
            of = _cancelled_by(call)
            outcomes = [_leave_out(BY_MANY, outcome, of) for outcome in outcomes]
    return outcomes


def _is_late(outcome: Outcome) -> bool:
    """Whether any task ended by the deadline that it may have from its parent."""
    return any(IS_LATE.search(fact) for _, fact in outcome)


def _anybody(_fact: tuple[str, str]) -> bool:
    return True


def _cancelled_by(call: Call) -> Callable[[tuple[str, str]], bool]:
    """Whether a fact is about one of the tasks that it names, or about a join."""

    def is_about(fact: tuple[str, str]) -> bool:
        subject, text = fact
        return (
            call.cancels == "all"
            or subject in call.cancels.split(" ")
            or text.startswith("checkpoint ")
        )

    return is_about


def _leave_out(
    reason: re.Pattern[str],
    outcome: Outcome,
    concerned: Callable[[tuple[str, str]], bool],
) -> Outcome:
    return tuple(
        (subject, reason.sub("{…}", text) if concerned((subject, text)) else text)
        for subject, text in outcome
    )


def _about(subject: str, outcome: Outcome) -> list[str]:
    return [fact for about, fact in outcome if about == subject]


def difference(outcome: Outcome, legal: list[Outcome]) -> str:
    """Describe what only the one contains and what only the others contain."""
    lines = []
    for title, other in zip(("A then B", "B then A"), legal, strict=False):
        lines.append(f"  against {title}:")
        lines += [f"    + {line}" for line in sorted(set(outcome) - set(other))]
        lines += [f"    - {line}" for line in sorted(set(other) - set(outcome))]
    return "\n".join(lines)
