"""Where a benchmark runs: one server, a new database for every round.

A database is a copy of its contender's template and is dropped after the round, which
ends in a checkpoint: every round begins with the same clean server. Processes of a
round are killed when it ends, for any reason.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from durable.embedded import Postgres
from durable.testing._dsn import with_dbname
from tests.bench.contenders import Contender
from tests.bench.proc import Usage, family_cpu
from tests.support.processes import ROOT, Process
from tests.support.wait import eventually

__all__ = ["SETTINGS", "Failed", "Place", "Section", "Worker"]

SETTINGS: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "300",
    "log_parameter_max_length": "0",
    "log_line_prefix": "[%d] ",
}
CONCURRENCY: Final = "DURABLE_BENCH_CONCURRENCY"
DIRECTORIES: Final = re.compile(r"(?<![\w:/])/(?:[\w.+-]+/)+")
PATIENCE: Final = 300.0  # seconds for one step of a round


class Failed(RuntimeError):
    """A contender has failed; the message is the last line of its error."""


@dataclass(frozen=True, slots=True)
class Section:
    """A batch_size of tasks that a worker has run: nanoseconds of the shared clock."""

    first: int
    ended: list[int]
    delays: list[int]

    def rate(self, until: int | None = None) -> float:
        """Return tasks per second, from the first start until that time."""
        return len(self.ended) / (((until or self.ended[-1]) - self.first) / 1e9)

    def rate_between(self, begin: int, end: int) -> float:
        """Return tasks per second that ended in a window."""
        inside = sum(begin <= moment < end for moment in self.ended)
        return inside / ((end - begin) / 1e9)


class Worker:
    """A contender's worker in a process of its own, and the record it keeps."""

    def __init__(self, process: Process, record: Path, gate: Path) -> None:
        self._process = process
        self._record = record
        self._gate = gate

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def cpu(self) -> float:
        """The CPU seconds it has used."""
        return Usage.of(self.pid).own

    def is_up(self) -> bool:
        """Whether its interpreter waits at the gate; raise if it has ended."""
        self._check()
        return self._gate.with_name(f"{self._gate.name}.{self.pid}").exists()

    def section(self, number: int = 0) -> Section:
        """Wait until so many sections have ended, and return the last one."""
        path = self._record.with_name(f"{self._record.name}.{number}")

        def written() -> bool:
            self._check()
            return path.exists()

        _patiently(written, f"section {number}")
        found: dict[str, Any] = json.loads(path.read_text())
        return Section(**found)

    def _check(self) -> None:
        if self._process.exit_code is not None:
            raise Failed(_last_line(self._process.output()))


