"""Worker processes start, stop at a signal, and end as Unix processes should."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from durable import Durable, InvalidArgument, TaskHandle, run_worker
from tests.support.processes import Process, Processes
from tests.support.wait import eventually

Work: TypeAlias = Callable[..., Process]

UNREACHABLE = "postgresql://postgres@127.0.0.1:1/postgres"

APP = """
import os
import time
from pathlib import Path
from durable import AsyncDurable, task

def wait_for_the_gate() -> int:
    print("at the gate:", os.getpid(), flush=True)
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    return os.getpid()

@task(name="wait")
async def wait(params: None, ctx) -> int:
    return await ctx.step("wait", wait_for_the_gate)

@task(name="block", max_attempts=1)
async def block(params: None, ctx) -> int:
    return wait_for_the_gate()

app = AsyncDurable(tasks=[wait, block])
"""

SUPERVISOR = """
import os, sys
os.chdir(sys.argv[1])
import durable
durable.run_worker("shop:app", processes=2)
"""

# Stands in for the extra "fast", so that its use can be observed.
UVLOOP = """
import asyncio, os

def new_event_loop():
    print("a loop of", os.getpid(), flush=True)
    return asyncio.new_event_loop()
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file without which the tasks do not end."""
    return tmp_path / "gate"


@pytest.fixture
def work(processes: Processes, tmp_path: Path, gate: Path) -> Work:
    """Start `durable worker` for APP, or for another source."""

    def work(*options: str, app: str = APP, **environment: str) -> Process:
        (tmp_path / "shop.py").write_text(app)
        # under nohup, which tests may run in, SIGHUP is ignored
        code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        code += "from durable.cli import main; main()"
        return processes.python(
            *("-c", code, "worker", "shop:app", *options),
            env={"PYTHONPATH": str(tmp_path), "GATE": str(gate), **environment},
        )

    return work


def at_the_gate(process: Process, many: int) -> list[int]:
    """Wait until so many tasks run; return the processes in which they do."""

    def pids() -> list[int]:
        lines = process.output().splitlines()
        return [int(line.split()[-1]) for line in lines if "at the gate" in line]

    eventually(lambda: len(pids()) == many, deadline=60, what=process.output())
    return pids()


def wait_for_all(process: Process, text: str, many: int) -> None:
    """Wait until the text was printed so often, or the process has ended."""
    eventually(
        lambda: process.output().count(text) == many or process.exit_code is not None,
        deadline=20,
    )


def has_ended(pid: int) -> bool:
    """Whether there is no such process, except for a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def states(handles: list[TaskHandle[Any]]) -> list[tuple[str, int]]:
    return [(found.state, found.attempt) for found in (h.snapshot() for h in handles)]


# -- signals ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGTERM to all"])
def test_one_signal_lets_tasks_finish_in_every_process(
    dsn: str, work: Work, gate: Path, number: str
) -> None:
    """Also if the init system sends it to every process, as systemd does."""
    many = 1 if number == "SIGHUP" else 2
    name, _, to_all = number.partition(" to ")
    worker = work("--processes", str(many), "--concurrency", "1")
    with Durable(dsn) as client:
        handles = client.spawn_many("wait", [None] * many)
        pids = at_the_gate(worker, many)
        for pid in {worker.pid, *(pids if to_all else [])}:
            os.kill(pid, signal.Signals[name])
        wait_for_all(worker, "is stopping", many)
        gate.touch()
        assert worker.wait() == 0
        assert states(handles) == [("completed", 1)] * many
        assert {handle.result() for handle in handles} == set(pids)
    assert all(has_ended(pid) for pid in pids)
    assert worker.output().count("has stopped") == many


@pytest.mark.parametrize("many", [1, 2])
@pytest.mark.parametrize("task", ["wait", "block"])
def test_the_second_signal_ends_every_process(
    dsn: str, work: Work, many: int, task: str
) -> None:
    """Also if code blocks the loop."""
    worker = work("--processes", str(many), "--concurrency", "1")
    with Durable(dsn) as client:
        handles = client.spawn_many(task, [None] * many)
        pids = at_the_gate(worker, many)
        worker.terminate()
        if task == "wait":
            wait_for_all(worker, "is stopping", many)
            worker.terminate()
        while worker.exit_code is None:  # two that arrive together count as one
            worker.terminate()
            time.sleep(0.05)
        assert worker.wait() == 128 + signal.SIGTERM
        eventually(lambda: all(has_ended(pid) for pid in pids))
        assert states(handles) == [("running", 1)] * many


def test_a_repeated_sighup_is_not_a_second_signal(
    dsn: str, work: Work, gate: Path
) -> None:
    """A terminal that is closed sends several."""
    worker = work()
    with Durable(dsn) as client:
        handle = client.spawn("wait")
        at_the_gate(worker, 1)
        for _ in range(3):
            os.kill(worker.pid, signal.SIGHUP)
            eventually(lambda: not has_pending_signals(worker.pid))
        worker.wait_for("is stopping")
        gate.touch()
        assert worker.wait() == 0
        assert states([handle]) == [("completed", 1)]


