"""Asking for a task: everything Python can check, before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from durable._names import check_task_name
from durable._values import PLAIN, Codec
from durable.errors import InvalidArgument
from durable.options import spawn_options_json
from durable.registry import AnyTask, Registry

__all__ = ["SpawnRequest", "one_queue", "spawn_request", "task_json", "tasks_json"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class SpawnRequest(Generic[R]):
    """One task to be spawned: checked, and as JSON."""

    queue: str
    task: str
    params: str
    options: str
    result_codec: Codec[R]


def spawn_request(
    registry: Registry,
    queue: str,
    task: AnyTask | str,
    params: Any,
    given: Mapping[str, Any],
) -> SpawnRequest[Any]:
    """Check params and options of a spawn.

    The queue is the one asked for, else the task's own, else `queue`. Params may be
    what the task takes or what can be validated as that, such as a dict. Raises
    InvalidArgument for options, pydantic's ValidationError for params.
    """
    if isinstance(task, str) and not registry.by_name:
        # a client that registers nothing spawns by name what others run
        options = spawn_options_json({}, given)
        return SpawnRequest(
            given.get("queue", queue),
            check_task_name(task),
            PLAIN.dump(params),
            json.dumps(options),
            PLAIN,
        )
    known = registry.definition_for(task)
    valid = known.params_codec.validate(params)
    return SpawnRequest(
        given.get("queue") or known.queue or queue,
        known.name,
        known.params_codec.dump(valid),
        json.dumps(spawn_options_json(known.options, given)),
        known.result_codec,
    )


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
    """Return one of them as a JSON object, with more keys in front."""
    name = json.dumps(request.task)
    return (
        f'{{{extra}"task":{name},"params":{request.params},'
        f'"options":{request.options}}}'
    )
