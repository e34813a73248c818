"""What may be said of a worker."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypedDict

from durable._application import Application
from durable._names import check_queue_name
from durable._time import required_seconds
from durable._worker.worker import Worker
from durable.errors import InvalidArgument
from durable.options import nearest

__all__ = ["WorkerOptions", "worker_of"]

logger = logging.getLogger("durable.worker")


class WorkerOptions(TypedDict, total=False):
    """The options of a worker.

    concurrency: how many tasks it runs at once, 100 unless said.
    lease: seconds or timedelta after which another worker may take a task whose worker
        has gone silent; 30 unless said. It is extended while the task runs.
    queues: the queues it works on, and no others: the application's own only if it is
        among them, or if nothing is said.
    poll: the longest time between two looks for work, 1 second unless said.
    shutdown_timeout: how long it lets tasks finish when it stops, 10 seconds unless
        said; after that they are given back.
    listen: whether it is notified of new work, which needs a session of its own; True
        unless said.
    """

    concurrency: int
    lease: timedelta | float
    queues: Iterable[str]
    poll: timedelta | float
    shutdown_timeout: timedelta | float
    listen: bool


def worker_of(application: Application, options: WorkerOptions) -> Worker:
    """Return a worker of an application, or raise InvalidArgument for an option."""
    for option in options:
        if option not in WorkerOptions.__annotations__:
            meant = nearest(option, list(WorkerOptions.__annotations__))
            advice = f": did you mean {meant}?" if meant else ""
            raise InvalidArgument(f"a worker has no option {option}{advice}")
    concurrency: Any = options.get("concurrency", 100)
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):
        raise InvalidArgument("concurrency must be an int")
    if not 1 <= concurrency <= 100_000:  # noqa: PLR2004 - said in the message
        raise InvalidArgument("concurrency must be from 1 to 100000")
    queues = options.get("queues", [application.queue])
    if isinstance(queues, str):
        raise InvalidArgument("queues must be a list of names, not one str")
    names = [check_queue_name(queue) for queue in dict.fromkeys(queues)]
    if not names:
        raise InvalidArgument(
            "a worker of no queue", hint="Name some, or leave queues out."
        )
    if application.queue not in names:
        logger.info(
            "a worker of %s, and not of %r, the application's own queue",
            ", ".join(map(repr, names)),
            application.queue,
        )
    return Worker(
        application,
        queues=names,
        concurrency=concurrency,
        lease=_positive(options.get("lease", 30.0), "lease"),
        poll=_positive(options.get("poll", 1.0), "poll"),
        shutdown_timeout=required_seconds(
            options.get("shutdown_timeout", 10.0), "shutdown_timeout"
        ),
        listen=options.get("listen", True),
    )


def _positive(value: timedelta | float, what: str) -> float:
    number = required_seconds(value, what)
    if number == 0:
        raise InvalidArgument(f"{what} must be more than 0 seconds")
    return number
