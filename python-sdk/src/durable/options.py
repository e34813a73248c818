"""Options of tasks, spawns and steps, and their checks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, NotRequired, TypeAlias, TypedDict, get_args

from durable._core.arguments import (
    LONG,
    check_key,
    check_partition_key,
    check_queue_name,
    check_unique_key,
    check_version,
    moment_text,
    required_seconds,
    seconds,
)
from durable._core.values import JSON, PLAIN, Unsavable
from durable.errors import InvalidArgument
from durable.retry import Retry

__all__ = [
    "JSON",
    "Debounce",
    "Isolation",
    "OnConflict",
    "OnFull",
    "PartitionLimits",
    "QueuePolicy",
    "Rate",
    "ReplayCheck",
    "SpawnOptions",
    "StepOptions",
    "TaskOptions",
    "Throttle",
    "Unique",
    "check_choice",
    "check_no_unique_key",
    "checked_headers",
    "checked_identity",
    "checked_max_attempts",
    "checked_non_retryable",
    "limits_json",
    "nearest",
    "policy_json",
    "spawn_options_json",
    "unknown_option",
]


Isolation: TypeAlias = Literal["read committed", "repeatable read", "serializable"]
"""A transaction isolation level of Postgres."""

ReplayCheck: TypeAlias = Literal["warn", "strict", "off"]
"""The reaction if a task's code does not make the calls of its history."""


class StepOptions(TypedDict, total=False):
    """The retry options of a step.

    max_attempts: how often its function may be called, at least 1; None: no limit. By
        default 1: no retries.
    retry: the delay between two attempts, during which the task is suspended and holds
        no worker. None or left out: 1 second, then twice as long each time, up to 5
        minutes, with jitter.
    non_retryable: exception classes that are not retried.
    retry_if: called with the exception; returns whether to retry.
    timeout: seconds or timedelta for each call of an async function. It is cancelled
        then, and fails with the builtin TimeoutError. None: no limit.
    """

    max_attempts: int | None
    retry: Retry | None
    non_retryable: tuple[type[Exception], ...]
    retry_if: Callable[[Exception], bool]
    timeout: timedelta | float | None


class TaskOptions(TypedDict, total=False):
    """The default options of a task; each spawn may override them.

    max_attempts: how often the task may be started, at least 1; None: no limit. By
        default 5.
    retry: the delay after a failed attempt. None or left out: 1 second, then twice as
        long each time, up to 5 minutes, with jitter.
    headers: JSON values stored with the task. Those of a spawn are added to those of
        the class, and a child's to those of its parent. None, in a spawn: no headers,
        not even the parent's.
    start_timeout: seconds or timedelta until the first start, after which the task is
        cancelled; None: no limit.
    execution_timeout: seconds or timedelta from the first start to the end, after
        which the task is cancelled; None: no limit.
    priority: from -32768 to 32767, higher ones start first; by default 0. In a queue
        whose policy has neither limits nor priorities that of a spawn is refused, and
        that of a task has no effect. None, in a spawn: 0.
    queue: the queue to spawn it in; None is the same as leaving it out.
    """

    max_attempts: int | None
    retry: Retry | None
    headers: Mapping[str, JSON] | None
    start_timeout: timedelta | float | None
    execution_timeout: timedelta | float | None
    priority: int | None
    queue: str | None


OnConflict: TypeAlias = Literal["return", "reject", "replace"]
"""The reaction to an unfinished task that has the unique key of a spawn.

return: return that task. reject: raise Conflict. replace: return it, too, and give it
the new params, options and time if no worker has ever started it.
"""


OnFull: TypeAlias = Literal["raise", "wait"]
"""What a producer does while its queue is full: raise QueueFull, or wait for room."""


class Unique(TypedDict):
    """At most one unfinished task of a name has the key.

    key: 1-255 bytes. on_conflict: "return" by default.
    """

    key: str
    on_conflict: NotRequired[OnConflict]


class Throttle(TypedDict):
    """At most one task of a name is spawned with the key in a period.

    key: 1-255 bytes. period: seconds or timedelta; within it, a spawn returns the last
    task, finished or not, as long as the queue keeps that.
    """

    key: str
    period: timedelta | float


