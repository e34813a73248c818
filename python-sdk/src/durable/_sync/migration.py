# Made from _async/migration.py by tools/async_to_sync.py: edit that, not this.
"""Installs and upgrades the schema, while workers work.

It is one transaction: all of it happens or nothing does. It waits for a table in use so
briefly that nobody queues up behind it, gives way, and comes back. Calls that are under
way when it commits may still be inside old functions: what those call is dropped after
they have ended, in a second transaction; if that does not come to pass, by whoever
migrates next.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import Connection, Cursor
from psycopg.rows import tuple_row

from durable import _schema, _sql
from durable._worker.link import backoff

__all__ = ["migrate"]

logger = logging.getLogger("durable.client")

Leftovers: TypeAlias = list[dict[str, Any]]

# An installed engine has this table from its first transaction on.
INSTALLED: Final = "select to_regclass('durable.migrations') is not null"
APPLIED: Final = "select number from durable.migrations"
LOCK: Final = "select pg_advisory_xact_lock(hashtext('durable.migrate'))"
# For less than a deadlock takes to be found: else a worker might be told of it.
BRIEFLY: Final = "set local lock_timeout = '500ms'"
IN_USE: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

LEFTOVERS: Final = """
select pg_proc.oid::bigint, pg_proc.xmin::text
from pg_proc
join string_to_table(current_setting('durable.leftovers', true), ',') as leftover
  on leftover::oid = pg_proc.oid
"""
SET_LEFTOVERS: Final = "select set_config('durable.leftovers', %s, true)"
UNDER_WAY: Final = """
select virtualtransaction from pg_locks join pg_stat_activity using (pid)
where locktype = 'virtualxid' and granted
  and datname = current_database() and pid <> pg_backend_pid()
  and backend_type is distinct from 'autovacuum worker'
"""

_PATIENCE: Final = 60.0
_LINGER: Final = 10.0
_LOOK_SECONDS: Final = 0.02


def migrate(connection: Connection[Any], queues: Iterable[str]) -> None:
    """Install or upgrade the schema and create queues, all or nothing.

    Raises TimeoutError when a table was in use for a minute, and SchemaVersion when
    the engine is of a later major.minor; a newer one of its own is left as it is.
    """
    cursor = connection.cursor(row_factory=tuple_row)
    leftovers = _when_free(cursor, list(queues))
    if leftovers and _no_call_is_under_way(cursor):
        _drop(cursor, leftovers)


def _when_free(cursor: Cursor[Any], queues: list[str]) -> Leftovers:
    until = time.monotonic() + _PATIENCE
    for failures in itertools.count(1):
        try:
            with cursor.connection.transaction():
                return _upgrade(cursor, queues)
        except IN_USE as error:
            if time.monotonic() > until:
                raise TimeoutError(
                    f"durable's tables were in use for {_PATIENCE:g} s:"
                    " some session keeps a transaction open"
                ) from error
        time.sleep(backoff(failures))
    raise AssertionError


def _upgrade(cursor: Cursor[Any], queues: list[str]) -> Leftovers:
    """Do it once; return the functions that this version no longer has."""
    cursor.execute(LOCK)
    cursor.execute(BRIEFLY)
    cursor.execute((_script(cursor)).encode())
    for queue in queues:
        create = _sql.create_queue(queue, {})
        cursor.execute(create.text.encode(), create.args)
    cursor.execute(LEFTOVERS)
    return [{"oid": oid, "seen": seen} for oid, seen in cursor.fetchall()]


def _script(cursor: Cursor[Any]) -> str:
    """Return what this database lacks: of a newer engine, nothing."""
    cursor.execute(INSTALLED)
    if cursor.fetchone() != (True,):
        return _schema.script(None)
    cursor.execute(_sql.version().text.encode())
    ((found,),) = cursor.fetchall()
    if _schema.is_newer(found):
        logger.warning(
            "the schema has version %s, newer than this package: left as it is", found
        )
        return ""
    cursor.execute(APPLIED)
    return _schema.script([number for (number,) in cursor.fetchall()])


def _no_call_is_under_way(cursor: Cursor[Any]) -> bool:
    """Wait until all transactions have ended that there are now; not for ever."""
    until = time.monotonic() + _LINGER
    cursor.execute(UNDER_WAY)
    began = set(cursor.fetchall())
    while began and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        cursor.execute(UNDER_WAY)
        began.intersection_update(cursor.fetchall())
    return not began


def _drop(cursor: Cursor[Any], leftovers: Leftovers) -> None:
    with cursor.connection.transaction():
        cursor.execute(LOCK)
        cursor.execute(SET_LEFTOVERS, [json.dumps(leftovers)])
        cursor.execute(_schema.drop_leftovers().encode())
