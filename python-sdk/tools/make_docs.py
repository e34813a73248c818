"""Generate the two pages of docs/ that are derived from an installed engine.

    python tools/make_docs.py                    writes docs/sql-api.md, docs/errors.md
    python tools/make_docs.py --check            fails if that would change anything
    python tools/make_docs.py --database URL     uses this one, not a private server

`sql-api.md` has the comments of the engine's functions, in the order of grants.sql;
`errors.md` has the rows of `durable.errors()` and docstrings of `durable.errors`.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Final

import psycopg

import durable
from durable import Durable, DurableError
from durable.embedded import Postgres

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
MADE: Final = "<!-- Made by tools/make_docs.py: edit {}, then `make docs`. -->\n"

FUNCTIONS: Final = """
select
  proname, pg_get_function_arguments(oid), pg_get_function_result(oid),
  obj_description(oid, 'pg_proc')
from pg_proc
where pronamespace = 'durable'::regnamespace
  and not starts_with(proname, '_')
  and has_function_privilege(%(role)s, oid, 'execute')
  and has_function_privilege(nullif(%(but)s, ''), oid, 'execute') is not true
"""
RELATIONS: Final = """
select
  relname,
  coalesce(obj_description(pg_class.oid), obj_description(reltype)),
  array_agg(attname || ' ' || format_type(atttypid, atttypmod) order by attnum)
from pg_class
join pg_attribute on attrelid = pg_class.oid and attnum > 0
where relnamespace = 'durable'::regnamespace
  and relkind = %s
  and not starts_with(relname, '_')
group by pg_class.oid
order by pg_class.oid
"""

WIDTH: Final = 80
SHORTER: Final = {
    "timestamp with time zone": "timestamptz",
    "SETOF": "setof",
    "TABLE": "table",
    "NULL": "null",
    '"position"': "position",
}

SQL_API: Final = """
# The SQL API

Everything here is in the schema `durable` of a database where it is installed. In psql,
`\\df+ durable.*` shows the same text. A function runs in the caller's transaction: its
writes take effect if and when that commits. Invalid calls raise an error with a code of
[the catalogue](errors.md), before anything is written.

The tables are private and change between versions; use the functions and views. Four
roles have the grants: `durable_client`, `durable_worker`, `durable_operator` and
`durable_reader`; grant one of them, or single functions, to your own roles. A reader
may call those of clients and operators that only read.
"""
GROUPS: Final = (
    (
        "For everyone",
        "durable_client",
        "",
        "Granted to clients, workers and operators.",
    ),
    (
        "For operators",
        "durable_operator",
        "durable_client",
        "Granted to `durable_operator`; the maintenance to `durable_worker`, too.",
    ),
    (
        "For workers",
        "durable_worker",
        "durable_operator",
        "The calls of a worker. [How it works](how-it-works.md) explains claims.",
    ),
)
ERRORS: Final = """
# Errors

The engine's errors are a closed set, identified by SQLSTATE, not by their text;
`select * from durable.errors()` lists them. Each code is one Python class. All classes
derive from `durable.DurableError`, and have `code` and `hint`.

| SQLSTATE | name | Python | meaning |
|---|---|---|---|
"""
PYTHON_ERRORS: Final = """
## In Python only

Outcomes of tasks, errors between a task and its worker, and failures to connect.

"""
BUILTIN: Final = """
- **`TimeoutError`**, the builtin. `handle.result`, `handle.value`, `ctx.await_event`,
  `ctx.recv`, `ctx.join`, `ctx.call`, `ctx.gather` and `ctx.first` raise
  it after their `timeout`.
- **`psycopg.Error`**, the driver's. The database is not available now: the connection
  was lost, or the server sent nothing for a minute (`OperationalError`); no connection
  came free and nothing was sent (`psycopg_pool.PoolTimeout`, an `OperationalError` too,
  and the base of `DatabaseUnavailable`); the server is read-only
  (`errors.ReadOnlySqlTransaction`); a timeout that you have set expired
  (`errors.QueryCanceled`, `errors.LockNotAvailable`). Waits for results retry by
  themselves. Whether any other call took effect is unknown once its connection is lost.
  Call it again: events and cancels unchanged, a spawn with its idempotency key, a
  message with its `dedup_key`.
