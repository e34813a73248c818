# Made from _async/transaction.py by tools/async_to_sync.py: edit that, not this.
"""Transaction steps: steps with effects in Postgres, which happen exactly once.

The function's writes and the step's checkpoint commit together. The checkpoint is saved
last: that locks the task's row until the commit, and proves that this worker still has
the claim. So a worker that lost its claim commits nothing, and no session waits while
the function runs. With `completes`, the task's completion takes the checkpoint's place
and proves the same. At a stricter level than READ COMMITTED the proof would fail if the
row had changed since the snapshot, so the lease is not extended meanwhile.

After a serialization failure, a deadlock or a lost connection, the step starts again in
a new transaction. A transaction whose connection was lost may have committed: so the
task's row is locked first, which waits for the end of that transaction, and then the
checkpoint is looked up. A transaction timeout is a failure of the step, and so are
losses and conflicts that occur too often.
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

from durable._core import sql
from durable._core.outcomes import Resolved, read
from durable._core.sql import Statement
from durable._core.values import Codec
from durable._db.drivers import execute
from durable._db.reconnecting import TRANSIENT, backoff
from durable._task.checkpoints import Call, Execution, Failed
from durable._task.sync_run import SyncRun
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
_CONFLICTS: Final = {"40001", "40P01"}  # serialization failure, deadlock
# statement_timeout, idle_in_transaction_session_timeout, transaction_timeout
_TOO_LONG: Final = {"57014", "25P03", "25P04"}
# How often one try of a step may restart after a conflict, or a lost connection.
_MOST_CONFLICTS: Final = 100
_MOST_LOSSES: Final = 10
_READ_ONLY: Final = "25006"


def checked_isolation(isolation: Isolation) -> IsolationLevel:
    """Return an isolation level by its name; InvalidArgument for an unknown name."""
    level = _LEVELS.get(isolation)
    if level is None:
        raise InvalidArgument(
            f"isolation is {isolation!r}", hint=f"Pass one of {', '.join(_LEVELS)}."
        )
    return level


class Transaction:
    """One transaction step of a run, from its first try to its commit or failure.

    `on` is the application's pool or engine, or None for the worker's own connections.
    The run does not exit meanwhile.
    """

    def __init__(
        self,
        calls: SyncRun,
        call: Call,
        on: object,
        isolation: IsolationLevel,
        *,
        completes: bool = False,
    ) -> None:
        self._calls = calls
        self._run = calls.run
        self._call = call
        self._completes = completes
        self._on = on
        self._open: Open = _on_pool if on is None else _adapter(on)
        self._isolation = isolation
        self._in_doubt = False  # whether a transaction may have committed
        self._conflicts = self._losses = 0
        self._last: Exception | None = None  # the error of the last restart

    def step(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        codec: Codec[Any],
        failed: Failed | None = None,
    ) -> Any:
        """Run the function unless the step is saved; return its saved value.

        An exception of the function is passed to `failed`, or saved as the step's
        failure.
        """
        call, run, completes = self._call, self._run, self._completes
        saved, branch = self._calls.begin_transaction(call, completes=completes)
        if saved is not None:
            return read(saved, codec)
        self._conflicts = self._losses = 0  # counted for each try
        raised: Exception | None = None
        refusal: str | None = None
        try:
            saved = self._commit_with_retries(function, args, codec)
        except _Refused as refused:
            refusal = str(refused)
        except Exception as error:  # noqa: BLE001 - it is the user's own code
            raised = _unwrapped(error)
            raised = failed(raised) if failed else run.keep_failure(call, raised)
        finally:
            self._calls.end_transaction(call, branch, saved, refusal)
        if saved is None:  # raised here, to keep the __context__ that was recorded
            raise raised or AssertionError("neither done nor failed")
        if completes:
            run.completed = True  # although its code is still running
            run.lease_pauses += 1  # the lease has ended
        return read(saved, codec)

    def _commit_with_retries(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        failures = 0
        while True:
            try:
                saved = self._lookup() if self._in_doubt else None
                if saved is None:
                    self._check_limits()
                return saved or self._run_once(function, args, codec)
            except Exception as error:
                if not self._may_restart(error):
                    raise
                self._last = error
                level = logging.INFO if failures else logging.WARNING
                logger.log(
                    level, "transaction %r: %s; beginning again", self._call.key, error
                )
            time.sleep(backoff(failures))
            failures += 1
            self._run.check_open()

    def _check_limits(self) -> None:
        """Raise if the step has restarted too often."""
        if self._losses >= _MOST_LOSSES or self._conflicts >= _MOST_CONFLICTS:
            raise _TooManyRestarts(self._last) from self._last

    def _run_once(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        if self._isolation is IsolationLevel.READ_COMMITTED:
            return self._transact(function, args, codec)
        self._calls.heartbeat()
        with self._lease_paused():
            return self._transact(function, args, codec)

    def _transact(
        self, function: Callable[..., Any], args: Sequence[Any], codec: Codec[Any]
    ) -> Resolved:
        with self._open(self._source(), self._isolation) as connection:
            try:
                execution = Execution(self._call.key, in_transaction=True)
                value = self._calls.invoke(function, (connection, *args), execution)
            except psycopg.Rollback as error:  # would end the block without an error
                message = "to roll a transaction step back, raise another exception"
                instead = RuntimeError(message)
                instead.__cause__ = error
                raise _RolledBack(instead) from instead
            except Exception as error:
                raise _RolledBack(error) from error
            text = codec.dump(value) if self._completes else codec.roundtrip(value)[0]
            outcome = self._save(connection, text)
            if outcome != "ok":
                raise _Refused(outcome)
        return Resolved("done", text)

    def _save(self, connection: Any, value: str) -> str:
        with contextlib.ExitStack() as exits:
            if self._completes:  # entries published later would be refused
                exits.enter_context(self._lease_paused())
                self._calls.save_failures(self._call.position)
            (outcome,) = execute(connection, self._save_statement(value))
        return str(outcome)

    def _save_statement(self, value: str) -> Statement:
        """Return the last statement of the transaction: checkpoint or completion."""
        queue, checkpoints = self._run.claimed.queue, self._run.checkpoints
        if self._completes:
            completion = checkpoints.completion_write(value).completion
            return sql.complete_task(queue, completion)
        return sql.save_checkpoint(queue, checkpoints.checkpoint(self._call, value))

    @contextlib.contextmanager
    def _lease_paused(self) -> Iterator[None]:
        """Do not extend the lease meanwhile, because that updates the task's row."""
        self._run.lease_pauses += 1
        try:
            yield
        finally:
            self._run.lease_pauses -= 1

    def _lookup(self) -> Resolved | None:
        """Return the checkpoint if a transaction in doubt has committed, else None.

        If it has completed the task, it has ended the claim, too.
        """
        claimed, key = self._run.claimed, self._call.key
        statement = sql.lock_task(claimed.queue, claimed.task_id, claimed.claim, key)
        level = IsolationLevel.READ_COMMITTED
        with self._open(self._source(), level) as connection:
            try:
                state, value = execute(connection, statement)
            except LeaseLost:
                raise _Refused("lost") from None
            except TaskCancelled:
                raise _Refused("cancelled") from None
        self._in_doubt = False
        if state is None:
            return None
        return self._run.checkpoints.decoded({key: Resolved(state, value)})[key]

    def _source(self) -> Any:
        if self._on is not None:
            return self._on
        return self._run.services.sync_pool()

    def _may_restart(self, error: Exception) -> bool:
        """Whether an error is temporary, and not a failure of the function."""
        if isinstance(error, PoolClosed | _Refused | _TooManyRestarts):
            return False
        states = set(sqlstates(error))
        if not self._in_doubt and states & _TOO_LONG:
            return False
        if isinstance(error, _ConnectionLost):
            self._losses += not self._in_doubt
            self._in_doubt = True
            return True
        self._conflicts += bool(states & _CONFLICTS)
        if isinstance(error, _RolledBack):
            return bool(states & _CONFLICTS)
        return any(state.startswith(TRANSIENT) for state in states) or (
            not states and _is_unreachable(error)
        )


