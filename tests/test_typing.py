"""Type checkers know what a task takes and gives, and find a mistake before a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # nothing may be in a cache
API = Path(__file__).parent / "typing"
PYPROJECT = Path(__file__).parents[1] / "python-sdk" / "pyproject.toml"


def output(*command: str | Path) -> str:
    """What a checker says; an empty string if it found nothing."""
    checked = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=PYPROJECT.parents[1],  # where the cache of `make types` is
        capture_output=True,
        text=True,
        check=False,
    )
    return (checked.stdout + checked.stderr) * (checked.returncode != 0)


def test_is_understood_by_mypy() -> None:
    said = output("mypy", "--config-file", PYPROJECT, "--warn-unused-ignores", API)
    assert said == ""


def test_is_understood_by_pyright() -> None:
    assert output("pyright", "--pythonpath", sys.executable, "--project", API) == ""
