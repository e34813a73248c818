# Made from _async/database.py by tools/async_to_sync.py: edit that, not this.
"""A client's connection pool, and the checks of its sessions and schema.

A pool retries to connect until the caller's timeout, and does not report why it fails.
So a caller whose wait was in vain connects by itself to get the error, unless all the
pool's connections were merely in use.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolTimeout

from durable._core.sql import Statement
from durable._db._sync.migrate import check_schema, migrate
from durable._db._sync.session import (
    PlainCursor,
    WatchdogConnection,
    check_session,
    fetch,
    is_readable,
)
from durable._db.conninfo import (
    KEEPALIVE,
    READ_TIMEOUT,
    SHORT_TIMEOUTS,
    conninfo_of_pool,
    conninfo_or_environment,
    known_conninfo,
    refused,
)
from durable._db.forks import call_in_forks
from durable._db.reconnecting import is_read_only
from durable.errors import DatabaseUnavailable, from_database

_FIRST_CHECK: Final = 0.5
_RECONNECT_SECONDS: Final = 2.0


class Database:
    """A pool that the client owns, or one that the application passed.

    It connects at the first statement, and may be opened again after `close`. A forked
    child makes its own connections.
    """

    def __init__(
        self, given: str | ConnectionPool[Any] | None, *, prepare: bool
    ) -> None:
        self._prepare = prepare
        self._owns_pool = not isinstance(given, ConnectionPool)
        if isinstance(given, ConnectionPool):
            self._pool = given
            self.address: str | None = conninfo_of_pool(given.conninfo, given.kwargs)
        else:
            self.address = conninfo_or_environment(given)
            self._pool = own_pool(self.address or "", prepare=prepare)
        self._strict: bool | None = None  # None: no session was checked yet
        self._closed = False
        self._parents_pool: ConnectionPool[Any] | None = None
        call_in_forks(self._replace_in_fork)

    def _replace_in_fork(self) -> None:  # without closing what the parent uses
        if not self._pool.closed:
            self._parents_pool = self._pool
            if self._owns_pool:
                self._pool = own_pool(self.address or "", prepare=self._prepare)

    @property
    def conninfo(self) -> str:
        """The database's conninfo. Raises InvalidArgument if none was given."""
        return known_conninfo(self.address)

    @property
    def pool_timeout(self) -> float:
        """The seconds to wait for a connection of the pool."""
        return self._pool.timeout

    def reopen(self) -> None:
        """Open the pool, also after `close`."""
        if self._closed:
            self._pool = own_pool(self.conninfo, prepare=self._prepare)
            self._closed = False
        self.open()

    def open(self) -> None:
        """Open the pool if needed; InvalidArgument if no database was given.

        Raises RuntimeError after `close`, and in a forked child if the application
        passed a pool that was open before the fork.
        """
        if self._pool is self._parents_pool:
            raise RuntimeError(
                "a pool does not survive a fork: open it, and make the client, in the"
                " process that uses them"
            )
        if self._closed:
            raise RuntimeError("the client is closed: enter it again")
        if self._pool.closed:
            address = self.conninfo
            if self._owns_pool and self._pool.conninfo != address:
                # Django's tests have started since
                self._pool = own_pool(address, prepare=self._prepare)
            self._pool.open()

    def close(self) -> None:
        """Close the connections; a pool of the application stays open."""
        if self._owns_pool:
            self._closed = True
            self._pool.close()

    def fetch(
        self,
        statement: Statement,
        *,
        within: float | None = None,
        read_timeout: float | None = None,
        slow: bool = False,
    ) -> list[tuple[Any, ...]]:
        """Execute one statement, and return its rows after the commit.

        Waits `within` seconds for a connection, by default the pool's timeout. On a
        pool of its own, the statement fails if the server sends nothing for
        `read_timeout` seconds, by default READ_TIMEOUT; if it is `slow`, it has no
        such limit. Raises DatabaseUnavailable, and PoolTimeout if all connections are
        in use.
        """
        if read_timeout is None and not slow:
            read_timeout = READ_TIMEOUT
        self.open()
        if self._strict is None:
            self._reach(within)
        try:
            with self._pool.connection(timeout=within) as connection:
                return self._fetch_on(connection, statement, read_timeout)
        except PoolTimeout as error:
            if within is None:
                raise self._explained(error)  # noqa: B904 - it has its cause
            raise  # a short wait is not prolonged to find the reason
        except psycopg.Error as error:
            raise from_database(error)  # noqa: B904 - it has its cause

    def _fetch_on(
        self,
        connection: Connection[Any],
        statement: Statement,
        read_timeout: float | None,
    ) -> list[tuple[Any, ...]]:
        if isinstance(connection, WatchdogConnection):
            connection.read_timeout = read_timeout
        try:
            cursor = PlainCursor(connection)
            if self._strict is None:
                self._strict = check_session(cursor)
            prepare = None if self._prepare else False
            return fetch(cursor, statement, strict=self._strict, prepare=prepare)
        except psycopg.Error as error:
            if is_read_only(error):
                connection.close()  # the next connection may be to a primary
            raise

    def migrate(self, queues: Iterable[str]) -> None:
        """Install or upgrade the schema, and create queues."""
        with self._connected() as connection:
            migrate(connection, queues)

    def check_schema(self, queues: Iterable[str]) -> str:
        """Describe what `migrate` would do; empty if it would do nothing."""
        with self._connected() as connection:
            return check_schema(PlainCursor(connection), list(queues))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection[Any]]:
        self.open()
        self._reach(None)
        with self._pool.connection() as connection:
            if isinstance(connection, WatchdogConnection):
                connection.read_timeout = None
            try:
                yield connection
            except psycopg.Error as error:
                raise from_database(error)  # noqa: B904 - it has its cause

    def _reach(self, within: float | None) -> None:
        """Wait for the pool's first connection: its timeout, or `within` seconds.

        Raises PoolTimeout, and DatabaseUnavailable: early, if the failure is permanent.
        """
        limit = self._pool.timeout if within is None else within
        deadline, pause = time.monotonic() + limit, _FIRST_CHECK
        while True:
            remaining = deadline - time.monotonic()
            try:
                with self._pool.connection(timeout=min(pause, remaining)):
                    return
            except PoolTimeout as error:
                why = self._explained(error)
                if isinstance(why, DatabaseUnavailable) and why.sqlstate is not None:
                    raise why from why.__cause__
                if remaining <= pause:
                    error.args = (f"no connection came free in {limit:g} s",)
                    raise why from why.__cause__
            pause *= 2

    def _explained(self, error: PoolTimeout) -> PoolTimeout:
        """Return the reason for the pool's timeout, or `error` if it was only busy."""
        failed = self._pool.get_stats().get("connections_errors")
        if not failed or callable(self._pool.kwargs):
            return error  # a function may fetch other credentials
        address, connect = self.conninfo, self._pool.connection_class.connect
        try:
            connection = connect(address, **SHORT_TIMEOUTS)
        except psycopg.Error as refusal:
            return refused(refusal, address)
        connection.close()
        return error