def test_tasks_finish_when_the_supervisor_is_killed(
    dsn: str, work: Work, gate: Path
) -> None:
    """Not even `kill -9` leaves workers behind."""
    worker = work("--processes", "2", "--concurrency", "1")
    with Durable(dsn) as client:
        handles = client.spawn_many("wait", [None] * 2)
        pids = at_the_gate(worker, 2)
        os.kill(worker.pid, signal.SIGKILL)
        wait_for_all(worker, "is stopping", 2)
        gate.touch()
        eventually(lambda: all(has_ended(pid) for pid in pids), deadline=20)
        assert states(handles) == [("completed", 1)] * 2


@pytest.mark.parametrize("many", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stops_while_the_database_is_down(
    work: Work, many: str, number: signal.Signals
) -> None:
    worker = work("--processes", many, DURABLE_DATABASE_URL=UNREACHABLE)
    worker.wait_for("trying again")
    os.kill(worker.pid, number)
    assert worker.wait(deadline=10) == 0


def test_stops_during_startup(work: Work) -> None:
    """An application's lifespan may take its time, too."""
    slow = """
@contextlib.asynccontextmanager
async def slow():
    print("prepares", flush=True)
    await asyncio.Event().wait()
    yield

app = AsyncDurable(tasks=[wait], lifespan=slow)
"""
    worker = work(app=f"import asyncio, contextlib\n{APP}\n{slow}")
    worker.wait_for("prepares")
    worker.terminate()
    assert worker.wait() == 0


@pytest.mark.parametrize("many", ["1", "2"])
def test_reports_once_that_the_server_refuses_it(
    dsn: str, work: Work, many: str
) -> None:
    nowhere = make_conninfo(dsn, dbname="nowhere")
    worker = work("--processes", many, DURABLE_DATABASE_URL=nowhere)
    assert worker.wait(deadline=30) == 1
    assert worker.output().count('database "nowhere" does not exist') == 1
    assert worker.output().splitlines()[-1].startswith("durable: ")


def test_ends_when_the_server_refuses_it_later(
    dsn: str, db: psycopg.Connection[Any], work: Work
) -> None:
    role = f"gone_of_{db.info.dbname}"
    password = sql.Literal(db.info.password or "any")
    create = f"create role {role} login superuser password "
    db.execute(sql.SQL(create) + password)
    try:
        worker = work(DURABLE_DATABASE_URL=make_conninfo(dsn, user=role))
        worker.wait_for("has started")
        db.execute(f"alter role {role} rename to {role}_since")
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where usename = %s and datname = current_database()",
            [f"{role}_since"],
        )
        assert worker.wait(deadline=30) == 1
        assert worker.output().splitlines()[-1].startswith("durable: ")
    finally:
        db.execute(f"drop role if exists {role}, {role}_since")


@pytest.mark.parametrize(
    ("variable", "code"), [("DURABLE_APP_VERSION", 0), ("DURABLE_DATABASE_URL", 1)]
)
def test_treats_an_empty_variable_as_unset(
    work: Work, variable: str, code: int
) -> None:
    worker = work(**{variable: ""})
    if code == 0:
        worker.wait_for("has started")
        worker.terminate()
    assert worker.wait() == code
    assert ("no database was given" in worker.output()) == (code == 1)


INTERRUPTED = """
import signal
import threading
from durable import Durable
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
try:
    with Durable().worker():
        print("unreachable")
except KeyboardInterrupt:
    print("interrupted", flush=True)
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(10)
print(threading.active_count(), "thread left", flush=True)
"""


def test_stops_a_worker_in_a_thread_that_has_not_started(processes: Processes) -> None:
    program = processes.python(
        *("-c", INTERRUPTED), env={"DURABLE_DATABASE_URL": UNREACHABLE}
    )
    program.wait_for("trying again")
    os.kill(program.pid, signal.SIGINT)
    program.wait_for("interrupted")
    program.wait_for("1 thread left")