class Debounce(TypedDict):
    """Until it starts, a task of a name takes the params of later spawns with the key.

    key: 1-255 bytes. delay: seconds or timedelta from the last spawn until it may
    start. max_wait: the same from the first spawn, which it is never later than; None
    or left out: no limit.
    """

    key: str
    delay: timedelta | float
    max_wait: NotRequired[timedelta | float | None]


class SpawnOptions(TaskOptions, total=False):
    """The options of one spawn.

    idempotency_key: 1-255 bytes, unique in the queue: another spawn with the same key
        returns the same task. None: no key.
    unique, throttle, debounce: a `Unique`, `Throttle` or `Debounce`, under whose
        condition the spawn returns a task that exists. Only one of these three and of
        idempotency_key may be given, and none of the three for a child or a fork.
        None: not given.
    identity: the identity of the requester as JSON, such as
        {"user": "ada", "roles": ["ops"]}; read it as `ctx.identity`. By default, a
        child inherits its parent's. None: no identity.
    deadline: an aware datetime at which the task is cancelled unless it has finished.
        A child's is never later than its parent's. None: no deadline of its own.
    delay: seconds or timedelta until it may start; None: at once.
    run_at: an aware datetime from which on it may start, instead of `delay`. If it has
        passed, the task may start at once.
    version: the application version whose workers run the task, if the queue's policy
        is "gate". By default the application's own; None: the latest.
    partition_key: 1-255 bytes, what the task belongs to for the limits of its queue,
        such as a tenant or an account. The partitions of a queue take turns. None: no
        partition. By default what the task's `partition_key` returns. Refused as
        `priority` is.
    """

    idempotency_key: str | None
    unique: Unique | None
    throttle: Throttle | None
    debounce: Debounce | None
    identity: Mapping[str, JSON] | None
    deadline: datetime | None
    delay: timedelta | float | None
    run_at: datetime | None
    version: str | None
    partition_key: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    """How many attempts may begin in any period of this length.

        Rate(5, per=1)
        Rate(1000, per=timedelta(hours=1))

    starts: at least 1. per: a timedelta or seconds, greater than 0. All `starts` may
    begin at once; the next one begins when the first of them is `per` ago. Raises
    InvalidArgument for other values.
    """

    starts: int
    per: timedelta | float

    def __post_init__(self) -> None:
        if isinstance(self.starts, bool) or not isinstance(self.starts, int):
            raise InvalidArgument(f"starts must be an int, not {self.starts!r}")
        if not 1 <= self.starts <= _INT4_MAX:
            raise InvalidArgument(f"starts must be from 1 to {_INT4_MAX}")
        if required_seconds(self.per, "per") == 0:
            raise InvalidArgument("per must be greater than 0")

    def as_policy(self) -> dict[str, float]:
        """Return it as `durable.create_queue` takes it."""
        return {"starts": self.starts, "period": required_seconds(self.per, "per")}


class PartitionLimits(TypedDict, total=False):
    """The limits of one partition, in place of the queue's for each partition.

    concurrency: how many of its tasks may run at once; None: as the queue says.
    rate: how many of its attempts may begin in a period; None: as the queue says.
    """

    concurrency: int | None
    rate: Rate | None


class QueuePolicy(TypedDict, total=False):
    """The policy of a queue.

    keep_tasks: how long to keep finished tasks, a timedelta or seconds; None: for ever.
        Default: 30 days.
    keep_events: the same for events.
    keep_audit: the same for the entries of `list_audit`. Default: 90 days.
    keep_metrics: the same for what `queue_throughput` returns. Default: 90 days.
    roles: names of the database roles whose members may use the queue, from the next
        call on; None, the default: every role that may call the functions.
    max_lost_leases: how many leases in a row a task may lose without saving anything
        before it fails as a crash loop; None: no limit. Default: 100.
    versions: which workers may claim a task: "pin", those of the application version
        that started it; "gate", those of the version that spawned it; None, the
        default: all.
    history: "full" records the start and end of each claim, so that a task's history
        shows every claim, suspension and wake-up, at the cost of a row for each claim
        and suspension; "brief", the default, records nothing extra.
    max_length: while so many tasks are ready to be claimed, spawns raise QueueFull;
        children, retries and forks are exempt. Exact up to 100; above, some more tasks
        get in. None, the default: no limit.
    concurrency: how many of its tasks may run at once, on all workers together; None,
        the default: no limit.
    partition_concurrency: the same, for the tasks of each `partition_key`.
    rate: how many attempts may begin in a period; None, the default: no limit. A task
        that continues after a wait does not begin an attempt.
    partition_rate: the same, for each `partition_key`.
    priorities: True lets tasks have a `priority` or a `partition_key` without any of
        these limits.
    partition_order: "strict" starts the tasks of a partition in the order in which they
        are due, each when the one before it has ended, not when that sleeps or waits;
        None, the default: without an order.
    ageing: the seconds, or timedelta, in which tasks of a partition and name that could
        run and do not rise by one priority, until one of them starts; None, the
        default: a low priority waits as long as there are others.
    """

    keep_tasks: timedelta | float | None
    keep_events: timedelta | float | None
    keep_audit: timedelta | float | None
    keep_metrics: timedelta | float | None
    roles: Sequence[str] | None
    max_lost_leases: int | None
    versions: Literal["pin", "gate"] | None
    history: Literal["full", "brief"]
    max_length: int | None
    concurrency: int | None
    partition_concurrency: int | None
    rate: Rate | None
    partition_rate: Rate | None
    priorities: bool
    partition_order: Literal["strict"] | None
    ageing: timedelta | float | None


