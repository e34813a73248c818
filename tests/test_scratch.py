"""The data of servers for tests lie in memory, and none are left there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import psycopg
import pytest

from durable import _scratch
from durable._scratch import Scratch
from durable.embedded import Postgres
from tests.support.processes import Processes

BINARIES = os.environ.get("DURABLE_TEST_PG_BIN")
HOLD = """
import signal, sys
from pathlib import Path
from durable._scratch import Scratch
held = Scratch(Path(sys.argv[1]))
print("held", flush=True)
signal.pause()
"""

pytestmark = pytest.mark.skipif(
    not _scratch.MEMORY.exists(), reason="this machine has no such place"
)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with room for anything."""
    monkeypatch.setattr(_scratch, "MEMORY", tmp_path)
    monkeypatch.setattr(_scratch, "PLENTY", 0)
    return tmp_path


def test_lays_what_is_temporary_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scratch, "PLENTY", 0)
    with Postgres.start(binaries=BINARIES, fast=True) as server:
        assert server.data_dir.parent == _scratch.MEMORY
        server.restart("immediate")
        with psycopg.connect(server.conninfo()) as session:
            session.execute("select")
    assert not server.data_dir.exists()


def test_leaves_data_that_are_to_be_kept_where_they_are() -> None:
    with Postgres.start(binaries=BINARIES) as server:
        assert server.data_dir.parent == server.home


@pytest.mark.parametrize(
    "change",
    [("PLENTY", 2**60), ("MEMORY", Path("/nowhere"))],
    ids=["there is too little", "there is none"],
)
def test_does_without_memory_where(
    change: tuple[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scratch, *change)
    assert Scratch.make() is None


def test_asks_what_its_container_may_have(
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


def test_deletes_what_a_kill_has_left_and_nothing_that_is_held(
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


def test_gives_it_its_name_once_it_has_its_lock(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nobody deletes what has only just been made."""
    lock, names = fcntl.flock, list[str]()

    def look(descriptor: int, operation: int) -> None:
        names.extend(path.name for path in memory.glob("durable-*"))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", look)
    made = Scratch.make()
    assert made is not None
    assert (names, made.path.name[:8]) == ([], "durable-")
    made.delete()
