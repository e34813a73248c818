"""Write the two pages of docs/ that a database knows best.

    python tools/make_docs.py                    writes docs/sql-api.md, docs/errors.md
    python tools/make_docs.py --check            fails if that would change anything
    python tools/make_docs.py --database URL     asks this one, not a private server

`sql-api.md` is what COMMENT ON says of an installed engine, in the order of grants.sql;
`errors.md` is `durable.errors()` beside the docstrings of `durable.errors`.
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

Everything here is in the schema `durable` of a database where it is installed. From
psql, `\\df+ durable.*` shows the same text. A function belongs to the caller's
transaction: what it writes is there if and when that commits. What it refuses is
raised with a code of [the catalogue](errors.md), before anything is written.

The tables are private and change between versions; the functions and views are what to
build on. Three roles bundle the rights: `durable_client`, `durable_worker` and
`durable_operator`; grant one of them, or single functions, to your own.
"""
GROUPS: Final = (
    ("For everyone", "durable_client", "", "Granted to all three roles."),
    (
        "For operators",
        "durable_operator",
        "durable_client",
        "Granted to `durable_operator`; the housekeeping to `durable_worker`, too.",
    ),
    (
        "For workers",
        "durable_worker",
        "durable_operator",
        "What a worker calls. [How it works](how-it-works.md) says what a claim is.",
    ),
)
ERRORS: Final = """
# Errors

What the database raises on purpose is a closed set, known by SQLSTATE and never by its
text; `select * from durable.errors()` lists it, and each code is one Python class.
Every class derives from `durable.DurableError`, and has `code` and `hint`.

| SQLSTATE | name | Python | meaning |
|---|---|---|---|
"""
PYTHON_ERRORS: Final = """
## In Python only

Outcomes of tasks, what passes between a task and its worker, and a client that is not
let in.

"""
BUILTIN: Final = """
- **`TimeoutError`**, the builtin. `handle.result`, `handle.value`, `ctx.await_event`,
  `ctx.recv`, `ctx.join`, `ctx.join_all`, `ctx.call`, `ctx.gather` and `ctx.first` raise
  it after their `timeout`.
- **`psycopg.Error`**, the driver's. The database cannot do it now: it went away, or has
  been silent for a minute (`OperationalError`); no connection came free and nothing was
  sent (`psycopg_pool.PoolTimeout`, an `OperationalError` too; `DatabaseUnavailable` is
  one); it only reads
  (`errors.ReadOnlySqlTransaction`); a timeout of yours struck (`errors.QueryCanceled`,
  `errors.LockNotAvailable`). Waits for results go on by themselves; of other calls,
  whether one has happened is unknown once its connection is lost. Say it again: events
  and cancels as they are, a spawn with its idempotency key, a message with its
  `dedup_key`.
- **`pydantic.ValidationError`**. Params are not what the task takes; none is spawned.
- **`TypeError`**, **`RuntimeError`**. A mistake in the program: a type that cannot be
  saved, a connection of the other colour; a context used where it cannot be.
"""


def main() -> int:
    """Write the pages, or check that they are what would be written."""
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
    """Return the page on functions, what they return, and views."""
    grants = (files("durable") / "sql" / "grants.sql").read_text(encoding="utf-8")
    place = {name: i for i, name in enumerate(re.findall(r"durable\.(\w+)", grants))}
    parts = [MADE.format("the COMMENT ON in sql/"), SQL_API]
    for title, role, but, note in GROUPS:
        parts += [f"\n## {title}\n\n{note}\n"]
        found = session.execute(FUNCTIONS, {"role": role, "but": but}).fetchall()
        parts += [
            _function(*row) for row in sorted(found, key=lambda row: place[row[0]])
        ]
    parts.append("\n## What they return\n")
    parts += [_relation(*row) for row in session.execute(RELATIONS, ["c"]).fetchall()]
    parts.append("\n## Views\n\nFor looking, granted to `durable_operator`.\n")
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
        said = " ".join(part.replace("\n", " ") for part in text if part.strip())
        parts.append(f"- **`{public}`**. {said}\n")
    parts.append(BUILTIN.lstrip("\n"))
    return "".join(parts)


def _is_error(public: object) -> bool:
    return isinstance(public, type) and issubclass(public, BaseException)


if __name__ == "__main__":
    sys.exit(main())
