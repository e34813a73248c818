"""The pytest plugin works in any project, together with other plugins."""

from __future__ import annotations

import sys
from typing import Final

import psycopg
import pytest

from durable.testing import NoServer, TestDatabases, _servers, serve
from tests.support.servers import Server

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(360)

SHOP: Final = """
import os
from contextlib import asynccontextmanager
from durable import AsyncDurable, Task, TaskContext

class Remind(Task[str, str]):
    async def run(self, who: str, ctx: TaskContext) -> str:
        await ctx.sleep_for("month", 30 * 86400)
        return f"reminded {who}, {ctx.state}"

@asynccontextmanager
async def open_shop():
    yield "open"

app = AsyncDurable("host=nowhere", tasks=[Remind], lifespan=open_shop)
"""
MONTH: Final = """
async def test_month(durable_app, durable_clock):
    async with durable_app("shop:app") as app:
        handle = await app.spawn("remind", "ada")
        await durable_clock.advance(days=30)
        assert await handle.result(timeout=30) == "reminded ada, open"
"""
SYNC: Final = """
import os, psycopg

def test_month(durable_sync_app, durable_sync_clock, durable_database):
    assert os.environ["DURABLE_DATABASE_URL"] == durable_database
    with durable_sync_app("shop:app") as app:
        handle = app.spawn("remind", "ada")
        durable_sync_clock.advance(days=30)
        assert handle.result(timeout=30) == "reminded ada, open"

def test_has_a_database_of_its_own(durable_database):
    with psycopg.connect(durable_database) as session:
        assert session.execute("select from durable.tasks").rowcount == 0
"""
CRASH: Final = """
import pytest
from durable import TaskContext, task
from durable.testing import crash_at

@task
async def here(who: str, ctx: TaskContext) -> str:
    return await ctx.step("greet", str.upper, who)

async def test_survives(durable_app):
    app = durable_app("shop:app", tasks=[here])
    life = await crash_at("during:greet", app, here, "ada")
    assert (life.output, life.ran["greet"]) == ("ADA", 2)
"""
UNUSED: Final = """
import sys

def test_costs_nothing():
    assert "pytest_durable" in sys.modules
    assert not [name for name in sys.modules if name.split(".")[0] == "durable"]
"""


@pytest.fixture
def project(
    pytester: pytest.Pytester, server: Server, monkeypatch: pytest.MonkeyPatch
) -> pytest.Pytester:
    """A fresh project with an application; its databases are on the shared server."""
    for name in ("PYTEST_ADDOPTS", "DURABLE_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DURABLE_TEST_DATABASE_URL", server.dsn)
    pytester.makepyfile(shop=SHOP)
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-W", "error", *options, timeout=300)


def test_supports_every_kind_of_test(project: pytest.Pytester) -> None:
    """In one run: strict pytest-asyncio, anyio, none; each in a process of xdist."""
    project.makepyfile(
        test_strict="import pytest\n\n@pytest.mark.asyncio" + MONTH,
        test_anyio="import pytest\n\n@pytest.mark.anyio" + MONTH,
        test_sync=SYNC,
        conftest="import pytest\n\n@pytest.fixture\ndef anyio_backend():\n"
        '    return "asyncio"\n',
    )
    project.makeini(
        "[pytest]\nasyncio_mode = strict\npythonpath = .\n"
        "asyncio_default_fixture_loop_scope = function"
    )
    run(project, "-n", "2").assert_outcomes(passed=4)


def test_supports_automatic_mode_and_crash_tests(
    project: pytest.Pytester,
) -> None:
    project.makepyfile(test_auto=MONTH, test_crash=CRASH)
    project.makeini(
        "[pytest]\nasyncio_mode = auto\npythonpath = .\n"
        "asyncio_default_fixture_loop_scope = function\n"
        "addopts = --import-mode=importlib"
    )
    run(project).assert_outcomes(passed=2)


def test_imports_nothing_unless_used(project: pytest.Pytester) -> None:
    project.makepyfile(UNUSED)
    run(project, "-p", "no:asyncio", "-p", "no:anyio").assert_outcomes(passed=1)


def test_says_which_dependency_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_TEST_DATABASE_URL", raising=False)
    monkeypatch.setenv("DURABLE_PG_BIN", "/nowhere")
    monkeypatch.setattr(_servers, "_is_installed", lambda _: False)
    with pytest.raises(NoServer) as refused, serve():
        pass
    text = str(refused.value)
    assert "DURABLE_TEST_DATABASE_URL is not set" in text
    assert "no Postgres 15 or newer in /nowhere" in text
    assert "testcontainers is not installed" in text
    assert "pip install 'durable-postgres[testing]'" in text


def test_starts_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DURABLE_TEST_DATABASE_URL", raising=False)
    with (
        serve() as server,
        TestDatabases(server.dsn) as databases,
        databases.database() as one,
        databases.database() as other,
        psycopg.connect(one) as session,
    ):
        assert one != other
        queues = session.execute("select durable.list_queues()").fetchall()
    assert queues == [("default",)]


def test_drops_databases_left_by_a_killed_run(server: Server) -> None:
    left = "durable_test_0badcafe_template"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {left}")
        known = "select datname from pg_database where starts_with(datname, %s)"
        with TestDatabases(server.dsn) as live, live.database() as url:
            with TestDatabases(server.dsn):
                assert admin.execute(known, [left]).fetchall() == []
            with psycopg.connect(url) as session:  # of a session that is still running
                assert session.execute("select 1").fetchone() == (1,)


def test_is_loaded_by_its_entry_point() -> None:
    assert "pytest_durable" in sys.modules
