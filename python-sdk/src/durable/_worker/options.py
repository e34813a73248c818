"""The options of a worker, and their validation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple, TypedDict

from durable._core.arguments import check_queue_name, required_seconds
from durable._db.application import Application
from durable._worker.worker import Worker
from durable.errors import InvalidArgument
from durable.options import nearest

__all__ = ["Settings", "WorkerOptions", "settings_of", "worker_of"]

logger = logging.getLogger("durable.worker")


class WorkerOptions(TypedDict, total=False):
    """The options of a worker.

    concurrency: how many tasks it runs at once. Default: 100.
    lease: seconds or timedelta after which another worker may claim a task whose worker
        does not extend the lease. It is extended while the task runs. Default: 30.
    queues: the queues it claims from. Default: the application's queue. If given, the
        application's queue is used only if it is among them.
    poll: the longest time between two polls for work. Default: 1 second.
    shutdown_timeout: how long tasks may take to finish when the worker stops; then
        their claims are released. Default: 10 seconds.
    listen: whether it listens for notifications of new work, which needs a session of
        its own. Default: True.
    """

    concurrency: int
    lease: timedelta | float
    queues: Iterable[str]
    poll: timedelta | float
    shutdown_timeout: timedelta | float
    listen: bool


class Settings(NamedTuple):
    """All options of a worker, checked; durations are in seconds."""

    queues: list[str]
    concurrency: int
    lease: float
    poll: float
    shutdown_timeout: float
    listen: bool


def worker_of(application: Application, options: WorkerOptions) -> Worker:
    """Return a worker of an application, or raise InvalidArgument for an option."""
    settings = settings_of(application, options)
    if application.queue not in settings.queues:
        logger.info(
            "the worker claims from %s, but not from %r, the application's own queue",
            ", ".join(map(repr, settings.queues)),
            application.queue,
        )
    return Worker(application, settings)


def settings_of(application: Application, options: WorkerOptions) -> Settings:
    """Return all options of a worker, or raise InvalidArgument for one of them."""
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
    return Settings(
        queues=_queues(options.get("queues", [application.queue])),
        concurrency=concurrency,
        lease=_positive(options.get("lease", 30.0), "lease"),
        poll=_positive(options.get("poll", 1.0), "poll"),
        shutdown_timeout=required_seconds(
            options.get("shutdown_timeout", 10.0), "shutdown_timeout"
        ),
        listen=bool(options.get("listen", True)),
    )


def _queues(given: object) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidArgument(
            f"queues must be a list of names, not one {type(given).__name__}"
        )
    names = list(dict.fromkeys(check_queue_name(queue) for queue in given))
    if not names:
        raise InvalidArgument(
            "a worker needs a queue", hint="Name one or more, or omit queues."
        )
    return names


def _positive(value: timedelta | float, what: str) -> float:
    number = required_seconds(value, what)
    if number == 0:
        raise InvalidArgument(f"{what} must be more than 0 seconds")
    return number
