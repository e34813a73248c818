"""The SQL that the package carries, what of it a database lacks, and who fits whom.

An engine works with every package of its own major.minor that is as old or older. A
package asks for an engine that has what it calls, and never loads its functions over
those of a newer one.

`python -m durable._schema` prints the SQL as one flat file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from durable.errors import SchemaVersion

__all__ = [
    "NEEDS",
    "VERSION",
    "check_version",
    "drop_leftovers",
    "flatten",
    "is_newer",
    "script",
]

VERSION: Final[str] = "0.1.1"
"""The version of this package, and of the engine that it carries."""

NEEDS: Final[str] = "0.1.1"
"""The oldest engine that has all that this package calls."""

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


def drop_leftovers() -> str:
    """Return what drops the functions that an upgrade has left over."""
    return flatten("drop_leftovers.sql")


def check_version(found: str) -> None:
    """Raise SchemaVersion unless an engine of this version suits this package."""
    ours = _minor(VERSION)
    if _numbers(found) < _numbers(NEEDS):
        raise SchemaVersion(
            f"the database has version {found or 'none'} of durable's schema,"
            f" and this package needs {NEEDS} or a later {ours}",
            hint="Run `durable migrate`, or call `app.migrate()`.",
        )
    if _minor(found) != ours:
        raise SchemaVersion(
            f"the database has version {found} of durable's schema,"
            f" and this package, {VERSION}, needs {ours}",
            hint=f"Install a package of version {_minor(found)} here.",
        )


def is_newer(found: str) -> bool:
    """Whether an engine of this version is newer than the one this package carries.

    Raises SchemaVersion if it is of a later major.minor, which does not suit it.
    """
    if _numbers(found) <= _numbers(VERSION):
        return False
    check_version(found)
    return True


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


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
