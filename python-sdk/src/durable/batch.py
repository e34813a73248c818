"""Batch tasks: one call does the work of many tasks that run on one worker.

Each stays a task of its own, with its own result, failure, attempts and lease. They
share nothing but the call. So a batch that is lost with its worker is a lost attempt of
each, and the next batch may consist of other tasks.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from durable._core.arguments import required_seconds
from durable.errors import InvalidArgument
from durable.task import Task

if TYPE_CHECKING:
    from durable import TaskContext

__all__ = ["BatchTask"]

P = TypeVar("P")
R = TypeVar("R")


class BatchTask(Task[P, R]):
    """A task that is run together with others of its kind, in one call.

        class Embed(BatchTask[str, list[float]]):
            batch_size = 64

            async def run_batch(self, texts: Sequence[str]) -> list[list[float]]:
                return await model.embed(texts)

    It is spawned and awaited like any task. A worker collects those that it runs at the
    same time, so its `concurrency` must be at least `batch_size` to fill a batch.
    """

    batch_size: ClassVar[int] = 100
    """How many tasks a call takes at most, at least 1."""

    batch_wait: ClassVar[timedelta | float] = 0.01
    """Seconds or timedelta that the first task of a batch waits for others."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        required_seconds(cls.batch_wait, f"{cls.__qualname__}.batch_wait")
        if type(cls.batch_size) is not int or cls.batch_size < 1:
            raise InvalidArgument(
                f"{cls.__qualname__}.batch_size is {cls.batch_size!r}",
                hint="It is the most tasks in a batch, at least 1.",
            )

    @abstractmethod
    def run_batch(
        self, batch: Sequence[P], /
    ) -> Sequence[R | Exception] | Awaitable[Sequence[R | Exception]]:
        """Do the work of all tasks of a batch; return their results in its order.

        An exception among the results fails the attempt of that task alone; one that is
        raised fails the attempts of all of them. Both are retried as usual. `def` runs
        in a thread. It has no context, since a durable call belongs to one task.
        """

    async def run(self, params: P, ctx: TaskContext, /) -> R:
        """Wait for the batch with these params, and return its result for them."""
        del ctx
        open_batches = _open_batches.setdefault(asyncio.get_running_loop(), {})
        batch = open_batches.get(type(self))
        if batch is None or batch.is_closed:
            batch = open_batches[type(self)] = _Batch(self)
        result: R = await batch.add(params)
        return result


class _Batch(Generic[P, R]):
    """The tasks of one call of `run_batch`, open to more of them until it starts."""

    def __init__(self, task: BatchTask[P, R]) -> None:
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[P, asyncio.Future[R]]] = []
        self._unfinished = 0
        self._call: asyncio.Task[None] | None = None
        wait = required_seconds(task.batch_wait, "batch_wait")
        self._timer = self._loop.call_later(wait, self._start)

    @property
    def is_closed(self) -> bool:
        return self._call is not None

    def add(self, params: P) -> asyncio.Future[R]:
        result: asyncio.Future[R] = self._loop.create_future()
        result.add_done_callback(self._on_done)
        self._waiting.append((params, result))
        self._unfinished += 1
        if len(self._waiting) >= self._task.batch_size:
            self._start()
        return result

    def _on_done(self, result: asyncio.Future[R]) -> None:
        """Leave out a task that has ended; stop the call once all of them have."""
        self._unfinished -= 1
        if self._call is None:
            self._waiting = [one for one in self._waiting if one[1] is not result]
        elif not self._unfinished:
            self._call.cancel()

    def _start(self) -> None:
        self._timer.cancel()
        # in a context of its own: what is current there is none of these tasks
        self._call = self._loop.create_task(
            self._run(), name="durable batch", context=contextvars.Context()
        )

    async def _run(self) -> None:
        results = await self._results([params for params, _ in self._waiting])
        for (_, waiting), result in zip(self._waiting, results, strict=True):
            if waiting.done():
                continue
            if isinstance(result, Exception):
                waiting.set_exception(result)
            else:
                waiting.set_result(result)

    async def _results(self, batch: list[P]) -> Sequence[R | Exception]:
        """Return the outcome of each task of the batch."""
        run: Any = self._task.run_batch
        try:
            if inspect.iscoroutinefunction(run):
                results = list(await run(batch))
            else:
                results = list(await asyncio.to_thread(run, batch))
        except Exception as error:  # noqa: BLE001 - it is the outcome of each task
            return [error] * len(batch)
        if len(results) != len(batch):
            miscounted = RuntimeError(
                f"{type(self._task).__qualname__}.run_batch returned {len(results)}"
                f" results for a batch of {len(batch)}"
            )
            return [miscounted] * len(batch)
        return results


_open_batches: Final[
    WeakKeyDictionary[asyncio.AbstractEventLoop, dict[type[Any], _Batch[Any, Any]]]
] = WeakKeyDictionary()