class _Refused(Exception):
    """The claim has ended: cancelled or lost."""


class _RolledBack(Exception):
    """Wraps an exception of the application's function.

    The exception itself may be immutable, and context managers set attributes on it.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class _TooManyRestarts(Exception):
    """The step has restarted so often that it fails."""


def _unwrapped(error: Exception) -> Exception:
    """Return the application's or driver's exception inside one of this module's."""
    while isinstance(error, _RolledBack | _ConnectionLost | _TooManyRestarts):
        inner = error.error if isinstance(error, _RolledBack) else error.__cause__
        if not isinstance(inner, Exception):
            break
        error = inner
    return error


def _is_unreachable(error: Exception) -> bool:
    """Whether a driver or pool could not connect, by the name of its error."""
    kinds = {base.__name__ for base in type(getattr(error, "orig", error)).__mro__}
    return not kinds.isdisjoint({"OperationalError", "TimeoutError", "OSError"})


# -- pools and engines ----------------------------------------------------------------


class _ConnectionLost(Exception):
    """The connection was lost, and the transaction may have committed."""


@contextlib.contextmanager
def _detecting_loss(connection: Any) -> Iterator[None]:
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
        with _detecting_loss(connection):
            try:
                with connection.transaction():
                    yield connection
            except Exception as error:
                if _READ_ONLY in sqlstates(error):
                    connection.close()  # the next one may be to a primary
                raise
        with contextlib.suppress(psycopg.Error):  # the pool rolls back unless idle
            connection.set_isolation_level(before)


@contextlib.contextmanager
def _on_engine(engine: Any, isolation: IsolationLevel) -> Iterator[Any]:
    level = isolation.name.replace("_", " ")
    with engine.connect() as connection:
        connection.execution_options(isolation_level=level)
        with _detecting_loss(connection):
            try:
                with connection.begin():
                    yield connection
            except Exception as error:
                if _READ_ONLY in sqlstates(error):
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
        f"cannot begin a transaction on {type(source).__name__};"
        f" it must be one of: {', '.join(_SOURCES)}"
    )
