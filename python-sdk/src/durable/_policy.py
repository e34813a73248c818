"""How long a queue keeps what is over, for whom it is, and what it bears with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, Literal, TypedDict

from durable._time import seconds
from durable._values import PLAIN
from durable.errors import InvalidArgument
from durable.options import checked_count

__all__ = ["QueuePolicy", "checked"]


class QueuePolicy(TypedDict, total=False):
    """The policy of a queue.

    keep_tasks: how long finished tasks are kept, a timedelta or seconds; None: for
        ever. 30 days unless said.
    keep_events: the same for events.
    roles: the names of the database roles whose members may use it, from the next call
        on; None: everybody who may call the functions.
    max_lost_leases: how many leases in a row a task may lose, without having saved
        anything, before it fails as a crash loop; None: any number. 100 unless said.
    versions: whose workers may claim a task: "pin", those of the application's version
        that started it; "gate", those of the version that spawned it; None, as unless
        said: any.
    history: "full" keeps when each claim of a task began and ended, so that its history
        tells of every claim, suspension and wake-up, at the cost of a row for each
        claim and each suspension; "brief", as unless said, what is kept anyway.
    """

    keep_tasks: timedelta | float | None
    keep_events: timedelta | float | None
    roles: Sequence[str] | None
    max_lost_leases: int | None
    versions: Literal["pin", "gate"] | None
    history: Literal["full", "brief"]


def checked(policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy as `durable.create_queue` takes it, or raise InvalidArgument."""
    for key in policy:
        if key not in _CHECKS:
            raise InvalidArgument(
                f"a queue has no policy {key}: there are {', '.join(_CHECKS)}"
            )
    return {key: _CHECKS[key](value) for key, value in policy.items()}


def _roles(value: object) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        kind = type(value).__name__
        raise InvalidArgument(f"roles must be a list of names or None, not {kind}")
    return [_role(name) for name in value]


def _role(name: object) -> str:
    if not isinstance(name, str):
        raise InvalidArgument(f"a role must be a str, not {type(name).__name__}")
    PLAIN.dump(name)
    return name


def _versions(value: object) -> str | None:
    if value not in (None, "pin", "gate"):
        raise InvalidArgument(f'versions must be "pin", "gate" or None, not {value!r}')
    return None if value is None else str(value)


def _history(value: object) -> str:
    if value not in ("full", "brief"):
        raise InvalidArgument(f'history must be "full" or "brief", not {value!r}')
    return str(value)


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "keep_tasks": lambda value: seconds(value, "keep_tasks"),
    "keep_events": lambda value: seconds(value, "keep_events"),
    "roles": _roles,
    "max_lost_leases": lambda value: checked_count(value, "max_lost_leases"),
    "versions": _versions,
    "history": _history,
}
