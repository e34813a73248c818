"""Type checkers know params and result types, and find mistakes before a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # no results may come from a cache
API = Path(__file__).parent / "typing"
PYPROJECT = Path(__file__).parents[1] / "python-sdk" / "pyproject.toml"


def output(*command: str | Path) -> str:
    """Return the output of a checker; an empty string if it found nothing."""
    checked = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=PYPROJECT.parents[1],  # the cache of `make types`
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
