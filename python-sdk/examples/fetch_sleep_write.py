"""An HTTP request, the time, a sleep and a row, each done once, with a log.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    pip install 'durable-postgres[http]'
    python fetch_sleep_write.py & sleep 1.5; kill -9 $!   # while it sleeps
    python fetch_sleep_write.py                           # resumes without a request

The response of the weather station is recorded, and so is the end of the sleep: only
the rest of it remains. The row and its checkpoint commit together, so there is one row.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

from psycopg import AsyncConnection

from durable import AsyncDurable, AsyncTaskHandle, TaskContext, task

TABLE = """
create table if not exists weather (city text, sky text, asked_at timestamptz)
"""


class Station(BaseHTTPRequestHandler):
    """A server in a thread, which counts its requests."""

    requests = 0

    def do_GET(self) -> None:
        Station.requests += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"sky": "blue"}')

    def log_message(self, *_: object) -> None:
        pass


@asynccontextmanager
async def weather_station() -> AsyncIterator[str]:
    """Yield the station's address, which becomes `ctx.state`."""
    with HTTPServer(("127.0.0.1", 0), Station) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


async def insert(conn: AsyncConnection, city: str, sky: str, at: datetime) -> str:
    await conn.execute("insert into weather values (%s, %s, %s)", [city, sky, at])
    return sky


@task
async def record_weather(city: str, ctx: TaskContext[str]) -> str:
    response = await ctx.http.get("ask", ctx.state, params={"city": city})
    sky = response.json()["sky"]
    asked_at = await ctx.now()
    ctx.logger.info("%s sky over %s", sky, city)
    await ctx.sleep_for("settle", timedelta(seconds=1.5))
    ctx.logger.info("slept well")
    return await ctx.transaction("write", insert, city, sky, asked_at)


app = AsyncDurable(tasks=[record_weather], lifespan=weather_station)


async def print_history(handle: AsyncTaskHandle[str]) -> None:
    """Print the task's history with the recorded values, and its log."""
    exported = await handle.export_history()
    values = {saved["name"]: saved["value"] for saved in exported["checkpoints"]}
    for index, entry in enumerate(await handle.history()):
        name = entry.name or ""
        recorded = str(values.get(name, entry.said))
        print(f"{index}  {entry.kind:<10} {name:<14} {recorded:.60}")
    async for line in handle.logs():
        print("log:", line.message)


async def main() -> None:
    async with await AsyncConnection.connect(
        os.environ["DURABLE_DATABASE_URL"], autocommit=True
    ) as conn:
        await conn.execute(TABLE)
        async with app:
            await app.migrate()
            key = "weather-oslo"
            handle = await app.spawn(record_weather, "Oslo", idempotency_key=key)
            async with app.worker(lease=2):
                print("result:", await handle.result(timeout=60))
            await print_history(handle)
        rows = await (await conn.execute("select city, sky from weather")).fetchall()
        print("requests of this process:", Station.requests)
        print("rows:", rows)


if __name__ == "__main__":
    asyncio.run(main())
