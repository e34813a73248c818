# Made from _async/transaction.py by tools/async_to_sync.py: edit that, not this.
"""A step whose effect is in Postgres: it happens exactly once.

What the function writes and the checkpoint that says so commit together. The checkpoint
comes last: saving it proves, under a lock on the task's row that is held to the commit,
that the task is still this worker's. So a former holder commits nothing, and nobody
waits for the function. The task's completion, in the checkpoint's place, proves the
same. A stricter transaction than READ COMMITTED would fail that proof if the row had
changed since its snapshot, so the lease is not extended meanwhile.

After a serialization failure, a deadlock or a lost connection it begins again, in a new
transaction. One that was lost may have committed nevertheless: so the task's row is
locked first, which waits for the end of the other, and its checkpoint looked for.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import IsolationLevel
from psycopg_pool import ConnectionPool, PoolClosed

from durable import _sql
from durable._foreign import execute
from durable._json import Unsavable
from durable._sql import Statement
from durable._values import Codec
from durable._worker.link import HEALING, backoff
from durable._worker.outcomes import read
from durable._worker.transacting import Transacting
from durable._worker.waits import Resolved
from durable.errors import InvalidArgument, LeaseLost, TaskCancelled, sqlstates
from durable.options import Isolation

__all__ = ["Transaction", "checked_isolation"]

logger = logging.getLogger("durable.worker")

Open: TypeAlias = Callable[[Any, IsolationLevel], AbstractContextManager[Any]]

_LEVELS: Final[Mapping[str, IsolationLevel]] = {
    "read committed": IsolationLevel.READ_COMMITTED,
    "repeatable read": IsolationLevel.REPEATABLE_READ,
    "serializable": IsolationLevel.SERIALIZABLE,
}
_BEGIN_AGAIN: Final = {"40001", "40P01"}  # serialization failure, deadlock
_ONLY_READS: Final = "25006"


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
        self,
        run: Transacting,
        on: object,
        isolation: IsolationLevel,
        *,
        completes: bool = False,
    ) -> None:
        self._run = run
        self._completes = completes
        self._on = on
        self._open: Open = _on_pool if on is None else _adapter(on)
        self._isolation = isolation
        self._in_doubt = False  # whether a try may have committed
        self._raised: Exception | None = None  # by the application's function

    def step(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Callable[[Exception], None] | None = None,
    ) -> Any:
        """Do what the function does, unless it is done; return what it returned.

        What it raises is told to `failed`, else it is kept as the step's failure.
        """
        saved = self._run.begin(completes=self._completes)
        if saved is not None:
            return read(saved, codec)
        try:
            saved = self._until_it_commits(function, args, codec)
        except _Refused as refused:
            self._run.give_up(str(refused))
        except Unsavable:
            raise
        except Exception as error:
            (failed or self._run.keep_failure)(error)
            raise
        finally:
            self._run.end(saved)
        if self._completes:
            self._run.completed()
        return read(saved, codec)

    def _until_it_commits(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        failures = 0
        while True:
            try:
                saved = self._former() if self._in_doubt else None
                return saved or self._once(function, args, codec)
            except Exception as error:
                if not self._may_begin_again(error):
                    raise
                level = logging.INFO if failures else logging.WARNING
                logger.log(
                    level, "transaction %r: %s; beginning again", self._run.key, error
                )
            time.sleep(backoff(failures))
            failures += 1
            self._run.refuse_unless_open()

    def _once(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        if self._isolation is IsolationLevel.READ_COMMITTED:
            return self._do(function, args, codec)
        self._run.extend_lease()
        with self._run.lease_rests():
            return self._do(function, args, codec)

    def _do(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        with self._open(self._source(), self._isolation) as connection:
            try:
                value = self._run.invoke(function, (connection, *args))
            except psycopg.Rollback as error:  # it would end the block in silence
                message = "to roll a transaction step back, raise another exception"
                self._raised = RuntimeError(message)
                raise self._raised from error
            except Exception as error:
                self._raised = error
                raise
            text = codec.dump(value)
            outcome = self._save(connection, text)
            if outcome != "ok":
                raise _Refused(outcome)
        return Resolved("done", text)

    def _save(self, connection: Any, value: str) -> str:
        with contextlib.ExitStack() as exits:
            if self._completes:  # what is published meanwhile would be refused
                exits.enter_context(self._run.lease_rests())
                self._run.save_published()
            (outcome,) = execute(connection, self._saving(value))
        return str(outcome)

    def _saving(self, value: str) -> Statement:
        """Return what saves, as the last of the transaction, that it was done."""
        queue = self._run.claimed.queue
        if self._completes:
            return _sql.complete_task(queue, self._run.completion(value))
        return _sql.save_checkpoint(queue, self._run.checkpoint(value))

    def _former(self) -> Resolved | None:
        """Return the checkpoint of a try that has committed; None if none has.

        One that has completed the task has ended the claim, too.
        """
        claimed = self._run.claimed
        holding = _sql.hold_task(
            claimed.queue, claimed.task_id, claimed.claim, self._run.key
        )
        level = IsolationLevel.READ_COMMITTED
        with self._open(self._source(), level) as connection:
            try:
                state, value = execute(connection, holding)
            except LeaseLost:
                raise _Refused("lost") from None
            except TaskCancelled:
                raise _Refused("cancelled") from None
        self._in_doubt = False
        return None if state is None else self._run.saved(state, value)

    def _source(self) -> Any:
        return self._run.pool() if self._on is None else self._on

    def _may_begin_again(self, error: Exception) -> bool:
        """Whether this says nothing of the function, but of the moment."""
        if isinstance(error, _ConnectionLost):
            self._in_doubt = True
            return True
        if isinstance(error, PoolClosed | _Refused):
            return False
        states = sqlstates(error)
        if error is self._raised:
            return not _BEGIN_AGAIN.isdisjoint(states)
        return any(state.startswith(HEALING) for state in states) or (
            not states and _is_unreachable(error)
        )


class _Refused(Exception):
    """The claim is over: cancelled or lost."""


def _is_unreachable(error: Exception) -> bool:
    """Whether no connection was to be had, as drivers and pools say it."""
    kinds = {base.__name__ for base in type(getattr(error, "orig", error)).__mro__}
    return not kinds.isdisjoint({"OperationalError", "TimeoutError", "OSError"})


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


@contextlib.contextmanager
def _on_pool(pool: ConnectionPool[Any], isolation: IsolationLevel) -> Iterator[Any]:
    with pool.connection() as connection:
        before = connection.isolation_level
        connection.set_isolation_level(isolation)
        with _telling_loss(connection):
            try:
                with connection.transaction():
                    yield connection
            except Exception as error:
                if _ONLY_READS in sqlstates(error):
                    connection.close()  # the next may lead to a primary
                raise
        with contextlib.suppress(psycopg.Error):  # the pool resets what is not idle
            connection.set_isolation_level(before)


@contextlib.contextmanager
def _on_engine(engine: Any, isolation: IsolationLevel) -> Iterator[Any]:
    level = isolation.name.replace("_", " ")
    with engine.connect() as connection:
        connection.execution_options(isolation_level=level)
        with _telling_loss(connection):
            try:
                with connection.begin():
                    yield connection
            except Exception as error:
                if _ONLY_READS in sqlstates(error):
                    connection.invalidate()
                raise


_SOURCES: Final[Mapping[str, Open]] = {
    "psycopg_pool ConnectionPool": _on_pool,
    "sqlalchemy Engine": _on_engine,
}


def _adapter(source: object) -> Open:
    for base in type(source).__mro__:
        name = f"{base.__module__.partition('.')[0]} {base.__name__}"
        if name in _SOURCES:
            return _SOURCES[name]
    raise TypeError(
        f"no transaction can be begun on {type(source).__name__};"
        f" it can on: {', '.join(_SOURCES)}"
    )
