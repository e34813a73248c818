"""Asking for a task: everything Python can check, before anything is sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError

from durable._names import check_task_name
from durable._values import PLAIN, Codec
from durable._vault import Vault
from durable.errors import InvalidArgument
from durable.options import spawn_options_json
from durable.registry import AnyTask, Registry

__all__ = [
    "OMITTED",
    "SpawnRequest",
    "check_reason",
    "one_queue",
    "spawn_request",
    "spawn_requests",
    "task_json",
    "tasks_json",
]

R = TypeVar("R")

LONGEST_REASON: Final = 1000
"""In bytes."""

OMITTED: Final[Any] = object()
"""Params that nobody gave: None if the task takes that, else `{}` as in SQL."""

logger = logging.getLogger("durable.client")


@dataclass(frozen=True, slots=True)
class SpawnRequest(Generic[R]):
    """One task to be spawned: checked, and as JSON."""

    queue: str
    task: str
    params: str
    options: str
    result_codec: Codec[R]

    def sealed(self, vault: Vault) -> SpawnRequest[R]:
        """Return it with its params as they are to be stored.

        With an idempotency key go fingerprints of the params: sealed again, they would
        seem to be others. Raises UnsavableValue as `Vault.sealed` does.
        """
        params = vault.sealed(self.params)
        if params is self.params:
            return self
        options = json.loads(self.options)
        if "idempotency_key" in options:
            options["fingerprint"] = vault.fingerprints(self.params)
        return replace(self, params=params, options=json.dumps(options))


def spawn_request(
    registry: Registry,
    queue: str,
    task: AnyTask | str,
    params: Any,
    given: Mapping[str, Any],
) -> SpawnRequest[Any]:
    """Check params and options of a spawn.

    The queue is the one asked for, else the task's own, else `queue`. Params may be
    what the task takes or what can be validated as that, such as a dict; a name that
    is not registered here is a task that others run, and its params are plain JSON.
    Raises InvalidArgument for options, pydantic's ValidationError for params.
    """
    if isinstance(task, str) and task not in registry.by_name:
        check_task_name(task)
        if registry.is_news(task):
            logger.warning("%s; spawned for others to run", registry.unknown(task))
        options = spawn_options_json({}, given)
        return SpawnRequest(
            given.get("queue") or queue,
            task,
            "{}" if params is OMITTED else PLAIN.dump(params),
            json.dumps(options),
            PLAIN,
        )
    known = registry.definition_for(task)
    valid = _valid(known.params_codec, params)
    return SpawnRequest(
        given.get("queue") or known.queue or queue,
        known.name,
        known.params_codec.dump(valid),
        json.dumps(spawn_options_json(known.options, given)),
        known.result_codec,
    )


def spawn_requests(
    registry: Registry,
    queue: str,
    tasks: Any,
    params: Iterable[Any] | None,
    given: Mapping[str, Any],
) -> list[SpawnRequest[Any]]:
    """Check all of a `spawn_many`, in either of its forms.

    Raises InvalidArgument for what is neither, and what `spawn_request` raises.
    """
    if params is not None:
        if not _is_listed(params):
            raise InvalidArgument(
                "spawn_many takes a list of params, one for each task,"
                f" not a {type(params).__name__}"
            )
        return [spawn_request(registry, queue, tasks, one, given) for one in params]
    if not _is_listed(tasks):
        raise InvalidArgument(
            "spawn_many takes a task and a list of params, or a list of"
            " (task, params) and (task, params, options)"
        )
    return [
        spawn_request(registry, queue, task, one, {**given, **options})
        for task, one, options in map(_triple, tasks)
    ]


def _is_listed(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, Mapping | str | bytes)


def check_reason(reason: object) -> str:
    """Return the reason of a cancellation; InvalidArgument if it cannot be kept."""
    if not isinstance(reason, str):
        raise InvalidArgument(f"a reason must be a str, not {type(reason).__name__}")
    PLAIN.dump(reason)
    if (size := len(reason.encode())) > LONGEST_REASON:
        raise InvalidArgument(
            f"a reason is {size} bytes long, and may be {LONGEST_REASON}"
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


def _valid(how: Codec[Any], params: Any) -> Any:
    if params is not OMITTED:
        return how.validate(params)
    try:
        return how.validate(None)
    except ValidationError:
        return how.validate({})


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
