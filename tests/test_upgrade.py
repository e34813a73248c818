"""durable comes to a new version in one transaction, and ends where an install does."""

from __future__ import annotations

import asyncio
import difflib
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from durable import AsyncDurable, Durable, SchemaVersion, _schema
from tests.support.processes import ROOT, Processes
from tests.support.schema import GOLDEN, bodies, described
from tests.support.sources import Sources
from tests.support.wait import eventually
from tests.support.working import working

Connect: TypeAlias = Callable[[], psycopg.Connection]

NAMES_SEEN = "select name from durable.migrations order by number"
SHIPPED = [
    ("install",),
    ("0002_roles_of_a_queue.sql",),
    ("0003_notes_by_task.sql",),
    ("0004_messages.sql",),
    ("0005_publishing.sql",),
    ("0006_children_elsewhere.sql",),
    ("0007_deadlines_and_versions.sql",),
    ("0008_lists_and_histories.sql",),
    ("0009_fingerprint_of_a_key.sql",),
    ("0010_who_and_when.sql",),
]

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
    """The SQL that the package carries, to be changed."""
    copy = Sources(tmp_path)
    copy.carried(monkeypatch)
    return copy


@pytest.fixture
def migrate(dsn: str) -> Callable[[], None]:
    """Do what an application does when it starts."""

    def migrate() -> None:
        with Durable(dsn) as app:
            app.migrate()

    return migrate


def reinstall(session: psycopg.Connection) -> None:
    session.execute("drop schema durable cascade")
    session.execute(_schema.script(None))


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


