"""Connections of durable's own: where to, and whether one has died."""

from __future__ import annotations

import os
import select
from typing import Any, Final

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from durable.errors import InvalidArgument

__all__ = [
    "ENVIRONMENT",
    "IMPATIENCE",
    "KEEPALIVE",
    "LISTENING_SILENCE",
    "SILENCE",
    "conninfo_of_pool",
    "conninfo_or_environment",
    "has_something_to_say",
    "known_conninfo",
]

ENVIRONMENT: Final = "DURABLE_DATABASE_URL"

# A peer that is gone without a word is noticed within half a minute.
KEEPALIVE: Final[dict[str, Any]] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# Who listens has others waiting, and can do without.
IMPATIENCE: Final = KEEPALIVE | {"connect_timeout": 2, "tcp_user_timeout": 3_000}

# Seconds after which no answer is expected any more from a peer that is there: far
# beyond what a worker's statement takes, each being bounded in what it does.
SILENCE: Final = 60.0
LISTENING_SILENCE: Final = 3.0


def conninfo_or_environment(conninfo: str | None) -> str:
    """Return the database's address, empty if nobody has said one yet."""
    if conninfo is not None and not isinstance(conninfo, str):
        raise TypeError(
            "a database is a conninfo, an AsyncConnectionPool for AsyncDurable or a"
            f" ConnectionPool for Durable, not a {type(conninfo).__name__}"
        )
    if conninfo is not None:
        return known_conninfo(conninfo)
    return os.environ.get(ENVIRONMENT, "")


def known_conninfo(conninfo: str) -> str:
    """Return where to connect to; InvalidArgument when nobody has said it.

    An application without a database can be made, and imported: by a test that gives
    it one, for instance. To libpq the empty address means what its defaults say.
    """
    if not conninfo:
        raise InvalidArgument(
            "no database was given",
            hint=f"Pass a conninfo or a pool, or set {ENVIRONMENT}"
            " before the application is made.",
        )
    return conninfo


def conninfo_of_pool(conninfo: object, kwargs: object) -> str:
    """Return where a pool connects to, as its conninfo and its keywords say together.

    It is for connections outside the pool, as workers have.
    """
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    said = kwargs if isinstance(kwargs, dict) else {}
    return make_conninfo(
        str(conninfo), **{key: said[key] for key in said if key in known}
    )


def has_something_to_say(fileno: int) -> bool:
    """Whether an idle connection's socket is readable: as a rule, it was closed."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
