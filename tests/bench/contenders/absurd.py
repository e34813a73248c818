"""absurd: absurdctl's SQL and absurd-sdk's asynchronous worker."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg
from absurd_sdk import AsyncAbsurd  # type: ignore[import-not-found]
from absurdctl import BUNDLED_SCHEMA_SQL  # type: ignore[import-not-found]

from tests.bench.contenders.program import STEPS, Kind, Program, Send, Work, main

__all__: list[str] = []

CONCURRENCY: Final = 10
SPAWN: Final = """
select absurd.spawn_task('default', %s, '{}'::jsonb, '{}'::jsonb)
from generate_series(1, %s)
"""


class Absurd(Program):
    """absurd, one worker with ten tasks at once."""

    async def prepare(self, dsn: str) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute(BUNDLED_SCHEMA_SQL)
            await connection.execute("select absurd.create_queue('default')")

    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute(SPAWN, [kind, batch_size])

    async def work(self, given: Work) -> None:
        app = AsyncAbsurd(given.dsn)

        async def one() -> int:
            return 1

        async def handle(params: dict[str, Any], ctx: Any) -> None:
            given.record.begin(params.get("sent"))
            for index in range(STEPS[given.kind]):
                await ctx.step(f"step-{index}", one)
            given.record.end()

        app.register_task(given.kind)(handle)
        await app.start_worker(concurrency=CONCURRENCY)

    @contextlib.asynccontextmanager
    async def client(self, dsn: str) -> AsyncIterator[Send]:
        app = AsyncAbsurd(dsn)
        yield lambda sent: app.spawn("wake", {"sent": sent}, queue="default")
        await app.close()


if __name__ == "__main__":
    main(Absurd())