@contextmanager
def handlers_as_they_were() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("many", [1, 2])
@pytest.mark.parametrize(
    "options", [{"queues": [1]}, {"queues": 5}, {"lease": "1"}, {"colour": "red"}]
)
def test_refuses_options_before_it_handles_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int, options: Any
) -> None:
    (tmp_path / "refusing.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    with handlers_as_they_were(), pytest.raises(InvalidArgument):
        run_worker("refusing:app", processes=many, **options)


@pytest.mark.parametrize("many", [1, 2])
def test_handles_signals_in_the_main_thread_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    (tmp_path / "threaded.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    with (
        handlers_as_they_were(),
        ThreadPoolExecutor() as threads,
        pytest.raises(RuntimeError, match="main thread"),
    ):
        threads.submit(run_worker, "threaded:app", processes=many).result()


# -- processes that die ----------------------------------------------------------------

IN_A_CHILD = """
import os, signal, sys
if sys.argv[0] == "-c" and sys.argv[1] != "worker":
    {deed}
"""


@pytest.mark.parametrize(
    ("deed", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "by SIGSEGV"),
        ("os._exit(3)", "with exit code 3"),
    ],
)
def test_restarts_crashing_processes_with_backoff(
    work: Work, deed: str, how: str
) -> None:
    worker = work("--processes", "2", app=IN_A_CHILD.format(deed=deed) + APP)
    worker.wait_for("starts in 1 s", deadline=60)
    assert f"has ended {how}; the next one starts in 0.5 s" in worker.output()
    worker.terminate()
    assert worker.wait(deadline=5) == 0


@pytest.mark.parametrize("deed", ["import nowhere", "raise RuntimeError('nowhere')"])
def test_ends_when_a_process_cannot_import_the_application(
    work: Work, deed: str
) -> None:
    worker = work("--processes", "2", app=IN_A_CHILD.format(deed=deed) + APP)
    assert worker.wait(deadline=30) == 1
    last = worker.output().splitlines()[-1]
    assert last.startswith("durable: ")
    assert "nowhere" in last


# -- processes that a step starts ------------------------------------------------------

FORKING = """
import multiprocessing, os, signal, subprocess, sys, time
from durable import AsyncDurable, task

def fork():
    if (pid := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    return -os.WTERMSIG(os.waitpid(pid, 0)[1])

def leave():
    if (pid := os.fork()) == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def start(method):
    process = multiprocessing.get_context(method).Process(target=time.sleep, args=[60])
    process.start()
    process.terminate()
    process.join(20)
    return process.exitcode

def run():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.terminate()
    return process.wait()

WAYS = [fork, run, leave, *([start, method] for method in ("fork", "forkserver"))]

@task(name="spawn_all")
async def spawn_all(params: None, ctx) -> list[int]:
    found = []
    for way in WAYS:
        function, *args = way if isinstance(way, list) else [way]

        async def inline():
            return function(*args)

        found.append(await ctx.step("in the loop", inline))
        found.append(await ctx.step("in a thread", function, *args))
    return found

@task(name="here")
async def here(params: None, ctx) -> int:
    return os.getpid()

app = AsyncDurable(tasks=[spawn_all, here])
"""


def test_continues_when_a_step_terminates_its_subprocesses(
    dsn: str, work: Work
) -> None:
    """A child inherits handlers and sockets from its parent until it execs."""
    worker = work(app=FORKING)
    with Durable(dsn) as client:
        found = client.spawn("spawn_all").result(timeout=60)
        assert found == [-15, -15, -15, -15, 7, 7, -15, -15, -15, -15]
        assert client.spawn("here").result(timeout=10) == worker.pid
    assert "stopping" not in worker.output()
    worker.terminate()
    assert worker.wait() == 0


HOSTED = """
import asyncio, os, signal, time
from durable import AsyncDurable, task

@task(name="fork")
async def fork(params: None, ctx) -> int:
    if (pid := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(pid, signal.SIGTERM)
    return -os.WTERMSIG(os.waitpid(pid, 0)[1])

async def host():
    told = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.append, "SIGTERM")
    async with AsyncDurable(tasks=[fork]) as app, app.worker():
        handle = await app.spawn(fork)
        print("child:", await handle.result(timeout=20), flush=True)
    print("host:", told, flush=True)

asyncio.run(host())
"""


def test_signals_of_child_processes_do_not_reach_the_host(
    dsn: str, processes: Processes
) -> None:
    host = processes.python("-c", HOSTED)
    assert host.wait(deadline=40) == 0, host.output()
    assert host.output().splitlines() == ["child: -15", "host: []"]


# -- where they run --------------------------------------------------------------------


def claimers(db: psycopg.Connection[Any]) -> int:
    """Count the worker processes that are connected."""
    row = db.execute(
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and application_name = 'durable claim'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_runs_every_worker_process_on_uvloop_if_installed(
    db: psycopg.Connection[Any], processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "uvloop.py").write_text(UVLOOP)
    supervisor = processes.python(
        "-c", SUPERVISOR, str(tmp_path), env={"PYTHONPATH": str(tmp_path)}
    )
    eventually(lambda: claimers(db) == 2, deadline=60)
    supervisor.terminate()
    supervisor.wait()
    assert supervisor.output().count("a loop of") == 2


def has_pending_signals(pid: int) -> bool:
    """Whether a process has pending signals."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = [line.split()[1] for line in status.splitlines() if "Pnd:" in line]
    return any(int(bits, 16) for bits in pending)
