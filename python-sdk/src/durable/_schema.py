"""The SQL that the package carries, and what of it a database still lacks.

`python -m durable._schema` prints it as one flat file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from durable.errors import SchemaVersion

__all__ = ["APPLIED", "VERSION", "check_version", "flatten", "script"]

VERSION: Final = "0.1"
"""The engine's major.minor that this package works with."""

# An installed engine has this table from its first transaction on.
INSTALLED: Final = "select to_regclass('durable.migrations') is not null"
APPLIED: Final = "select number from durable.migrations"
LOCK: Final = "select pg_advisory_xact_lock(hashtext('durable.migrate'))"

_INCLUDE = re.compile(r"^\\ir (\S+)$", re.MULTILINE)


def flatten(manifest: str = "install.sql") -> str:
    """Return a manifest with every file it includes in place."""
    return _INCLUDE.sub(lambda line: flatten(line[1]).rstrip("\n"), _read(manifest))


def script(applied: Sequence[int] | None) -> str:
    """Return what brings a database up to date; `applied` is None for an empty one."""
    if applied is None:
        return flatten("install.sql") + _record(_numbered())
    missing = [file for file in _numbered() if _number(file) not in applied]
    changes = [_read(f"migrations/{file}") for file in missing]
    return "\n".join([*changes, _record(missing), flatten("upgrade.sql")])


def check_version(found: str) -> None:
    """Raise SchemaVersion unless an engine of this version suits this package."""
    if found.split(".")[:2] != VERSION.split("."):
        raise SchemaVersion(
            f"the database has version {found} of durable's schema,"
            f" and this package needs {VERSION}",
            hint="Run `durable migrate`, or install the package of that version.",
        )


def _sql() -> Traversable:
    return files("durable") / "sql"


def _read(name: str) -> str:
    return _sql().joinpath(*name.split("/")).read_text(encoding="utf-8")


def _numbered() -> list[str]:
    names = (file.name for file in (_sql() / "migrations").iterdir())
    return sorted(name for name in names if name.endswith(".sql"))


def _number(file: str) -> int:
    return int(file.split("_", 1)[0])


def _record(migrations: Sequence[str]) -> str:
    rows = ", ".join(f"({_number(file)}, '{file}')" for file in migrations)
    insert = "insert into durable.migrations (number, name) values"
    return f"{insert} {rows};\n" if rows else ""


if __name__ == "__main__":
    sys.stdout.write(flatten())
