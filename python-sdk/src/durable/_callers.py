"""Who does something to a task, for its history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from durable._current import current
from durable._json import JSON
from durable.errors import InvalidArgument
from durable.options import checked_identity

__all__ = ["caller"]

_MOST: Final = 3_500  # bytes; with the rest, what durable.caller may hold


def caller(identity: Mapping[str, JSON] | None) -> str | None:
    """Return the setting `durable.caller`: who asks, and the task whose code does.

    None if neither is known: then the database's role is all there is to say. Raises
    InvalidArgument for an identity that is no JSON, or of more than 3,500 bytes.
    """
    said: dict[str, Any] = {}
    context = current(None)
    if context is not None:
        said |= {"queue": context.queue, "task_id": str(context.task_id)}
    if (who := checked_identity(identity)) is not None:
        said["identity"] = who
        size = len(json.dumps(who, ensure_ascii=False).encode())
        if size > _MOST:
            raise InvalidArgument(f"identity is {size} bytes long, of at most {_MOST}")
    return json.dumps(said, ensure_ascii=False) if said else None
