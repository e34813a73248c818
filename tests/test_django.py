"""Django's connections survive a database restart.

Its tests use their test database.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from durable.embedded import Postgres
from tests.support.processes import Process, Processes
from tests.support.wait import eventually

CONFIGURE: Final = """
import os
from psycopg.conninfo import conninfo_to_dict
import django
from django.conf import settings

address = conninfo_to_dict(os.environ["DURABLE_DATABASE_URL"])
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": address["dbname"], "USER": address.get("user", ""),
    "HOST": address.get("host", ""), "PORT": address.get("port", ""),
    "CONN_MAX_AGE": AGE,
}})
django.setup()
"""

TASKS: Final = """
from asgiref.sync import sync_to_async
from django.db import connection
from durable import AsyncDurable, Retry, task

def note(number):
    with connection.cursor() as cursor:
        cursor.execute("insert into notes values (%s)", [number])

@task(retry=Retry.fixed(0.2), max_attempts=MOST)
def in_a_task(number, ctx):
    note(number)

@task(retry=Retry.fixed(0.2), max_attempts=MOST)
def in_a_step(number, ctx):
    ctx.step("note", note, number)

@task(retry=Retry.fixed(0.2), max_attempts=MOST)
async def in_a_step_of_async(number, ctx):
    await ctx.step("note", note, number)

@task(retry=Retry.fixed(0.2), max_attempts=MOST)
async def by_sync_to_async(number, ctx):
    await sync_to_async(note)(number)

app = AsyncDurable(tasks=[in_a_task, in_a_step, in_a_step_of_async, by_sync_to_async])
"""

SPAWN: Final = """
select count(*) from generate_series(1, %s) as number
cross join unnest(%s::text[]) as name
cross join lateral durable.spawn('default', name, to_jsonb(number)) as spawned
"""
NAMES: Final = ["in-a-task", "in-a-step", "in-a-step-of-async", "by-sync-to-async"]
ENDED: Final = "select state::text, count(*) from durable.tasks group by state"

SUITE: Final = """
import sys
from django.test import TestCase
from django.test.runner import DiscoverRunner
from django.db import connection
from durable import Durable, Task
from durable.testing import spawned

class Ship(Task[int, None]):
    def run(self, order, ctx): ...

app = Durable(tasks=[Ship])

class ShopTest(TestCase):
    def test_spawns(self):
        with connection.cursor() as cursor:
            cursor.execute("select current_database()")
            (name,) = cursor.fetchone()
        assert name.startswith("test_"), name
        assert conninfo_to_dict(app._application.conninfo)["dbname"] == name
        with app:
            app.migrate()
            app.spawn(Ship, 7)
            assert [one.params for one in spawned(app, Ship)] == [7]

class Runner(DiscoverRunner):
    def build_suite(self, *args, **options):
        import unittest
        return unittest.defaultTestLoader.loadTestsFromTestCase(ShopTest)

sys.exit(Runner(verbosity=0, interactive=False).run_tests([]))
"""


REFUSED: Final = """
from django.db import connection
from django.test.utils import setup_test_environment
from durable import Durable, InvalidArgument

app = Durable()
setup_test_environment()
connection.settings_dict["NAME"] = "others"
try:
    app.list_queues()
except InvalidArgument as error:
    print(error)
"""


def script(tmp_path: Path, text: str, **names: Any) -> Path:
    """Save a program, with these words replaced."""
    for name, value in names.items():
        text = text.replace(name, repr(value))
    path = tmp_path / "shop.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("age", "most"), [(0, 1), (None, 5)], ids=["a connection each", "kept connections"]
)
def test_a_restart_of_the_database_fails_no_task(
    own_server: Postgres, tmp_path: Path, age: int | None, most: int
) -> None:
    """Persistent connections fail once in each thread; the next attempt succeeds."""
    dsn = own_server.conninfo()
    script(tmp_path, CONFIGURE + TASKS, AGE=age, MOST=most)
    processes = Processes(tmp_path, {"DURABLE_DATABASE_URL": dsn})
    worker: Process = processes.durable(
        "worker", "shop:app", env={"PYTHONPATH": str(tmp_path)}
    )

    def completed(tasks: int) -> bool:
        with psycopg.connect(dsn, autocommit=True) as db:
            return dict(db.execute(ENDED).fetchall()) == {"completed": tasks}

    try:
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("create table notes (number int)")
            db.execute(SPAWN, [5, NAMES])
        eventually(lambda: completed(20), deadline=30, what="tasks before the restart")
        own_server.restart("fast")
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute(SPAWN, [20, NAMES])
        eventually(lambda: completed(100), deadline=60, what=worker.output())
    finally:
        processes.kill_all()


def test_django_tests_use_the_test_database(dsn: str, tmp_path: Path) -> None:
    """Although the application was created with the address of the real one."""
    path = script(tmp_path, CONFIGURE + SUITE, AGE=0)
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "DURABLE_DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(dsn) as db:
        assert db.execute("select count(*) from durable.tasks").fetchone() == (0,)


def test_refuses_a_database_that_djangos_tests_do_not_use(
    dsn: str, tmp_path: Path
) -> None:
    """Where the settings name another test database."""
    named = CONFIGURE.replace('"NAME":', '"TEST": {"NAME": "others"}, "NAME":')
    path = script(tmp_path, named + REFUSED, AGE=0)
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "DURABLE_DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        check=True,
    )
    name = conninfo_to_dict(dsn)["dbname"]
    said = f'Django\'s tests run in "others", and durable\'s database is "{name}"'
    assert said in done.stdout
