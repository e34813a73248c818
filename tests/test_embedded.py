"""durable starts a Postgres for demos and tests, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from durable.embedded import LaunchFailed, Postgres, find_binaries
from tests.support.processes import Processes
from tests.support.wait import eventually

BINARIES = os.environ.get("DURABLE_TEST_PG_BIN")

ABANDON = """
import os, signal
from durable.embedded import Postgres
server = Postgres.start(fast=True)
print(server.home, server.data_dir, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def show(server: Postgres, setting: str) -> str:
    with psycopg.connect(server.conninfo()) as session:
        row = session.execute("select current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def test_keeps_what_was_committed_before_a_crash() -> None:
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        with psycopg.connect(server.conninfo()) as session:
            session.execute("create table kept ()")
        server.restart("immediate")
        with psycopg.connect(server.conninfo()) as session:
            session.execute("table kept")


def test_waits_for_children_left_by_a_kill() -> None:
    """A child that has not noticed yet still uses the shared memory."""
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        session = psycopg.connect(server.conninfo())
        child = session.info.backend_pid
        postmaster = (server.data_dir / "postmaster.pid").read_text().split()[0]
        os.kill(child, signal.SIGSTOP)
        os.kill(int(postmaster), signal.SIGKILL)
        eventually(lambda: not server.is_running())
        restart = threading.Thread(target=server.restart)
        restart.start()
        try:
            refused = "pre-existing shared memory block"
            eventually(lambda: refused in (server.home / "log").read_text())
        finally:
            os.kill(child, signal.SIGCONT)
            restart.join()
        session.close()
        assert show(server, "server_version")


def test_stays_down_until_it_is_restarted() -> None:
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        server.stop()
        assert not server.is_running()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.conninfo())
        server.restart()
        assert server.is_running()
        assert show(server, "server_version")


def test_deletes_temporary_data() -> None:
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        assert server.home.exists()
        assert server.data_dir.exists()
    assert not server.home.exists()
    assert not server.data_dir.exists()


def test_finds_its_data_again_under_any_path(open_directory: Path) -> None:
    data = open_directory / "it's a path" / "with ümlaut"
    for statement in ("create table kept ()", "table kept"):
        with (
            Postgres.start(data, binaries=BINARIES) as server,
            psycopg.connect(server.conninfo()) as session,
        ):
            session.execute(statement)
    assert data.exists()


def test_is_durable_by_default_and_accepts_settings() -> None:
    settings = {"max_connections": "17"}
    with Postgres.start(binaries=BINARIES, settings=settings) as server:
        assert show(server, "fsync") == "on"
        assert show(server, "max_connections") == "17"


def test_listens_on_a_port_if_asked_to() -> None:
    with Postgres.start(binaries=BINARIES, fast=True, tcp=True) as server:
        assert "@127.0.0.1:" in server.conninfo()
        assert show(server, "listen_addresses") == "127.0.0.1"


def test_survives_the_thread_that_started_it() -> None:
    started: list[Postgres] = []

    def start() -> None:
        started.append(Postgres.start(binaries=BINARIES, fast=True))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    with started[0] as server:
        assert show(server, "server_version")


@pytest.mark.skipif(not Path("/proc").exists(), reason="Linux only")
def test_ends_with_its_process_even_after_kill_9(processes: Processes) -> None:
    binaries = {"DURABLE_PG_BIN": BINARIES} if BINARIES else {}
    process = processes.python("-c", ABANDON, env=binaries)
    assert process.wait() == -signal.SIGKILL
    home, data = map(Path, process.output().split())
    pid_file = data / "postmaster.pid"
    eventually(lambda: not pid_file.exists(), what="the end of the server")
    shutil.rmtree(home)
    shutil.rmtree(data, ignore_errors=True)


def test_says_why_it_cannot_start() -> None:
    with pytest.raises(LaunchFailed, match="pip install"):
        find_binaries("/nowhere")
    with pytest.raises(LaunchFailed, match="no_such_setting"):
        Postgres.start(binaries=BINARIES, settings={"no_such_setting": "1"})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as somebody else")
def test_runs_as_an_unprivileged_user_when_started_by_root() -> None:
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        assert server.data_dir.stat().st_uid != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has doors to close")
def test_refuses_data_that_its_user_cannot_read(open_directory: Path) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(LaunchFailed, match="closed"):
        Postgres.start(closed / "data", binaries=BINARIES)
    assert not (closed / "data").exists()
