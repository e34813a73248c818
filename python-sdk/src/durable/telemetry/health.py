"""The health of a worker, and its metrics, over HTTP."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import TYPE_CHECKING

from durable.telemetry.instruments import SLOTS
from durable.telemetry.measuring import Measuring
from durable.telemetry.prometheus import CONTENT_TYPE, Registry
from durable.telemetry.serving import Answer, serving

if TYPE_CHECKING:
    from durable._db.application import Application
    from durable._worker.worker import Worker

__all__ = ["health_server", "measured"]


def measured(application: Application) -> Registry:
    """Measure an application from now on; return where the values are."""
    registry = Registry()
    application.add_middleware(Measuring(registry))
    return registry


def health_server(
    worker: Worker, registry: Registry, host: str, port: int
) -> AbstractAsyncContextManager[None]:
    """Answer `/healthz`, `/readyz` and `/metrics` on the worker's own event loop.

    So an answer proves that the loop is alive. `/healthz` is 200 in every state, since
    a restart mends neither a missing database nor a worker that is draining. `/readyz`
    is 200 only while the worker claims tasks.
    """

    async def healthz() -> Answer:
        return _described(worker)

    async def readyz() -> Answer:
        return _described(worker, requires="working")

    async def metrics() -> Answer:
        registry.add(SLOTS, worker.health().concurrency, {})
        return Answer(registry.text(), CONTENT_TYPE)

    routes = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return serving(routes, host, port)


def _described(worker: Worker, requires: str | None = None) -> Answer:
    """Return the worker's state; with status 503 unless it is the required one."""
    health = worker.health()
    body = {"worker": worker.worker_id, **health._asdict()}
    status = HTTPStatus.OK
    if requires not in {None, health.state}:
        status = HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(json.dumps(body) + "\n", "application/json", status)
