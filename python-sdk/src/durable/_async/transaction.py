"""A step whose effect is in Postgres: it happens exactly once.

What the function writes and the checkpoint that says so commit together. Who may write
is proved under a lock on the task's row that is held to the commit, so a former holder
commits nothing. At READ COMMITTED the proof comes last, with the checkpoint, and nobody
waits for the function. A stricter transaction reads by the snapshot of its beginning,
before which a lease may have been extended: there the task is held from the start.

After a serialization failure, a deadlock or a lost connection it begins again, in a new
transaction. One that was lost may have committed nevertheless: so the next holds the
task first, which waits for the end of the other, and looks for its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import IsolationLevel
from psycopg_pool import AsyncConnectionPool

from durable import _sql
from durable._foreign import execute_async
from durable._values import Codec
from durable._worker.link import backoff
from durable._worker.outcomes import read
from durable._worker.transacting import AsyncTransacting
from durable._worker.waits import Resolved
from durable.errors import InvalidArgument, LeaseLost, TaskCancelled, sqlstates
from durable.options import Isolation

__all__ = ["Transaction", "checked_isolation"]

logger = logging.getLogger("durable.worker")

Begin: TypeAlias = Callable[[Any, IsolationLevel], AbstractAsyncContextManager[Any]]

_LEVELS: Final[Mapping[str, IsolationLevel]] = {
    "read committed": IsolationLevel.READ_COMMITTED,
    "repeatable read": IsolationLevel.REPEATABLE_READ,
    "serializable": IsolationLevel.SERIALIZABLE,
}
_BEGIN_AGAIN: Final = {"40001", "40P01"}  # serialization failure, deadlock
_BUSY: Final = "55P03"  # the task's row is in the hands of another transaction
_UNREACHABLE: Final = ("08", "53", "57P", "25006")  # as a server that restarts says


def checked_isolation(isolation: Isolation) -> IsolationLevel:
    """Return an isolation level by its name; InvalidArgument for another name."""
    level = _LEVELS.get(isolation)
    if level is None:
        raise InvalidArgument(
            f"isolation is {isolation!r}", hint=f"Pass one of {', '.join(_LEVELS)}."
        )
    return level


class Transaction:
    """One transaction step of a run, from its first try to its commit or failure.

    `on` is the application's pool or engine, or None for the worker's own connections.
    """

    def __init__(
        self, run: AsyncTransacting, on: object, isolation: IsolationLevel
    ) -> None:
        self._run = run
        self._on = on
        self._begin: Begin = _on_pool if on is None else _adapter(on)
        self._isolation = isolation
        self._hold_first = isolation is not IsolationLevel.READ_COMMITTED
        self._connection: Any = None
        self._inside = False  # the application's function

    async def step(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Callable[[Exception], None] | None = None,
    ) -> Any:
        """Do what the function does, unless it is done; return what it returned.

        What it raises is told to `failed`, else it is kept as the step's failure.
        """
        saved = await self._run.begin()
        if saved is not None:
            return read(saved, codec)
        try:
            saved = await self._until_it_commits(function, args, codec)
        except Exception as error:
            if isinstance(error, LeaseLost | TaskCancelled) and not self._inside:
                await self._run.give_up(
                    "cancelled" if isinstance(error, TaskCancelled) else "lost"
                )
            (failed or self._run.keep_failure)(error)
            raise
        except asyncio.CancelledError as error:  # async only
            raise self._run.left or error from None
        finally:
            await self._run.end(saved)
        return read(saved, codec)

    async def _until_it_commits(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        failures = 0
        while True:
            try:
                return await self._once(function, args, codec)
            except Exception as error:
                if not self._may_begin_again(error):
                    raise
                logger.info("transaction %r: %s; beginning again", self._run.key, error)
            await asyncio.sleep(backoff(failures))
            failures += 1
            self._run.refuse_unless_open()

    async def _once(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        self._connection, self._inside = None, False
        on = await self._run.pool() if self._on is None else self._on
        async with self._begin(on, self._isolation) as self._connection:
            if not self._hold_first:
                return await self._do(function, args, codec)
            saved = await self._hold()
            if saved is not None:
                return saved
            with self._run.lease_is_kept():
                return await self._do(function, args, codec)

    async def _do(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        self._inside = True
        value = await self._run.invoke(function, (self._connection, *args))
        text = codec.dump(value)
        self._inside = False
        saving = _sql.save_checkpoint(
            self._run.claimed.queue, self._run.checkpoint(text)
        )
        (outcome,) = await execute_async(self._connection, saving)
        if outcome != "ok":
            raise TaskCancelled if outcome == "cancelled" else LeaseLost
        return Resolved("done", text)

    async def _hold(self) -> Resolved | None:
        """Lock the task's row. Returns the checkpoint of a try that did commit."""
        claimed = self._run.claimed
        holding = _sql.hold_task(
            claimed.queue, claimed.task_id, claimed.claim, self._run.key
        )
        state, value = await execute_async(self._connection, holding)
        return None if state is None else Resolved(state, value)

    def _may_begin_again(self, error: Exception) -> bool:
        """Whether this says nothing about the function, but of the moment."""
        if isinstance(error, _ConnectionLost):
            self._hold_first = True
            return True
        states = sqlstates(error)
        if self._connection is None:
            return _is_unreachable(error, states)
        return not _BEGIN_AGAIN.isdisjoint(states) or (
            _BUSY in states and not self._inside
        )


def _is_unreachable(error: Exception, states: Sequence[str]) -> bool:
    if states:
        return any(state.startswith(_UNREACHABLE) for state in states)
    cause = getattr(error, "orig", error)
    return isinstance(cause, psycopg.OperationalError | OSError)


# -- where a transaction is begun ---------------------------------------------------


class _ConnectionLost(Exception):
    """Whether the transaction has committed is not known."""


@contextlib.contextmanager
def _telling_loss(connection: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if connection.closed or getattr(connection, "invalidated", False):
            raise _ConnectionLost(str(error)) from error
        raise


@contextlib.asynccontextmanager
async def _on_pool(
    pool: AsyncConnectionPool[Any], isolation: IsolationLevel
) -> AsyncIterator[Any]:
    async with pool.connection() as connection:
        before = connection.isolation_level
        await connection.set_isolation_level(isolation)
        try:
            with _telling_loss(connection):
                async with connection.transaction():
                    yield connection
        finally:
            if not connection.closed:
                await connection.set_isolation_level(before)


@contextlib.asynccontextmanager
async def _on_engine(engine: Any, isolation: IsolationLevel) -> AsyncIterator[Any]:
    level = isolation.name.replace("_", " ")
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level=level)
        with _telling_loss(connection):
            async with connection.begin():
                yield connection


_SOURCES: Final[Mapping[str, Begin]] = {
    "psycopg_pool AsyncConnectionPool": _on_pool,
    "sqlalchemy AsyncEngine": _on_engine,
}


def _adapter(source: object) -> Begin:
    for base in type(source).__mro__:
        name = f"{base.__module__.partition('.')[0]} {base.__name__}"
        if name in _SOURCES:
            return _SOURCES[name]
    raise TypeError(
        f"no transaction can be begun on {type(source).__name__};"
        f" it can on: {', '.join(_SOURCES)}"
    )