def limits_json(limits: Mapping[str, Any]) -> str:
    """Return the limits of a partition as `durable.set_partition_limit` takes them."""
    return PLAIN.dump(_with_rates(limits))


def _with_rates(policy: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(policy)
    for key in given.keys() & {"rate", "partition_rate"}:
        rate = given[key]
        if isinstance(rate, Rate):
            given[key] = rate.as_policy()
        elif rate is not None:
            raise InvalidArgument(
                f"{key} must be a Rate, not {type(rate).__name__}",
                hint="For instance Rate(5, per=1): five starts in any second.",
            )
    return given


def policy_json(policy: Mapping[str, Any]) -> str:
    """Return a policy as `durable.create_queue` takes and checks it."""
    given = _with_rates(policy)
    kept = {"keep_tasks", "keep_events", "keep_audit", "keep_metrics", "ageing"}
    for period in given.keys() & kept:
        given[period] = seconds(given[period], period)
    if isinstance(given.get("roles"), tuple):
        given["roles"] = list(given["roles"])
    return PLAIN.dump(given)


def spawn_options_json(
    defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of `durable.spawn`: those given override the class's.

    `defaults` are the class's options as this function returned them, `given` those of
    the spawn. The queue is checked and left out, since it is no option in SQL. Raises
    InvalidArgument for an unknown option, naming the nearest, and for an invalid value.
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
        elif checked is None and option not in _NULLABLE:
            merged.pop(option, None)
        else:
            merged[option] = checked
    _check_one_key(merged)
    return merged


def check_no_unique_key(given: Mapping[str, Any], what: str) -> None:
    """Raise InvalidArgument if unique, throttle or debounce is given for a task.

    `what` says why not: "a child", "a fork".
    """
    for option in _UNIQUE_KEYS:
        if given.get(option) is not None:
            raise InvalidArgument(
                f"{option} is no option of {what}",
                hint=f"Leave it out, or spawn the task on its own with {option}.",
            )


def nearest(word: str, words: Collection[str]) -> str | None:
    """Return the most similar word, if any is close."""
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def unknown_option(option: str, known: Sequence[str]) -> str:
    """Return the error message for an unknown option."""
    meant = nearest(option, known)
    advice = f"did you mean {meant}?" if meant else f"there are {', '.join(known)}"
    return f"there is no option {option}: {advice}"


def checked_non_retryable(classes: object) -> tuple[type[Exception], ...]:
    """Return a tuple of exception classes; InvalidArgument for anything else."""
    if not isinstance(classes, tuple) or not all(
        isinstance(cls, type) and issubclass(cls, Exception) for cls in classes
    ):
        raise InvalidArgument(
            f"non_retryable must be a tuple of exception classes, not {classes!r}",
            hint="For instance non_retryable = (ValueError,).",
        )
    return classes


def check_choice(value: object, literal: object, what: str) -> str:
    """Return a value that a Literal allows; InvalidArgument for any other."""
    choices = get_args(literal)
    if value in choices:
        return str(value)
    raise InvalidArgument(
        f"{what} is {value!r:.100}", hint=f"Choose one of {', '.join(choices)}."
    )


def checked_max_attempts(value: object) -> int | None:
    """Return an int of at least 1, or None; InvalidArgument for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        raise InvalidArgument(f"max_attempts must be an int or None, not {kind}")
    if not 1 <= value <= _INT4_MAX:
        raise InvalidArgument(
            f"max_attempts must be from 1 to {_INT4_MAX}", hint="None means no limit."
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


def _mapping(value: object, what: str) -> dict[str, JSON] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{what} must be a mapping, not {type(value).__name__}")
    try:
        PLAIN.dump(dict(value))
    except Unsavable as error:
        raise InvalidArgument(f"{what} must be plain JSON: {error}") from error
    return dict(value)


checked_identity = partial(_mapping, what="identity")


def checked_headers(value: object) -> dict[str, JSON] | None:
    """Return headers as a plain dict, or raise InvalidArgument."""
    headers = _mapping(value, "headers")
    for name in headers or ():
        if not 0 < len(name.encode()) <= LONG:
            raise InvalidArgument(
                f"a header's name must be a str of 1 to {LONG} bytes, not {name!r}"
            )
        if name.startswith("durable:"):
            raise InvalidArgument(
                f"headers that begin with durable: are durable's own: {name!r}"
            )
    return headers


def _check_one_key(options: Mapping[str, Any]) -> None:
    keys = [key for key in ("idempotency_key", *_UNIQUE_KEYS) if key in options]
    if len(keys) > 1:
        raise InvalidArgument(f"{keys[0]} and {keys[1]} exclude each other")
    if "debounce" in options and not options.keys().isdisjoint(("delay", "run_at")):
        raise InvalidArgument("debounce has a delay of its own: pass no other")


def _unique_key(
    option: str, **checks: Callable[[Any, str], Any]
) -> Callable[[Any], dict[str, Any]]:
    """Return a check of a mapping of a key and of what `checks` names.

    A check takes the value, None if it was left out, and its name in errors.
    """

    def check(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            kind = type(value).__name__
            raise InvalidArgument(
                f"{option} must be a mapping with a key, not {kind}",
                hint=f'For instance {option}={{"key": "customer 7", …}}.',
            )
        known = ["key", *checks]
        for name in value:
            if name not in known:
                raise InvalidArgument(f"in {option}, {unknown_option(name, known)}")
        found = {"key": check_unique_key(value.get("key"))}
        for name, checked in checks.items():
            found[name] = checked(value.get(name), f"{name} in {option}")
        return found

    return check


def _checked_on_conflict(value: object, what: str) -> str:
    return check_choice("return" if value is None else value, OnConflict, what)


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def checked_priority(value: object) -> int | None:
    """Return a checked priority; None for None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        kind = type(value).__name__
        raise InvalidArgument(f"priority must be an int or None, not {kind}")
    if not _INT2_MIN <= value <= _INT2_MAX:
        raise InvalidArgument(f"priority must be from {_INT2_MIN} to {_INT2_MAX}")
    return value


_INT2_MIN: Final = -(2**15)
_INT2_MAX: Final = 2**15 - 1
_INT4_MAX: Final = 2**31 - 1
# Options that the task or the parent may provide: a None of the spawn overrides it.
_NULLABLE: Final = (
    "max_attempts",
    "retry",
    "start_timeout",
    "execution_timeout",
    "identity",
    "partition_key",
    "priority",
)

_UNIQUE_KEYS: Final = ("unique", "throttle", "debounce")

_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "max_attempts": checked_max_attempts,
    "retry": _retry,
    "headers": checked_headers,
    "idempotency_key": _optional(check_key),
    "unique": _optional(_unique_key("unique", on_conflict=_checked_on_conflict)),
    "throttle": _optional(_unique_key("throttle", period=required_seconds)),
    "debounce": _optional(
        _unique_key("debounce", delay=required_seconds, max_wait=seconds)
    ),
    "identity": checked_identity,
    "start_timeout": lambda value: seconds(value, "start_timeout"),
    "execution_timeout": lambda value: seconds(value, "execution_timeout"),
    "queue": _optional(check_queue_name),
    "deadline": lambda value: moment_text(value, "deadline"),
    "delay": lambda value: seconds(value, "delay"),
    "run_at": lambda value: moment_text(value, "run_at"),
    "version": _optional(check_version),
    "partition_key": _optional(check_partition_key),
    "priority": checked_priority,
}
