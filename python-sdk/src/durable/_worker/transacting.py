"""What a transaction step needs of its run, in either colour.

From `begin` to `end` the call is busy: the run does not leave under it. What is done
between, the transaction itself, is the business of the application's connection.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from durable._worker.executing import Execution
from durable._worker.history import Call
from durable._worker.run import Claimed, Run
from durable._worker.waits import Branch, Resolved
from durable.errors import Suspended

if TYPE_CHECKING:
    from durable._worker.blocking import BlockingRun
    from durable._worker.calls import Calls

__all__ = ["AsyncTransacting", "Transacting"]


class _Common:
    """What touches no loop."""

    def __init__(self, run: Run, call: Call) -> None:
        self._run = run
        self._call = call

    @property
    def claimed(self) -> Claimed:
        """The task."""
        return self._run.claimed

    @property
    def left(self) -> Suspended | None:
        """Why the run has left, if it has."""
        return self._run.left

    @property
    def key(self) -> str:
        """The name of the step, as its checkpoint has it."""
        return self._call.key

    def checkpoint(self, value: str) -> str:
        """Return the checkpoint that saves the step's value, as JSON."""
        return self._run.history.checkpoint(self._call, "done", value)

    def completion(self, value: str) -> str:
        """Return what completes the task with the step's value, as JSON."""
        return self._run.history.completion(value).completion

    def completed(self) -> None:
        """Know that the task has completed, whatever its code still does."""
        self._run.completed = True
        self._run.resting += 1  # there is no lease any more

    def saved(self, state: str, value: str) -> Resolved:
        """Return a checkpoint that was found: what is sealed in it, opened."""
        (found,) = self._run.history.opened({self.key: Resolved(state, value)}).values()
        return found

    def refuse_unless_open(self) -> None:
        """Raise Suspended if the run has left."""
        self._run.refuse_unless_open()

    @contextlib.contextmanager
    def lease_rests(self) -> Iterator[None]:
        """Do not extend the lease meanwhile: that writes to the task's row."""
        self._run.resting += 1
        try:
            yield
        finally:
            self._run.resting -= 1


class AsyncTransacting(_Common):
    """For a coroutine, on the worker's loop."""

    def __init__(self, calls: Calls, run: Run, call: Call) -> None:
        super().__init__(run, call)
        self._calls = calls
        self._branch: Branch | None = None

    async def pool(self) -> AsyncConnectionPool[Any]:
        """Return the worker's own connections."""
        return await self._run.services.pools.asynchronous()

    async def begin(self, *, completes: bool) -> Resolved | None:
        """Begin the call; returns its checkpoint, if it has one. Else it must `end`.

        Raises NonDeterminism if the task is to complete without recorded calls.
        """
        saved, self._branch = await self._calls.begin(self._call)
        if saved is None:
            try:
                past = self._run.past
                if completes and past is not None:
                    past.ends(self._branch if self._run.root is not None else None)
                await self._calls.save_failures(self._call.position)
            except BaseException:
                await self.end(None)
                raise
        return saved

    async def end(self, saved: Resolved | None) -> None:
        """End the call, with what has been committed for it."""
        if saved is not None:
            self._run.history.remember(self.key, saved)
        if self._branch is not None:
            self._run.waits.exit(self._branch)

    async def save_published(self) -> None:
        """Save what was published until now: once the task has completed nothing is."""
        await self._calls.save_published()

    async def extend_lease(self) -> None:
        """Extend the lease now. Raises Suspended if it is lost."""
        await self._calls.heartbeat()

    async def invoke(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call the step's function."""
        execution = Execution(self.key, in_transaction=True)
        return await self._calls.invoke(function, args, execution)

    async def give_up(self, outcome: str) -> NoReturn:
        """End the run here, for its claim is over. Raises Suspended."""
        self._run.give_up(outcome)

    def keep_failure(self, error: Exception) -> None:
        """Keep what the step failed with, to be saved if the task goes on."""
        self._calls.keep_failure(self._call, error)


class Transacting(_Common):
    """For a thread: what touches the run crosses to the worker's loop."""

    def __init__(self, blocking: BlockingRun, there: AsyncTransacting) -> None:
        super().__init__(there._run, there._call)  # noqa: SLF001 - its own kind
        self._blocking = blocking
        self._there = there

    def pool(self) -> ConnectionPool[Any]:
        """Return the worker's own connections."""
        return self._run.services.pools.synchronous()

    def begin(self, *, completes: bool) -> Resolved | None:
        """Begin the call; returns its checkpoint, if it has one. Else it must `end`."""
        return self._blocking.block(lambda: self._there.begin(completes=completes))

    def end(self, saved: Resolved | None) -> None:
        """End the call, with what has been committed for it."""
        self._blocking.block(lambda: self._there.end(saved))

    def save_published(self) -> None:
        """Save what was published until now: once the task has completed nothing is."""
        self._blocking.block(self._there.save_published)

    def extend_lease(self) -> None:
        """Extend the lease now. Raises Suspended if it is lost."""
        self._blocking.heartbeat()

    def invoke(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Call the step's function, right here."""
        execution = Execution(self.key, in_transaction=True)
        return self._blocking.invoke(function, args, execution)

    def give_up(self, outcome: str) -> NoReturn:
        """End the run here, for its claim is over. Raises Suspended."""
        self._blocking.block(lambda: self._there.give_up(outcome))
        raise AssertionError("a run that was given up goes on")

    def keep_failure(self, error: Exception) -> None:
        """Keep what the step failed with, to be saved if the task goes on."""
        self._there.keep_failure(error)
