"""A copy of the packaged SQL, for tests that create the next version."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from durable._db import schema
from tests.support.processes import ROOT

__all__ = ["Sources"]


class Sources:
    """A copy of sql/, to which a test adds the next version's changes."""

    def __init__(self, directory: Path) -> None:
        self._sql = directory / "sql"
        shutil.copytree(ROOT / "sql", self._sql)

    def __truediv__(self, name: str) -> Path:
        return self._sql / name

    def carried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process's package use the copy."""
        monkeypatch.setattr(schema, "_sql", lambda: self._sql)

    def migration(self, name: str, change: str, install: str = "") -> None:
        """Add a migration, and its result in a fresh install."""
        (self / "migrations" / name).write_text(change)
        with (self / "tables.sql").open("a") as tables:
            tables.write(install or change)

    def rename(self, old: str, new: str) -> None:
        """Rename an object, everywhere."""
        for file in self._sql.glob("*.sql"):
            file.write_text(re.sub(rf"\b{old}\b", new, file.read_text()))
