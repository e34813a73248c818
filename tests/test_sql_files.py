"""The schema is installed and upgraded from SQL, by psql and migration tools."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import django
import django.conf
import django.db
import django.db.migrations
import psycopg
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from django.db.migrations.state import ProjectState
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from durable import Durable, Forbidden, schema_sql
from durable._db import schema
from tests.support.roles import Roles
from tests.support.rolling import OLD
from tests.support.schema import bodies, described
from tests.test_upgrade import NAMES_SEEN, SHIPPED

CLI: Final = """
from durable import cli
from durable._db import schema
schema.BASELINE = "0.1.0"
cli.main()
"""


def psql(dsn: str, sql: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a file as `psql -f` does, without ON_ERROR_STOP and a psqlrc."""
    file = tmp_path / "durable.sql"
    file.write_text(sql)
    binaries = os.environ.get("DURABLE_TEST_PG_BIN", "")
    command = Path(binaries) / "psql" if Path(binaries, "psql").exists() else "psql"
    return subprocess.run(
        [command, "-X", "-q", "-d", dsn, "-f", file],
        capture_output=True,
        text=True,
        check=False,
    )


def install_file() -> str:
    return schema.for_psql(schema.script(None))


def upgrade_file(from_version: str = "") -> str:
    return schema.for_psql(schema.upgrade_script(from_version))


def set_version(db: psycopg.Connection, version: str) -> None:
    db.execute(f"""
create or replace function durable.version() returns text
language sql immutable as $$ select '{version}' $$
""")


def reinstall_old(db: psycopg.Connection) -> None:
    """Install the engine of the first release."""

    def flat(name: str) -> str:
        text = wheel.read(f"durable/sql/{name}").decode()
        return re.sub(r"(?m)^\\ir (\S+)$", lambda line: flat(line[1]), text)

    db.execute("drop schema durable cascade")
    with zipfile.ZipFile(OLD) as wheel:
        db.execute(flat("install.sql"))
    db.execute("select durable.create_queue('default')")


def is_upgraded(dsn: str, db: psycopg.Connection, before: object) -> bool:
    """Whether it works, and equals a fresh install once leftovers are dropped."""
    with Durable(dsn) as app:
        assert app.spawn("x").created
        app.migrate()
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED
    return (described(db), bodies(db)) == before


# -- psql ------------------------------------------------------------------------------


def test_defines_every_function_once() -> None:
    """Otherwise the later definition would replace one of the same name."""
    defined = re.findall(
        r"(?m)^create or replace function (durable\.\w+)", schema_sql()
    )
    assert len(defined) > 300
    assert not {name for name in defined if defined.count(name) > 1}


def test_migrate_continues_from_an_install_with_psql(
    dsn: str, db: psycopg.Connection, tmp_path: Path
) -> None:
    before = described(db), bodies(db)
    db.execute("drop schema durable cascade")
    done = psql(dsn, install_file(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (described(db), bodies(db)) == before
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED
    with Durable(dsn) as app:
        app.migrate()
        assert app.spawn("x").created


def test_refuses_an_installed_engine_with_a_clear_message(
    dsn: str, db: psycopg.Connection, tmp_path: Path
) -> None:
    reinstall_old(db)
    before = described(db), bodies(db)
    refused = psql(dsn, install_file(), tmp_path)
    assert refused.returncode != 0
    assert refused.stderr.count("ERROR") == 1
    assert "is installed in this database already" in refused.stderr
    assert "durable migrate" in refused.stderr
    assert (described(db), bodies(db)) == before


@pytest.mark.parametrize("from_version", ["", "0.2.0"])
def test_upgrades_with_psql(
    dsn: str, db: psycopg.Connection, tmp_path: Path, from_version: str
) -> None:
    before = described(db), bodies(db)
    reinstall_old(db)
    done = psql(dsn, upgrade_file(from_version), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_upgraded(dsn, db, before)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.2.0", "and this upgrades 0.2.7"),
        ("0.1.1", "older than those of 0.2.0"),
        ("0.2.10", "newer than"),
        ("1.0.0", "newer than"),
        (None, "not installed"),
    ],
)
def test_refuses_to_upgrade_another_engine(
    dsn: str,
    db: psycopg.Connection,
    tmp_path: Path,
    version: str | None,
    said: str,
) -> None:
    if version is None:
        db.execute("drop schema durable cascade")
    else:
        set_version(db, version)
    upgrade = upgrade_file("0.2.7" if version == schema.VERSION else "")
    refused = psql(dsn, upgrade, tmp_path)
    assert refused.returncode != 0
    assert refused.stderr.count("ERROR") == 1
    assert said in refused.stderr


def test_prints_and_checks_on_the_command_line(
    dsn: str, db: psycopg.Connection, tmp_path: Path
) -> None:
    def durable(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", CLI, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    assert durable("migrate", "--check", "--dsn", dsn) == (
        0,
        "the schema is up to date\n",
    )
    set_version(db, "0.1.0")
    code, said = durable("migrate", "--check", "--dsn", dsn)
    assert (code, "upgraded" in said) == (1, True)
    code, sql = durable("migrate", "--dump-sql", "--from", "0.1.0")
    assert psql(dsn, sql, tmp_path).stderr == ""
    assert durable("migrate", "--check", "--dsn", dsn)[0] == 0


# -- migration tools -------------------------------------------------------------------


def with_alembic(dsn: str, sql: str, driver: str) -> None:
    connect = importlib.import_module(driver).connect
    engine = sa.create_engine(f"postgresql+{driver}://", creator=lambda: connect(dsn))
    with engine.begin() as connection:
        Operations(MigrationContext.configure(connection)).execute(sql)
    engine.dispose()


def with_django(dsn: str, sql: str) -> None:
    if not django.conf.settings.configured:
        django.conf.settings.configure()
        django.setup()
    parts = conninfo_to_dict(dsn)
    database: dict[str, Any] = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts.get("user", ""),
        "HOST": parts.get("host", ""),
        "PORT": parts.get("port", ""),
    }
    handler = django.db.utils.ConnectionHandler({"default": database})
    connection = handler["default"]
    operation = django.db.migrations.RunSQL(sql)
    connection.set_autocommit(False)
    with connection.schema_editor(atomic=False) as editor:
        operation.database_forwards("shop", editor, ProjectState(), ProjectState())
    connection.commit()
    connection.close()


