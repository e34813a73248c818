"""The packaged SQL, the scripts that upgrade a database, and version compatibility.

An engine works with all packages of its major.minor version up to its own version. A
package needs an engine with the functions that it calls, and never loads its functions
over those of a newer engine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from durable.errors import SchemaVersion

VERSION: Final[str] = "0.2.0"
"""The version of this package and of the engine packaged with it."""

NEEDS: Final[str] = "0.2.0"
"""The oldest engine that has all functions this package calls."""

BASELINE: Final[str] = "0.2.0"
"""The oldest engine that can be upgraded."""

_INCLUDE = re.compile(r"^\\ir (\S+)$", re.MULTILINE)


def flatten(manifest: str = "install.sql") -> str:
    """Return a manifest with all files it includes, inlined."""
    return _INCLUDE.sub(lambda line: flatten(line[1]).rstrip("\n"), _read(manifest))


def script(applied: Sequence[int] | None) -> str:
    """Return the SQL that upgrades a database; `applied` is None to install."""
    if applied is None:
        return flatten("install.sql") + _record(_migrations())
    missing = missing_migrations(applied)
    changes = [_read(f"migrations/{file}") for file in missing]
    return "\n".join([*changes, _record(missing), flatten("upgrade.sql")])


def missing_migrations(applied: Sequence[int]) -> list[str]:
    """Return the migration files that a database has not applied."""
    return [file for file in _migrations() if _number(file) not in applied]


def upgrade_script(from_version: str = "") -> str:
    """Return SQL that upgrades an engine of this version, or any from BASELINE on.

    The SQL itself finds out which migrations the database has not applied.
    """
    settings = {"oldest": BASELINE, "from": from_version, "to": VERSION}
    return "\n".join(
        [
            *(_set(f"durable.upgrade_{key}", value) for key, value in settings.items()),
            flatten("upgrade_guard.sql"),
            *map(_unless_applied, _migrations()),
            flatten("upgrade.sql"),
        ]
    )


def for_psql(sql: str) -> str:
    """Return SQL as a file for `psql -f`: one transaction that stops at an error."""
    return f"\\set ON_ERROR_STOP on\nbegin;\n{sql}\ncommit;\n"


def schema_sql(*, upgrade: bool = False) -> str:
    """Return SQL that installs the schema, or upgrades it, for other migration tools.

    It is one statement without transaction commands, psql commands or text that
    SQLAlchemy would take for a parameter. So Alembic's `op.execute`, Django's `RunSQL`
    and other tools can run it in their own transaction.
    """
    sql = upgrade_script() if upgrade else script(None)
    return (
        "do $durable_do$\nbegin\n"
        f"  execute $durable_script$\n{sql}\n$durable_script$;\n"
        "end;\n$durable_do$"
    )


def drop_leftovers() -> str:
    """Return SQL that drops the old functions that an upgrade left behind."""
    return flatten("drop_obsolete_functions.sql")


def check_version(found: str) -> None:
    """Raise SchemaVersion unless this package works with an engine of this version."""
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
    """Whether an engine of this version is newer than the packaged one.

    Raises SchemaVersion if it is of a later, incompatible major.minor version, or older
    than all that can be upgraded.
    """
    if _numbers(found) < _numbers(BASELINE):
        raise SchemaVersion(
            f"the database has version {found or 'none'} of durable's schema, which"
            f" cannot be upgraded: its tables are older than those of {BASELINE}",
            hint="Drop it (`drop schema durable cascade`) and run `durable migrate`.",
        )
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


def _migrations() -> list[str]:
    names = (file.name for file in (_sql() / "migrations").iterdir())
    return sorted(name for name in names if name.endswith(".sql"))


def _number(file: str) -> int:
    return int(file.split("_", 1)[0])


def _record(migrations: Sequence[str]) -> str:
    rows = ", ".join(f"({_number(file)}, '{file}')" for file in migrations)
    insert = "insert into durable.migrations (number, name) values"
    return f"{insert} {rows};\n" if rows else ""


def _unless_applied(migration: str) -> str:
    return (
        "do $durable_migration$\nbegin\n"
        "  if not exists (select from durable.migrations"
        f" where number = {_number(migration)}) then\n"
        f"    execute $durable_change$\n{_read(f'migrations/{migration}')}"
        f"{_record([migration])}$durable_change$;\n"
        "  end if;\nend;\n$durable_migration$;\n"
    )


def _set(name: str, value: str) -> str:
    return f"set local {name} = '{value}';"
