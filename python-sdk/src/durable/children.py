"""Handles of tasks that a task can wait for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar
from uuid import UUID

from durable._core.values import Codec

__all__ = ["ChildHandle", "Joinable"]

R_co = TypeVar("R_co", covariant=True)


class Joinable(Generic[R_co]):
    """A handle that a task can join: of a child, or of any other task."""

    __slots__ = ()

    queue: str
    task_id: UUID
    codec: Codec[R_co]


@dataclass(frozen=True, slots=True)
class ChildHandle(Joinable[R_co]):
    """A child task. `await ctx.join(child)` waits for it and returns its output.

    `name` is the name of the spawn; `created` is false if a task with its idempotency
    key existed already.
    """

    name: str
    task_id: UUID
    run_id: UUID
    queue: str
    attempt: int
    created: bool
    codec: Codec[R_co] = field(repr=False)
