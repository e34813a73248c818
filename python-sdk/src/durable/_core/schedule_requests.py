"""Schedules of tasks, as `durable.create_schedule` takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from durable._core.payloads import PayloadConverter
from durable._core.spawn_requests import UNSET, spawn_request
from durable._core.values import json_text
from durable.errors import InvalidArgument
from durable.registry import AnyTask, Registry
from durable.schedules import Schedule

__all__ = [
    "ScheduleRequest",
    "declared_schedules",
    "schedule_request",
    "schedules_json",
]


class Settings(Protocol):
    """What a schedule takes from its application."""

    queue: str
    registry: Registry
    payloads: PayloadConverter


@dataclass(frozen=True, slots=True)
class ScheduleRequest:
    """A schedule to create, checked, with its definition as JSON."""

    queue: str
    name: str
    definition: str


def schedule_request(
    application: Settings,
    task: AnyTask | str,
    schedule: Schedule,
    queue: str | None = None,
) -> ScheduleRequest:
    """Check a schedule of a task, and encode its params for storage.

    The queue is the one given, else the task's own, else the application's. Raises
    InvalidArgument for the schedule or the task, pydantic's ValidationError for params.
    """
    if not isinstance(schedule, Schedule):
        raise InvalidArgument(f"a schedule must be a Schedule, not {schedule!r:.100}")
    params = UNSET if schedule.params is ... else schedule.params
    given = {} if queue is None else {"queue": queue}
    home, registry = application.queue, application.registry
    spawned = spawn_request(registry, home, task, params, given)
    encoded = spawned.encoded(application.payloads)
    definition = dict(schedule.definition)
    key = json.loads(spawned.options).get("defaults", {}).get("partition_key")
    if key is not None:  # the task's other options are in its definition
        options = {"defaults": {"partition_key": key}}
        definition["options"] = options | definition["options"]
    rest = json_text(definition).removeprefix("{")
    name = json.dumps(spawned.task)
    return ScheduleRequest(
        spawned.queue,
        schedule.name or spawned.task,
        f'{{"task":{name},"params":{encoded.params},{rest}',
    )


def schedules_json(requests: Iterable[ScheduleRequest]) -> str:
    """Return schedules as `durable.apply_schedules` takes them.

    Raises InvalidArgument if two have the same name.
    """
    texts: dict[str, str] = {}
    for request in requests:
        if request.name in texts:
            raise InvalidArgument(
                f'two schedules are named "{request.name}"',
                hint="Give each a name of its own: Schedule.cron(…, name=…).",
            )
        name = json.dumps(request.name)
        rest = request.definition.removeprefix("{")
        texts[request.name] = f'{{"schedule":{name},{rest}'
    return f"[{','.join(texts.values())}]"


def declared_schedules(application: Settings, queue: str) -> tuple[str, list[str]]:
    """Return the schedules that tasks of a queue declare, and those tasks' names."""
    tasks = [
        definition
        for definition in application.registry.by_name.values()
        if (definition.queue or application.queue) == queue
    ]
    requests = [
        schedule_request(application, task.source, schedule)
        for task in tasks
        for schedule in task.schedules
    ]
    return schedules_json(requests), [task.name for task in tasks]
