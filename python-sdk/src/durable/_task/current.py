"""Starts a task's function, and knows its context for code that was not passed it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, overload

from durable._core.values import UnsavableType
from durable._task._async.context import TaskContext
from durable._task._sync.context import SyncTaskContext
from durable._task.run import Run
from durable._task.sync_run import SyncRun
from durable.middleware import around

__all__ = ["current", "start_task_function"]

AnyContext: TypeAlias = "TaskContext[Any] | SyncTaskContext[Any]"
D = TypeVar("D")

_context: ContextVar[AnyContext] = ContextVar("durable.current")
_RAISE: Final[Any] = object()


@overload
def current() -> AnyContext: ...
@overload
def current(default: D) -> AnyContext | D: ...
def current(default: Any = _RAISE) -> Any:
    """Return the context of the task whose code is running.

    It works in everything that a task's `run` calls: functions, steps, asyncio tasks
    and threads of `asyncio.to_thread`. Start other threads with a copy of the context
    (`contextvars.copy_context().run`). A step's function may read it; as always, it
    may not make durable calls. Outside a task it returns `default`, or raises
    RuntimeError without one.
    """
    if default is _RAISE:
        try:
            return _context.get()
        except LookupError:
            raise RuntimeError("no task runs here: there is no context") from None
    return _context.get(default)


def start_task_function(
    run: Run, body: Callable[..., Any], params: Any
) -> Awaitable[Any]:
    """Start a task's function, on the loop or in a thread; return its awaitable."""
    if run.services.application.hooks.run_task:
        hooked = _hooked_async if run.definition.is_async else _hooked
        body = partial(hooked, run, body)
    if run.definition.is_async:
        context: TaskContext[Any] = TaskContext(run)
        run.context = context
        _context.set(context)
        returned = body(params, context)
        return returned if inspect.isawaitable(returned) else _return(returned)
    sync_context: SyncTaskContext[Any] = SyncTaskContext(SyncRun(run))
    run.context = sync_context
    _context.set(sync_context)
    return run.services.threads.run(_call_sync, body, params, sync_context)


async def _hooked_async(
    run: Run, body: Callable[..., Any], params: Any, context: Any
) -> Any:
    """Call an async task inside its middleware."""
    with around(run.services.application.hooks.run_task, run, context):
        returned = body(params, context)
        return await returned if inspect.isawaitable(returned) else returned


def _hooked(run: Run, body: Callable[..., Any], params: Any, context: Any) -> Any:
    """Call a synchronous task inside its middleware."""
    with around(run.services.application.hooks.run_task, run, context):
        return body(params, context)


async def _return(returned: Any) -> Any:
    """Return a value that is not awaitable, from a plain function of an async task."""
    return returned


def _call_sync(body: Callable[..., Any], params: Any, context: Any) -> Any:
    """Call a synchronous task. Raises UnsavableType if it returns an awaitable."""
    returned = body(params, context)
    if not inspect.isawaitable(returned):
        return returned
    if inspect.iscoroutine(returned):
        returned.close()
    raise UnsavableType(
        f"the task returned a {type(returned).__name__}, but was taken for a"
        " synchronous one: write async def, and functools.wraps in its decorators"
    )
