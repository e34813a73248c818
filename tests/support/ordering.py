"""An application's calls to durable, which it can repeat after a crash."""

from __future__ import annotations

import os
from typing import Final
from uuid import UUID

import psycopg

from durable import AsyncDurable, Durable

__all__ = ["ORDERS", "order", "order_sync"]

ORDERS: Final = "create table public.orders (queue text primary key)"
ORDER: Final = "insert into public.orders values (%s) on conflict do nothing"


async def order(queue: str, unwanted: str) -> None:
    """Make all calls, with an event loop."""
    async with AsyncDurable(queue=queue) as app:
        one = await app.spawn("errand", "one", idempotency_key="one")
        await app.send(one, "told", 1, dedup_key="one")
        await app.spawn_many(
            [("errand", name, {"idempotency_key": name}) for name in ("two", "three")]
        )
        await app.emit_event("placed", 1)
        async with await psycopg.AsyncConnection.connect(
            os.environ["DURABLE_DATABASE_URL"]
        ) as connection:
            await connection.execute(ORDER, [queue])
            handle = await app.spawn_with(
                connection, "errand", "order", idempotency_key="order"
            )
            await app.emit_event_with(connection, "ordered", 2)
            await app.send_with(connection, one, "told", 2, dedup_key="order")
        await app.cancel(UUID(unwanted))
        assert await handle.state() == "pending"


def order_sync(queue: str, unwanted: str) -> None:
    """Make the same calls without one."""
    with Durable(queue=queue) as app:
        one = app.spawn("errand", "one", idempotency_key="one")
        app.send(one, "told", 1, dedup_key="one")
        app.spawn_many(
            [("errand", name, {"idempotency_key": name}) for name in ("two", "three")]
        )
        app.emit_event("placed", 1)
        with psycopg.connect(os.environ["DURABLE_DATABASE_URL"]) as connection:
            connection.execute(ORDER, [queue])
            handle = app.spawn_with(
                connection, "errand", "order", idempotency_key="order"
            )
            app.emit_event_with(connection, "ordered", 2)
            app.send_with(connection, one, "told", 2, dedup_key="order")
            app.send_with(connection, one, "told", 2, dedup_key="order")
        app.cancel(UUID(unwanted))
        assert handle.state() == "pending"
