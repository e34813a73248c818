"""The Postgres of a test run: one the developer names, a container, or a local one.

DURABLE_TEST_DSN       a server to use, as a role that may create databases
DURABLE_TEST_PG        dsn, container or local: that one or none
DURABLE_TEST_PG_BIN    the local one's binaries: a directory, "system" or "wheel"
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from durable.embedded import Postgres
from tests.container.engine import IMAGE, unusable

__all__ = ["NoServer", "Server", "serve"]

SETTINGS = {"max_connections": "300", "fsync": "off", "full_page_writes": "off"}


class NoServer(RuntimeError):
    """There is no Postgres of the requested kind."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running Postgres, and why it was chosen."""

    dsn: str
    kind: str
    why: str


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run the first available server of dsn, container, local."""
    kind, why = _choose()
    with {"dsn": _named, "container": _container, "local": _local}[kind]() as dsn:
        yield Server(dsn, kind, why)


def _choose() -> tuple[str, str]:
    forced = os.environ.get("DURABLE_TEST_PG", "")
    if forced not in {"", "dsn", "container", "local"}:
        raise NoServer(f"DURABLE_TEST_PG={forced} is none of dsn, container, local")
    no_dsn = "" if os.environ.get("DURABLE_TEST_DSN") else "no DURABLE_TEST_DSN"
    if forced == "dsn" and no_dsn:
        raise NoServer(f"DURABLE_TEST_PG={forced}, but {no_dsn}")
    if forced == "container" and (reason := unusable()):
        raise NoServer(f"DURABLE_TEST_PG={forced}, but {reason}")
    if forced:
        return forced, f"DURABLE_TEST_PG={forced}"
    if not no_dsn:
        return "dsn", "DURABLE_TEST_DSN is set"
    if os.environ.get("DURABLE_TEST_PG_BIN"):
        return "local", "DURABLE_TEST_PG_BIN is set"
    if no_container := unusable():
        return "local", f"{no_dsn}, {no_container}"
    return "container", f"{no_dsn}, and an engine answers"


@contextlib.contextmanager
def _named() -> Iterator[str]:
    yield os.environ["DURABLE_TEST_DSN"]


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.postgres import (  # noqa: PLC0415 - a second to import
        PostgresContainer,
    )

    options = [f"-c {name}={value}" for name, value in SETTINGS.items()]
    container = PostgresContainer(IMAGE, driver=None)
    with container.with_command(" ".join(["postgres", *options])) as started:
        yield started.get_connection_url()


@contextlib.contextmanager
def _local() -> Iterator[str]:
    binaries = os.environ.get("DURABLE_TEST_PG_BIN")
    with Postgres.start(settings=SETTINGS, binaries=binaries, fast=True) as server:
        yield server.conninfo()
