"""What a task holds of the children it spawned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

from durable._values import Codec

__all__ = ["ChildHandle"]

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class ChildHandle(Generic[R_co]):
    """A child task. `await ctx.join(child)` waits for it and returns its output.

    `name` is the one it was spawned under; `created` is false if its idempotency key
    belonged to a task that was there already.
    """

    name: str
    task_id: UUID
    run_id: UUID
    queue: str
    attempt: int
    created: bool
    codec: Codec[R_co] = field(repr=False)
