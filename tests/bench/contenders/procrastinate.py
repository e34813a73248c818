"""procrastinate, with its psycopg connector and asynchronous tasks."""

from __future__ import annotations

from typing import Any, Final

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]

from tests.bench.contenders.program import Kind, Program, Work, main

__all__: list[str] = []

CONCURRENCY: Final = 10
CHUNK: Final = 500


class Procrastinate(Program):
    """procrastinate, ten jobs at once, woken by LISTEN."""

    async def prepare(self, dsn: str) -> None:
        async with _app(dsn).open_async() as app:
            await app.schema_manager.apply_schema_async()

    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        async with _app(dsn).open_async() as app:
            job = app.configure_task(kind)
            for start in range(0, batch_size, CHUNK):
                chunk: list[dict[str, Any]] = [{}] * min(CHUNK, batch_size - start)
                await job.batch_defer_async(*chunk)

    async def work(self, given: Work) -> None:
        async def handle() -> None:
            given.record.begin()
            given.record.end()

        app = _app(given.dsn)
        app.task(name=given.kind)(handle)
        async with app.open_async():
            await app.run_worker_async(
                concurrency=CONCURRENCY, install_signal_handlers=False
            )


def _app(dsn: str) -> Any:
    return App(connector=PsycopgConnector(conninfo=dsn, max_size=CONCURRENCY + 2))


if __name__ == "__main__":
    main(Procrastinate())
