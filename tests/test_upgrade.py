"""durable is upgraded in one transaction, and the result equals a fresh install."""

from __future__ import annotations

import asyncio
import difflib
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, Durable, SchemaVersion
from durable._db import schema
from tests.support.processes import ROOT, Processes
from tests.support.schema import GOLDEN, bodies, described
from tests.support.sources import Sources
from tests.support.wait import eventually
from tests.support.working import working

Connect: TypeAlias = Callable[[], psycopg.Connection]

NAMES_SEEN = "select name from durable.migrations order by number"
SHIPPED = [("install",)]

CUT = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
"""
WAITS = """
select true from pg_locks
where not granted and mode = 'AccessExclusiveLock'
  and relation = 'durable.tasks'::regclass
  and database = (select oid from pg_database where datname = current_database())
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """A copy of the packaged SQL, to be changed."""
    copy = Sources(tmp_path)
    copy.carried(monkeypatch)
    return copy


@pytest.fixture
def migrate(dsn: str) -> Callable[[], None]:
    """Migrate as an application does when it starts."""

    def migrate() -> None:
        with Durable(dsn) as app:
            app.migrate()

    return migrate


def reinstall(session: psycopg.Connection) -> None:
    session.execute("drop schema durable cascade")
    session.execute(schema.script(None))


def test_has_the_schema_that_was_reviewed(db: psycopg.Connection) -> None:
    expected, found = GOLDEN.read_text().splitlines(), described(db).splitlines()
    change = difflib.unified_diff(expected, found, "golden", "installed", "", "", 1, "")
    assert expected == found, "`make golden` accepts this:\n" + "\n".join(change)


def test_changes_nothing_when_there_is_nothing_new(
    db: psycopg.Connection, migrate: Callable[[], None]
) -> None:
    before = described(db), bodies(db)
    for _ in range(2):
        migrate()
        assert (described(db), bodies(db)) == before
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED


def test_keeps_tasks_during_an_upgrade(
    dsn: str, db: psycopg.Connection, sources: Sources
) -> None:
    sources.migration("9002_rank.sql", "alter table durable.tasks add rank integer;\n")
    with Durable(dsn) as app:
        handle = app.spawn("x", {"order": 7})
        app.migrate()
        assert handle.state() == "pending"
    assert db.execute("select params, rank from durable.tasks").fetchall() == [
        ({"order": 7}, None)
    ]


def test_an_upgrade_equals_a_fresh_install(
    connect: Connect, sources: Sources, migrate: Callable[[], None]
) -> None:
    change = """
alter table durable.tasks add rank integer;
comment on column durable.tasks.rank is 'Who goes first.';
create index tasks_rank_idx on durable.tasks (queue, rank) where rank is not null;
"""
    sources.migration("9002_rank.sql", change)
    with (sources / "stats.sql").open("a") as functions:
        functions.write("""
create or replace function durable.count_ranked(queue text) returns bigint
language sql stable security definer set search_path = ''
as $$
  select count(*) from durable.tasks
  where tasks.queue = count_ranked.queue and rank is not null
$$;
""")
    db = connect()
    migrate()
    upgraded = described(db), bodies(db), db.execute(NAMES_SEEN).fetchall()
    assert "tasks.rank integer" in upgraded[0]
    reinstall(db)
    assert (described(db), bodies(db), db.execute(NAMES_SEEN).fetchall()) == upgraded


def test_drops_objects_that_the_new_version_no_longer_has(
    db: psycopg.Connection, migrate: Callable[[], None]
) -> None:
    before = described(db), bodies(db)
    db.execute("""
create function durable._notify_listeners(queue text) returns void
language sql as $$ $$;
create function durable.gone(queue text) returns boolean
language sql as $$ select true $$;
""")
    migrate()
    assert (described(db), bodies(db)) == before


def test_applies_each_migration_once_and_in_order(
    db: psycopg.Connection, sources: Sources, migrate: Callable[[], None]
) -> None:
    db.execute("create table public.applied (name text)")
    for number in (9010, 9002, 9003):
        name = f"{number:04}_step.sql"
        note = f"insert into public.applied values ('{name}');\n"
        sources.migration(name, note, install="-- nothing\n")
    migrate()
    (sources / "migrations" / "9011_late.sql").write_text(
        "insert into public.applied values ('9011_late.sql');\n"
    )
    migrate()
    migrate()
    names = ["9002_step.sql", "9003_step.sql", "9010_step.sql", "9011_late.sql"]
    assert db.execute("table public.applied").fetchall() == [(name,) for name in names]
    assert db.execute(NAMES_SEEN).fetchall() == [*SHIPPED, *((n,) for n in names)]


