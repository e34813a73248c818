"""Makes applications on a test's database, new or as copies of existing ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypedDict, TypeVar, Unpack

import psycopg

from durable._client._async.client import AsyncDurable
from durable._client._sync.client import Durable
from durable._db.application import Application, Lifespan, application_of
from durable._supervisor import load_app
from durable.codecs import PayloadCodec
from durable.errors import InvalidArgument
from durable.middleware import Middleware
from durable.registry import AnyTask
from durable.testing._databases import create_queues

__all__ = ["AppFactory", "AppOptions", "options_of", "queues_of"]

A = TypeVar("A", bound=AsyncDurable | Durable)


class AppOptions(TypedDict, total=False):
    """Further options of an application that affect its tasks."""

    codec: PayloadCodec | Sequence[PayloadCodec] | None
    version: str | None
    keep_logs: int | None
    middleware: Sequence[Middleware]


class AppFactory(Generic[A]):
    """Makes applications on one database, async or sync, and creates their queues."""

    def __init__(self, colour: type[A], database: str) -> None:
        self._make: Callable[..., A] = colour
        self._database = database
        self.made: list[AsyncDurable | Durable] = []

    def __call__(
        self,
        like: AsyncDurable | Durable | str | None = None,
        *,
        tasks: Iterable[AnyTask] = (),
        queue: str | None = None,
        lifespan: Lifespan | None = None,
        **more: Unpack[AppOptions],
    ) -> A:
        """Return an application that is not entered yet.

        `like` is an application to copy, or its location, as in "shop.tasks:app". Its
        queue, lifespan, codec, version, keep_logs and middleware are the defaults, and
        its tasks are registered before `tasks`.
        """
        model = _application(like)
        if model is not None:
            known = [one.source for one in model.registry.by_name.values()]
            tasks = [*known, *tasks]
            queue, lifespan = queue or model.queue, lifespan or model.lifespan
            more = {**options_of(model), **more}
        made = self._make(
            self._database,
            queue=queue or "default",
            tasks=tasks,
            lifespan=lifespan,
            **more,
        )
        with psycopg.connect(self._database, autocommit=True) as session:
            create_queues(session, queues_of(application_of(made)))
        self.made.append(made)
        return made


def options_of(application: Application) -> AppOptions:
    """Return the further options of an application."""
    return {
        "codec": application.codecs,
        "version": application.version,
        "keep_logs": application.keep_logs,
        "middleware": application.middleware,
    }


def queues_of(application: Application) -> set[str]:
    """Return the queues of an application and of its tasks."""
    own = {known.queue for known in application.registry.by_name.values()}
    return {application.queue, *(queue for queue in own if queue is not None)}


def _application(like: AsyncDurable | Durable | str | None) -> Application | None:
    if like is None:
        return None
    app = load_app(like) if isinstance(like, str) else like
    if not isinstance(app, AsyncDurable | Durable):
        raise InvalidArgument(
            f"{app!r:.100} is no application: pass one, its location as"
            ' "module:name", or tasks=[…]'
        )
    return application_of(app)
