# Made from _async/reaching.py by tools/async_to_sync.py: edit that, not this.
"""The way to the database, and what is said by whoever bars it.

A pool tries to connect for as long as somebody waits, and tells nobody why it cannot.
So who waits in vain asks the server himself, once the pool has failed to connect: not
while all its connections are in use.
"""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from durable._connections import IMPATIENCE, refused
from durable.errors import DatabaseUnavailable

__all__ = ["explained", "reach"]

_FIRST_LOOK: Final = 0.5


def reach(pool: ConnectionPool[Any], conninfo: str, within: float | None) -> None:
    """Wait for the first connection of a pool: as long as it does, or `within` seconds.

    Raises DatabaseUnavailable, early if time does not heal it, and PoolTimeout.
    """
    limit = pool.timeout if within is None else within
    until, look = time.monotonic() + limit, _FIRST_LOOK
    while True:
        left = until - time.monotonic()
        try:
            with pool.connection(timeout=min(look, left)):
                return
        except PoolTimeout as error:
            why = explained(error, pool, conninfo)
            if isinstance(why, DatabaseUnavailable) and why.sqlstate is not None:
                raise why from why.__cause__
            if left <= look:
                error.args = (f"no connection came free in {limit:g} s",)
                raise why from why.__cause__
        look *= 2


def explained(
    error: PoolTimeout, pool: ConnectionPool[Any], conninfo: str
) -> PoolTimeout:
    """Return why a pool has given no connection, or `error` if it was only busy."""
    failed = pool.get_stats().get("connections_errors")
    if not failed or callable(pool.kwargs):  # which may have secrets of its own
        return error
    try:
        connection = pool.connection_class.connect(conninfo, **IMPATIENCE)
    except psycopg.Error as refusal:
        return refused(refusal)
    connection.close()
    return error
