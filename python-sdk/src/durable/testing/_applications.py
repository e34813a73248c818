"""Applications on a test's database: new ones, and the like of one there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypedDict, TypeVar, Unpack

import psycopg

from durable._application import Application, Lifespan
from durable._async.client import AsyncDurable
from durable._supervisor import load_app
from durable._sync.client import Durable
from durable.codecs import PayloadCodec
from durable.errors import InvalidArgument
from durable.registry import AnyTask
from durable.testing._databases import create_queues

__all__ = ["AppFactory", "AppOptions", "options_of", "queues_of"]

A = TypeVar("A", bound=AsyncDurable | Durable)


class AppOptions(TypedDict, total=False):
    """What else an application takes that its tasks may notice."""

    codec: PayloadCodec | Sequence[PayloadCodec] | None
    version: str | None
    keep_logs: int | None


class AppFactory(Generic[A]):
    """Makes applications of one colour on one database, whose queues it creates."""

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
        """Return an application, not yet entered.

        `like` is one to copy, or where it is: "shop.tasks:app"; its tasks, its queue,
        its lifespan, and its codec, version and keep_logs hold where nothing else is
        said. Its tasks come first.
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
            create_queues(session, queues_of(made.application))
        self.made.append(made)
        return made


def options_of(application: Application) -> AppOptions:
    """Return what else an application was made with."""
    return {
        "codec": application.codecs,
        "version": application.version,
        "keep_logs": application.keep_logs,
    }


def queues_of(application: Application) -> set[str]:
    """Return the queues that an application spawns in by itself."""
    own = {known.queue for known in application.registry.by_name.values()}
    return {application.queue, *(queue for queue in own if queue is not None)}


def _application(like: AsyncDurable | Durable | str | None) -> Application | None:
    if like is None:
        return None
    app = load_app(like) if isinstance(like, str) else like
    if not isinstance(app, AsyncDurable | Durable):
        raise InvalidArgument(
            f"{app!r:.100} is no application: pass one, its place as"
            ' "module:name", or tasks=[…]'
        )
    return app.application
