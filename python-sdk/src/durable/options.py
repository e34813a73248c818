"""What may be said of a task when it is spawned, and once for all in its class."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict, get_args

from durable._json import JSON, Unsavable
from durable._names import LONG, check_key, check_queue_name, check_version
from durable._time import moment_text, seconds
from durable._values import PLAIN
from durable.errors import InvalidArgument
from durable.retry import Retry

__all__ = [
    "JSON",
    "Isolation",
    "ReplayCheck",
    "SpawnOptions",
    "StepOptions",
    "TaskOptions",
    "checked_count",
    "checked_identity",
    "checked_max_attempts",
    "checked_no_retry",
    "checked_replay_check",
    "nearest",
    "spawn_options_json",
    "unknown_option",
]


Isolation: TypeAlias = Literal["read committed", "repeatable read", "serializable"]
"""What a transaction sees of others, as Postgres names it."""

ReplayCheck: TypeAlias = Literal["warn", "strict", "off"]
"""What is done if a task's code does not make the calls that its history holds."""


class StepOptions(TypedDict, total=False):
    """How often a step is tried before it has failed; once, unless this says more.

    max_attempts: how often its function may be called, at least 1; None: as often as it
        takes. Left out, once.
    retry: how long the task waits between two tries, holding no worker. None or left
        out: 1 second, then twice as long each time, up to 5 minutes, with jitter.
    no_retry: classes of exceptions after which it is not tried again.
    retry_if: whether it is tried again after this exception.
    timeout: seconds or timedelta each call of an async function may take; then it is
        cancelled, and has failed with the builtin TimeoutError. None: any time.
    """

    max_attempts: int | None
    retry: Retry | None
    no_retry: tuple[type[Exception], ...]
    retry_if: Callable[[Exception], bool]
    timeout: timedelta | float | None


class TaskOptions(TypedDict, total=False):
    """The options of every spawn of a task, unless that spawn says otherwise.

    max_attempts: how often it may be started, at least 1; None: as often as it takes.
        Left out, 5.
    retry: how long a failed attempt waits for the next. None or left out: 1 second,
        then twice as long each time, up to 5 minutes, with jitter.
    headers: JSON values that travel with the task; a spawn adds to its class's, and
        a child's to its parent's. None, for a spawn: none at all, nor the parent's.
    max_delay: seconds or timedelta it may wait for its first start; None: any time.
    max_duration: seconds or timedelta from its first start to its end; None: any time.
    queue: the queue it is spawned in; None: as if it were left out.
    """

    max_attempts: int | None
    retry: Retry | None
    headers: Mapping[str, JSON] | None
    max_delay: timedelta | float | None
    max_duration: timedelta | float | None
    queue: str | None


class SpawnOptions(TaskOptions, total=False):
    """The options of one spawn.

    idempotency_key: 1-255 bytes, unique in the queue: spawning again with the same key
        gives the same task. None: no key.
    identity: who asks for the task, in JSON such as {"user": "ada", "roles": ["ops"]}:
        `ctx.identity`. Left out, a child has its parent's; None: nobody.
    deadline: the moment, an aware datetime, by which it is to be finished; then it is
        cancelled. A child's is never later than its parent's. None: none of its own.
    version: whose workers are to run it where the queue's policy is "gate"; the
        application's own unless said. None: the latest's.
    """

    idempotency_key: str | None
    identity: Mapping[str, JSON] | None
    deadline: datetime | None
    version: str | None


