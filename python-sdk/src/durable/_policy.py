"""How long a queue keeps what is over, and for whom it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypedDict

from durable._time import seconds
from durable._values import PLAIN
from durable.errors import InvalidArgument

__all__ = ["QueuePolicy", "checked"]


class QueuePolicy(TypedDict, total=False):
    """The policy of a queue.

    keep_tasks: how long finished tasks are kept, a timedelta or seconds; None: for
        ever. 30 days unless said.
    keep_events: the same for events.
    roles: the names of the database roles whose members may use it, from the next call
        on; None: everybody who may call the functions.
    """

    keep_tasks: timedelta | float | None
    keep_events: timedelta | float | None
    roles: Sequence[str] | None


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


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "keep_tasks": lambda value: seconds(value, "keep_tasks"),
    "keep_events": lambda value: seconds(value, "keep_events"),
    "roles": _roles,
}
