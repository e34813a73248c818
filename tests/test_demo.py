"""The demo proves what it claims, and reports a claim that does not hold."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import TypeAlias
from uuid import UUID

import psycopg
import pytest

from durable.demo.census import Count, Report
from durable.demo.ledger import Entry
from durable.demo.proof import Evidence, prove
from durable.demo.records import Attempt, Checkpoint
from tests.support.processes import Process, Processes
from tests.support.wait import eventually

Play: TypeAlias = Callable[..., Process]

SMALL = ["abc", "bisect", "calendar", "csv", "this", "stat", "token"]
LARGE = ["asyncio", "email", "encodings", "json"]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return a part of the standard library, with a file that does not parse."""
    stdlib, part = Path(sysconfig.get_path("stdlib")), tmp_path / "library"
    part.mkdir()
    for name in SMALL:
        shutil.copy(stdlib / f"{name}.py", part)
    for name in LARGE:
        shutil.copytree(stdlib / name, part / name)
    (part / "json/old.py").write_text("print 'of another Python'")
    return part


@pytest.fixture
def play(processes: Processes, library: Path, tmp_path: Path) -> Play:
    """Start the demo on that part; leftovers would be in `left`."""
    (tmp_path / "left").mkdir()

    def play(**env: str) -> Process:
        script = f"from durable.demo import main; main({str(library)!r})"
        return processes.python(
            "-c", script, env={"TMPDIR": str(tmp_path / "left"), **env}
        )

    return play


def worker_of(demo: Process) -> int:
    """Wait for the first worker, and return its pid."""
    said = demo.wait_for(" started\n", deadline=60)
    return int(said.partition("worker ")[2].partition(" ")[0])


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]


def test_survives_a_kill_and_proves_it(
    play: Play, db: psycopg.Connection, tmp_path: Path
) -> None:
    demo = play()
    assert demo.wait(deadline=120) == 0, demo.output()
    said = demo.output()
    assert said.count(" started\n") == 2
    assert "kill -9" in said
    assert "All of it held" in said
    assert f"{len(SMALL + LARGE)} modules, approved by the demo" in said
    assert db.execute("select queue from durable.queues").fetchall() == [("default",)]
    assert not list((tmp_path / "left").iterdir())


def test_starts_its_own_postgres(play: Play) -> None:
    binaries = os.environ.get("DURABLE_TEST_PG_BIN", "")
    demo = play(DURABLE_DATABASE_URL="", DURABLE_PG_BIN=binaries)
    assert demo.wait(deadline=120) == 0, demo.output()


def test_cleans_up_when_it_is_told_to_stop(
    play: Play, db: psycopg.Connection, tmp_path: Path
) -> None:
    demo = play()
    worker = worker_of(demo)
    demo.terminate()
    assert demo.wait() == 128 + SIGTERM, demo.output()
    assert is_gone(worker)
    assert db.execute("select queue from durable.queues").fetchall() == [("default",)]
    assert not list((tmp_path / "left").iterdir())


def test_ends_its_worker_when_it_is_killed(play: Play) -> None:
    demo = play()
    worker = worker_of(demo)
    os.kill(demo.pid, SIGKILL)
    eventually(lambda: is_gone(worker), what="the worker's end")


def test_says_that_there_is_nothing_to_count(processes: Processes) -> None:
    demo = processes.python("-c", "from durable.demo import main; main('/nowhere')")
    assert demo.wait() == 1
    assert demo.output() == "durable demo: there are no modules in /nowhere\n"


# -- the proof, on made-up evidence ----------------------------------------------------

KILLED, SUCCESSOR, STRANGER = 11, 22, 33
PARENT, CHILD, OTHER = (UUID(int=number) for number in (1, 2, 3))


def entries(task_id: UUID, pid: int, *steps: str) -> list[Entry]:
    return [Entry(task_id, step, pid) for step in steps]


def saved(task_id: UUID, attempt: int, *steps: str) -> list[Checkpoint]:
    return [Checkpoint(task_id, step, attempt) for step in steps]


def attempt(task_id: UUID, number: int, outcome: str, pid: int) -> Attempt:
    return Attempt(task_id, number, outcome, f"host:{pid}:abcd", "json")


