"""Connections of durable's own: where to, and whether one has died."""

from __future__ import annotations

import os
import select
from typing import Any, Final

from durable.errors import InvalidArgument

__all__ = [
    "ENVIRONMENT",
    "KEEPALIVE",
    "conninfo_or_environment",
    "has_something_to_say",
]

ENVIRONMENT: Final = "DURABLE_DATABASE_URL"

# A peer that is gone without a word is noticed within half a minute.
KEEPALIVE: Final[dict[str, Any]] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}


def conninfo_or_environment(conninfo: str | None) -> str:
    """Return the database's address; InvalidArgument when nobody gave one."""
    found = conninfo if conninfo is not None else os.environ.get(ENVIRONMENT)
    if not found:
        raise InvalidArgument(
            "no database was given",
            hint=f"Pass a conninfo or a pool, or set {ENVIRONMENT}.",
        )
    return found


def has_something_to_say(fileno: int) -> bool:
    """Whether an idle connection's socket is readable: as a rule, it was closed."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