- **`pydantic.ValidationError`**. Params do not match the task's type; no task is
  spawned.
- **`TypeError`**, **`RuntimeError`**. A mistake in the program: a type that cannot be
  saved, a sync connection where an async one is needed or the reverse, a context used
  outside its run.
"""


def main() -> int:
    """Write the pages, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only fail")
    parser.add_argument("--database", help="a database with the engine in it")
    chosen = parser.parse_args()
    with _database(chosen.database) as url, psycopg.connect(url) as session:
        pages = {"sql-api.md": sql_api(session), "errors.md": errors(session)}
    stale = [
        DOCS / name
        for name, text in pages.items()
        if not (DOCS / name).exists() or (DOCS / name).read_text() != text
    ]
    for path in stale:
        if chosen.check:
            print(f"{path} is out of date: run `make docs`")
        else:
            path.write_text(pages[path.name])
    return int(chosen.check and bool(stale))


@contextlib.contextmanager
def _database(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with Postgres.start(fast=True) as server:
        with Durable(server.conninfo()) as app:
            app.migrate()
        yield server.conninfo()


def sql_api(session: psycopg.Connection) -> str:
    """Return the page on functions, their result types and views."""
    grants = (files("durable") / "sql" / "grants.sql").read_text(encoding="utf-8")
    place = {name: i for i, name in enumerate(re.findall(r"durable\.(\w+)", grants))}
    parts = [MADE.format("the COMMENT ON in sql/"), SQL_API]
    for title, role, but, note in GROUPS:
        parts += [f"\n## {title}\n\n{note}\n"]
        found = session.execute(FUNCTIONS, {"role": role, "but": but}).fetchall()
        parts += [
            _function(*row) for row in sorted(found, key=lambda row: place[row[0]])
        ]
    parts.append("\n## Result types\n")
    parts += [_relation(*row) for row in session.execute(RELATIONS, ["c"]).fetchall()]
    parts.append("\n## Views\n\nRead-only, granted to `durable_operator`.\n")
    parts += [_relation(*row) for row in session.execute(RELATIONS, ["v"]).fetchall()]
    return "".join(parts)


def _function(name: str, arguments: str, result: str, comment: str) -> str:
    arguments = re.sub(r"::[a-z ]+(\[\])?", "", arguments).replace("DEFAULT", "=")
    call = f"{name}({arguments})"
    if len(call) > WIDTH:
        call = f"{name}(\n  " + arguments.replace(", ", ",\n  ") + "\n)"
    result = result.replace("durable.", "")
    for long, short in SHORTER.items():
        call, result = call.replace(long, short), result.replace(long, short)
    return f"\n### {name}\n\n```\n{call} → {result}\n```\n\n{comment}\n"


def _relation(name: str, comment: str, columns: list[str]) -> str:
    listed = "\n".join(columns).replace("timestamp with time zone", "timestamptz")
    return f"\n### {name}\n\n{comment}\n\n```\n{listed}\n```\n"


def errors(session: psycopg.Connection) -> str:
    """Return the page on errors."""
    parts = [MADE.format("sql/errors.sql and durable/errors.py"), ERRORS]
    catalogue = session.execute("select * from durable.errors() order by code")
    for code, name, meaning in catalogue.fetchall():
        cls = DurableError.by_code[code].__name__
        parts.append(f"| `{code}` | {name} | `{cls}` | {meaning} |\n")
    parts.append(PYTHON_ERRORS)
    for public in durable.__all__:
        cls = getattr(durable, public)
        if not _is_error(cls) or getattr(cls, "code", None) is not None:
            continue
        text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        prose = " ".join(part.replace("\n", " ") for part in text if part.strip())
        parts.append(f"- **`{public}`**. {prose}\n")
    parts.append(BUILTIN.lstrip("\n"))
    return "".join(parts)


def _is_error(public: object) -> bool:
    return isinstance(public, type) and issubclass(public, BaseException)


if __name__ == "__main__":
    sys.exit(main())
