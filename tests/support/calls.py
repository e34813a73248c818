"""A call of every function, with plausible arguments.

The functions are read from the catalog, so new ones are included automatically.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

__all__ = ["Call", "every_call", "outcome"]

FUNCTIONS = """
select proname, array(
  select array[proargnames[place], format_type(argument, null)]
  from unnest(proargtypes) with ordinality as given (argument, place)
  order by place)
from pg_proc where pronamespace = 'durable'::regnamespace order by proname
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A function's name, and a statement that calls it."""

    function: str
    text: str
    args: tuple[Any, ...]


def every_call(db: psycopg.Connection, queue: str, task_id: UUID) -> list[Call]:
    """Return a call of each function, private ones too, on a task held by claim 1."""
    return [
        _call(name, arguments, queue, task_id)
        for name, arguments in db.execute(FUNCTIONS).fetchall()
    ]


def outcome(session: psycopg.Connection, call: Call) -> str:
    """Make a call; return ok, or the SQLSTATE of its refusal."""
    try:
        session.execute(call.text, call.args)
    except psycopg.Error as error:
        return error.sqlstate or str(error)
    return "ok"


def _call(name: str, arguments: list[list[str]], queue: str, task_id: UUID) -> Call:
    marks = ", ".join(f"%s::{kind}" for _, kind in arguments)
    given = tuple(_given(what, kind, queue, task_id) for what, kind in arguments)
    return Call(name, f"select * from durable.{name}({marks})", given)


def _given(what: str, kind: str, queue: str, task_id: UUID) -> object:
    by_name = {
        ("queue", "text"): queue,
        ("to_queue", "text"): queue,
        ("channel", "text"): "work",
        ("tasks", "jsonb"): '[{"task": "x"}]',
        ("children", "jsonb"): '[{"name": "child", "task": "x"}]',
        ("known", "uuid[]"): [],
        ("filter", "jsonb"): '{"all": true}',
    }
    by_type: dict[str, object] = {
        "text": "x",
        "text[]": ["x"],
        "integer": 1,
        "double precision": 60,
        "boolean": True,
        "jsonb": "{}",
        "json": json.dumps([_said_of_a_task(task_id)]),
        "uuid": task_id,
        "uuid[]": [task_id],
        "timestamp with time zone": "2030-01-01 00:00:00+00",
    }
    return by_name.get((what, kind), by_type.get(kind))


def _said_of_a_task(task_id: UUID) -> dict[str, Any]:
    """Return arguments for a worker's calls about a task, for all functions at once."""
    return {
        "task_id": str(task_id),
        "claim": 1,
        "name": "step",
        "value": 1,
        "result": 1,
        "error": {"type": "Error", "message": "no"},
        "waits": [{"name": "nap", "seconds": 60}],
    }
