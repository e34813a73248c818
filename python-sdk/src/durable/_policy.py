"""How long a queue keeps what is over."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypedDict

from durable._time import seconds
from durable.errors import InvalidArgument

__all__ = ["QueuePolicy", "checked"]


class QueuePolicy(TypedDict, total=False):
    """The policy of a queue.

    keep_tasks: how long finished tasks are kept, a timedelta or seconds; None: for
        ever. 30 days unless said.
    keep_events: the same for events.
    """

    keep_tasks: timedelta | float | None
    keep_events: timedelta | float | None


def checked(policy: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a policy as `durable.create_queue` takes it, or raise InvalidArgument."""
    known = QueuePolicy.__annotations__
    for key in policy:
        if key not in known:
            raise InvalidArgument(
                f"a queue has no policy {key}: there are {', '.join(known)}"
            )
    return {key: seconds(value, key) for key, value in policy.items()}
