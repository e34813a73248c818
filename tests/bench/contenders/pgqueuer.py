"""pgqueuer, with asyncpg on uvloop and large batches."""

from __future__ import annotations

from typing import Any, Final

import asyncpg
from pgqueuer import PgQueuer  # type: ignore[import-not-found]
from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found]
from pgqueuer.queries import Queries  # type: ignore[import-not-found]

from tests.bench.contenders.program import Kind, Program, Work, main

__all__: list[str] = []

BATCH: Final = 100
CHUNK: Final = 1000


class Pgqueuer(Program):
    """pgqueuer, dequeuing a hundred jobs at a time, its tables logged."""

    async def prepare(self, dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await Queries(AsyncpgDriver(connection)).install()
        await connection.close()

    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        connection = await asyncpg.connect(dsn)
        queries = Queries(AsyncpgDriver(connection))
        for start in range(0, batch_size, CHUNK):
            size = min(CHUNK, batch_size - start)
            await queries.enqueue([kind] * size, [None] * size, [0] * size)
        await connection.close()

    async def work(self, given: Work) -> None:
        async def handle(job: Any) -> None:
            given.record.begin()
            given.record.end()

        queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(given.dsn)))
        queue.entrypoint(given.kind)(handle)
        await queue.run(batch_size=BATCH)


if __name__ == "__main__":
    main(Pgqueuer())