def spawn_options_json(
    defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of `durable.spawn`: those given over the class's own.

    `defaults` is what this function made of the class's options, `given` what the
    caller of a spawn wrote. The queue is checked, and left out: it is no option in SQL.
    Raises InvalidArgument for an unknown option, naming the nearest, and for a value
    that the option cannot have.
    """
    merged = dict(defaults)
    for option, value in given.items():
        if option not in _CHECKS:
            raise InvalidArgument(unknown_option(option, list(_CHECKS)))
        checked = _CHECKS[option](value)
        if option == "headers":
            known = merged.get(option) or {}
            merged[option] = None if checked is None else {**known, **checked}
        elif option == "queue":
            continue
        elif checked is None and option != "max_attempts":
            merged.pop(option, None)
        else:
            merged[option] = checked
    return merged


def nearest(word: str, words: Sequence[str]) -> str | None:
    """Return the word that was probably meant, if there is one."""
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def unknown_option(option: str, known: Sequence[str]) -> str:
    """Return what to say of an option that there is not."""
    meant = nearest(option, known)
    advice = f"did you mean {meant}?" if meant else f"there are {', '.join(known)}"
    return f"there is no option {option}: {advice}"


def checked_no_retry(classes: object) -> tuple[type[Exception], ...]:
    """Return classes of exceptions; InvalidArgument for anything else."""
    if not isinstance(classes, tuple) or not all(
        isinstance(cls, type) and issubclass(cls, Exception) for cls in classes
    ):
        raise InvalidArgument(
            f"no_retry must be a tuple of exception classes, not {classes!r}",
            hint="For instance no_retry = (ValueError,).",
        )
    return classes


def checked_replay_check(value: object) -> None:
    """Refuse what is no `ReplayCheck`: InvalidArgument."""
    if value not in get_args(ReplayCheck):
        raise InvalidArgument(
            f"replay_check is {value!r}",
            hint=f"Choose one of {', '.join(get_args(ReplayCheck))}.",
        )


def checked_max_attempts(value: object) -> int | None:
    """Return how often something may be tried; InvalidArgument for no number."""
    return checked_count(value, "max_attempts")


def checked_count(value: object, what: str) -> int | None:
    """Return how often something may happen; InvalidArgument for no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        raise InvalidArgument(f"{what} must be an int or None, not {kind}")
    if not 1 <= value <= _INT4_MAX:
        raise InvalidArgument(
            f"{what} must be from 1 to {_INT4_MAX}", hint="None means no limit."
        )
    return value


def _retry(value: object) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Retry):
        raise InvalidArgument(
            f"retry must be a Retry, not {type(value).__name__}",
            hint="For instance Retry.fixed(5).",
        )
    return value.as_options()


def checked_identity(value: object) -> dict[str, JSON] | None:
    """Return who asks, or raise InvalidArgument."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise InvalidArgument(f"identity must be a mapping, not {kind}")
    identity = dict(value)
    try:
        PLAIN.dump(identity)
    except Unsavable as error:
        raise InvalidArgument(f"identity must be plain JSON: {error}") from error
    return identity


def _headers(value: object) -> dict[str, JSON] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"headers must be a mapping, not {type(value).__name__}")
    headers = dict(value)
    for name in headers:
        _header_name(name)
    try:
        PLAIN.dump(headers)
    except Unsavable as error:
        raise InvalidArgument(f"headers must be plain JSON: {error}") from error
    return headers


def _key(value: Any) -> str | None:
    return None if value is None else check_key(value)


def _queue(value: Any) -> str | None:
    return None if value is None else check_queue_name(value)


def _version(value: Any) -> str | None:
    return None if value is None else check_version(value)


def _header_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= LONG:
        raise InvalidArgument(
            f"a header's name must be a str of 1 to {LONG} bytes, not {name!r}"
        )
    if name.startswith("durable:"):
        raise InvalidArgument(
            f"headers that begin with durable: are durable's own: {name!r}"
        )


_INT4_MAX: Final = 2**31 - 1

_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "max_attempts": checked_max_attempts,
    "retry": _retry,
    "headers": _headers,
    "idempotency_key": _key,
    "identity": checked_identity,
    "max_delay": lambda value: seconds(value, "max_delay"),
    "max_duration": lambda value: seconds(value, "max_duration"),
    "queue": _queue,
    "deadline": lambda value: moment_text(value, "deadline"),
    "version": _version,
}
