"""durable is upgraded under load and interrupted at any moment; old and new coexist.

The old version is the first release, 0.2.0: its engine, workers and clients.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, TypeAlias

import psycopg
import pytest

from durable import Durable, TaskHandle
from durable._db import schema as _schema
from durable.embedded import Postgres
from durable.testing._dsn import with_dbname
from tests.support.processes import Process, Processes
from tests.support.rolling import EFFECTS, OLD, RELEASES, errand, trip
from tests.support.schema import bodies, described
from tests.support.sources import Sources
from tests.support.survival import Share, Survived
from tests.support.wait import eventually

Connect: TypeAlias = Callable[[], psycopg.Connection]
Schema: TypeAlias = set[str]

DEADLINE: Final = 60
# Private functions in which calls spend most of their time.
RENAMED: Final = {
    "_lease_by_ctid": "_grasp",
    "_insert_tasks": "_add",
    "_resolve_waits": "_calm",
}
CHANGE: Final = """
alter table durable.tasks add rank integer;
alter table durable.events add rank integer;
create index tasks_rank_idx on durable.tasks (queue, rank) where rank is not null;
"""
MIGRATE: Final = """
import sys
from pathlib import Path
from durable import Durable
from durable._db import schema as _schema
sources = Path(sys.argv[1])
_schema._sql = lambda: sources
with Durable() as app:
    app.list_queues()
    print("migrating")
    app.migrate()
print("migrated")
"""
PAUSE: Final = "select pg_advisory_xact_lock_shared(4711);\n"
PAUSED: Final = """
select pid from pg_locks join pg_stat_activity using (pid)
where locktype = 'advisory' and objid = 4711 and not granted
  and datname = current_database()
"""
DEADLOCKS: Final = """
select deadlocks from pg_stat_database where datname = current_database()
"""
STARTS: Final = "INFO|WARNING|ERROR|CRITICAL|ARRIVED|Traceback"  # lines of output
NO_TROUBLE: Final = re.compile("INFO|ARRIVED|.*canceling statement due to lock timeout")


class Fleet:
    """Old and new workers and clients of one database."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._all: list[Process] = []

    def start(self, version: str, *arguments: str) -> Process:
        """Start a process of the old or the new version."""
        env = {"PYTHONPATH": str(OLD)} if version == "old" else {}
        process = self._processes.python(
            "-m", "tests.support.rolling", *arguments, env=env
        )
        process.wait_for(f"durable is {version}", deadline=DEADLINE)
        self._all.append(process)
        return process

    def end(self, *processes: Process) -> None:
        """Send SIGTERM to processes, and check that they end."""
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.wait(deadline=DEADLINE) == 0, process.output()

    def complaints(self) -> list[str]:
        """Return printed lines that report trouble.

        A call that ran into the upgrade's locks is retried: that is no trouble.
        """
        printed = "\n".join(one.output() for one in self._all)
        records = re.split(f"^(?={STARTS})", printed, flags=re.MULTILINE)
        return [one for one in records if one.strip() and not NO_TROUBLE.match(one)]

    def arrived(self) -> int:
        """Return for how many tasks clients got the right result."""
        outputs = "".join(one.output() for one in self._all)
        return sum(map(int, re.findall(r"ARRIVED (\d+)", outputs)))


@pytest.fixture
def fleet(processes: Processes) -> Fleet:
    return Fleet(processes)


