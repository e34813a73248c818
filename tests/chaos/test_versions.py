"""durable is upgraded under load, and old and new packages work side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random

import psycopg
import pytest

from durable import Durable
from tests.support.processes import Process, Processes
from tests.support.rolling import EFFECTS, OLD, trip
from tests.support.sources import Sources
from tests.support.survival import Share, Survived
from tests.support.wait import eventually


class Fleet:
    """Old and new workers and clients of one database."""

    def __init__(self, processes: Processes, db: psycopg.Connection) -> None:
        self._processes = processes
        self._db = db
        self._all: list[Process] = []

    def start(self, version: str, *arguments: str) -> Process:
        """Start a process of the old or the new version."""
        env = {"PYTHONPATH": str(OLD)} if version == "old" else {}
        process = self._processes.python(
            "-m", "tests.support.rolling", *arguments, env=env
        )
        process.wait_for(f"durable is {version}", deadline=60)
        self._all.append(process)
        return process

    def end(self, *processes: Process) -> None:
        """Let processes end as an init system does, and see that they do."""
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.wait(deadline=60) == 0, process.output()

    def complaints(self) -> list[str]:
        """What any of them had to complain about, by what it begins with."""
        lines = [
            line for process in self._all for line in process.output().splitlines()
        ]
        return [line for line in lines if not line.startswith(("INFO", "ARRIVED"))]


def migrate(dsn: str) -> None:
    with Durable(dsn) as app:
        app.migrate()


@pytest.fixture
def old(dsn: str, db: psycopg.Connection, processes: Processes) -> psycopg.Connection:
    db.execute("drop schema durable cascade")
    command = processes.durable("migrate", env={"PYTHONPATH": str(OLD)})
    assert command.wait() == 0, command.output()
    db.execute(EFFECTS)
    assert db.execute("select durable.version()").fetchone() == ("0.1.0",)
    return db


@pytest.fixture
def fleet(processes: Processes, db: psycopg.Connection) -> Fleet:
    return Fleet(processes, db)


def test_upgrades_under_load(
    dsn: str,
    old: psycopg.Connection,
    fleet: Fleet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import time

    sources = Sources(tmp_path)
    workers = [fleet.start("old", "worker") for _ in range(2)]
    clients = [fleet.start("old", "client", f"c{n}") for n in range(2)]
    t = time.monotonic()
    migrate(dsn)
    print("real upgrade", time.monotonic() - t)
    sources.carried(monkeypatch)
    for n in range(30):
        sources.rename(*(["_take", "_grasp"] if n % 2 == 0 else ["_grasp", "_take"]))
        sources.rename(
            *(["_enqueue", "_line_up"] if n % 2 == 0 else ["_line_up", "_enqueue"])
        )
        sources.rename(*(["_settle", "_calm"] if n % 2 == 0 else ["_calm", "_settle"]))
        t = time.monotonic()
        migrate(dsn)
        print("upgrade", time.monotonic() - t)
        time.sleep(0.1)
    fleet.end(*clients)
    fleet.end(*workers)
    for c in clients:
        print(c.output()[-500:])
    for c in fleet.complaints():
        print(c)
    assert 0
