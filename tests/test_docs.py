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
        [sys.executable, str(program)],
        check=False,
        env=os.environ | {"DURABLE_DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
