"""Schedules: when the database spawns a task periodically, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack
from zoneinfo import ZoneInfo

from durable._core.arguments import check_schedule_name, required_seconds
from durable._core.values import JSON
from durable.errors import InvalidArgument
from durable.options import check_choice, spawn_options_json, unknown_option
from durable.retry import Retry

__all__ = ["Overlap", "Schedule", "ScheduleOptions", "checked_schedules"]

Overlap: TypeAlias = Literal["skip", "buffer_one", "cancel", "allow"]
"""What happens at a tick if the schedule's last task has not finished."""

_LARGEST_CATCH_UP: Final = 10_000
_LONGEST_INTERVAL: Final = 2**31 - 1


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule.

    name: 1-100 bytes, unique in the queue; by default the task's name.
    params: of each task; left out, None if the task takes None, else `{}`.
    catch_up: which ticks are handled if some are more than a minute late, because no
        worker was running: "last", the default, the latest of them; "skip", none;
        "all"; or a number, that many of the latest.
    overlap: what happens at a tick if the last task has not finished: "skip" the tick,
        the default; "buffer_one", it waits for the end of that task, and ticks that
        come meanwhile are skipped; "cancel" that task and spawn another; or "allow"
        several.
    jitter: seconds or timedelta by which a task starts late at most; for each tick it
        is a fixed part of it.
    max_attempts, retry, headers, identity, start_timeout, execution_timeout,
        partition_key, priority: as for a spawn; by default those of the task.
    """

    name: str
    params: Any
    catch_up: Literal["last", "skip", "all"] | int
    overlap: Overlap
    jitter: timedelta | float
    max_attempts: int | None
    retry: Retry | None
    headers: Mapping[str, JSON]
    identity: Mapping[str, JSON] | None
    start_timeout: timedelta | float | None
    execution_timeout: timedelta | float | None
    partition_key: str | None
    priority: int | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a task is spawned periodically, and how.

        Schedule.cron("0 3 * * *", time_zone="Europe/Vienna")
        Schedule.every(timedelta(minutes=5), overlap="allow")

    Declare it as the option `schedule` of a task, or pass it to `create_schedule`.
    Create one with these two methods; `definition` is what SQL takes.
    """

    definition: Mapping[str, Any] = field(hash=False)
    name: str | None = None
    params: Any = field(default=..., hash=False)
    """The params of each task; `...` if none were given."""

    @classmethod
    def cron(
        cls,
        expression: str,
        *,
        time_zone: str | ZoneInfo = "UTC",
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Spawn at the times of a cron expression, on the wall clock of a time zone.

        Five fields: minute, hour, day of the month, month, day of the week, as Debian's
        cron understands them; six, with the second first; or a nickname such as
        `@daily`. The database checks the expression. Options are `ScheduleOptions`;
        raises InvalidArgument for them.
        """
        if not isinstance(expression, str):
            kind = type(expression).__name__
            raise InvalidArgument(f"a cron expression must be a str, not {kind}")
        recurrence = {"cron": expression, "time_zone": str(time_zone)}
        return cls._of(recurrence, options)

    @classmethod
    def every(
        cls, period: timedelta | float, **options: Unpack[ScheduleOptions]
    ) -> Schedule:
        """Spawn every so many whole seconds, at multiples of them since 1970 in UTC.

        So an hour is each full hour, and no restart moves it. Options are
        `ScheduleOptions`; raises InvalidArgument for them.
        """
        seconds = required_seconds(period, "period")
        if seconds != int(seconds) or not 1 <= seconds <= _LONGEST_INTERVAL:
            raise InvalidArgument(
                f"period must be whole seconds from 1 to {_LONGEST_INTERVAL},"
                f" not {seconds:g}"
            )
        return cls._of({"every": int(seconds), "time_zone": "UTC"}, options)

    @classmethod
    def _of(cls, recurrence: Mapping[str, Any], options: Mapping[str, Any]) -> Schedule:
        given = dict(options)
        name = given.pop("name", None)
        params = given.pop("params", ...)
        policies = {
            policy: check(given.pop(policy, default))
            for policy, (default, check) in _POLICIES.items()
        }
        for option in given:
            if option not in ScheduleOptions.__annotations__:
                known = list(ScheduleOptions.__annotations__)
                raise InvalidArgument(unknown_option(option, known))
        return cls(
            {**recurrence, **policies, "options": spawn_options_json({}, given)},
            None if name is None else check_schedule_name(name),
            params,
        )


def checked_schedules(value: object) -> tuple[Schedule, ...]:
    """Return one Schedule or several as a tuple; InvalidArgument for anything else."""
    given = (value,) if isinstance(value, Schedule) else value
    if not isinstance(given, Sequence) or not all(
        isinstance(one, Schedule) for one in given
    ):
        raise InvalidArgument(
            f"schedule must be a Schedule or a list of them, not {value!r:.100}",
            hint='For instance Schedule.cron("0 3 * * *").',
        )
    return tuple(given)


def _catch_up(value: object) -> str | int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value in {"last", "skip", "all"} or (
        is_number and 1 <= value <= _LARGEST_CATCH_UP  # type: ignore[operator]
    ):
        return value  # type: ignore[return-value]
    raise InvalidArgument(
        f'catch_up must be "last", "skip", "all" or an int from 1 to'
        f" {_LARGEST_CATCH_UP}, not {value!r:.100}"
    )


_POLICIES: Final[dict[str, tuple[Any, Callable[[Any], Any]]]] = {
    "catch_up": ("last", _catch_up),
    "overlap": ("skip", lambda value: check_choice(value, Overlap, "overlap")),
    "jitter": (0, lambda value: required_seconds(value, "jitter")),
}
