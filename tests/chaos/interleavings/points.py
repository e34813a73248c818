"""The points where a call may be stopped: before each statement that uses a table.

In READ COMMITTED a statement sees what had committed when it began and keeps its locks
to the end of the transaction. So these points, and the moment between a call's end and
its commit, are the only places where two calls can interleave, except for the order in
which one statement locks several rows (tests/test_claim_races.py).

Every PL/pgSQL function of the engine is created once more, with
`if public.pause(…) then null; end if;` before such a statement: an IF changes neither
FOUND nor ROW_COUNT, takes no lock and touches no row.

Also, each session sets its own clock, and no statement has the lock timeout of 200 ms,
so that a cycle of waits shows as a deadlock.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg
from psycopg import sql

__all__ = ["instrument", "stop_the_clock", "without_points"]

FUNCTIONS: Final = """
select proname, prosrc, pg_get_functiondef(pg_proc.oid)
from pg_proc join pg_language on pg_language.oid = prolang
where pronamespace = 'durable'::regnamespace and lanname = 'plpgsql'
  and provolatile = 'v'
order by proname
"""
CLOCK: Final = """
create or replace function durable._now() returns timestamptz
language sql volatile
as $$ select current_setting('test.now')::timestamptz $$
"""
# Counts the points a session passes (-1: with output). Where it is to stop, it reports
# that, and waits until its gate, an advisory lock, is open.
PAUSE: Final = """
create function public.pause(point text) returns boolean
language plpgsql volatile
as $$
declare
  _passed integer := current_setting('test.passed')::integer + 1;
begin
  perform pg_catalog.set_config('test.passed', _passed::text, false);
  if current_setting('test.stop')::integer = -1 then
    raise notice 'passed';
  elsif _passed = current_setting('test.stop')::integer then
    perform public.stop(point);
  end if;
  return false;
end;
$$;

create function public.stop(point text) returns void
language plpgsql volatile
set lock_timeout = 0
as $$
begin
  raise notice using message = 'stopped before ' || point;
  perform pg_advisory_lock(0, pg_backend_pid());
  perform pg_advisory_unlock(0, pg_backend_pid());
end;
$$;
"""
TABLES: Final = """
select relname from pg_class
where relnamespace = 'durable'::regnamespace and relkind = 'r'
"""
POINT: Final = re.compile(r"if public\.pause\('[^']*'\) then null; end if; ")
TOKEN: Final = re.compile(
    r"--[^\n]*|'(?:[^']|'')*'|\"[^\"]*\"|#\w+[^\n]*|[a-zA-Z_][\w.]*|\s+|.", re.DOTALL
)
# The keywords that end the head of a compound statement, and those that only open a
# block.
ENDS: Final = {
    **dict.fromkeys(["if", "elsif", "when", "case"], "then"),
    **dict.fromkeys(["for", "foreach", "while"], "loop"),
}
OPENS: Final = {"begin", "else", "loop", "exception"}


def stop_the_clock(session: psycopg.Connection) -> None:
    """Let each session set its own time."""
    session.execute(CLOCK)


def instrument(session: psycopg.Connection) -> int:
    """Insert points into this database's engine; return how many."""
    session.execute(PAUSE)
    names = "|".join(name for (name,) in session.execute(TABLES).fetchall())
    tables = re.compile(rf"\bdurable\.({names})\b")
    points = 0
    for name, body, definition in session.execute(FUNCTIONS).fetchall():
        pointed, count = with_points(name, body, tables)
        session.execute(definition.replace(body, pointed).encode())
        points += count
    patience = "select oid::regprocedure::text from pg_proc where %s = any (proconfig)"
    for (name,) in session.execute(patience, ["lock_timeout=200ms"]).fetchall():
        alter = sql.SQL("alter function {} set lock_timeout = 0")
        session.execute(alter.format(sql.SQL(name)))
    return points


def without_points(body: str) -> str:
    """Return the original body of a function."""
    return POINT.sub("", body)


def with_points(function: str, body: str, tables: re.Pattern[str]) -> tuple[str, int]:
    """Return a function's body with points in it, and how many."""
    text, points = "", 0
    for before, statement in _statements(body):
        text += before
        if tables.search(_code(statement)):
            points += 1
            text += f"if public.pause('{function} {points}') then null; end if; "
        text += statement
    return text, points


def _statements(body: str) -> list[tuple[str, str]]:
    """Split a body into statements, each with the text before it.

    A compound statement ends where the inner ones begin, at its `then` or `loop`. An
    `elsif` or `when` is no statement, and is part of the text before the next one.
    """
    found: list[tuple[str, str]] = []
    before = statement = until = ""
    parentheses = cases = 0
    declaring = True
    for token in TOKEN.findall(body):
        word = token.lower()
        if declaring:
            before += token
            declaring = word != "begin"
            continue
        if not statement:
            if word.isspace() or word.startswith("--") or word in OPENS:
                before += token
                continue
            until = ENDS.get(word, ";")
            cases = -1 if word == "case" else 0
        statement += token
        parentheses += {"(": 1, ")": -1}.get(word, 0)
        cases += {"case": 1, "end": -1 if cases else 0}.get(word, 0)
        if word != until or parentheses or cases > 0:
            continue
        if statement.lower().startswith(("elsif", "when")):
            before += statement
        else:
            found.append((before, statement))
            before = ""
        statement = ""
    return [*found, (before, statement)]


def _code(statement: str) -> str:
    return re.sub(r"--[^\n]*", "", statement)
