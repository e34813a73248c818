"""Addresses of databases, settings of connections, and why a server refuses one.

libpq quotes the part of an address that it cannot parse, even a part of the password.
So addresses are checked here first, and the error names no part of the address. Errors
of the parser are not chained either, since tracebacks print those.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import select
import sys
import time
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo, ConnStatus, PGconn, PollingStatus
from psycopg.pq.abc import PGconn as AnyPGconn
from psycopg.pq.misc import find_libpq_full_path

from durable._db.django import address_in_tests
from durable.errors import DatabaseUnavailable, InvalidArgument

ENVIRONMENT: Final = "DURABLE_DATABASE_URL"

# A peer that vanishes is noticed within half a minute.
KEEPALIVE: Final[dict[str, Any]] = {
    # a startup parameter, which poolers know and which PGCLIENTENCODING cannot change
    "client_encoding": "utf8",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# For connections that callers wait for and can do without, such as listening ones.
SHORT_TIMEOUTS: Final = KEEPALIVE | {"connect_timeout": 2, "tcp_user_timeout": 3_000}

# Read timeouts in seconds, for a peer that is connected but silent: far longer than any
# of a worker's statements, since each does a bounded amount of work.
READ_TIMEOUT: Final = 60.0
LISTEN_READ_TIMEOUT: Final = 3.0

# SQLAlchemy's form with a driver: postgresql+asyncpg
_URL: Final = re.compile(r"(postgres(?:ql)?)(\+\w+)?://", re.IGNORECASE)
_CREDENTIALS: Final = re.compile(r"\A[^@/]*@")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_SSL_MODES: Final = frozenset(
    ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
)
# asyncpg's parameters that libpq knows by another name.
_RENAMED: Final = {"timeout": "connect_timeout"}
# Settings of asyncpg and of SQLAlchemy's asyncpg dialect, unknown to libpq.
_DROPPED: Final = {
    "async_fallback",
    "command_timeout",
    "max_cacheable_statement_size",
    "max_cached_statement_lifetime",
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "statement_cache_size",
}
_SECRETS: Final = re.compile(
    r"(?<=://)[^\s'\"]*@"  # user and password, up to the last @
    r"|(?<=password=)(?:'(?:[^'\\]|\\.)*'|[^\s&'\"]+)",
    re.IGNORECASE,
)


def conninfo_or_environment(conninfo: str | None) -> str | None:
    """Return the given address, else the environment's; None without either.

    Raises InvalidArgument for an invalid address.
    """
    if conninfo is not None and not isinstance(conninfo, str):
        raise TypeError(
            "a database is a conninfo, an AsyncConnectionPool for AsyncDurable or a"
            f" ConnectionPool for Durable, not a {type(conninfo).__name__}"
        )
    if conninfo is not None:
        return checked_conninfo(conninfo) if conninfo else known_conninfo(None)
    found = os.environ.get(ENVIRONMENT)
    return checked_conninfo(found) if found else None


def known_conninfo(conninfo: str | None) -> str:
    """Return the address to connect to; InvalidArgument if none was given.

    An application can be created and imported without one, so a test can set it later.
    """
    if conninfo is None:
        raise InvalidArgument(
            "no database was given",
            hint=f"Pass a conninfo or a pool, or set {ENVIRONMENT}"
            " before the application is made.",
        )
    return address_in_tests(conninfo)


def conninfo_of_pool(conninfo: object, kwargs: object) -> str:
    """Return one conninfo from a pool's conninfo and keyword arguments.

    It serves connections outside the pool, such as those of workers.
    """
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    url = _URL.match(str(conninfo))
    if url is not None and url[2] is not None:
        raise InvalidArgument(
            "the address of a psycopg pool names a driver, which psycopg does not read",
            hint="Make the pool with postgresql:// as the beginning of its address.",
        )
    given = kwargs.items() if isinstance(kwargs, dict) else ()
    kept = {key: value for key, value in given if key in known}
    return make_conninfo(checked_conninfo(str(conninfo)), **kept)


def checked_conninfo(conninfo: str) -> str:
    """Return an address that libpq can parse; InvalidArgument if it is invalid.

    The driver in an SQLAlchemy URL is dropped, with the parameters that only it knows.
    """
    address, problem = conninfo, None
    if url := _URL.match(conninfo):
        rest = conninfo[url.end() :]
        address = f"{url[1].lower()}://{_for_libpq(rest, url[2] or '')}"
        problem = _problem_of_url(rest)
    problem = problem or _problem(address)
    if problem is not None:
        raise InvalidArgument(
            f"the database's address cannot be read: {problem}",
            hint="Pass a conninfo, such as postgresql://user@host/database.",
        )
    return address


def without_passwords(text: str) -> str:
    """Return text with the credentials in its addresses masked."""
    return _SECRETS.sub(lambda found: "***@" if found[0].endswith("@") else "***", text)


def _for_libpq(rest: str, driver: str) -> str:
    """Rename or drop, in the part after `://`, the parameters libpq does not know."""
    location, query = _split_query(rest)
    kept = []
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if name == "ssl" and value in _SSL_MODES:
            kept.append(f"sslmode={value}")
        elif driver.lower() != "+asyncpg":
            kept.append(parameter)
        elif name in _RENAMED:
            kept.append(f"{_RENAMED[name]}={value}")
        elif name not in _DROPPED:
            kept.append(parameter)
    return "?".join(filter(None, (location, "&".join(kept))))


def _split_query(rest: str) -> tuple[str, str]:
    """Split off the query; a password may contain a question mark."""
    credentials = _CREDENTIALS.match(rest)
    start = credentials.end() if credentials else 0
    location, _, query = rest[start:].partition("?")
    return rest[:start] + location, query


def _problem_of_url(rest: str) -> str | None:
    """Describe the error in the part after `://`, without quoting it."""
    if _BAD_PERCENT.search(rest):
        return "in a URL a % is written %25"
    location, _ = _split_query(rest)
    if "@" in _CREDENTIALS.sub("", location, count=1):
        return "in a user or a password @ is written %40, and / is written %2F"
    return None


def _problem(address: str) -> str | None:
    """Describe what libpq cannot parse, without quoting it."""
    try:
        parts = conninfo_to_dict(address)
    except (psycopg.Error, UnicodeError, ValueError):
        return "it is neither a URL nor a list of key=value that libpq knows"
    if not all(port.strip().isdigit() for port in _split_list(parts.get("port"))):
        return "its port is not a number"
    hosts = _split_list(parts.get("host"))
    if any("@" in host and not host.startswith("@") for host in hosts):
        return "its host has an @ in it"
    return None


def _split_list(value: object) -> list[str]:
    """Split a comma-separated value; empty items are dropped."""
    return [part for part in str(value or "").split(",") if part]


# -- refusals --------------------------------------------------------------------------

# Permanent refusals, by the messages of Postgres and PgBouncer. PgBouncer uses one
# SQLSTATE for all of them; a server with another language is asked for its SQLSTATE.
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
    "42501": (
        re.compile(r'permission denied for database ".*"'),
        "Grant that role CONNECT on the database, or name another one in the address.",
    ),
}
# connection, resources, object state, operator intervention, system, rollback
_TRANSIENT: Final = ("08", "53", "55", "57", "58", "40")
_SQLSTATE_ONLY: Final = 3  # PQERRORS_SQLSTATE
_SQLSTATE: Final = re.compile(r": +([0-9A-Z]{5})\s*$")
_TIMEOUT: Final = 5.0


def refused(error: psycopg.Error, conninfo: str) -> DatabaseUnavailable:
    """Return DatabaseUnavailable for a connection that could not be made.

    It has a SQLSTATE if the failure is permanent. May connect once more to find it.
    """
    text = str(error).strip()
    hint = "Check that the server runs, and that the address is right."
    found = DatabaseUnavailable(text, hint=hint)
    sqlstate = _sqlstate_of(error, text, conninfo)
    if sqlstate is not None and not sqlstate.startswith(_TRANSIENT):
        found.sqlstate = sqlstate
        _, found.hint = _REFUSALS.get(sqlstate, (None, "Correct the address."))
    found.__cause__ = error
    return found


def _sqlstate_of(error: psycopg.Error, text: str, conninfo: str) -> str | None:
    for sqlstate, (pattern, _) in _REFUSALS.items():
        if pattern.search(text):
            return sqlstate
    if error.pgconn is not None and error.pgconn.needs_password:
        return "28P01"
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return None
    return _sqlstate_of_refusal(conninfo)


def _sqlstate_of_refusal(conninfo: str) -> str | None:
    """Connect, and return the SQLSTATE if the server refuses within five seconds.

    psycopg gives only the message, in the server's language. libpq returns the SQLSTATE
    only as the message of a connection whose error verbosity was set while it was
    connecting. So the connection is tried once more with that setting.
    """
    set_verbosity = _error_verbosity_setter()
    if set_verbosity is None:
        return None
    pgconn: Any = PGconn.connect_start(conninfo.encode())
    try:
        set_verbosity(pgconn.pgconn_ptr, _SQLSTATE_ONLY)
        if _is_refused(pgconn, time.monotonic() + _TIMEOUT):
            found = _SQLSTATE.search(pgconn.get_error_message())
            return found and found[1]
        return None
    finally:
        pgconn.finish()


def _is_refused(pgconn: AnyPGconn, deadline: float) -> bool:
    """Drive the connection attempt; return whether it fails before the deadline."""
    while (remaining := deadline - time.monotonic()) > 0:
        if pgconn.status == ConnStatus.BAD:
            return True
        status = pgconn.connect_poll()
        if status in {PollingStatus.OK, PollingStatus.FAILED}:
            return status == PollingStatus.FAILED
        poll = select.poll()
        is_reading = status == PollingStatus.READING
        poll.register(pgconn.socket, select.POLLIN if is_reading else select.POLLOUT)
        poll.poll(remaining * 1000)
    return False


@functools.cache
def _error_verbosity_setter() -> ctypes._NamedFuncPointer | None:
    """Return libpq's PQsetErrorVerbosity; None if it cannot be found."""
    try:
        # psycopg's own module is linked with the libpq that it uses
        path = sys.modules[PGconn.__module__].__file__ or ""
        if path.endswith(".py"):
            path = find_libpq_full_path() or ""
        found = ctypes.CDLL(path).PQsetErrorVerbosity
    except (AttributeError, OSError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return found
