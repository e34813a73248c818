# Made from _async/forking.py by tools/async_to_sync.py: edit that, not this.
"""A new task that begins where another one stood, and new params of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from durable import _sql
from durable._callers import caller
from durable._requests import OMITTED
from durable._results import not_found
from durable._values import PLAIN
from durable.errors import InvalidArgument
from durable.options import spawn_options_json

if TYPE_CHECKING:
    from durable._sync.connected import Connected
    from durable._sync.handle import TaskHandle

__all__ = ["Place", "fork", "params_for"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fork begins: at one of these, else where its origin stands."""

    before: str | None = None
    after: str | None = None
    position: int | None = None

    def as_options(self) -> dict[str, Any]:
        """Return it as `durable.fork_task` takes it; InvalidArgument for several."""
        given = {
            "before": self.before,
            "after": self.after,
            "position": self.position,
        }
        said = {key: value for key, value in given.items() if value is not None}
        if len(said) > 1:
            raise InvalidArgument(f"a fork begins at one place, not {said!r:.200}")
        for key, value in said.items():
            kind = int if key == "position" else str
            if isinstance(value, bool) or not isinstance(value, kind):
                raise InvalidArgument(f"{key} must be of type {kind.__name__}")
            PLAIN.dump(value)
        return said


def fork(
    app: Connected,
    origin: TaskHandle[R],
    place: Place,
    params: Any,
    given: Mapping[str, Any],
) -> TaskHandle[R]:
    """Fork a task, and return the handle of the fork."""
    options = {**place.as_options(), **spawn_options_json({}, given)}
    queue = given.get("queue") or origin.queue
    if queue != origin.queue:
        options["queue"] = queue
    if params is not OMITTED:
        has_key = "idempotency_key" in options
        options |= params_for(app, origin, params, has_key=has_key)
    who = caller(given.get("identity"))
    statement = _sql.fork_task(origin.queue, origin.task_id, options, who)
    ((task_id, run_id, attempt, created),) = app.fetch(statement)
    return type(origin)(
        app,
        queue,
        UUID(str(task_id)),
        origin.codec,
        run_id=run_id,
        attempt=attempt,
        created=created,
    )


def params_for(
    app: Connected,
    task: TaskHandle[Any],
    params: Any,
    *,
    has_key: bool,
) -> dict[str, Any]:
    """Return the options that say new params, validated as the task takes them, sealed.

    What takes them is found by the task's name: if it is not registered here, they must
    be plain JSON. If there may be an idempotency key, fingerprints go with them.
    Raises NotFound, and pydantic's ValidationError.
    """
    rows = app.fetch(_sql.get_task_name(task.queue, task.task_id))
    if not rows:
        raise not_found(task.queue, task.task_id)
    known = app.application.registry.find(rows[0][0])
    how = PLAIN if known is None else known.params_codec
    plain = how.dump(how.validate(params))
    vault = app.application.vault
    sealed = vault.sealed(plain)
    said: dict[str, Any] = {"params": json.loads(sealed)}
    if sealed is not plain and has_key:
        said["fingerprint"] = vault.fingerprints(plain)
    return said