async def with_asyncpg(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        await (await connection.prepare(sql)).fetch()
    await connection.close()


async def apply(tool: str, dsn: str, sql: str) -> None:
    match tool:
        case "django":
            await asyncio.to_thread(with_django, dsn, sql)
        case "asyncpg":
            await with_asyncpg(dsn, sql)
        case driver:
            with_alembic(dsn, sql, driver)


@pytest.mark.parametrize("tool", ["psycopg", "psycopg2", "django", "asyncpg"])
async def test_installs_and_upgrades_in_the_transaction_of_a_migration_tool(
    dsn: str, db: psycopg.Connection, tool: str
) -> None:
    before = described(db), bodies(db)
    db.execute("drop schema durable cascade")
    await apply(tool, dsn, schema_sql())
    assert (described(db), bodies(db)) == before
    reinstall_old(db)
    await apply(tool, dsn, schema_sql(upgrade=True))
    assert await asyncio.to_thread(is_upgraded, dsn, db, before)


@pytest.mark.parametrize("upgrade", ["", "yes"])
def test_contains_no_syntax_that_a_migration_tool_would_replace(upgrade: str) -> None:
    sql = schema_sql(upgrade=bool(upgrade))
    assert sa.text(sql).compile().params == {}
    assert not any(line.startswith("\\") for line in sql.splitlines())
    assert sql.isascii()


# -- restricted roles and servers ------------------------------------------------------


@pytest.fixture
def roles(dsn: str, db: psycopg.Connection) -> Iterator[Roles]:
    made = Roles(db, dsn)
    yield made
    made.drop_all()


def set_to(dsn: str, setting: str) -> str:
    """Return an address whose sessions begin with a setting."""
    return make_conninfo(dsn, options=f"-c{setting}")


def test_installs_into_an_empty_schema_created_for_it(
    dsn: str, db: psycopg.Connection, roles: Roles
) -> None:
    """The role may not create schemas; it owns an empty one."""
    owner = roles.make("owner")
    db.execute("drop schema durable cascade")
    with Durable(set_to(dsn, f"role={owner}")) as app:
        with pytest.raises(Forbidden):
            app.migrate()
        db.execute(f"create schema durable authorization {owner}")
        app.migrate()
        assert app.spawn("x").created
        app.migrate()


def test_does_nothing_where_nothing_may_be_written_and_nothing_is_needed(
    dsn: str,
    db: psycopg.Connection,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a read-only server, and for a role that may only use the engine."""
    user = roles.make("user", "durable_client")
    reading = set_to(dsn, "default_transaction_read_only=on")
    refused = (Forbidden, psycopg.errors.ReadOnlySqlTransaction)
    for address in (reading, set_to(dsn, f"role={user}")):
        with Durable(address) as app:
            app.migrate()
        with Durable(address, queue="absent") as app, pytest.raises(refused):
            app.migrate()
    monkeypatch.setattr(schema, "BASELINE", "0.1.0")
    set_version(db, "0.1.0")
    for address in (reading, set_to(dsn, f"role={user}")):
        with Durable(address) as app, pytest.raises(refused):
            app.migrate()