@pytest.fixture
def old(dsn: str, db: psycopg.Connection, processes: Processes) -> psycopg.Connection:
    """A session of a database in which the first release has installed itself."""
    db.execute("drop schema durable cascade")
    migrate_old(processes)
    assert db.execute("select durable.version()").fetchone() == ("0.2.0",)
    db.execute(EFFECTS)
    return db


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Return a copy of the packaged SQL, to be changed."""
    copy = Sources(tmp_path)
    copy.carried(monkeypatch)
    return copy


def migrate(dsn: str) -> None:
    with Durable(dsn) as app:
        app.migrate()


def migrate_old(processes: Processes) -> None:
    command = processes.durable("migrate", env={"PYTHONPATH": str(OLD)})
    assert command.wait(deadline=DEADLINE) == 0, command.output()


def schema(session: psycopg.Connection) -> Schema:
    """Return everything an installed engine consists of, function by function."""
    return {*described(session).splitlines(), *bodies(session)}


def value(session: psycopg.Connection, query: str) -> int:
    row = session.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def assert_nothing_went_wrong(db: psycopg.Connection, fleet: Fleet) -> None:
    """Assert that every effect happened exactly once, and nobody saw an error."""
    assert fleet.complaints() == []
    states = "select distinct state::text from durable.tasks"
    assert db.execute(states).fetchall() == [("completed",)]
    trips = value(db, "select count(*) from durable.tasks where name = 'trip'")
    assert value(db, "select count(*) from durable.tasks") == trips * 2
    effects = db.execute("select step, count(*) from public.effects group by step")
    assert dict(effects.fetchall()) == dict.fromkeys(
        ["set out", "run", "arrive"], trips
    )
    assert value(db, DEADLOCKS) == 0


@pytest.mark.slow
def test_is_upgraded_under_load(
    dsn: str,
    old: psycopg.Connection,
    fleet: Fleet,
    sources: Sources,
    *,
    share: Share,
    survived: Survived,
) -> None:
    """First to the current version, then to versions with other function names."""
    workers = [fleet.start("old", "worker"), fleet.start("old", "worker")]
    clients = [fleet.start("old", "client", "old")]

    def upgrade(number: int) -> None:
        seen = value(old, "select count(*) from public.effects")
        migrate(dsn)
        survived("upgrades under load")
        eventually(
            lambda: value(old, "select count(*) from public.effects") > seen + 20,
            deadline=DEADLINE,
            what=f"work after upgrade {number}",
        )

    upgrade(0)
    clients.append(fleet.start("new", "client", "new"))
    workers.append(fleet.start("new", "worker"))
    for number in range(1, share(quick=3, long=50)):
        for one, other in RENAMED.items():
            sources.rename(*((one, other) if number % 2 else (other, one)))
        if number == 2:
            sources.migration("9999_rank.sql", CHANGE)
        upgrade(number)
    fleet.end(*clients)
    fleet.end(*workers)
    assert_nothing_went_wrong(old, fleet)
    tasks = value(old, "select count(*) from durable.tasks where name = 'trip'")
    assert fleet.arrived() == tasks
    survived("tasks through upgrades under load", tasks)


@pytest.mark.slow
def test_finishes_tasks_that_the_other_version_began(
    dsn: str,
    old: psycopg.Connection,
    fleet: Fleet,
    share: Share,
    survived: Survived,
) -> None:
    """Old workers hand over to new ones and, restarted meanwhile, take over again."""
    tasks = share(quick=10, long=300)
    with Durable(dsn, tasks=[trip, errand]) as app:

        def begin(event: str) -> list[TaskHandle[int]]:
            params = [{"number": n, "event": event} for n in range(tasks)]
            return app.spawn_many(trip, params)

        def all_wait() -> bool:
            query = "select count(*) from durable.waits where event_name like 'go%'"
            return value(old, query) == tasks

        def arrive(event: str, handles: list[TaskHandle[int]]) -> None:
            app.emit_event(event)
            found = [handle.result(timeout=DEADLINE) for handle in handles]
            assert found == [2 * number for number in range(tasks)]

        crews = ["old", "new", "old", "new"]
        worker = fleet.start(crews[0], "worker")
        for turn, crew in enumerate(crews[1:]):
            if crew == "new":
                migrate(dsn)
            handles = begin(f"go {turn}")
            eventually(all_wait, deadline=DEADLINE)
            fleet.end(worker)
            worker = fleet.start(crew, "worker")
            arrive(f"go {turn}", handles)
        fleet.end(worker)
    assert_nothing_went_wrong(old, fleet)
    both = """
    select first.version || ' to ' || last.version, count(*)
    from public.effects as first join public.effects as last using (task_id)
    where first.step = 'set out' and last.step = 'arrive'
    group by 1
    """
    assert dict(old.execute(both).fetchall()) == {
        "old to new": 2 * tasks,
        "new to old": tasks,
    }
    survived("tasks begun by one version and finished by another", 3 * tasks)


def test_works_with_the_oldest_engine_it_supports(
    dsn: str, old: psycopg.Connection, fleet: Fleet
) -> None:
    """Raising NEEDS requires that the named engine is released, or is released now."""
    if not [*RELEASES.glob(f"durable*-{_schema.NEEDS}-py3-none-any.whl")]:
        assert _schema.NEEDS == _schema.VERSION
        migrate(dsn)
    worker = fleet.start("new", "worker")
    client = fleet.start("new", "client", "new")
    eventually(
        lambda: value(old, "select count(*) from public.effects") > 50,
        deadline=DEADLINE,
    )
    fleet.end(client)
    fleet.end(worker)
    assert_nothing_went_wrong(old, fleet)


def test_a_migrate_by_the_first_release_does_not_undo_the_upgrade(
    db: psycopg.Connection, processes: Processes
) -> None:
    db.execute("""
    create or replace function durable.version() returns text
    language sql immutable as $$ select '0.2.99' $$
    """)
    before = schema(db)
    command = processes.durable("migrate", env={"PYTHONPATH": str(OLD)})
    assert command.wait(deadline=DEADLINE) == 0
    assert "0.2.99 left as it is" in command.output()
    assert schema(db) == before


def test_a_call_inside_a_replaced_function_can_finish(
    dsn: str, connect: Connect, sources: Sources
) -> None:
    """It waits for a key before it calls a function that the new version lacks."""
    db, first, second = connect(), connect(), connect()
    spawn = """
    select created
    from durable.spawn('default', 'x', '{}', '{"idempotency_key": "key"}')
    """
    waits = (
        "select true from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
    )
    present = """
    select array[to_regproc('durable._insert_tasks'), to_regproc('durable._add')]::text
    """
    for old_name, new_name in RENAMED.items():
        sources.rename(old_name, new_name)
    with ThreadPoolExecutor() as threads:
        with first.transaction(force_rollback=True):
            first.execute(spawn)
            spawning = threads.submit(lambda: second.execute(spawn).fetchall())
            pid = second.info.backend_pid
            eventually(lambda: db.execute(waits, [pid]).fetchone())
            migrating = threads.submit(migrate, dsn)
            both = ("{durable._insert_tasks,durable._add}",)
            eventually(lambda: db.execute(present).fetchone() == both)
        assert spawning.result(DEADLINE) == [(True,)]
        migrating.result(DEADLINE)
    assert db.execute(present).fetchone() == ("{NULL,durable._add}",)


def test_keeps_replaced_functions_until_the_next_upgrade(
    dsn: str, connect: Connect, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable._db._sync.migrate._CALL_SECONDS", 0.1)
    db, other = connect(), connect()
    present = "select to_regproc('durable._lease_by_ctid') is not null"
    sources.rename("_lease_by_ctid", "_grasp")
    with other.transaction():
        other.execute("select durable.version()")
        migrate(dsn)
        assert db.execute(present).fetchone() == (True,)
    migrate(dsn)
    assert db.execute(present).fetchone() == (False,)


@pytest.fixture
def pausing(tmp_path: Path) -> Sources:
    """Return the next version, with a migration."""
    copy = Sources(tmp_path / "next")
    for old_name, new_name in RENAMED.items():
        copy.rename(old_name, new_name)
    copy.migration("9999_rank.sql", CHANGE)
    return copy


def points(sources: Sources) -> list[tuple[str, int]]:
    """Return every place between two statements of a migration, by file and offset."""
    manifest = (sources / "functions.sql").read_text()
    places = [
        ("functions.sql", at.start())
        for at in re.finditer(r"^\\ir", manifest, re.MULTILINE)
    ]
    name = "migrations/9999_rank.sql"
    text = (sources / name).read_text()
    return places + [(name, at.end()) for at in re.finditer(r";\n", text)]


class Interrupted:
    """A process that migrates and is held at one place in the script."""

    def __init__(
        self, processes: Processes, sources: Sources, db: psycopg.Connection
    ) -> None:
        self._processes = processes
        self._sources = sources
        self._db = db

    def held_at(self, file: str, offset: int) -> tuple[Process, int]:
        """Return the process and its backend, once it has reached that place."""
        path = self._sources / file
        text = path.read_text()
        path.write_text(f"{text[:offset]}{PAUSE}{text[offset:]}")
        self._db.execute("select pg_advisory_lock(4711)")
        process = self.start()
        ((pid,),) = eventually(
            lambda: self._db.execute(PAUSED).fetchall(), deadline=DEADLINE
        )
        path.write_text(text)
        return process, pid

    def start(self) -> Process:
        return self._processes.python("-c", MIGRATE, str(self._sources / ""))

    def let_go(self) -> None:
        """Let a held backend continue; return when nobody is connected."""
        self._db.execute("select pg_advisory_unlock_all()")
        others = """
        select count(*) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()
          and backend_type = 'client backend'
        """
        eventually(lambda: value(self._db, others) == 0, deadline=DEADLINE)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill -9", "terminate"])
def test_rolls_back_an_upgrade_interrupted_between_any_two_statements(
    db: psycopg.Connection,
    processes: Processes,
    pausing: Sources,
    *,
    random: Random,
    share: Share,
    survived: Survived,
    how: str,
) -> None:
    places = points(pausing)
    before = schema(db)
    interrupted = Interrupted(processes, pausing, db)
    for place in random.sample(places, share(quick=1, long=len(places) // 2)):
        process, pid = interrupted.held_at(*place)
        if how == "kill -9":
            process.kill()
        else:
            db.execute("select pg_terminate_backend(%s)", [pid])
            assert process.wait(deadline=DEADLINE) == 1
        interrupted.let_go()
        assert schema(db) == before, place
        survived("upgrades cut off between two statements")
    assert interrupted.start().wait(deadline=DEADLINE) == 0
    assert "tasks.rank integer" in described(db)


@pytest.mark.slow
def test_a_killed_upgrade_leaves_the_old_version_or_the_new(
    db: psycopg.Connection,
    processes: Processes,
    pausing: Sources,
    *,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    """One of the two completely; leftovers are removed by the next upgrade."""
    interrupted = Interrupted(processes, pausing, db)
    old = schema(db)
    begun = time.monotonic()
    process = interrupted.start()
    process.wait_for("migrating", deadline=DEADLINE)
    begun = time.monotonic()
    assert process.wait(deadline=DEADLINE) == 0
    took = time.monotonic() - begun
    new = schema(db)
    for _ in range(share(quick=1, long=20)):
        db.execute("drop schema durable cascade")
        db.execute(_schema.script(None))
        process = interrupted.start()
        process.wait_for("migrating", deadline=DEADLINE)
        time.sleep(random.random() * took)
        process.kill()
        interrupted.let_go()
        found = schema(db)
        assert found == old or new <= found <= new | old, sorted(found ^ new)
        survived("upgrades killed at a random moment")
        assert interrupted.start().wait(deadline=DEADLINE) == 0
        assert schema(db) == new


@pytest.mark.slow
def test_rolls_back_an_upgrade_during_which_the_server_crashes(
    own_server: Postgres,
    tmp_path: Path,
    pausing: Sources,
    *,
    random: Random,
    share: Share,
    survived: Survived,
) -> None:
    dsn = own_server.conninfo()
    processes = Processes(tmp_path, {"DURABLE_DATABASE_URL": dsn})
    try:
        for place in random.sample(points(pausing), share(quick=1, long=6)):
            with psycopg.connect(dsn, autocommit=True) as db:
                before = schema(db)
                process, _ = Interrupted(processes, pausing, db).held_at(*place)
                own_server.restart("immediate")
            assert process.wait(deadline=DEADLINE) == 1
            with psycopg.connect(dsn, autocommit=True) as db:
                assert schema(db) == before, place
            survived("servers crashed under an upgrade")
        with psycopg.connect(dsn, autocommit=True) as db:
            assert (
                Interrupted(processes, pausing, db).start().wait(deadline=DEADLINE) == 0
            )
            assert "tasks.rank integer" in described(db)
    finally:
        processes.kill_all()


@pytest.mark.slow
def test_an_upgraded_database_dumps_like_a_new_one(
    own_server: Postgres, tmp_path: Path
) -> None:
    """By pg_dump, including the order of columns; and the data is unchanged."""
    dsn = own_server.conninfo()
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("create database upgraded")
    upgraded = with_dbname(dsn, "upgraded")
    processes = Processes(tmp_path, {"DURABLE_DATABASE_URL": upgraded})
    try:
        migrate_old(processes)
        with psycopg.connect(upgraded, autocommit=True) as db:
            db.execute(EFFECTS)
            fleet = Fleet(processes)
            worker = fleet.start("old", "worker")
            client = fleet.start("old", "client", "old")
            effects = partial(value, db, "select count(*) from public.effects")
            eventually(lambda: effects() > 50, deadline=DEADLINE)
            fleet.end(client)
            fleet.end(worker)
            before = data(db)
            migrate(upgraded)
            after = data(db)
            db.execute("drop table public.effects")
        kept = [was.removesuffix(")") for was in before]  # columns may have been added
        assert [row[: len(was)] for row, was in zip(after, kept, strict=True)] == kept
        assert dumped(own_server, upgraded) == dumped(own_server, dsn)
    finally:
        processes.kill_all()


def data(db: psycopg.Connection) -> list[str]:
    """Return every row of every table, by its primary key."""
    tables = [
        "checkpoints",
        "events",
        "idempotency_keys",
        "deferred_work",
        "runs",
        "tasks",
    ]
    return [
        row
        for table in [*tables, "waits"]
        for (row,) in db.execute(
            psycopg.sql.SQL("select t::text from durable.{} as t order by 1").format(
                psycopg.sql.Identifier(table)
            )
        )
    ]


def dumped(server: Postgres, dsn: str) -> str:
    """Return the output of pg_dump, without the key that is unique to each dump."""
    command = [str(server.binaries / "pg_dump"), "--schema-only", "--dbname", dsn]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.sub(r"^\\(un)?restrict \w+$", "", text, flags=re.MULTILINE)
