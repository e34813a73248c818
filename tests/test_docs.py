"""The documents say what the code says, and their programs run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.markdown import blocks
from tests.support.processes import ROOT

SDK = ROOT / "python-sdk"
TESTS = ["-m", "pytest", "-o", "asyncio_default_fixture_loop_scope=function"]
DATABASES = ["DURABLE_DATABASE_URL", "DURABLE_TEST_DATABASE_URL"]
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
