"""The README's examples work, and its links lead somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from durable import Durable
from durable.embedded import find_binaries
from tests.support.markdown import PAGES, anchors, blocks, links
from tests.support.processes import COMMAND_LINE, ROOT, Processes
from tests.support.wait import eventually

Run: TypeAlias = Callable[..., str]

README = ROOT / "README.md"
SHOP, PLACE_ORDER, AGENT = blocks(README, "python")
LOOK, ORDER = blocks(README, "sql")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Save the README's task, as its reader does."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def environment(shop: Path, dsn: str) -> dict[str, str]:
    """What the README's reader has exported."""
    return os.environ | {"PYTHONPATH": str(shop), "DURABLE_DATABASE_URL": dsn}


@pytest.fixture
def psql(dsn: str) -> Run:
    """Pass SQL to psql, as the README shows it."""
    beside = find_binaries(os.environ.get("DURABLE_TEST_PG_BIN")) / "psql"
    program = str(beside) if beside.exists() else "psql"

    def psql(sql: str) -> str:
        command = [program, "--no-psqlrc", "--set", "ON_ERROR_STOP=1", dsn]
        return subprocess.run(
            command, input=sql, capture_output=True, text=True, check=True
        ).stdout

    return psql


def test_survives_kill_9(
    processes: Processes, shop: Path, environment: dict[str, str], dsn: str
) -> None:
    def durable(*command: str) -> str:
        run = [sys.executable, "-c", COMMAND_LINE, *command]
        done = subprocess.run(
            run, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()

    durable("migrate")
    path = {"PYTHONPATH": str(shop)}
    worker = processes.durable("worker", "shop:app", env=path)
    task_id = durable("spawn", "default", "checkout", "--params", "100")
    worker.wait_for("charging 100")
    with Durable(dsn) as app:
        handle = app.handle(task_id)
        eventually(lambda: handle.state() == "sleeping", what="its sleep")
    worker.kill()
    another = processes.durable("worker", "shop:app", env=path)
    result = durable("result", "default", task_id, "--timeout", "30")
    assert result == '"receipt for 100, settled"'
    assert "charging" not in another.output()


def test_works_from_psql(
    processes: Processes, shop: Path, psql: Run, db: psycopg.Connection
) -> None:
    assert "checkout | pending" in psql(LOOK)
    processes.durable("worker", "shop:app", env={"PYTHONPATH": str(shop)})
    state = "select state from durable.task_list"
    eventually(lambda: db.execute(state).fetchone() == ("completed",), deadline=30)
    seen = psql(LOOK.partition("\n")[2])
    assert "receipt for 100, settled" in seen
    assert "$sleep:cool-off" in seen


def test_works_in_a_transaction(
    environment: dict[str, str], psql: Run, db: psycopg.Connection
) -> None:
    psql(ORDER)
    _, _, again = ORDER.replace("7", "9").partition("\n")
    psql(again.replace("commit", "rollback"))
    subprocess.run([sys.executable, "-c", PLACE_ORDER], env=environment, check=True)
    listed = db.execute("select name, params, idempotency_key from durable.tasks")
    assert listed.fetchall() == [
        ("checkout", 100, "order-7"),
        ("checkout", 100, None),
    ]
    ordered = db.execute("select * from orders order by id").fetchall()
    assert ordered == [(7, 100), (8, 100)]


def test_the_package_page_shows_the_same_start() -> None:
    assert blocks(ROOT / "python-sdk" / "README.md", "python")[0] == SHOP


def test_shows_the_loop_of_the_example() -> None:
    """That example runs in tests/test_examples.py."""
    examples = ROOT / "python-sdk" / "examples"
    assert AGENT in (examples / "agent.py").read_text()
    listed = {Path(link).name for link in links(README) if "examples/" in link}
    assert listed >= {path.name for path in examples.glob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_all_links_lead_somewhere(page: Path) -> None:
    missing = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_names_only_existing_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                command, *words = line.partition("#")[0].split() or [""]
                if command == "make":
                    assert f"\n{words[0]}:" in makefile, f"{page.name}: {line}"
