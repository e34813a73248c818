"""Ids: read, and made as the engine makes them (uuid v7: milliseconds, random bits)."""

from __future__ import annotations

import secrets
from uuid import UUID

from durable.errors import InvalidArgument

__all__ = ["as_uuid", "uuid7"]


def as_uuid(task_id: object) -> UUID:
    """Return a task's id, given as a UUID or as its text, or raise InvalidArgument."""
    if isinstance(task_id, UUID):
        return task_id
    try:
        if isinstance(task_id, str):
            return UUID(task_id)
    except ValueError:
        pass
    raise InvalidArgument(f"a task's id is a UUID or its text, not {task_id!r:.100}")


def uuid7(milliseconds: int) -> UUID:
    """Return a uuid v7 of that moment, in milliseconds since 1970."""
    random = secrets.randbits(74)
    high, low = random >> 62, random & (2**62 - 1)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
