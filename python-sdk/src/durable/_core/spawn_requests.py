"""Spawn requests: checked in Python before anything is sent."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, Protocol, TypeVar

from pydantic import ValidationError

from durable._core.arguments import check_partition_key, check_task_name
from durable._core.payloads import PayloadConverter
from durable._core.reports import checked_limit
from durable._core.values import PLAIN, Codec, json_text
from durable.errors import InvalidArgument
from durable.options import spawn_options_json
from durable.registry import AnyTask, Registry

__all__ = [
    "UNSET",
    "SpawnRequest",
    "batches_by",
    "check_reason",
    "one_queue",
    "request_by",
    "requests_by",
    "spawn_request",
    "task_json",
    "tasks_json",
]

R = TypeVar("R")

LONGEST_REASON: Final = 1000
"""In bytes."""

UNSET: Final[Any] = object()
"""Params that were not given: None if the task takes None, else `{}` as in SQL."""

logger = logging.getLogger("durable.client")


@dataclass(frozen=True, slots=True)
class SpawnRequest(Generic[R]):
    """One task to spawn, checked, with params and options as JSON."""

    queue: str
    task: str
    params: str
    options: str
    result_codec: Codec[R]

    def encoded(self, payloads: PayloadConverter) -> SpawnRequest[R]:
        """Return the request with its params encoded for storage.

        An idempotency key also needs fingerprints of the params, since equal params
        may be sealed to different bytes. Raises UnsavableValue as
        `PayloadConverter.encode` does.
        """
        params = payloads.encode(self.params)
        if params is self.params:
            return self
        options = json.loads(self.options)
        if "idempotency_key" in options:
            options["fingerprint"] = payloads.fingerprints(self.params)
        return replace(self, params=params, options=json_text(options))


def spawn_request(
    registry: Registry,
    queue: str,
    task: AnyTask | str,
    params: Any,
    given: Mapping[str, Any],
) -> SpawnRequest[Any]:
    """Check the params and options of a spawn.

    The queue is the one in the options, else the task's own, else `queue`. Params are
    validated as the task's type, so a dict may stand for a model. A name that is not
    registered here is a task of other workers; its params are plain JSON. Raises
    InvalidArgument for options, pydantic's ValidationError for params.
    """
    if isinstance(task, str) and task not in registry.by_name:
        check_task_name(task)
        if registry.should_warn_of(task):
            logger.warning("%s; spawned for other workers", registry.unknown(task))
        options = spawn_options_json({}, given)
        return SpawnRequest(
            given.get("queue") or queue,
            task,
            "{}" if params is UNSET else PLAIN.dump(params),
            json_text(options),
            PLAIN,
        )
    known = registry.definition_for(task)
    valid = _valid(known.params_codec, params)
    options = spawn_options_json(known.options, given)
    if known.partition_key is not None and "partition_key" not in given:
        key = known.partition_key(valid)
        if key is not None:
            chosen = {"partition_key": check_partition_key(key)}
            options["defaults"] = options.get("defaults", {}) | chosen
    return SpawnRequest(
        given.get("queue") or known.queue or queue,
        known.name,
        known.params_codec.dump(valid),
        json_text(options),
        known.result_codec,
    )


class Settings(Protocol):
    """What a spawn by a client takes from its application."""

    queue: str
    registry: Registry
    version: str | None


def request_by(
    application: Settings, task: AnyTask | str, params: Any, given: Mapping[str, Any]
) -> SpawnRequest[Any]:
    """Check a spawn by a client of the application."""
    if application.version is not None:
        given = {"version": application.version, **given}
    queue, registry = application.queue, application.registry
    return spawn_request(registry, queue, task, params, given)


def requests_by(
    application: Settings,
    tasks: Any,
    params: Iterable[Any] | None,
    given: Mapping[str, Any],
) -> list[SpawnRequest[Any]]:
    """Check all spawns of a `spawn_many`, in either of its forms.

    Raises InvalidArgument for any other form, and the errors of `spawn_request`.
    """
    items = _listed(tasks, params)
    if params is not None:
        return [request_by(application, tasks, one, given) for one in items]
    return [
        request_by(application, task, one, {**given, **options})
        for task, one, options in map(_triple, items)
    ]


def batches_by(
    application: Settings,
    tasks: Any,
    params: Iterable[Any] | None,
    given: Mapping[str, Any],
    batch_size: int,
) -> Iterator[list[SpawnRequest[Any]]]:
    """Check spawns batch by batch; items are taken from the iterable as needed.

    Raises as `requests_by` does, and InvalidArgument for the batch size.
    """
    size = checked_limit(batch_size, "batch_size")
    items = iter(_listed(tasks, params))
    while batch := list(itertools.islice(items, size)):
        if params is None:
            yield requests_by(application, batch, None, given)
        else:
            yield requests_by(application, tasks, batch, given)


def _listed(tasks: Any, params: Iterable[Any] | None) -> Iterable[Any]:
    """Return the items of a `spawn_many`: the params, or tuples of task and params."""
    items = tasks if params is None else params
    if isinstance(items, Iterable) and not isinstance(items, Mapping | str | bytes):
        return items
    if params is not None:
        raise InvalidArgument(
            "spawn_many takes a list of params, one for each task,"
            f" not a {type(params).__name__}"
        )
    raise InvalidArgument(
        "spawn_many takes a task and a list of params, or a list of"
        " (task, params) and (task, params, options)"
    )


def check_reason(reason: object) -> str:
    """Return the reason of a cancellation; InvalidArgument if it cannot be stored."""
    if not isinstance(reason, str):
        raise InvalidArgument(f"a reason must be a str, not {type(reason).__name__}")
    PLAIN.dump(reason)
    if (size := len(reason.encode())) > LONGEST_REASON:
        raise InvalidArgument(
            f"a reason is {size} bytes long, of at most {LONGEST_REASON}"
        )
    return reason


def _triple(item: Any) -> tuple[Any, Any, Mapping[str, Any]]:
    match item:
        case (task, params):
            return task, params, {}
        case (task, params, Mapping() as options):
            return task, params, options
    raise InvalidArgument(
        "each task of spawn_many is (task, params) or (task, params, options),"
        f" not {item!r:.100}"
    )


def _valid(codec: Codec[Any], params: Any) -> Any:
    if params is not UNSET:
        return codec.validate(params)
    try:
        return codec.validate(None)
    except ValidationError:
        return codec.validate({})


def tasks_json(requests: Iterable[SpawnRequest[Any]]) -> str:
    """Return requests as `durable.spawn_many` takes them."""
    return f"[{','.join(task_json(request) for request in requests)}]"


def one_queue(requests: Iterable[SpawnRequest[Any]]) -> str:
    """Return the queue of all requests; InvalidArgument if they have several."""
    queue, *others = sorted({request.queue for request in requests})
    if others:
        raise InvalidArgument(
            f"spawn_many spawns in one queue, not in {[queue, *others]}",
            hint="Call it once for each queue.",
        )
    return queue


def task_json(request: SpawnRequest[Any], extra: str = "") -> str:
    """Return a request as a JSON object; `extra` has further keys for its start."""
    name = json.dumps(request.task)
    return (
        f'{{{extra}"task":{name},"params":{request.params},'
        f'"options":{request.options}}}'
    )
