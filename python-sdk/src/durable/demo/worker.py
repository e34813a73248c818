"""The worker's process: `python -m durable.demo.worker QUEUE LEDGER`.

The database is in DURABLE_DATABASE_URL, as for any worker. The process exits when its
stdin is closed, as happens when the demo ends, even by a crash.
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

LEASE = 2.0  # seconds until another worker takes over; the default is 30
CONCURRENCY = 8


def main(queue: str, ledger: str) -> None:
    """Work on the census until SIGTERM."""
    threading.Thread(target=end_with_the_demo, daemon=True).start()
    warnings.simplefilter("ignore")  # syntax warnings of the parsed library

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Ledger]:
        yield Ledger(Path(ledger))  # becomes `ctx.state`

    app = Durable(queue=queue, tasks=[Census, CountModule], lifespan=lifespan)
    app.run_worker(lease=LEASE, concurrency=CONCURRENCY)


def end_with_the_demo() -> None:
    """Exit at once when stdin is closed; nothing is lost by that."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