LEDGER = [
    *entries(PARENT, KILLED, "find"),
    *entries(OTHER, KILLED, "list", "parse a.py", "count"),
    *entries(CHILD, KILLED, "list", "parse b.py"),
    *entries(CHILD, SUCCESSOR, "parse b.py", "count"),
    *entries(PARENT, SUCCESSOR, "write"),
]
CHECKPOINTS = [
    *saved(PARENT, 1, "find", "$spawn:module:0", "$sleep:rest", "write"),
    *saved(OTHER, 1, "list", "parse a.py", "count"),
    *saved(CHILD, 1, "list"),
    *saved(CHILD, 2, "parse b.py", "count"),
]
ATTEMPTS = [
    attempt(PARENT, 1, "completed", SUCCESSOR),
    attempt(CHILD, 1, "lease_lost", KILLED),
    attempt(CHILD, 2, "completed", SUCCESSOR),
    attempt(OTHER, 1, "completed", KILLED),
]
ONE = Count(files=1, lines=10, functions=2, classes=1)
REPORT = Report(
    python="3", approved_by="x", total=ONE + ONE, modules={"a": ONE, "b": ONE}
)
SOUND = Evidence(
    report=REPORT,
    written=REPORT.model_dump_json(),
    direct={"files": 2, "lines": 20, "functions": 4, "classes": 2},
    ledger=LEDGER,
    attempts=ATTEMPTS,
    checkpoints=CHECKPOINTS,
    killed=KILLED,
    killed_exit=-9,
    successor=SUCCESSOR,
    successor_exit=0,
)

TOTALS = "The totals equal a plain count"
SAME = "The report says the same"
TASKS = "Every task completed"
WORKERS = "kill -9 ended one of two workers"
RUNS = "Only what it ran was run again"
REPLAYED = "What was saved was replayed"
STEPS = "Steps ran once, but for the kill"


def test_accepts_sound_evidence() -> None:
    assert all(claim.holds for claim in prove(SOUND))
    assert [SOUND.describe(step) for step in SOUND.twice] == ["parse b.py"]


@pytest.mark.parametrize(
    ("lie", "caught"),
    [
        ({"direct": SOUND.direct | {"lines": 21}}, {TOTALS}),
        ({"report": REPORT.model_copy(update={"modules": {}})}, {TOTALS, SAME, TASKS}),
        (
            {"written": REPORT.model_copy(update={"python": "2"}).model_dump_json()},
            {SAME},
        ),
        ({"killed_exit": 0}, {WORKERS}),
        ({"successor_exit": 1}, {WORKERS}),
        ({"ledger": [*LEDGER, Entry(OTHER, "count", STRANGER)]}, {WORKERS, STEPS}),
        ({"ledger": [*LEDGER, Entry(OTHER, "count", SUCCESSOR)]}, {STEPS}),
        ({"ledger": [*LEDGER, Entry(OTHER, "more", KILLED)]}, {STEPS}),
        ({"ledger": [*LEDGER, Entry(CHILD, "list", SUCCESSOR)]}, {STEPS, REPLAYED}),
        ({"ledger": [*LEDGER, Entry(PARENT, "find", SUCCESSOR)]}, {STEPS}),
        ({"ledger": LEDGER[1:]}, {STEPS}),
        ({"checkpoints": CHECKPOINTS[:-1]}, {STEPS}),
        (
            {"attempts": [*ATTEMPTS[:-1], attempt(OTHER, 1, "failed", KILLED)]},
            {TASKS},
        ),
        (
            {"attempts": [*ATTEMPTS, attempt(OTHER, 2, "completed", SUCCESSOR)]},
            {RUNS},
        ),
        (
            {"attempts": [*ATTEMPTS[:1], ATTEMPTS[2], *ATTEMPTS[3:]]},
            {RUNS, STEPS},
        ),
    ],
)
def test_rejects_wrong_evidence(lie: dict[str, object], caught: set[str]) -> None:
    claims = prove(dataclasses.replace(SOUND, **lie))  # type: ignore[arg-type]
    doubted = {claim.text for claim in claims if not claim.holds}
    assert doubted == caught
