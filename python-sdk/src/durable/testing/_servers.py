"""Provides the Postgres that tests run on: a configured one, or one that it starts.

DURABLE_TEST_DATABASE_URL     any database on the server to use, as a role that may
                              create databases; that database itself is not changed
DURABLE_PG_BIN                the binaries of a server to start, as in durable.embedded
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

from durable.embedded import LaunchFailed, Postgres, find_binaries

__all__ = ["VARIABLE", "NoServer", "Server", "serve"]

VARIABLE: Final = "DURABLE_TEST_DATABASE_URL"

_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
}
_IMAGE: Final = "postgres:16-alpine"
_NONE: Final = f"""\
durable's tests need a Postgres, version 15 or newer, and none was found:
  - {VARIABLE} is not set: it may name a database on any server,
    as a role that may create databases
  - no server is installed here, and DURABLE_PG_BIN names none ({{no_binaries}})
  - no container engine can be used ({{no_container}})
The quickest is: pip install 'durable-postgres[testing]', with its private Postgres."""


class NoServer(RuntimeError):
    """No Postgres was found or could be started; the message says what was tried."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running Postgres: its DSN, and why it was chosen."""

    dsn: str = field(repr=False)  # it may have a password
    why: str


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Provide the first server available: configured, local, embedded, in a container.

    A server that was started is stopped at the end of the block. Raises NoServer.
    """
    if named := os.environ.get(VARIABLE):
        yield Server(named, f"{VARIABLE} is set")
        return
    with _started() as server:
        yield server


def _started() -> AbstractContextManager[Server]:
    try:
        binaries = find_binaries()  # of the system, else of the embedded wheel
        return _local(Postgres.start(binaries=binaries, settings=_SETTINGS, fast=True))
    except LaunchFailed as error:
        no_binaries = str(error).partition(";")[0]
    if not _is_installed("testcontainers"):
        no_container = "testcontainers is not installed"
        raise NoServer(_NONE.format(no_binaries=no_binaries, no_container=no_container))
    return _container(no_binaries)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def _local(server: Postgres) -> Iterator[Server]:
    with server:
        yield Server(server.conninfo(), f"started from {server.binaries}")


@contextlib.contextmanager
def _container(no_binaries: str) -> Iterator[Server]:
    from testcontainers.postgres import (  # noqa: PLC0415 - may not be installed
        PostgresContainer,
    )

    options = [f"-c {name}={value}" for name, value in _SETTINGS.items()]
    container = PostgresContainer(_IMAGE, driver=None)
    container.with_command(" ".join(["postgres", *options]))
    try:
        started = container.start()
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise NoServer(
            _NONE.format(no_binaries=no_binaries, no_container=reason)
        ) from error
    try:
        yield Server(started.get_connection_url(), f"{_IMAGE} in a container")
    finally:
        started.stop()
