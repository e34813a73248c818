"""The durable calls of a synchronous task: each blocks the task's own thread.

Only operations on the run are executed on the worker's loop. A step's function is
called in the task's thread, which has its thread-locals and Django connections. A step
uses the loop once, to be saved: the task makes one call at a time, so the run cannot
exit before.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from durable._core.outcomes import read
from durable._core.values import Codec
from durable._db.django import close_old_connections
from durable._task.checkpoints import Call, Execution, Failed, inside_a_step
from durable._task.run import Run, refused_exit
from durable.errors import Suspended

__all__ = ["SyncRun"]

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[Run, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[SyncRun, P], T]:
    """Return a method of `Run` as one that blocks until it is done."""

    def blocking(self: SyncRun, /, *args: P.args, **options: P.kwargs) -> T:
        return self.block(lambda: method(self.run, *args, **options))

    return blocking


class SyncRun:
    """The calls of `Run` that wait for something."""

    def __init__(self, run: Run) -> None:
        self.run = run

    begin_step = _blocking(Run.begin_step)
    complete_step = _blocking(Run.complete_step)
    check_no_open_step = _blocking(Run.check_no_open_step)
    begin_transaction = _blocking(Run.begin_transaction)
    end_transaction = _blocking(Run.end_transaction)
    save_failures = _blocking(Run.save_failures)
    heartbeat = _blocking(Run.heartbeat)
    record = _blocking(Run.record)
    wait = _blocking(Run.wait)
    emit = _blocking(Run.emit)
    send = _blocking(Run.send)
    spawn = _blocking(Run.spawn)
    _save_step = _blocking(Run.save_step)
    _make_room = _blocking(Run.make_room)

    def step(
        self,
        call: Call,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Failed | None = None,
    ) -> Any:
        """Call a step's function in this thread; see `Run.step`."""
        self.run.block_thread_if_runaway()
        saved = self.run.replayed(call)
        if saved is not None:
            return read(saved, codec)
        try:
            value = self.invoke(function, args, Execution(call.key))
        except Exception as error:  # noqa: BLE001 - it is the user's own code
            raised = failed(error) if failed else self.run.keep_failure(call, error)
        else:
            return self._save_step(call, value, codec)
        raise raised

    def invoke(
        self, function: Callable[..., Any], args: Sequence[Any], execution: Execution
    ) -> Any:
        """Call a step's function in this thread."""
        close_old_connections()
        token = inside_a_step.set(execution)
        try:
            with self.run.around_step(execution):
                return function(*args)
        except SystemExit as error:
            raise refused_exit(error) from error
        finally:
            inside_a_step.reset(token)
            close_old_connections()

    def make_room(self) -> None:
        """Wait until few enough published entries are waiting to be saved."""
        self.run.block_thread_if_runaway()
        if self.run.needs_room:
            self._make_room()

    def block(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the worker's loop, and block until it is done.

        `run_coroutine_threadsafe` would raise a subclass of Exception for a cancelled
        call, which the task's code could catch.
        """
        run = self.run
        run.block_thread_if_runaway()
        answer: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()

        def start() -> None:
            run.loop.create_task(make()).add_done_callback(answer.put)

        run.loop.call_soon_threadsafe(start)
        task = answer.get()
        if task.cancelled():
            raise run.exit_reason or Suspended("ended")
        return task.result()
