"""Whose code is running: which step's function, of which run."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable._worker.run import Run

__all__ = ["Execution", "current_run", "inside_a_step"]


class Execution:
    """One call of a step's function; a step that is tried again has several.

    In a transaction's function nothing can be saved: it holds the task's row.
    """

    __slots__ = ("in_transaction", "step")

    def __init__(self, step: str, *, in_transaction: bool = False) -> None:
        self.step = step
        self.in_transaction = in_transaction


# Set while a step's function runs, on the loop or in a thread: steps are leaves.
inside_a_step: contextvars.ContextVar[Execution | None] = contextvars.ContextVar(
    "durable.inside_a_step", default=None
)

# Set while a task's code runs, where what it logs is kept.
current_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar(
    "durable.current_run", default=None
)
