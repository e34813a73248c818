"""Uuid v7, as the engine makes them: milliseconds, then random bits."""

from __future__ import annotations

import secrets
from uuid import UUID

__all__ = ["uuid7"]


def uuid7(milliseconds: int) -> UUID:
    """Return a uuid v7 of that moment, in milliseconds since 1970."""
    random = secrets.randbits(74)
    high, low = random >> 62, random & (2**62 - 1)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low)
