"""DBOS, starting workflows directly: its queues are polled."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from dbos import DBOS  # type: ignore[import-not-found]

from tests.bench.contenders.program import STEPS, Kind, Program, Work, main

__all__: list[str] = []

AT_ONCE: Final = 50


def launch(dsn: str) -> None:
    """Launch DBOS on a database, which it migrates."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": dsn,
            "sys_db_pool_size": AT_ONCE,
            "log_level": "ERROR",
            "run_admin_server": False,
        }
    )
    DBOS.launch()


class Dbos(Program):
    """DBOS, with fifty workflows at once in one event loop."""

    async def prepare(self, dsn: str) -> None:
        launch(dsn)
        DBOS.destroy()

    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        """Do nothing: the process that runs workflows starts them."""

    async def work(self, given: Work) -> None:
        async def one() -> int:
            return 1

        async def handle() -> None:
            given.record.begin()
            for _ in range(STEPS[given.kind]):
                await DBOS.run_step_async(None, one)
            given.record.end()

        workflow = DBOS.workflow(name=given.kind)(handle)
        launch(given.dsn)
        slots = asyncio.Semaphore(AT_ONCE)

        async def run() -> None:
            async with slots:
                handle: Any = await DBOS.start_workflow_async(workflow)
                await handle.get_result()

        await asyncio.gather(*(run() for _ in range(given.batch_size)))
        await asyncio.Event().wait()


if __name__ == "__main__":
    main(Dbos())