def test_keeps_tasks_through_an_upgrade(
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


def test_ends_where_a_fresh_install_does(
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


def test_brings_the_first_version_to_this_one(
    dsn: str, db: psycopg.Connection, migrate: Callable[[], None]
) -> None:
    before = described(db), bodies(db)
    db.execute("""
alter table durable.queues drop column roles;
drop index durable.notes_task_idx;

drop view durable.waiting, durable.task_list;
drop table durable.mailboxes, durable.messages, durable.message_keys;
alter table durable.waits
  drop column topic, drop column task_queues, drop column any_of,
  add constraint waits_are_for_one_thing
    check (num_nonnulls(event_name, task_ids) <= 1
      and (event_name is not null or task_ids is not null or deadline_at is not null));

drop table durable.task_values, durable.stream_entries, durable.log_lines;
drop type durable.publication, durable.published_value cascade;
drop type durable.stream_entry, durable.log_line cascade;

alter table durable.tasks drop column parent_queue, drop column child_queues;
comment on column durable.waits.task_ids is 'As it was.';
alter table durable.notes drop column root_queue, drop column root_task_id,
  drop column root_deadline;
drop table durable.watches;
delete from pg_enum where enumlabel in ('ended_above', 'revived_above');

alter table durable.queues drop column max_lost_leases, drop column versions;
alter table durable.tasks drop column complete_by, drop column version;
create index tasks_claimable_idx on durable.tasks (queue, name, available_at, task_id)
where available_at is not null;
drop table durable.versions;
drop function durable.list_versions;
drop type durable.version_statistics;
drop function durable.claim_tasks, durable.get_next_due;
create function durable.claim_tasks(
  queue text, worker text, names text[] default null, quantity integer default 1,
  lease double precision default 30, after_at timestamptz[] default null,
  after_ids uuid[] default null
) returns setof durable.claimed_task language plpgsql as $$ begin end $$;
create function durable.get_next_due(queue text, names text[] default null)
returns double precision language plpgsql as $$ begin return 1; end $$;

drop type durable.listed_task, durable.swept_tasks cascade;
drop type durable.history_entry, durable._task_filter cascade;

alter table durable.idempotency_keys drop column fingerprint;
alter type durable._spawn_options
  drop attribute deadline, drop attribute version, drop attribute fingerprint;

alter table durable.queues drop column history;
alter table durable.runs drop column retried_at, drop column retried_by;
drop table durable.claim_log;
drop type durable._told cascade;

comment on table durable.queues is 'As it was.';
delete from durable.migrations where number > 1;
""")
    migrate()
    assert (described(db), bodies(db)) == before
    assert db.execute(NAMES_SEEN).fetchall() == SHIPPED
    with Durable(dsn) as app:
        assert app.spawn("x").created


def test_drops_what_the_new_version_no_longer_has(
    db: psycopg.Connection, migrate: Callable[[], None]
) -> None:
    before = described(db), bodies(db)
    db.execute("""
create function durable._knock(queue text) returns void
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


def test_leaves_nothing_of_a_migration_that_breaks_off(
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


def test_leaves_nothing_of_an_install_that_breaks_off(
    db: psycopg.Connection, sources: Sources, migrate: Callable[[], None]
) -> None:
    db.execute("drop schema durable cascade")
    with (sources / "grants.sql").open("a") as grants:
        grants.write("select 1 / 0;\n")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate()
    assert db.execute("select to_regnamespace('durable')").fetchone() == (None,)


def test_is_installed_once_by_many_at_the_same_time(
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


def test_installs_the_same_from_the_one_flat_file(db: psycopg.Connection) -> None:
    before = described(db), bodies(db)
    db.execute("drop schema durable cascade")
    db.execute(_schema.flatten())
    assert (described(db), bodies(db)) == before


def set_version(session: psycopg.Connection, version: str) -> None:
    session.execute(f"""
create or replace function durable.version() returns text
language sql immutable as $$ select '{version}' $$
""")


def test_has_one_version(db: psycopg.Connection) -> None:
    package = tomllib.loads((ROOT / "python-sdk" / "pyproject.toml").read_text())
    assert db.execute("select durable.version()").fetchone() == (_schema.VERSION,)
    assert package["project"]["version"] == _schema.VERSION


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("0.0.9", "durable migrate"),
        ("", "durable migrate"),
        ("0.2.0", r"package of version 0\.2"),
        ("0.10.0", r"package of version 0\.10"),
        ("1.1.0", r"package of version 1\.1"),
    ],
)
async def test_refuses_an_engine_of_another_version(
    dsn: str, db: psycopg.Connection, version: str, hint: str
) -> None:
    set_version(db, version)
    refused = rf"needs 0\.1(.|\n)*{hint}"
    with Durable(dsn) as client, pytest.raises(SchemaVersion, match=refused):
        client.spawn("x")
    async with AsyncDurable(dsn) as app:
        with pytest.raises(SchemaVersion, match=refused):
            await app.spawn("x")
        with pytest.raises(SchemaVersion, match=refused):
            async with app.worker():
                pass


@pytest.mark.parametrize("version", ["0.0.9", ""])
def test_brings_an_older_engine_up_to_its_own_version(
    dsn: str, db: psycopg.Connection, migrate: Callable[[], None], version: str
) -> None:
    before = bodies(db)
    set_version(db, version)
    migrate()
    assert bodies(db) == before


def test_asks_for_an_engine_that_has_what_it_calls(
    dsn: str, db: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_schema, "NEEDS", "0.1.10")
    set_version(db, "0.1.9")
    refused = r"needs 0\.1\.10 or a later 0\.1(.|\n)*durable migrate"
    with Durable(dsn) as app, pytest.raises(SchemaVersion, match=refused):
        app.spawn("x")
    set_version(db, "0.1.10")
    with Durable(dsn) as app:
        assert app.spawn("x").created


def test_leaves_an_engine_alone_that_is_newer(
    dsn: str, db: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """So an application of the last version may restart, and migrate, meanwhile."""
    set_version(db, "0.1.70")
    db.execute("create function durable.new() returns void language sql as $$ $$")
    before = described(db), bodies(db)
    with Durable(dsn, queue="orders") as app:
        app.migrate()
        assert app.spawn("x").created
    assert (described(db), bodies(db)) == before
    assert "version 0.1.70, newer than this package" in caplog.text


@pytest.mark.parametrize("version", ["0.2.0", "1.0.0"])
def test_never_loads_its_functions_over_those_it_does_not_fit(
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
async def test_ends_a_worker_whose_engine_becomes_another(
    dsn: str, db: psycopg.Connection, break_off: str
) -> None:
    """It asks now and then, and whenever it connects."""

    async def work() -> None:
        async with working(dsn, poll=0.1) as (_, worker):
            await worker.drain()
            set_version(db, "0.2.0")
            db.execute(break_off)
            await asyncio.sleep(60)

    with pytest.raises(SchemaVersion, match=r"version 0\.2\.0"):
        await work()


def test_holds_up_nobody_behind_a_table_that_is_in_use(
    dsn: str,
    connect: Connect,
    sources: Sources,
    migrate: Callable[[], None],
) -> None:
    """Whoever asks for a table after a migration that waits for it, waits too."""
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


def test_says_that_a_table_stays_in_use(
    connect: Connect,
    sources: Sources,
    migrate: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("durable._sync.migration._PATIENCE", 0)
    sources.migration("9002_rank.sql", "alter table durable.tasks add rank integer;\n")
    user = connect()
    before = described(user), bodies(user)
    with user.transaction():
        user.execute("select from durable.tasks")
        with pytest.raises(TimeoutError, match="keeps a transaction open"):
            migrate()
    assert (described(user), bodies(user)) == before


async def test_says_that_the_schema_is_missing(
    dsn: str, db: psycopg.Connection
) -> None:
    db.execute("drop schema durable cascade")
    async with AsyncDurable(dsn) as app:
        with pytest.raises(SchemaVersion, match="durable migrate"):
            await app.spawn("x")
        with pytest.raises(SchemaVersion, match="durable migrate"):
            await app.run_worker()
