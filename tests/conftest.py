"""One server for the whole run, one database for every test.

Fixtures for tests: `dsn`, `db`, `adb`, `connect`, `clock`, `stage`, `processes`, and
`own_server` for those that stop or crash it. All workers of pytest-xdist use the
server that the controlling process starts; tests/support/servers.py says which.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable.embedded import Postgres
from durable.testing import Server as ServerForUsers
from tests.support.clock import Clock
from tests.support.databases import Databases, install
from tests.support.processes import Processes
from tests.support.servers import NoServer, Server, serve
from tests.support.stage import Stage

pytest_plugins = ["tests.support.survival"]

SERVER = pytest.StashKey[Server]()
RUN = pytest.StashKey[str]()
ENDING = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    if worker := getattr(config, "workerinput", None):
        config.stash[SERVER] = Server(*worker["durable_server"])
        config.stash[RUN] = worker["durable_run"]
        return
    if config.option.collectonly or config.option.help:
        return
    ending = config.stash[ENDING] = contextlib.ExitStack()
    try:
        server = ending.enter_context(serve())
    except NoServer as refusal:
        raise pytest.UsageError(str(refusal)) from None
    config.stash[SERVER] = server
    config.stash[RUN] = secrets.token_hex(3)
    ending.callback(Databases(server.dsn, config.stash[RUN]).drop_all)


def pytest_unconfigure(config: pytest.Config) -> None:
    if ENDING in config.stash:
        config.stash[ENDING].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    server = node.config.stash[SERVER]
    node.workerinput["durable_server"] = (server.dsn, server.kind, server.why)
    node.workerinput["durable_run"] = node.config.stash[RUN]


def pytest_report_header(config: pytest.Config) -> str | None:
    if SERVER not in config.stash:
        return None
    server = config.stash[SERVER]
    with psycopg.connect(server.dsn) as connection:
        version = connection.info.parameter_status("server_version")
    return f"postgres: {version}, {server.kind} ({server.why})"


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    """The server all tests share."""
    return pytestconfig.stash[SERVER]


@pytest.fixture(scope="session")
def durable_server(server: Server) -> ServerForUsers:
    """The server for the fixtures of `pytest_durable`: the same one."""
    return ServerForUsers(server.dsn, server.why)


@pytest.fixture(scope="session")
def databases(server: Server, pytestconfig: pytest.Config) -> Databases:
    """Create databases with `durable` in them; most tests want `dsn`."""
    made = Databases(server.dsn, pytestconfig.stash[RUN])
    made.make_template()
    return made


@pytest.fixture
def dsn(databases: Databases, worker_id: str) -> Iterator[str]:
    """The URL of this test's own database, with `durable` installed."""
    with databases.database(worker_id) as url:
        yield url


@pytest.fixture
def connect(dsn: str) -> Iterator[Callable[[], psycopg.Connection]]:
    """Open one more session, in autocommit mode; all are closed in the end."""
    with contextlib.ExitStack() as sessions:
        yield lambda: sessions.enter_context(psycopg.connect(dsn, autocommit=True))


@pytest.fixture
def db(connect: Callable[[], psycopg.Connection]) -> psycopg.Connection:
    """A session in autocommit mode."""
    return connect()


@pytest.fixture
async def adb(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """An async session in autocommit mode."""
    session = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    async with session:
        yield session


@pytest.fixture
def clock(connect: Callable[[], psycopg.Connection]) -> Clock:
    """The clock of this test's database, standing still until it is moved."""
    return Clock(connect())


@pytest.fixture
def stage(connect: Callable[[], psycopg.Connection]) -> Iterator[Stage]:
    """Sessions with open transactions, for tests of races."""
    stage = Stage(connect)
    yield stage
    for session in stage.sessions:
        session.end()


@pytest.fixture
def processes(dsn: str, tmp_path: Path) -> Iterator[Processes]:
    """Start processes that find this test's database in their environment."""
    started = Processes(tmp_path, {"DURABLE_DATABASE_URL": dsn})
    yield started
    started.kill_all()


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server of this test's own, to be stopped and crashed; `durable` is in it."""
    binaries = os.environ.get("DURABLE_TEST_PG_BIN")
    with Postgres.start(binaries=binaries, fast=True) as server:
        with psycopg.connect(server.conninfo(), autocommit=True) as connection:
            install(connection)
        yield server