class Place:
    """A server to measure on."""

    def __init__(self, dsn: str, directory: Path, server: Postgres | None) -> None:
        self.dsn = dsn
        self.server = server
        self._directory = directory
        self._prefix = f"bench_{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}

    @classmethod
    @contextlib.contextmanager
    def own(cls) -> Iterator[Self]:
        """Start a new server, with fsync on, and end it with everything in it."""
        binaries = os.environ.get("DURABLE_TEST_PG_BIN")
        with (
            tempfile.TemporaryDirectory() as directory,
            Postgres.start(settings=SETTINGS, binaries=binaries, tcp=True) as server,
        ):
            yield cls(server.conninfo(), Path(directory), server)

    @contextlib.contextmanager
    def database(self, contender: Contender) -> Iterator[str]:
        """Create a database with a contender installed in it."""
        template = self._template(contender)
        name = f"{self._prefix}_{contender.key}_{next(self._numbers)}"
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            _execute(admin, "create database {} template {}", name, template)
            try:
                yield with_dbname(self.dsn, name)
            finally:
                _execute(admin, "drop database {} with (force)", name)

    def drop_templates(self) -> None:
        """Drop the templates of all contenders."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            for name in self._templates.values():
                _execute(admin, "drop database {} with (force)", name)
        self._templates.clear()

    def run(self, contender: Contender, command: str, *arguments: object) -> str:
        """Run a contender's command to its end and return what it printed."""
        program = [sys.executable, "-m", contender.module]
        try:
            done = subprocess.run(
                [*program, command, *map(str, arguments)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{command} took more than {PATIENCE:.0f} s") from None
        if done.returncode:
            raise Failed(_last_line(done.stderr))
        return done.stdout

    @contextlib.contextmanager
    def workers(
        self,
        contender: Contender,
        dsn: str,
        kind: str,
        *quantities: int,
        count: int = 1,
        concurrency: int | None = None,
    ) -> Iterator[list[Worker]]:
        """Start workers that all begin at once, when their interpreters are up."""
        gate = self._path("gate")
        env = {} if concurrency is None else {CONCURRENCY: str(concurrency)}
        with contextlib.ExitStack() as ending:
            started = []
            for _ in range(count):
                record = self._path("record")
                command = [sys.executable, "-m", contender.module, "work", dsn, kind]
                command += [str(record), str(gate), *map(str, quantities)]
                process = Process(command, self._path("log"), env)
                ending.callback(process.kill)
                started.append(Worker(process, record, gate))
            _patiently(lambda: all(one.is_up() for one in started), "workers")
            gate.touch()
            yield started

    @contextlib.contextmanager
    def worker(
        self,
        contender: Contender,
        dsn: str,
        kind: str,
        *quantities: int,
        concurrency: int | None = None,
    ) -> Iterator[Worker]:
        """Start one worker; its record has a section for each of the quantities."""
        with self.workers(
            contender, dsn, kind, *quantities, concurrency=concurrency
        ) as (worker,):
            yield worker

    def until_counted(
        self, contender: Contender, dsn: str, batch_size: int, pause: float = 0.005
    ) -> int:
        """Return when the database counts so many tasks as finished."""
        with psycopg.connect(dsn, autocommit=True) as connection:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                row = connection.execute(contender.done.encode()).fetchone()
                if row is not None and row[0] >= batch_size:
                    return time.monotonic_ns()
                time.sleep(pause)
        raise Failed(f"{batch_size} tasks were not finished in {PATIENCE:.0f} s")

    def wake_here(
        self, contender: Contender, dsn: str, wakes: int
    ) -> tuple[Section, tuple[list[int], list[int]]]:
        """Wake a worker from its own process; return its delays, and its output."""
        record = self._path("record")
        command = [sys.executable, "-m", contender.module, "wake-here", dsn]
        process = Process([*command, str(record), str(wakes)], self._path("log"), {})
        try:
            section = Worker(process, record, record).section()
            return section, json.loads(process.wait_for("]]", deadline=PATIENCE))
        finally:
            process.kill()

    def pgbench(self, dsn: str, script: str, clients: int, seconds: int) -> float:
        """Return how many transactions per second pgbench runs."""
        file = self._path("script")
        file.write_text(script)
        program = "pgbench" if self.server is None else self.server.binaries / "pgbench"
        options = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2"]
        options += ["-T", str(seconds), "-f", str(file), dsn]
        done = subprocess.run(
            [str(program), *options], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed(_last_line(done.stderr))
        return float(done.stdout.partition("tps = ")[2].split()[0])

    @contextlib.contextmanager
    def setting(self, name: str, value: str) -> Iterator[None]:
        """Run the server with another setting for a while."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            admin.execute(f"alter system set {name} = {value}")
            admin.execute("select pg_reload_conf()")
            admin.execute("checkpoint")
            try:
                yield
            finally:
                admin.execute(f"alter system reset {name}")
                admin.execute("select pg_reload_conf()")

    def server_log(self) -> str:
        """Return what the server has logged so far."""
        if self.server is None:
            raise Failed("the log of this server is not ours to read")
        return (self.server.home / "log").read_text(errors="replace")

    def server_cpu(self) -> float:
        """Return the CPU seconds of the server, its ended processes included."""
        if self.server is None:
            raise Failed("the processes of this server are not ours to read")
        lines = (self.server.data_dir / "postmaster.pid").read_text().splitlines()
        return family_cpu(int(lines[0]))

    def _template(self, contender: Contender) -> str:
        if contender.key not in self._templates:
            name = f"{self._prefix}_{contender.key}"
            with psycopg.connect(self.dsn, autocommit=True) as admin:
                _execute(admin, "drop database if exists {}", name)
                _execute(admin, "create database {}", name)
            self.run(contender, "prepare", with_dbname(self.dsn, name))
            self._templates[contender.key] = name
        return self._templates[contender.key]

    def _path(self, what: str) -> Path:
        return self._directory / f"{what}-{next(self._numbers)}"


def _patiently(condition: Any, what: str) -> None:
    try:
        eventually(condition, deadline=PATIENCE, what=what)
    except AssertionError as error:
        raise Failed(str(error)) from error


def _execute(session: psycopg.Connection, statement: str, *names: str) -> None:
    session.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _last_line(output: str) -> str:
    """Return the last line of an error, without paths of this machine."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return DIRECTORIES.sub("", lines[-1]) if lines else "ended without a word"
