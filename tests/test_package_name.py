"""The package is called durable-postgres on PyPI, and every page says so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.processes import ROOT

PROJECT: Final[dict[str, Any]] = tomllib.loads(
    (ROOT / "python-sdk" / "pyproject.toml").read_text()
)["project"]
EXTRAS: Final = "|".join(PROJECT["optional-dependencies"])
# A word with extras, such as durable-postgres[http], and the text around it.
REQUIREMENT: Final = re.compile(
    rf"""(?P<before>['"]?)(?P<name>[\w./-]+)"""
    rf"""\[(?P<extras>(?:{EXTRAS})(?:,(?:{EXTRAS}))*)\](?P<after>['"]?)"""
)
INSTALLED: Final = re.compile(
    r"""\b(?:pip3?|uv|pipx|poetry|pdm) +(?:pip +)?(?:install|add) +"""
    r"""['"]?durable\b(?!-postgres)"""
)
OURS: Final = ("durable-postgres", "./python-sdk", "python-sdk")
TEXTS: Final = {".md", ".py", ".sql", ".toml", ".txt"}


def lines() -> Iterator[tuple[str, str]]:
    """Return every line of the documents and messages, and where it is."""
    found = [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / ".ci").iterdir()]
    for directory in ("python-sdk", "sql", "tests", "pgtap"):
        found += [
            path for path in (ROOT / directory).rglob("*.*") if path.suffix in TEXTS
        ]
    for path in found:
        if path != Path(__file__):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                yield f"{path.relative_to(ROOT)}:{number}", line


def wrong(line: str) -> bool:
    """Whether a line names another distribution, or lets zsh expand the brackets."""
    if INSTALLED.search(line):
        return True
    return any(
        found["name"] not in OURS
        or (
            re.search(r"\binstall\b", line)
            and not (found["before"] == found["after"] != "")
        )
        for found in REQUIREMENT.finditer(line)
    )


def test_every_install_line_names_the_distribution_and_is_quoted() -> None:
    assert [f"{place}: {line}" for place, line in lines() if wrong(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "pip install durable",
        "pip install 'durable[http]'",
        "pip install durable-postgres[http]",
        "uv add durable",
        "the extra durable[testing,demo]",
        "pip install --editable python-sdk[dev]",
    ],
)
def test_finds_a_wrong_install_line(line: str) -> None:
    assert wrong(line)


@pytest.mark.parametrize(
    "line",
    [
        "pip install durable-postgres",
        "pip install 'durable-postgres[http,testing]'",
        "from durable import Task",
        "pip install './python-sdk[embedded]'",
    ],
)
def test_accepts_a_right_install_line(line: str) -> None:
    assert not wrong(line)


def test_its_name_differs_from_the_modules() -> None:
    assert PROJECT["name"] == "durable-postgres"


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        (
            "httpx",
            "from durable.http import httpx_module; httpx_module()",
        ),
        (
            "httpx",
            "from durable.http import RecordedResponse as R; R('', '', 1, (), '').text",
        ),
        ("cryptography", "import durable.encryption"),
        ("rich", "from durable.demo import main; main()"),
    ],
)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(
    missing: str, code: str
) -> None:
    blocked = f"import sys; sys.modules[{missing!r}] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=False
    )
    extra = {"httpx": "http", "cryptography": "encryption", "rich": "demo"}[missing]
    assert done.returncode == 1
    assert f"pip install 'durable-postgres[{extra}]'" in done.stderr
