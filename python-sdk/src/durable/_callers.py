"""On whose behalf something is done to a task, for its history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from durable._current import current
from durable._json import JSON
from durable._sql import Statement
from durable.errors import InvalidArgument
from durable.options import checked_identity

__all__ = ["caller", "on_behalf"]

_MOST: Final = 3_500  # bytes; with the rest, what durable.caller may hold
# The setting ends with the transaction. The queue comes from the same row, so that it
# is set before the function is called.
_SAID: Final = (
    " from (select %s::text as queue, set_config('durable.caller', %s, true) offset 0)"
    " as said cross join lateral durable."
)


def caller(identity: Mapping[str, JSON] | None) -> str | None:
    """Return the setting `durable.caller`: who asks, and the task whose code does.

    None if neither is known: then the database's role is all there is to say. Raises
    InvalidArgument for an identity that is no JSON, or of more than 3,500 bytes.
    """
    said: dict[str, Any] = {}
    context = current(None)
    if context is not None:
        task = context._run.claimed  # noqa: SLF001 - it is durable's own
        said |= {"queue": task.queue, "task_id": str(task.task_id)}
    if (who := checked_identity(identity)) is not None:
        said["identity"] = who
        size = len(json.dumps(who, ensure_ascii=False).encode())
        if size > _MOST:
            raise InvalidArgument(f"identity is {size} bytes long, of at most {_MOST}")
    return json.dumps(said, ensure_ascii=False) if said else None


def on_behalf(who: str | None, statement: Statement) -> Statement:
    """Return a statement that calls a function on a queue, as said by `caller`."""
    if who is None:
        return statement
    columns, call = statement.text.split(" from durable.")
    queue, *others = statement.args
    text = columns + _SAID + call.replace("%s", "said.queue", 1)
    return Statement(text, (queue, who, *others))
