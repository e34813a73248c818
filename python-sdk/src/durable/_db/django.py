"""Django: close its old connections in workers, and find its test database.

Everything here does nothing unless the process has imported Django. Django closes old
and broken connections at the start and end of requests, which workers do not have.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from durable.errors import InvalidArgument


def close_old_connections() -> None:
    """Close this thread's connections that are broken or older than CONN_MAX_AGE.

    Connections in a transaction are kept.
    """
    if (database := _configured()) is not None:
        database.close_old_connections()


def close_shared_connections() -> Any:
    """Return an awaitable that closes them in the thread of `sync_to_async`.

    None if asgiref or Django is not in use.
    """
    asgiref = sys.modules.get("asgiref.sync")
    if asgiref is None or (database := _configured()) is None:
        return None
    return asgiref.sync_to_async(database.close_old_connections)()


def address_in_tests(conninfo: str) -> str:
    """Return the address of Django's test database for that of the real one.

    Outside Django's tests the address is returned unchanged. Raises InvalidArgument if
    the settings do not say which test database corresponds to it.
    """
    # Django's test runner and pytest-django set `outbox`
    if not hasattr(sys.modules.get("django.core.mail"), "outbox"):
        return conninfo
    name = str(conninfo_to_dict(conninfo).get("dbname") or "")
    known = list(_databases())
    if name in {test for test, _ in known} or name.startswith("durable_test_"):
        return conninfo
    for test, configured in known:
        if configured is None and name in _possible_originals(test):
            return make_conninfo(conninfo, dbname=test)
    if any(configured for _, configured in known):
        tests = ", ".join(f'"{test}"' for test, _ in known)
        raise InvalidArgument(
            f"Django's tests run in {tests}, and durable's database is \"{name}\"",
            hint="Make the application with the address of the test's database.",
        )
    return conninfo


def _configured() -> Any:
    """Return the module `django.db` if this process has configured Django."""
    database = sys.modules.get("django.db")
    if database is None or not sys.modules["django.conf"].settings.configured:
        return None
    return database


def _databases() -> Iterator[tuple[str, str | None]]:
    """Yield the Postgres test databases, each with the name that TEST configures."""
    database = _configured()
    for connection in database.connections.all() if database is not None else ():
        if connection.vendor == "postgresql":
            settings = connection.settings_dict
            yield str(settings["NAME"]), settings["TEST"]["NAME"]


def _possible_originals(test: str) -> set[str]:
    """Return the database names for which Django would create this test database."""
    name = test.removeprefix("test_")
    if name == test:
        return set()
    return {name, re.sub(r"_(gw)?\d+$", "", name)}  # a suffix of parallel tests
