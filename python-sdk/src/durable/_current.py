"""The context of the task whose code runs here, for code that was not given it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, overload

if TYPE_CHECKING:
    from durable._async.context import TaskContext
    from durable._sync.context import SyncTaskContext

__all__ = ["current", "make_current"]

AnyContext: TypeAlias = "TaskContext[Any] | SyncTaskContext[Any]"
D = TypeVar("D")

_context: ContextVar[AnyContext] = ContextVar("durable.current")
_RAISE: Final[Any] = object()


@overload
def current() -> AnyContext: ...
@overload
def current(default: D) -> AnyContext | D: ...
def current(default: Any = _RAISE) -> Any:
    """Return the context of the task whose code runs here.

    That is anywhere below a task's `run`: in the functions it calls, in its steps, in
    asyncio tasks it makes and threads of `asyncio.to_thread`. A thread started by hand
    has it in a copy of the context (`contextvars.copy_context().run`). A step's
    function may read it; durable calls are refused there as ever. Outside of a task it
    returns `default`, or raises RuntimeError without one.
    """
    if default is _RAISE:
        try:
            return _context.get()
        except LookupError:
            raise RuntimeError("no task runs here: there is no context") from None
    return _context.get(default)


def make_current(context: AnyContext) -> None:
    """Make this the context of what runs from here on."""
    _context.set(context)