def test_rolls_back_a_failed_migration(
    db: psycopg.Connection, sources: Sources, migrate: Callable[[], None]
) -> None:
    before = described(db), bodies(db)
    sources.migration("9002_good.sql", "alter table durable.tasks add good integer;\n")
    sources.migration(
        "9003_bad.sql",
        "alter table durable.tasks add bad integer;\nselect 1 / 0;\n",
        install="-- nothing\n",
    )
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate()
    assert (described(db), bodies(db)) == before
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED


def test_rolls_back_a_failed_install(
    db: psycopg.Connection, sources: Sources, migrate: Callable[[], None]
) -> None:
    db.execute("drop schema durable cascade")
    with (sources / "grants.sql").open("a") as grants:
        grants.write("select 1 / 0;\n")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate()
    assert db.execute("select to_regnamespace('durable')").fetchone() == (None,)


def test_concurrent_clients_install_once(
    db: psycopg.Connection, migrate: Callable[[], None]
) -> None:
    db.execute("drop schema durable cascade")
    failures: list[BaseException] = []

    def one() -> None:
        try:
            migrate()
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED


def test_waits_for_an_install_that_takes_long(
    dsn: str, db: psycopg.Connection, migrate: Callable[[], None]
) -> None:
    """It gives up its wait after half a second, and then finds the engine installed."""
    db.execute("drop schema durable cascade")
    failures: list[BaseException] = []

    def waits() -> list[Any]:
        return db.execute(WAITING).fetchall()

    def one() -> None:
        try:
            migrate()
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    with psycopg.connect(dsn) as other:
        other.execute(schema.flatten())
        waiting = threading.Thread(target=one)
        waiting.start()
        first = eventually(waits)
        eventually(lambda: waits() not in ([], first))
        other.commit()
        waiting.join()
    assert failures == []
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED


def test_installs_the_same_from_the_single_flat_file(db: psycopg.Connection) -> None:
    before = described(db), bodies(db)
    db.execute("drop schema durable cascade")
    db.execute(schema.flatten())
    assert (described(db), bodies(db)) == before


WAITING = """
select waitstart from pg_locks join pg_stat_activity using (pid)
where datname = current_database() and not granted and waitstart is not null
"""


def set_version(session: psycopg.Connection, version: str) -> None:
    session.execute(f"""
create or replace function durable.version() returns text
language sql immutable as $$ select '{version}' $$
""")


def test_all_sources_name_the_same_version(db: psycopg.Connection) -> None:
    package = tomllib.loads((ROOT / "python-sdk" / "pyproject.toml").read_text())
    assert db.execute("select durable.version()").fetchone() == (schema.VERSION,)
    assert package["project"]["version"] == schema.VERSION


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("0.0.9", "durable migrate"),
        ("", "durable migrate"),
        ("0.3.0", r"package of version 0\.3"),
        ("0.10.0", r"package of version 0\.10"),
        ("1.1.0", r"package of version 1\.1"),
    ],
)
async def test_refuses_an_engine_of_another_version(
    dsn: str, db: psycopg.Connection, version: str, hint: str
) -> None:
    set_version(db, version)
    refused = rf"needs 0\.2(.|\n)*{hint}"
    with Durable(dsn) as client, pytest.raises(SchemaVersion, match=refused):
        client.spawn("x")
    async with AsyncDurable(dsn) as app:
        with pytest.raises(SchemaVersion, match=refused):
            await app.spawn("x")
        with pytest.raises(SchemaVersion, match=refused):
            async with app.worker():
                pass


