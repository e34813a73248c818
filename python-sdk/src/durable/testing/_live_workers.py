"""The worker process of a crash test, which runs one task to its end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from durable._client._async.client import AsyncDurable
from durable.testing._boundaries import Boundaries
from durable.testing._clock import EngineClock
from durable.testing._driving import Driver
from durable.testing._inline import run_to_end
from durable.testing._references import Reference, resolved

__all__ = ["LIVE", "live"]

LIVE: Final = f"{__name__}:live"


async def live(
    *,
    database: str,
    environment: Mapping[str, str],
    app_queue: str,
    tasks: Sequence[Sequence[Any]],
    lifespan: Sequence[Any] | None,
    codecs: Sequence[Sequence[Any]],
    version: str | None,
    keep_logs: int | None,
    queue: str,
    task_id: str,
    events: Mapping[str, Any],
    patience: float,
    kill_at: Sequence[str],
) -> None:
    """Run the worker of one life; it is killed at the boundaries `kill_at`."""
    os.environ.update(environment)
    app = AsyncDurable(
        database,
        queue=app_queue,
        tasks=[resolved(Reference(*task)) for task in tasks],
        lifespan=None if lifespan is None else resolved(Reference(*lifespan)),
        codec=[resolved(Reference(*codec)) for codec in codecs],
        version=version,
        keep_logs=keep_logs,
    )
    Boundaries().watch(kill_at)
    with EngineClock(app) as clock:
        async with Driver([app], clock.session, patience=patience) as driver:
            await run_to_end(clock, driver, queue, UUID(task_id), dict(events))
