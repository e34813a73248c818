"""Test servers keep their data in memory, and leave none of it behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psycopg
import pytest

from durable.embedded import Postgres, _scratch
from durable.embedded._scratch import Scratch
from tests.support.processes import Processes

BINARIES = os.environ.get("DURABLE_TEST_PG_BIN")
HOLD = """
import signal, sys
from pathlib import Path
from durable.embedded._scratch import Scratch
held = Scratch(Path(sys.argv[1]))
print("held", flush=True)
signal.pause()
"""

pytestmark = pytest.mark.skipif(
    not _scratch.MEMORY.exists(), reason="this machine has no such place"
)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory file system with unlimited room."""
    monkeypatch.setattr(_scratch, "MEMORY", tmp_path)
    monkeypatch.setattr(_scratch, "PLENTY", 0)
    return tmp_path


def test_puts_temporary_data_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "PLENTY", 0)
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        assert server.data_dir.parent == _scratch.MEMORY
        server.restart("immediate")
        with psycopg.connect(server.conninfo()) as session:
            session.execute("select")
    assert not server.data_dir.exists()


def test_keeps_permanent_data_where_it_is() -> None:
    with Postgres.start(binaries=BINARIES) as server:
        assert server.data_dir.parent == server.home


@pytest.mark.parametrize(
    "change",
    [("PLENTY", 2**60), ("MEMORY", Path("/nowhere"))],
    ids=["there is too little", "there is none"],
)
def test_uses_the_disk_where(
    change: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scratch, *change)
    assert Scratch.make() is None


def test_respects_the_memory_limit_of_its_container(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = memory / "memory.max"
    monkeypatch.setattr(_scratch, "LIMIT", limit)
    monkeypatch.setattr(_scratch, "PLENTY", 2**20)
    for said, enough in [("max\n", True), (f"{2**21}\n", True), ("4096\n", False)]:
        limit.write_text(said)
        made = Scratch.make()
        assert (made is not None) is enough, said
        if made is not None:
            made.delete()


def test_deletes_data_left_by_a_kill_and_nothing_that_is_locked(
    memory: Path, processes: Processes
) -> None:
    left = memory / "durable-left"
    (left / "base").mkdir(parents=True)
    holder = processes.python("-c", HOLD, str(left))
    holder.wait_for("held")
    for is_held in (True, False):
        made = Scratch.make()
        assert made is not None
        assert left.exists() is is_held
        made.delete()
        assert not made.path.exists()
        holder.kill()


def test_renames_data_after_it_is_locked(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no other process deletes data that was just created."""
    lock, names = fcntl.flock, list[str]()

    def look(descriptor: int, operation: int) -> None:
        names.extend(path.name for path in memory.glob("durable-*"))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look)
    made = Scratch.make()
    assert made is not None
    assert (names, made.path.name[:8]) == ([], "durable-")
    made.delete()
