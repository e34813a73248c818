"""What an application says of itself, whichever colour its client has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from durable._names import check_queue_name
from durable.registry import AnyTask, Registry

__all__ = ["Application", "Lifespan"]

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Application:
    """Its queue, its tasks, and what each of its workers needs."""

    def __init__(
        self,
        conninfo: str,
        queue: str,
        tasks: Iterable[AnyTask],
        lifespan: Lifespan | None,
        *,
        prepare: bool,
        keep_logs: int | None = None,
    ) -> None:
        self.conninfo = conninfo
        self.queue = check_queue_name(queue)
        self.registry = Registry(tasks)
        self.lifespan = lifespan
        self.prepare = prepare
        self.keep_logs = keep_logs
        self.logs_from = logging.INFO if keep_logs is None else keep_logs
