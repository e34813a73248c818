"""Workers and clients in processes of their own, under load until the block is left.

    with Scene(directory, conninfo, server.conninfo(), seed) as scene:
        scene.start(workers=2, clients=1)
        ...
        scene.goes_on()
    counts = scene.counts

Leaving the block lets the clients finish what they have begun, stops the workers, and
compares the clients' journals with the database.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGSTOP
from types import TracebackType
from typing import Final, Self

import psycopg

from tests.chaos.ledger import Ledger
from tests.chaos.load import TABLES
from tests.support.processes import Process, Processes
from tests.support.wait import eventually

__all__ = ["Scene"]

LOAD: Final = ("-m", "tests.chaos.load")
CLIENT: Final = {"PGAPPNAME": "client"}
HELD: Final = """
select count(*) from durable.tasks where claim %% 2 = 1 and worker ~ %s
"""


class Scene:
    """`conninfo` is where the load connects.

    `direct` is where the final state is read.
    """

    def __init__(
        self, directory: Path, conninfo: str, direct: str, random: Random
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.direct = direct
        self._directory = directory
        self._random = random
        self._seed = str(random.random())
        self._names = itertools.count()
        self._processes = Processes(directory, {"DURABLE_DATABASE_URL": conninfo})
        self._workers: list[Process] = []
        self._clients: list[Process] = []

    def __enter__(self) -> Self:
        with psycopg.connect(self.direct) as db:
            db.execute(TABLES)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if exc is None:
                self._finish()
        finally:
            self._processes.kill_all()

    def start(self, *, workers: int = 2, clients: int = 1) -> None:
        """Start more of them, and wait until they are at work."""
        for _ in range(workers):
            self._workers.append(self._processes.python(*LOAD, "worker"))
        for _ in range(clients):
            journal = self._directory / f"client-{next(self._names)}.journal"
            journal.touch()
            client = [*LOAD, "client", str(journal), self._seed]
            self._clients.append(self._processes.python(*client, env=CLIENT))
            eventually(partial(_has_begun, journal), deadline=60, what="a client")
        self.goes_on()

    def goes_on(self, *, more: int = 5) -> None:
        """Wait until clients got more acknowledgements, and more results."""
        acknowledged, results = (
            self._history_row("ack") + more,
            self._history_row("result") + 1,
        )
        eventually(
            lambda: (
                self._history_row("ack") >= acknowledged
                and self._history_row("result") >= results
            ),
            deadline=60,
            what="somebody got an answer",
        )

    # -- faults of processes -------------------------------------------------------

    def kill_worker(self) -> None:
        """Kill one with SIGKILL; another takes its place."""
        self._pop(self._workers).kill()
        self._workers.append(self._processes.python(*LOAD, "worker"))

    def kill_client(self) -> None:
        """Kill one with SIGKILL; another one continues with other intents."""
        self._pop(self._clients).kill()
        self.start(workers=0, clients=1)

    def stop_worker(self) -> None:
        """Stop one until others have claimed all it held, and let it continue."""
        pid = self._random.choice(self._workers).pid
        os.kill(pid, SIGSTOP)
        try:
            with psycopg.connect(self.direct, autocommit=True) as db:
                eventually(
                    lambda: _held(db, pid) == 0, deadline=60, what="leases ended"
                )
        finally:
            os.kill(pid, SIGCONT)

    def _pop(self, processes: list[Process]) -> Process:
        return processes.pop(self._random.randrange(len(processes)))

    # -- the end -------------------------------------------------------------------

    def _finish(self) -> None:
        for client in self._clients:
            client.terminate()
        for client in self._clients:
            assert client.wait(deadline=120) == 0, client.output()
        ledger = Ledger(self._journals())
        with psycopg.connect(self.direct, autocommit=True) as db:
            ledger.settle(db)
            self.counts.update(ledger.check(db))
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            assert worker.wait(deadline=60) == 0, worker.output()

    def _journals(self) -> list[Path]:
        return sorted(self._directory.glob("*.journal"))

    def _history_row(self, what: str) -> int:
        line = f'"what": "{what}"'
        return sum(journal.read_text().count(line) for journal in self._journals())


def _has_begun(journal: Path) -> bool:
    return journal.stat().st_size > 0


def _held(db: psycopg.Connection, pid: int) -> int:
    row = db.execute(HELD, [f":{pid}:"]).fetchone()
    assert row is not None
    return int(row[0])