class OwnPool(ConnectionPool[Connection[Any]]):
    """A pool that connects again within seconds of an outage's end.

    Psycopg's pool doubles the pause after each failed attempt and starts no other
    attempt meanwhile: after an outage of a minute its callers wait another minute. This
    pool abandons an attempt early and requests a connection again, which starts a new
    one.
    """

    def getconn(self, timeout: float | None = None) -> Connection[Any]:
        """Return a connection; raise PoolTimeout after `timeout` seconds."""
        limit = self.timeout if timeout is None else timeout
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > _RECONNECT_SECONDS:
            with contextlib.suppress(PoolTimeout):
                return super().getconn(_RECONNECT_SECONDS)
        try:
            return super().getconn(left)
        except PoolTimeout:
            message = f"couldn't get a connection after {limit:.2f} sec"
            raise PoolTimeout(message) from None


def own_pool(conninfo: str, *, prepare: bool) -> ConnectionPool[Any]:
    """Return an unopened pool that connects on demand only."""
    return OwnPool(
        conninfo,
        connection_class=WatchdogConnection,
        min_size=0,
        max_size=10,
        open=False,
        check=_check,
        reconnect_timeout=_RECONNECT_SECONDS,
        kwargs={
            "autocommit": True,
            "prepare_threshold": 5 if prepare else None,
            **KEEPALIVE,
        },
    )


def _check(connection: Connection[Any]) -> None:
    """Test a pooled connection, with a round trip only if its socket is readable."""
    if is_readable(connection.fileno()):
        ConnectionPool.check_connection(connection)
