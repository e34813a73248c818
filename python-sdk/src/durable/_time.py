"""Durations and moments, as they may be given to durable.

A duration is a `timedelta` or a number of seconds; a moment is an aware `datetime`.
Both are settled before anything is sent to the database.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

from durable.errors import InvalidArgument

__all__ = ["moment", "moment_text", "required_seconds", "seconds"]

LONGEST: Final = 1e10
"""The longest duration, in seconds: 317 years."""


def seconds(value: timedelta | float | None, what: str) -> float | None:
    """Return a duration in seconds, and None for None, which means none.

    `what` names the argument in the error: InvalidArgument for a duration that is
    negative, not finite or over 317 years, and for what is no duration, as True.
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


def moment(value: datetime, what: str) -> datetime:
    """Return the moment as it is, if it says which time zone it is in.

    `what` names the argument in the error: InvalidArgument, which is a ValueError, for
    a naive datetime and for what is no datetime.
    """
    if not _is_aware(value):
        raise InvalidArgument(
            f"{what} must be a datetime with a time zone, not {value!r}",
            hint="For instance datetime.now(timezone.utc).",
        )
    return value


def moment_text(value: datetime | None, what: str) -> str | None:
    """Return a moment as the options of SQL take it, and None for None.

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


def _is_aware(value: object) -> bool:
    return isinstance(value, datetime) and value.utcoffset() is not None
