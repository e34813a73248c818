"""Where a task's own code begins, in the colour it was written in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from durable._async.context import TaskContext
from durable._current import make_current
from durable._sync.context import SyncTaskContext
from durable._worker.blocking import BlockingRun
from durable._worker.calls import Calls
from durable._worker.run import Run

__all__ = ["begun"]


def begun(
    run: Run, calls: Calls, body: Callable[..., Any], params: Any
) -> Awaitable[Any]:
    """Begin the code of a run: a coroutine, or what a thread of its own will bring."""
    if run.definition.is_async:
        context: TaskContext[Any] = TaskContext(calls)
        make_current(context)
        coroutine: Awaitable[Any] = body(params, context)
        return coroutine
    blocking: SyncTaskContext[Any] = SyncTaskContext(BlockingRun(calls))
    make_current(blocking)
    return run.services.threads.run(body, params, blocking)
