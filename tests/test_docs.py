"""The documents match the code, and their programs run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psycopg
import pytest

import durable
import durable.testing
from durable import cli
from durable.options import QueuePolicy, SpawnOptions, StepOptions
from durable.schedules import ScheduleOptions
from durable.task import TASK_OPTIONS
from tests.support.markdown import blocks, links
from tests.support.processes import ROOT
from tests.test_api import members

SDK = ROOT / "python-sdk"
TESTS = ["-m", "pytest", "-o", "asyncio_default_fixture_loop_scope=function"]
DATABASES = ["DURABLE_DATABASE_URL", "DURABLE_TEST_DATABASE_URL"]
MADE = {"sql-api.md", "errors.md"}
PAGES = sorted(SDK.glob("docs/*.md"))
GUIDE = [page for page in PAGES if page.name not in MADE]
CODE = re.compile(r"^```.*?^```$|`[^`]+`", re.MULTILINE | re.DOTALL)
LONGEST_PAGE = 300
PROGRAMS = [page for page in SDK.glob("docs/*.md") if blocks(page, "python")]


def test_describes_the_installed_functions_and_errors(dsn: str) -> None:
    tool = [sys.executable, str(SDK / "tools" / "make_docs.py")]
    command = [*tool, "--check", "--database", dsn]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.stem)
def test_shows_a_program_that_runs(page: Path, dsn: str, tmp_path: Path) -> None:
    program = tmp_path / f"{page.stem}.py"
    program.write_text("\n\n".join(blocks(page, "python")))
    run = subprocess.run(
        [sys.executable, *(TESTS if page.stem == "testing" else []), str(program)],
        check=False,
        cwd=tmp_path,
        env=os.environ | dict.fromkeys(DATABASES, dsn),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr + run.stdout


def unsaid(names: Iterable[str], pages: Iterable[Path] = GUIDE) -> set[str]:
    """Return the names that no code on these pages contains."""
    code = [span for page in pages for span in CODE.findall(page.read_text())]
    said = set(re.findall(r"\w+", "\n".join(code)))
    return {name for name in names if not set(re.findall(r"\w+", name)) <= said}


@pytest.mark.parametrize(
    "cls",
    [
        durable.AsyncDurable,
        durable.TaskContext,
        durable.AsyncTaskHandle,
        durable.AsyncTaskStream,
        durable.Retry,
        durable.Worker,
        durable.RecordedResponse,
    ],
    ids=lambda cls: cls.__name__,
)
def test_mentions_every_method(cls: type) -> None:
    inner = {"fetch", "close", "as_options", "delay", "of"}
    assert unsaid(members(cls).keys() - inner) == set()


def test_mentions_every_public_name() -> None:
    assert unsaid(durable.__all__, PAGES) == set()
    assert unsaid(durable.testing.__all__) == set()


def test_mentions_every_option() -> None:
    workers = durable.WorkerOptions.__annotations__
    for options in (SpawnOptions, StepOptions, QueuePolicy, ScheduleOptions):
        assert unsaid(options.__annotations__) == set()
    assert unsaid([*TASK_OPTIONS, *workers]) == set()


def test_mentions_every_command() -> None:
    functions = [command.callback for command in cli.app.registered_commands]
    names = [one.__name__ for one in functions if one is not None]
    commands = [f"durable {name.replace('_', '-')}" for name in names]
    said = "\n".join(page.read_text() for page in GUIDE)
    assert [command for command in commands if command not in said] == []


def test_mentions_the_functions_of_clients_and_operators(
    db: psycopg.Connection,
) -> None:
    """Functions for workers and parts of maintenance are on the SQL API's page."""
    granted = db.execute(
        """
        select distinct proname::text
        from pg_proc
        where pronamespace = 'durable'::regnamespace
          and (has_function_privilege('durable_client', oid, 'execute')
            or has_function_privilege('durable_operator', oid, 'execute')
            and not has_function_privilege('durable_worker', oid, 'execute'))
        """
    ).fetchall()
    assert len(granted) > 20
    assert unsaid(name for (name,) in granted) == set()


def test_lists_every_page_in_reading_order() -> None:
    index = SDK / "docs" / "README.md"
    listed = {link.partition("#")[0] for link in links(index)}
    assert {page.name for page in PAGES} - {index.name} <= listed


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_each_page_is_short_enough_to_read_at_once(page: Path) -> None:
    assert len(page.read_text().splitlines()) < LONGEST_PAGE
