"""The configuration of an application, shared by the async and the sync client."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final, TypeAlias, TypeVar

from durable._core.arguments import check_queue_name, check_version
from durable._core.messages import Message
from durable._core.payloads import PayloadConverter
from durable._core.spawn_requests import SpawnRequest
from durable._db.conninfo import known_conninfo
from durable._db.django import address_in_tests
from durable.codecs import PayloadCodec
from durable.middleware import NOTHING, Hooks, Middleware, Sending
from durable.registry import AnyTask, Registry

R = TypeVar("R")

VERSION_VARIABLE: Final = "DURABLE_APP_VERSION"

Lifespan: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]


class Application:
    """Database, queue, tasks, codecs, version and the settings of workers."""

    def __init__(
        self,
        conninfo: str | None,
        queue: str,
        tasks: Iterable[AnyTask],
        lifespan: Lifespan | None,
        *,
        prepare: bool,
        listen_conninfo: str = "",
        codec: PayloadCodec | Sequence[PayloadCodec] | None = None,
        version: str | None = None,
        keep_logs: int | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._conninfo = conninfo
        self._listen_conninfo = listen_conninfo
        self.queue = check_queue_name(queue)
        self.registry = Registry(tasks)
        self.lifespan = lifespan
        self.prepare = prepare
        self.keep_logs = keep_logs
        self.logs_from = logging.INFO if keep_logs is None else keep_logs
        codecs = () if codec is None else codec
        self.codecs = codecs if isinstance(codecs, Sequence) else (codecs,)
        self.payloads = PayloadConverter(self.codecs)
        if version is None:
            version = os.environ.get(VERSION_VARIABLE) or None
        self.version = None if version is None else check_version(version)
        self.middleware = tuple(middleware)
        self.hooks = Hooks(self.middleware)

    def add_middleware(self, one: Middleware) -> None:
        """Add middleware as the innermost, for calls from now on."""
        self.middleware += (one,)
        self.hooks = Hooks(self.middleware)

    @property
    def conninfo(self) -> str:
        """The conninfo of the database. Raises InvalidArgument if none was given."""
        return known_conninfo(self._conninfo)

    @property
    def listen_conninfo(self) -> str:
        """The conninfo for LISTEN, which bypasses a pooler; empty if not set."""
        return address_in_tests(self._listen_conninfo)

    def stamped(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return spawn options with the application's version added, if it has one."""
        return options if self.version is None else {"version": self.version, **options}

    def prepared(
        self, request: SpawnRequest[R], parents: Mapping[str, Any] | None = None
    ) -> SpawnRequest[R]:
        """Return a spawn request with middleware's headers, and encoded params.

        `parents` are the headers of the parent, which SQL adds to those of the child.
        """
        if self.hooks.spawn:
            request = self.hooks.with_headers(request, parents or {})
        return request.encoded(self.payloads)

    def spawning(
        self, *requests: SpawnRequest[Any]
    ) -> AbstractContextManager[Sending | None]:
        """Return the middleware around a client's spawn of tasks of one queue."""
        if not self.hooks.send:
            return NOTHING
        names = {request.task for request in requests}
        name = names.pop() if len(names) == 1 else None
        return self.hooks.sending("spawn", requests[0].queue, name, len(requests))

    def emitting(
        self, event: str, queue: str | None
    ) -> AbstractContextManager[Sending | None]:
        """Return the middleware around a client's event."""
        return self.hooks.sending("emit", queue or self.queue, event)

    def sending(self, message: Message) -> AbstractContextManager[Sending | None]:
        """Return the middleware around a client's message."""
        receiver = [message.task_id]
        return self.hooks.sending("send", message.queue, message.topic, ids=receiver)


def application_of(app: Any) -> Application:
    """Return the configuration of a client, sync or async."""
    application: Application = app._application  # noqa: SLF001 - not a user's concern
    return application
