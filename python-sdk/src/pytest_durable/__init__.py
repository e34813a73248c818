"""The plugin that `durable` brings for pytest: fixtures, and nothing else.

It lies outside the package `durable`, so that pytest loads a page of code and no more
where no test asks for a fixture. The fixtures are synchronous: they suit
pytest-asyncio, in both of its modes, anyio, and tests that have no loop.

    durable_server      the Postgres of this process of pytest
    durable_database    the URL of a fresh database with `durable` in it
    durable_app         makes asynchronous applications on that database
    durable_clock       its clock, which runs their tasks as time passes
    durable_sync_app    the same for synchronous tests
    durable_sync_clock
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable.testing import Clock, Server, TestDatabases
    from durable.testing._applications import AppFactory
    from durable.testing.sync import Clock as SyncClock


@pytest.fixture(scope="session")
def durable_server() -> Iterator[Server]:
    """Run a real Postgres for this process of pytest: a named one, or a new one."""
    from durable.testing import NoServer, serve  # noqa: PLC0415 - see above

    with contextlib.ExitStack() as serving:
        try:
            server = serving.enter_context(serve())
        except NoServer as error:
            pytest.fail(str(error), pytrace=False)
        yield server


@pytest.fixture(scope="session")
def durable_databases(durable_server: Server) -> Iterator[TestDatabases]:
    """Make the databases of this process of pytest: a template, and its copies."""
    from durable.testing import TestDatabases  # noqa: PLC0415 - see above

    with TestDatabases(durable_server.dsn) as databases:
        yield databases


@pytest.fixture
def durable_database(
    durable_databases: TestDatabases, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Give the URL of this test's own database, and set DURABLE_DATABASE_URL to it.

    `durable` is installed in it, with a queue "default" that keeps everything.
    """
    with durable_databases.database() as url:
        monkeypatch.setenv("DURABLE_DATABASE_URL", url)
        yield url


@pytest.fixture
def durable_app(durable_database: str) -> AppFactory[Any]:
    """Make an application on this test's database: `durable_app(tasks=[Order])`.

    `durable_app(app)` and `durable_app("shop.tasks:app")` are the same application as
    that, with this database. What is made is entered with `async with`, as ever.
    """
    from durable import AsyncDurable  # noqa: PLC0415 - see above
    from durable.testing._applications import AppFactory  # noqa: PLC0415 - see above

    return AppFactory(AsyncDurable, durable_database)


@pytest.fixture
def durable_sync_app(durable_database: str) -> AppFactory[Any]:
    """Make a synchronous application on this test's database, as `durable_app` does."""
    from durable import Durable  # noqa: PLC0415 - see above
    from durable.testing._applications import AppFactory  # noqa: PLC0415 - see above

    return AppFactory(Durable, durable_database)


@pytest.fixture
def durable_clock(
    durable_database: str, durable_app: AppFactory[Any]
) -> Iterator[Clock]:
    """Move this test's engine through time: `await durable_clock.advance(days=30)`.

    It runs the tasks of all applications that `durable_app` makes.
    """
    from durable.testing import Clock  # noqa: PLC0415 - see above

    with Clock(database=durable_database) as clock:
        clock.apps = durable_app.made
        yield clock


@pytest.fixture
def durable_sync_clock(
    durable_database: str, durable_sync_app: AppFactory[Any]
) -> Iterator[SyncClock]:
    """Do the same for synchronous tests: `durable_sync_clock.advance(days=30)`."""
    from durable.testing.sync import Clock  # noqa: PLC0415 - see above

    with Clock(database=durable_database) as clock:
        clock.apps = durable_sync_app.made
        yield clock
