"""Run the census: spawn it, kill its worker halfway, start another, approve it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psycopg

from durable import Durable, TaskHandle
from durable._db.conninfo import ENVIRONMENT
from durable.demo.census import Approval, Assignment, Census, Report
from durable.demo.ledger import Ledger
from durable.demo.processes import Direct, WorkerProcess
from durable.demo.proof import Evidence, prove
from durable.demo.records import Progress, Records
from durable.demo.show import Show
from durable.embedded import LaunchFailed, Postgres

__all__ = ["Failed", "play"]

TIMEOUT: Final = 240.0  # seconds for the whole demo, which takes a twentieth of it
POLL: Final = 0.1
MIDWAY_STEPS: Final = 5


class Failed(Exception):
    """The demo cannot continue; the message says why."""


def play(library: Path) -> bool:
    """Run the demo; return whether every claim holds."""
    if not any(library.glob("*.py")):
        raise Failed(f"there are no modules in {library}")
    with ExitStack() as stack:
        show = stack.enter_context(Show())
        home = Path(stack.enter_context(TemporaryDirectory(prefix="durable-demo-")))
        direct = stack.enter_context(Direct(library))  # counts in the background
        dsn = stack.enter_context(database(show))
        queue = f"census-{secrets.token_hex(4)}"
        connection = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        app = stack.enter_context(Durable(dsn, queue=queue))
        app.migrate()
        stack.callback(app.drop_queue)
        stage = Stage(dsn, app, Records(connection, queue), home, show)
        evidence = stage.play(library, direct)
    claims = list(prove(evidence))
    show.summary(claims, [evidence.describe(step) for step in evidence.twice])
    return all(claim.holds for claim in claims)


@contextmanager
def database(show: Show) -> Iterator[str]:
    """Yield the address in the environment, else that of a private Postgres."""
    if given := os.environ.get(ENVIRONMENT):
        yield given
        return
    show.say("starting a Postgres of its own")
    try:
        server = Postgres.start()
    except LaunchFailed as error:
        raise Failed(str(error)) from error
    with server:
        yield server.conninfo()


def is_midway(now: Progress) -> bool:
    """Whether half the modules are counted, and a running one has saved steps."""
    return 0 < now.modules <= 2 * now.done and now.midway >= MIDWAY_STEPS


class Stage:
    """A run of the demo: its queue, files and workers."""

    def __init__(
        self, dsn: str, app: Durable, records: Records, home: Path, show: Show
    ) -> None:
        self.dsn = dsn
        self.app = app
        self.records = records
        self.show = show
        self.ledger = Ledger(home / "ledger")
        self.report = home / "report.json"
        self.log = home / "log"
        self.deadline = time.monotonic() + TIMEOUT

    def play(self, library: Path, direct: Direct) -> Evidence:
        """Run the census up to its report, and collect the evidence."""
        self.show.say(
            f"Postgres {self.records.server_version}, durable installed in it"
        )
        assignment = Assignment(library=library, report=self.report)
        handle = self.app.spawn(Census, assignment)
        with self.worker() as killed:
            self.kill_midway(killed)
        with self.worker() as successor:
            report = self.finish(successor, handle)
            successor.stop()
        return Evidence(
            report=report,
            written=self.report.read_text(),
            direct=direct.result(),
            ledger=self.ledger.read(),
            attempts=self.records.attempts(),
            checkpoints=self.records.checkpoints(),
            killed=killed.pid,
            killed_exit=killed.exit_code,
            successor=successor.pid,
            successor_exit=successor.exit_code,
        )

    def worker(self) -> WorkerProcess:
        """Start a worker."""
        worker = WorkerProcess(self.dsn, self.app.queue, self.ledger.path, self.log)
        self.show.say(f"worker {worker.pid} started")
        return worker

    def kill_midway(self, worker: WorkerProcess) -> None:
        """Let the worker do half of the work, then kill it."""
        now = self.watch(
            worker, lambda now: is_midway(now) or 0 < now.modules == now.done
        )
        if not is_midway(now):
            raise Failed("the census finished before it could be killed")
        worker.kill()
        self.show.say(
            f"kill -9 {worker.pid}: "
            f"it held {now.held} modules, {now.midway} of their steps saved",
            "bold red",
        )

    def finish(self, worker: WorkerProcess, handle: TaskHandle[Report]) -> Report:
        """Wait for the modules, approve the census, and return its report."""
        self.watch(worker, lambda now: now.done == now.modules)
        self.show.say("all modules counted: the parent joins them, and sleeps")
        self.watch(worker, lambda _: self.records.waits_for("approved"))
        self.show.say("the parent waits for its event: approved, by the demo")
        self.app.emit_event("approved", Approval(by="the demo"))
        return handle.result(timeout=self.deadline - time.monotonic())

    def watch(
        self, worker: WorkerProcess, reached: Callable[[Progress], bool]
    ) -> Progress:
        """Show the progress until `reached` returns true; return it then."""
        while True:
            now = self.records.progress()
            self.show.progress(now)
            if reached(now):
                return now
            if worker.exit_code is not None:
                raise Failed(f"worker {worker.pid} has ended:\n{self.log.read_text()}")
            if time.monotonic() > self.deadline:
                raise Failed(f"it takes too long: {now}\n{self.log.read_text()}")
            time.sleep(POLL)
