"""awa: a Rust core that runs handlers in Python, on its own queue storage."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from awa import AsyncClient  # type: ignore[import-not-found]

from tests.bench.contenders.program import Kind, Program, Work, main

__all__: list[str] = []

WORKERS: Final = 256
CONNECTIONS: Final = 20
CHUNK: Final = 1000


@dataclass
class Noop:
    """The arguments of a job that does nothing."""

    number: int


class Awa(Program):
    """awa, with 256 workers in one process."""

    async def prepare(self, dsn: str) -> None:
        async with AsyncClient(dsn) as client:
            await client.migrate()
            await client.install_queue_storage(schema="awa")

    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        async with AsyncClient(dsn) as client:
            for start in range(0, batch_size, CHUNK):
                chunk = [Noop(n) for n in range(start, min(start + CHUNK, batch_size))]
                await client.enqueue_many_copy(chunk, queue=kind)

    async def work(self, given: Work) -> None:
        async def handle(job: Any) -> None:
            given.record.begin()
            given.record.end()

        client = AsyncClient(given.dsn, max_connections=CONNECTIONS)
        client.task(Noop, queue=given.kind)(handle)
        await client.start([(given.kind, WORKERS)])
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(Awa())