def test_upgrades_an_older_engine_to_its_own_version(
    db: psycopg.Connection,
    migrate: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = bodies(db)
    monkeypatch.setattr(schema, "BASELINE", "0.1.7")
    set_version(db, "0.1.7")
    migrate()
    assert bodies(db) == before


@pytest.mark.parametrize("version", ["0.1.1", ""])
def test_refuses_to_upgrade_an_engine_from_before_the_first_release(
    dsn: str, db: psycopg.Connection, migrate: Callable[[], None], version: str
) -> None:
    set_version(db, version)
    before = described(db), bodies(db)
    with pytest.raises(SchemaVersion, match="Drop it"):
        migrate()
    with Durable(dsn) as app, pytest.raises(SchemaVersion, match="Drop it"):
        app.check_schema()
    assert (described(db), bodies(db)) == before


def test_requires_an_engine_that_has_the_functions_it_calls(
    dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "NEEDS", "0.2.10")
    set_version(db, "0.2.9")
    refused = r"needs 0\.2\.10 or a later 0\.2(.|\n)*durable migrate"
    with Durable(dsn) as app, pytest.raises(SchemaVersion, match=refused):
        app.spawn("x")
    set_version(db, "0.2.10")
    with Durable(dsn) as app:
        assert app.spawn("x").created


def test_does_not_change_a_newer_engine(
    dsn: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """So applications of the previous version may restart, and migrate, meanwhile."""
    set_version(db, "0.2.70")
    db.execute("create function durable.new() returns void language sql as $$ $$")
    before = described(db), bodies(db)
    with Durable(dsn, queue="orders") as app:
        app.migrate()
        assert app.spawn("x").created
    assert (described(db), bodies(db)) == before
    assert "version 0.2.70, newer than this package" in caplog.text


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0"])
def test_never_loads_its_functions_into_an_engine_of_another_version(
    db: psycopg.Connection,
    migrate: Callable[[], None],
    processes: Processes,
    version: str,
) -> None:
    set_version(db, version)
    before = described(db), bodies(db)
    with pytest.raises(SchemaVersion, match="Install a package of version"):
        migrate()
    command = processes.durable("migrate")
    assert command.wait() == 1
    assert f"durable: the database has version {version}" in command.output()
    assert (described(db), bodies(db)) == before


@pytest.mark.parametrize("break_off", ["select", CUT], ids=["asks", "reconnects"])
async def test_ends_a_worker_whose_engine_is_replaced(
    dsn: str, db: psycopg.Connection, break_off: str
) -> None:
    """It checks periodically, and whenever it connects."""

    async def work() -> None:
        async with working(dsn, poll=0.1) as (_, worker):
            await worker.drain()
            set_version(db, "0.3.0")
            db.execute(break_off)
            await asyncio.sleep(60)

    with pytest.raises(SchemaVersion, match=r"version 0\.3\.0"):
        await work()


def test_a_migration_that_waits_for_a_table_blocks_no_others(
    dsn: str,
    connect: Connect,
    sources: Sources,
    migrate: Callable[[], None],
) -> None:
    """A session that needs the table after a waiting migration would wait too."""
    sources.migration("9002_rank.sql", "alter table durable.tasks add rank integer;\n")
    user, watcher, db = connect(), connect(), connect()
    with ThreadPoolExecutor() as threads:
        with user.transaction():
            user.execute("select durable.spawn('default', 'kept open')")
            migrating = threads.submit(migrate)
            for _ in range(3):
                eventually(lambda: watcher.execute(WAITS).fetchone(), deadline=30)
                db.execute("set statement_timeout = '20s'")
                db.execute("select durable.spawn('default', 'x')")
            assert not migrating.done()
        migrating.result(timeout=60)
    assert db.execute("select count(*), count(rank) from durable.tasks").fetchone() == (
        4,
        0,
    )


def test_reports_that_a_table_stays_in_use(
    connect: Connect,
    sources: Sources,
    migrate: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable._db._sync.migrate._LOCK_SECONDS", 0)
    sources.migration("9002_rank.sql", "alter table durable.tasks add rank integer;\n")
    user = connect()
    before = described(user), bodies(user)
    with user.transaction():
        user.execute("select from durable.tasks")
        with pytest.raises(TimeoutError, match="keeps a transaction open"):
            migrate()
    assert (described(user), bodies(user)) == before


async def test_reports_that_the_schema_is_missing(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute("drop schema durable cascade")
    async with AsyncDurable(dsn) as app:
        with pytest.raises(SchemaVersion, match="durable migrate"):
            await app.spawn("x")
        with pytest.raises(SchemaVersion, match="durable migrate"):
            await app.run_worker()
