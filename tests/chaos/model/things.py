"""The contents of a queue, in whole microseconds, and the answers of calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

__all__ = ["FINAL", "SECOND", "USUAL_RETRY", "Checkpoint", "Event", "Free", "Id"]
__all__ += ["Json", "Refused", "Run", "Task", "Wait", "by_a_role", "first_id", "iso"]
__all__ += ["micro"]

Json: TypeAlias = Any
Id: TypeAlias = str

SECOND: Final = 1_000_000
FINAL: Final = {"completed", "failed", "cancelled"}
USUAL_RETRY: Final[dict[str, Any]] = {
    "kind": "exponential",
    "base_seconds": 1,
    "factor": 2,
    "max_seconds": 300,
    "jitter": True,
}


class Refused(Exception):
    """One of these errors, whichever the engine checks first; nothing has changed."""

    def __init__(self, *codes: str) -> None:
        super().__init__(*codes)
        self.codes = set(codes)


class Free:
    """A value the engine may choose, as long as it is one of these."""

    def __init__(self, allows: Callable[[Any], bool], what: str) -> None:
        self.allows = allows
        self._what = what

    def __repr__(self) -> str:
        return self._what


@dataclass
class Run:
    """An attempt that another one followed."""

    attempt: int
    outcome: str
    worker: str | None
    ended_at: int
    error: Json


@dataclass
class Checkpoint:
    """What a task has done: written once, never changed."""

    state: str
    value: Json
    position: int
    after: int
    attempt: int
    claim: int
    saved_at: int


@dataclass
class Wait:
    """A wait, with its first deadline; it stays until it is resolved."""

    position: int
    after: int
    deadline: int | None
    event: str | None
    tasks: list[Id] | None
    watched: int | None = None  # place of the task whose end looks at this wait, from 1

    @property
    def target(self) -> Id | None:
        """Return the task whose end checks this wait."""
        return self.tasks[self.watched - 1] if self.tasks and self.watched else None


@dataclass
class Event:
    """An event, or (without a time) a row that only registers a waiter."""

    emitted_at: int | None = None
    payload: Json = None


@dataclass
class Task:
    """One logical piece of work."""

    name: str
    params: Json
    spawned_at: int
    parent: Id | None = None
    key: str | None = None
    retry: Json = None
    max_attempts: int | None = 5
    execution_timeout: int | None = None
    state: str = "pending"
    attempt: int = 1
    claim: int = 0  # the fence: odd while held
    worker: str | None = None
    available_at: int | None = None
    lease: int | None = None
    deadline: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    result: Json = None
    error: Json = None
    runs: list[Run] = field(default_factory=list)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    waits: dict[str, Wait] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """Whether it has not finished."""
        return self.state not in FINAL

    @property
    def is_asleep(self) -> bool:
        """Whether it sleeps because of a wait: a task between attempts has an error."""
        return self.state == "sleeping" and self.error is None

    def let_go(self) -> None:
        """End its claim and its lease."""
        self.claim += self.claim % 2
        self.lease = self.available_at = None

    def may_retry(self) -> bool:
        """Whether there is an attempt after this one."""
        is_last = self.max_attempts is not None and self.attempt >= self.max_attempts
        return (self.retry or {}).get("kind") != "none" and not is_last

    def delay(self) -> tuple[int, int]:
        """Return how long until the next attempt, at least and at most."""
        retry = self.retry or USUAL_RETRY
        base, factor = retry.get("base_seconds", 1), retry.get("factor", 2)
        power = self.attempt - 1 if retry["kind"] == "exponential" else 0
        longest = retry.get("max_seconds", 365 * 86400)
        seconds = min(base * factor**power, longest)
        shortest = seconds / 2 if retry.get("jitter") else seconds
        return round(shortest * SECOND), round(seconds * SECOND)


def micro(seconds: float | None) -> int | None:
    """Seconds as whole microseconds."""
    return None if seconds is None else round(seconds * SECOND)


def iso(at: int) -> str:
    """A time as JSON."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    fraction = f"{moment:.%f}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}+00:00"


def first_id(at: int) -> Id:
    """The lowest id of a task that was spawned at that moment."""
    text = f"{(at + 500) // 1000:012x}"
    return f"{text[:8]}-{text[8:]}-0000-0000-000000000000"


def by_a_role(error: dict[str, Json]) -> Any:
    """Whether the engine may record the role that did it."""

    def allows(held: Json) -> bool:
        by = held["by"]
        return {**held, "by": None} == {**error, "by": None} and [*by] == ["user"]

    return Free(allows, f"{error}, and by whom")
