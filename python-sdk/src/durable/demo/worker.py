"""The worker's process: `python -m durable.demo.worker QUEUE LEDGER`.

The database is in DURABLE_DATABASE_URL, as for any worker. It ends when its stdin is
closed, as happens when the demo is gone, however that went.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from durable import Durable
from durable.demo.census import Census, CountModule
from durable.demo.ledger import Ledger

__all__ = ["main"]

LEASE = 2.0  # seconds a dead worker's tasks wait for another; 30 unless said
CONCURRENCY = 8


def main(queue: str, ledger: str) -> None:
    """Work on the census until SIGTERM."""
    threading.Thread(target=end_with_the_demo, daemon=True).start()
    warnings.simplefilter("ignore")  # what the library's own code is warned about

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Ledger]:
        yield Ledger(Path(ledger))  # is `ctx.state` of every task

    app = Durable(queue=queue, tasks=[Census, CountModule], lifespan=lifespan)
    app.run_worker(lease=LEASE, concurrency=CONCURRENCY)


def end_with_the_demo() -> None:
    """Crash when stdin is closed: nothing is lost by that."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
