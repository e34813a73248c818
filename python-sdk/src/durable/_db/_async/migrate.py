"""Install and upgrade the schema while workers are running.

The upgrade is one transaction. It waits for a table lock only briefly, because every
later request for that table waits for it in turn; then it rolls back and retries. Calls
in progress at the commit still run the old functions. What these need is dropped after
they have ended, in a second transaction or by the next migration.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

import psycopg
from psycopg import AsyncConnection

from durable._core import sql
from durable._db import schema
from durable._db._async.session import AsyncPlainCursor, read_committed
from durable._db.reconnecting import backoff

logger = logging.getLogger("durable.client")

Leftovers: TypeAlias = list[dict[str, Any]]

# This table exists since the first transaction of an installed engine.
INSTALLED: Final = "select to_regclass('durable.migrations') is not null"
APPLIED: Final = "select number from durable.migrations"
MAY_READ: Final = "select has_table_privilege('durable.migrations', 'select')"
# The errors of a role or server that may not write.
REFUSED: Final = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ReadOnlySqlTransaction,
)
# One migration at a time. Only the owner of the table can take this lock, so no other
# role can block an upgrade. Of two installs, the second fails on an existing name.
LOCK: Final = "lock table durable.migrations in share row exclusive mode"
# The script must not depend on settings of the session. It is in ASCII, but names of
# queues need not be.
SETTINGS: Final = """
set local standard_conforming_strings to on;
set local statement_timeout to 0;
set local client_encoding to 'UTF8'
"""
# Shorter than deadlock_timeout, so no worker gets a deadlock error.
BRIEFLY: Final = "set local lock_timeout = '500ms'"
IN_USE: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
# The errors of an install if another one has just committed.
INSTALLED_MEANWHILE: Final = (
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateTable,
    psycopg.errors.UniqueViolation,
)

LEFTOVERS: Final = """
select pg_proc.oid::bigint, pg_proc.xmin::text
from pg_proc
join string_to_table(current_setting('durable.leftovers', true), ',') as leftover
  on leftover::oid = pg_proc.oid
"""
SET_LEFTOVERS: Final = "select set_config('durable.leftovers', %s, true)"
OPEN_TRANSACTIONS: Final = """
select virtualtransaction from pg_locks join pg_stat_activity using (pid)
where locktype = 'virtualxid' and granted
  and datname = current_database() and pid <> pg_backend_pid()
  and backend_type is distinct from 'autovacuum worker'
"""

_LOCK_SECONDS: Final = 60.0
_CALL_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02


async def migrate(connection: AsyncConnection[Any], queues: Iterable[str]) -> None:
    """Install or upgrade the schema and create queues, all or nothing.

    Raises TimeoutError if a table was in use for a minute, and SchemaVersion if the
    engine has a later major.minor version; a newer engine of the same major.minor is
    left unchanged. A role or server that may not write is no error if there is nothing
    to do.
    """
    cursor = AsyncPlainCursor(connection)
    wanted = list(queues)
    async with read_committed(connection):
        try:
            leftovers, done = await _upgrade_with_retries(cursor, wanted)
        except REFUSED:
            if await check_schema(cursor, wanted):
                raise
            leftovers, done = [], ["the schema is up to date"]
        for line in done:
            logger.info(line)
        if leftovers and await _calls_have_ended(cursor):
            await _drop(cursor, leftovers)


async def _upgrade_with_retries(
    cursor: AsyncPlainCursor, queues: list[str]
) -> tuple[Leftovers, list[str]]:
    deadline = time.monotonic() + _LOCK_SECONDS
    installed_meanwhile = False
    for failures in itertools.count(1):
        try:
            async with cursor.connection.transaction():
                return await _upgrade(cursor, queues)
        except INSTALLED_MEANWHILE:
            if installed_meanwhile or not await _is_installed(cursor):
                raise
            installed_meanwhile = True
        except IN_USE as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"durable's tables were in use for {_LOCK_SECONDS:g} s:"
                    " some session keeps a transaction open"
                ) from error
        await asyncio.sleep(backoff(failures))
    raise AssertionError


async def _upgrade(
    cursor: AsyncPlainCursor, queues: list[str]
) -> tuple[Leftovers, list[str]]:
    """Upgrade once; return the functions to drop later, and what was done."""
    await cursor.execute(SETTINGS)
    await cursor.execute(BRIEFLY)
    script, what = await _script(cursor)
    done = [f"database {cursor.connection.info.dbname!r}: {what}"]
    await cursor.execute(script.encode())
    for queue in queues:
        create = sql.create_queue(queue, "{}", None)
        await cursor.execute(create.text.encode(), create.args)
        ((created,),) = await cursor.fetchall()
        done.append(f"queue {queue!r} {'created' if created else 'exists'}")
    await cursor.execute(LEFTOVERS)
    leftovers = [{"oid": oid, "seen": seen} for oid, seen in await cursor.fetchall()]
    return leftovers, done


async def _script(cursor: AsyncPlainCursor) -> tuple[str, str]:
    """Return the SQL that this database needs, and a description of it.

    The SQL is empty for a newer engine.
    """
    if not await _is_installed(cursor):
        return schema.script(None), f"schema {schema.VERSION} installed"
    await cursor.execute(LOCK)
    (found,) = await _column(cursor, sql.version.text)
    if schema.is_newer(found):
        logger.warning(
            "the schema has version %s, newer than this package: left as it is", found
        )
        return "", f"schema {found} left as it is"
    script = schema.script(await _column(cursor, APPLIED))
    if found == schema.VERSION:
        return script, f"schema {found} is up to date"
    return script, f"schema upgraded from {found} to {schema.VERSION}"


async def check_schema(cursor: AsyncPlainCursor, queues: list[str]) -> str:
    """Describe what `migrate` would do; empty if it would do nothing."""
    if not await _is_installed(cursor):
        return f"schema {schema.VERSION} is to be installed"
    (found,) = await _column(cursor, sql.version.text)
    if found != schema.VERSION and not schema.is_newer(found):
        return f"schema {found} is to be upgraded to {schema.VERSION}"
    if found == schema.VERSION and await _column(cursor, MAY_READ) == [True]:
        applied = await _column(cursor, APPLIED)
        if missing := schema.missing_migrations(applied):
            return f"migrations are to be applied: {', '.join(missing)}"
    existing = await _column(cursor, sql.list_queues.text)
    if absent := sorted(set(queues).difference(existing)):
        return f"queues are to be created: {', '.join(absent)}"
    return ""


async def _is_installed(cursor: AsyncPlainCursor) -> bool:
    return await _column(cursor, INSTALLED) == [True]


async def _column(cursor: AsyncPlainCursor, query: str) -> list[Any]:
    await cursor.execute(query.encode())
    return [value for (value,) in await cursor.fetchall()]


async def _calls_have_ended(cursor: AsyncPlainCursor) -> bool:
    """Wait until all current transactions have ended; False if they take too long."""
    deadline = time.monotonic() + _CALL_SECONDS
    transactions = set(await _column(cursor, OPEN_TRANSACTIONS))
    while transactions and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
        transactions.intersection_update(await _column(cursor, OPEN_TRANSACTIONS))
    return not transactions


async def _drop(cursor: AsyncPlainCursor, leftovers: Leftovers) -> None:
    async with cursor.connection.transaction():
        await cursor.execute(SETTINGS)
        await cursor.execute(LOCK)
        await cursor.execute(SET_LEFTOVERS, [json.dumps(leftovers)])
        await cursor.execute(schema.drop_leftovers().encode())
