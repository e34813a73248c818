"""Checks of arguments: names, ids, durations and times; and the keys of checkpoints.

Everything is checked before anything is sent to the database. A duration is a
`timedelta` or a number of seconds; a time is an aware `datetime`.
"""

from __future__ import annotations

import math
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final
from uuid import UUID

from durable.errors import InvalidArgument

SHORT: Final = 100
LONG: Final = 255
LONGEST_KEY: Final = 512  # of a checkpoint, in bytes
LONGEST: Final = 1e10
"""The longest duration, in seconds: 317 years."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBERED = re.compile(r"#[0-9]+\Z")
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _check(name: object, what: str, limit: int) -> str:
    """Return a name; InvalidArgument unless it is 1 to `limit` bytes, and printable."""
    if not isinstance(name, str):
        raise InvalidArgument(f"{what} must be a str, not {type(name).__name__}")
    if name.isspace() or not name:
        raise InvalidArgument(f"{what} is empty")
    if name.isascii() and name.isprintable() and len(name) <= limit:
        return name
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} has a lone surrogate: {name!r}") from error
    if size > limit:
        raise InvalidArgument(f"{what} is {size} bytes long, of at most {limit}")
    if _CONTROL.search(name):
        raise InvalidArgument(f"{what} has a control character: {name!r}")
    return name


check_queue_name = partial(_check, what="a queue's name", limit=SHORT)
check_task_name = partial(_check, what="a task's name", limit=SHORT)
check_version = partial(_check, what="a version", limit=SHORT)
check_schedule_name = partial(_check, what="a schedule's name", limit=SHORT)
check_event_name = partial(_check, what="an event's name", limit=LONG)
check_key = partial(_check, what="an idempotency key", limit=LONG)
check_partition_key = partial(_check, what="a partition_key", limit=LONG)
check_unique_key = partial(_check, what="a unique key", limit=LONG)
check_topic = partial(_check, what="a message's topic", limit=LONG)
check_dedup_key = partial(_check, what="a message's dedup_key", limit=LONG)


def check_step_name(name: str, what: str = "a step's name") -> str:
    """Return the name of a step, sleep, spawn or join if it is valid.

    InvalidArgument unless it is 1-255 bytes without control characters, does not begin
    with `$` and does not end in `#` and digits, which are reserved.
    """
    _check(name, what, LONG)
    if name.startswith("$"):
        raise InvalidArgument(f"{what} cannot begin with $: {name!r}")
    if "#" in name and _NUMBERED.search(name):
        message = f"{what} cannot end in # and digits: {name!r}"
        hint = "Repeats are numbered for you; otherwise write for instance item:7."
        raise InvalidArgument(message, hint=hint)
    return name


def default_task_name(name: str) -> str:
    """Return a class's or a function's name in kebab case: HTTPFetch is http-fetch."""
    return _WORD_STARTS.sub("-", name.strip("_")).replace("_", "-").lower()


def as_uuid(task_id: object) -> UUID:
    """Return a task's id as a UUID, given as a UUID or text; or InvalidArgument."""
    if isinstance(task_id, UUID):
        return task_id
    try:
        if isinstance(task_id, str):
            return UUID(task_id)
    except ValueError:
        pass
    raise InvalidArgument(f"a task's id is a UUID or its text, not {task_id!r:.100}")


def uuid7(microseconds: int) -> UUID:
    """Return a random uuid v7 for a time in microseconds since 1970; later is greater.

    The fraction of the millisecond is in its first 12 random bits (RFC 9562, 6.2).
    """
    milliseconds, rest = divmod(microseconds, 1000)
    high, low = rest * 4096 // 1000, secrets.randbits(62)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)


def seconds(value: timedelta | float | None, what: str) -> float | None:
    """Return a duration in seconds; None for None.

    `what` names the argument in the error: InvalidArgument for a duration that is
    negative, not finite or over 317 years, and for any other type, also bool.
    """
    if value is None:
        return None
    number = _number(value, what)
    if not 0 <= number <= LONGEST:
        raise InvalidArgument(
            f"{what} must be from 0 to {LONGEST:g} seconds, not {number:g}"
        )
    return abs(number)  # of -0.0, 0.0


def required_seconds(value: timedelta | float, what: str) -> float:
    """Return a duration in seconds, as `seconds` does, but refuse None."""
    number = seconds(value, what)
    if number is None:
        raise InvalidArgument(f"{what} must be a timedelta or a number of seconds")
    return number


def moment(value: object, what: str) -> datetime:
    """Return a datetime unchanged if it has a time zone.

    `what` names the argument in the error: InvalidArgument, which is a ValueError, for
    a naive datetime and for any other type.
    """
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise InvalidArgument(
            f"{what} must be a datetime with a time zone, not {value!r}",
            hint="For instance datetime.now(timezone.utc).",
        )
    return value


def moment_text(value: datetime | None, what: str) -> str | None:
    """Return a datetime in the form of SQL's options; None for None.

    Raises InvalidArgument as `moment` does.
    """
    if value is None:
        return None
    try:
        return moment(value, what).astimezone(UTC).isoformat()
    except OverflowError as error:
        raise InvalidArgument(f"{what} is out of range: {value!r}") from error


def _number(value: object, what: str) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = type(value).__name__
        raise InvalidArgument(
            f"{what} must be a timedelta or a number of seconds, not {kind}"
        )
    try:
        return float(value)
    except OverflowError:
        return math.inf


class Names:
    """The checkpoint keys that one run has used so far.

    A step's key is its name; all other keys begin with `$`: `$sleep:cool-off`, `$now`.
    Repeats within one branch of a run get `#2`, `#3` and so on, in the order of the
    calls. Two branches may not share a key: their order would depend on timing, and a
    replay would give one branch the other's values.
    """

    def __init__(self) -> None:
        self._taken: dict[str, tuple[object, int]] = {}

    def take(self, kind: str, name: str, branch: object) -> str:
        """Return the checkpoint key of the current call.

        `kind` is the word after `$`, empty for a step; `name` is empty for calls
        without one, such as `now`; `branch` is the calling asyncio task, None in a
        synchronous task. Raises RuntimeError if another branch has used the name.
        """
        key = name
        if kind:
            key = f"${kind}:{name}" if name else f"${kind}"
        owner, used = self._taken.get(key, (branch, 0))
        if owner is not branch:
            raise RuntimeError(
                f"{_described(kind, name)} is used by two concurrent branches of this "
                "run, and a replay could not tell them apart: give distinct names, or "
                'give each branch its own ctx.scope("…")'
            )
        self._taken[key] = (branch, used + 1)
        # an event may be called "issue#2", which is not the second "issue"
        if used or ("#" in key and _NUMBERED.search(key)):
            return f"{key}#{used + 1}"
        return key


def _described(kind: str, name: str) -> str:
    return f"the {kind or 'step'} name {name!r}" if name else f"{kind}()"
