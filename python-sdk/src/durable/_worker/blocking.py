"""A run as a synchronous task sees it, from its own thread.

Only what touches the run crosses to the worker's loop; a step's function is called
right here, where thread-locals and Django's connections are. A step crosses once, to be
saved: its task makes one call at a time, so the run cannot leave under it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from durable._messages import Message
from durable._values import Codec
from durable._worker.calls import Calls, exit_refused
from durable._worker.executing import Execution, inside_a_step
from durable._worker.history import Call
from durable._worker.outcomes import read
from durable._worker.run import Claimed
from durable._worker.transacting import Transacting
from durable._worker.waits import Resolved, Wait
from durable.errors import Suspended

if TYPE_CHECKING:
    import httpx

    from durable._application import Application

__all__ = ["AsyncRun", "BlockingRun"]

T = TypeVar("T")
AsyncRun = Calls  # what a context calls, in either colour


class BlockingRun:
    """The same calls as `Calls`, each blocking until it is done."""

    def __init__(self, run: Calls) -> None:
        self._run = run
        self._thread: int | None = None

    @property
    def claimed(self) -> Claimed:
        """The task."""
        return self._run.claimed

    @property
    def run_id(self) -> UUID:
        """The id of this attempt."""
        return self._run.run_id

    @property
    def attempt(self) -> int:
        """Which attempt this is; code that asks may go by it."""
        return self._run.attempt

    @property
    def headers(self) -> Mapping[str, Any]:
        """What was spawned with the task beside its params."""
        return self._run.headers

    @property
    def all_headers(self) -> Mapping[str, Any]:
        """The same, with those that are durable's own."""
        return self._run.all_headers

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """Who asked for the task."""
        return self._run.identity

    @property
    def state(self) -> Any:
        """What the application's lifespan yielded."""
        return self._run.state

    @property
    def http(self) -> httpx.Client:
        """The worker's own HTTP client, for threads."""
        return self._run.blocking_http

    @property
    def application(self) -> Application:
        """The application whose worker this is."""
        return self._run.application

    @property
    def result_codec(self) -> Codec[Any]:
        """How the task's result is written."""
        return self._run.result_codec

    def take(self, kind: str, name: str, branch: None) -> Call:
        """Take the name of a call that is being made."""
        self._refuse_elsewhere()
        return self._run.take(kind, name, branch)

    def take_patch(self, name: str, branch: None) -> Call | None:
        """Take the name of a patch; None if the task went past it without one."""
        self._refuse_elsewhere()
        return self._run.take_patch(name, branch)

    def accept_patch(self, name: str, branch: None) -> None:
        """Meet a patch if it is recorded."""
        self._refuse_elsewhere()
        self._run.accept_patch(name, branch)

    def step(
        self,
        call: Call,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Callable[[Exception], None] | None = None,
    ) -> Any:
        """Call a step's function, unless it is saved, and save what it returns.

        What it raises is told to `failed`, else it is kept as the step's failure.
        """
        saved = self._run.replayed(call)
        if saved is not None:
            return read(saved, codec)
        try:
            value = self.invoke(function, args, Execution(call.key))
        except Exception as error:
            if failed is not None:
                failed(error)
            else:
                self.keep_failure(call, error)
            raise
        return self.block(lambda: self._run.save_step(call, value, codec))

    def invoke(
        self, function: Callable[..., Any], args: Sequence[Any], execution: Execution
    ) -> Any:
        """Call a step's function, right here."""
        token = inside_a_step.set(execution)
        try:
            return function(*args)
        except SystemExit as error:
            raise exit_refused(error) from error
        finally:
            inside_a_step.reset(token)

    def is_saved(self, key: str) -> bool:
        """Whether there is a checkpoint of this name."""
        return self._run.is_saved(key)

    def keep_failure(self, call: Call, error: Exception) -> None:
        """Keep a step's failure, to be saved with the next thing its task saves."""
        self._run.keep_failure(call, error)

    def begin_step(self, call: Call) -> Resolved | None:
        """Begin a step that stays open."""
        return self.block(lambda: self._run.begin_step(call))

    def complete_step(self, call: Call, value: Any, codec: Codec[Any]) -> Any:
        """Save the value of an open step, and close it."""
        return self.block(lambda: self._run.complete_step(call, value, codec))

    def refuse_while_open(self) -> None:
        """Raise RuntimeError if a step is open, for it is going to wait."""

        async def refuse() -> None:
            self._run.refuse_while_open()

        self.block(refuse)

    def wait(self, call: Call, wait: Wait) -> Resolved:
        """Wait until something happens."""
        return self.block(lambda: self._run.wait(call, wait))

    def record(self, call: Call, value: str) -> Resolved:
        """Save a value that is JSON already."""
        return self.block(lambda: self._run.record(call, value))

    def emit(self, call: Call, event: str, payload: str) -> Resolved:
        """Emit an event."""
        return self.block(lambda: self._run.emit(call, event, payload))

    def send(self, call: Call, message: Message) -> Resolved:
        """Send a message."""
        return self.block(lambda: self._run.send(call, message))

    def spawn(self, call: Call, queue: str, child: str) -> Resolved:
        """Spawn a child."""
        return self.block(lambda: self._run.spawn(call, queue, child))

    def spawn_all(self, children: Sequence[tuple[Call, str, str]]) -> list[Resolved]:
        """Spawn children."""
        return self.block(lambda: self._run.spawn_all(children))

    def transacting(self, call: Call) -> Transacting:
        """Return what a transaction step needs of its run."""
        return Transacting(self, self._run.transacting(call))

    @property
    def logger(self) -> logging.Logger:
        """The run's own logger."""
        return self._run.logger

    def publish(
        self, kind: str, prefix: str, name: str, value: str | None, branch: None
    ) -> None:
        """Hand in an entry of a stream, or a value."""
        if inside_a_step.get() is None:
            self._refuse_elsewhere()
        self._run.publish(kind, prefix, name, value, branch)

    def make_room(self) -> None:
        """Return when what was published is saved, as far as need be."""
        if self._run.is_crowded:
            self.block(self._run.make_room)

    def heartbeat(self) -> None:
        """Extend the lease now."""
        self.block(self._run.heartbeat)

    def database_now(self) -> datetime:
        """Return the time of the database."""
        return self._run.database_now()

    def _refuse_elsewhere(self) -> None:
        here = threading.get_ident()
        self._thread = self._thread or here
        if here != self._thread:
            raise RuntimeError("the context is used on another thread than its own")

    def block(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do it on the worker's loop, and wait here.

        Not `run_coroutine_threadsafe`: what that raises for a cancelled call is an
        Exception, which the task's code would catch.
        """
        answer: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()

        def start() -> None:
            self._run.loop.create_task(make()).add_done_callback(answer.put)

        self._run.loop.call_soon_threadsafe(start)
        task = answer.get()
        if task.cancelled():
            raise self._run.left or Suspended("ended")
        return task.result()
