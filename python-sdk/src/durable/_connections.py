"""Connections of durable's own: where to, and whether one has died."""

from __future__ import annotations

import os
import re
import select
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from durable.errors import DatabaseUnavailable, InvalidArgument

__all__ = [
    "ENVIRONMENT",
    "IMPATIENCE",
    "KEEPALIVE",
    "LISTENING_SILENCE",
    "SILENCE",
    "checked_conninfo",
    "conninfo_of_pool",
    "conninfo_or_environment",
    "has_something_to_say",
    "known_conninfo",
    "refused",
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

# What servers and PgBouncer say of what time does not heal. Before it is let in, a
# driver is told no SQLSTATE: what is said in another language is waited for.
_REFUSALS: Final = {
    "3D000": (
        re.compile(r'database ".*" does not exist|no such database'),
        "Create that database, or correct its name in the address.",
    ),
    "28P01": (
        re.compile(r"(password|SASL) authentication failed|no password supplied"),
        "Correct the password in the address, in PGPASSWORD or ~/.pgpass.",
    ),
    "28000": (
        re.compile(r'role ".*" (does not exist|is not permitted)|no pg_hba.conf entry'),
        "Let that role in, or name another one in the address.",
    ),
}


def conninfo_or_environment(conninfo: str | None) -> str | None:
    """Return the database's address, or None if nobody has said one yet.

    Raises InvalidArgument for what is no address.
    """
    if conninfo is not None and not isinstance(conninfo, str):
        raise TypeError(
            "a database is a conninfo, an AsyncConnectionPool for AsyncDurable or a"
            f" ConnectionPool for Durable, not a {type(conninfo).__name__}"
        )
    if conninfo is not None:
        return checked_conninfo(known_conninfo(conninfo or None))
    found = os.environ.get(ENVIRONMENT)
    return checked_conninfo(found) if found else None


def known_conninfo(conninfo: str | None) -> str:
    """Return where to connect to; InvalidArgument when nobody has said it.

    An application without a database can be made, and imported: by a test that gives
    it one, for instance.
    """
    if conninfo is None:
        raise InvalidArgument(
            "no database was given",
            hint=f"Pass a conninfo or a pool, or set {ENVIRONMENT}"
            " before the application is made.",
        )
    return conninfo


def checked_conninfo(conninfo: str) -> str:
    """Return an address, or raise InvalidArgument for what is none."""
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        raise InvalidArgument(
            "the database's address cannot be read",
            hint="Pass a conninfo, such as postgresql://user@host/database.",
        ) from error
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


def refused(error: psycopg.Error) -> DatabaseUnavailable:
    """Return durable's own exception for a connection that could not be made.

    It has a SQLSTATE if time does not heal it.
    """
    said = str(error).strip()
    found = DatabaseUnavailable(said, hint="Does it run, and where the address says?")
    for sqlstate, (pattern, hint) in _REFUSALS.items():
        if pattern.search(said):
            found.sqlstate, found.hint = sqlstate, hint
    found.__cause__ = error
    return found


def has_something_to_say(fileno: int) -> bool:
    """Whether an idle connection's socket is readable: as a rule, it was closed."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
