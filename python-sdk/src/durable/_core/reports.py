"""What a client reads about tasks and queues: results, lists, histories, statistics."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar, get_args
from uuid import UUID

from durable._core.arguments import as_uuid, moment
from durable._core.outcomes import outcome_error
from durable._core.payloads import PayloadConverter
from durable._core.recorded_errors import task_error
from durable._core.values import JSON, PLAIN, Codec
from durable.errors import ErrorDetails, InvalidArgument, NotFound, UnreadablePayload
from durable.options import Rate, unknown_option

R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

FINAL = frozenset({"completed", "failed", "cancelled"})

TaskState: TypeAlias = Literal[
    "pending", "running", "sleeping", "completed", "failed", "cancelled"
]
"""The state of a task; the last three are final."""

_MOST: Final = 100_000
# long, and available elsewhere
_OMITTED: Final = {"traceback", "args", "more", "lost", "place"}
_CHILDREN: Final = {"child_spawned", "first_finished"}


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[R]):
    """The state of a task, with its result if completed or its error.

    `state` is pending, running, sleeping, completed, failed or cancelled. While a task
    sleeps until its next attempt, `error` is that of the last attempt.
    """

    task_id: UUID
    state: str
    attempt: int
    result: R | None
    error: ErrorDetails | None

    @property
    def finished(self) -> bool:
        """Whether the task has completed, failed or been cancelled."""
        return self.state in FINAL


def task_result(
    row: tuple[Any, ...], payloads: PayloadConverter, codec: Codec[R]
) -> TaskResult[R]:
    """Return a row of `durable.get_task_result` as a value."""
    task_id, state, attempt, result, error = row
    return TaskResult(
        task_id,
        state,
        attempt,
        codec.load(payloads.decode(result)) if state == "completed" else None,
        None if error is None else task_error(json.loads(payloads.decode(error))),
    )


def output(row: tuple[Any, ...], payloads: PayloadConverter, codec: Codec[R]) -> R:
    """Return the output of a finished task, or raise TaskFailed or TaskCancelled."""
    task_id, state, _, result, error = row
    if state != "completed":
        recorded = None if error is None else json.loads(payloads.decode(error))
        failure = outcome_error(task_id, state, recorded)
        if failure is not None:
            raise failure
    return codec.load(payloads.decode(result))


def not_found(queue: str, task_id: UUID) -> NotFound:
    """Return the error for a task that does not exist, or is not committed yet."""
    return NotFound(
        f"no task {task_id} in queue {queue!r}",
        hint="If its transaction is open, commit it first.",
    )


class TaskFilter(TypedDict, total=False):
    """A filter for the tasks of a queue; a task must match all given keys.

    name: the task's name.
    states: any of these states.
    task_ids: any of these ids; UUIDs or their text.
    parent_task_id: the task that spawned it.
    worker: the worker that runs it, or ran it last.
    error_type: the type of its error, or of its last attempt's: a class name,
        `$Cancelled`, `$LeaseExpired` or `$DeadlineExceeded`.
    headers: keys and values that its headers contain.
    params: the same for its params.
    spawned_after, spawned_before, finished_after, finished_before: aware datetimes;
        `after` is inclusive, `before` exclusive.
    all: True, without other keys: every task of the queue.
    """

    name: str
    states: Sequence[TaskState]
    task_ids: Iterable[UUID | str]
    parent_task_id: UUID | str
    worker: str
    error_type: str
    headers: Mapping[str, JSON]
    params: JSON
    spawned_after: datetime
    spawned_before: datetime
    finished_after: datetime
    finished_before: datetime
    all: bool


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task in a list.

    `error` is the task's error, or that of the last attempt while the task sleeps until
    the next one, at `available_at`.
    """

    queue: str
    task_id: UUID
    parent_task_id: UUID | None
    name: str
    state: TaskState
    attempt: int
    worker: str | None
    spawned_at: datetime
    started_at: datetime | None
    available_at: datetime | None
    finished_at: datetime | None
    error: ErrorDetails | None


class TaskList(list[TaskInfo]):
    """A list of tasks, and where it ended.

    `next` is the id to pass as `after` for more tasks, None if all were looked at. If
    the list ended because `scan` tasks were looked at, `reached` is when the last of
    them was spawned.
    """

    next: UUID | None = None
    reached: datetime | None = None


def checked_filter(given: Mapping[str, Any], *, change: bool) -> dict[str, Any]:
    """Return a filter as `durable.list_tasks` takes it.

    `change` says that the tasks are to be changed; then the filter must not be empty.
    Raises InvalidArgument for an unknown key, naming the nearest, and for an invalid
    value.
    """
    checked = checked_keys(given, _CHECKS)
    if change and not given:
        raise InvalidArgument(
            "a filter is required", hint="all=True means every task of the queue."
        )
    if "all" in given and (len(given) > 1 or given["all"] is not True):
        raise InvalidArgument("all=True stands alone; else leave it out")
    return checked


def checked_keys(
    given: Mapping[str, Any], checks: Mapping[str, Callable[[Any], Any]]
) -> dict[str, Any]:
    """Return a filter with each key checked; InvalidArgument for an unknown one."""
    for key in given:
        if key not in checks:
            message = unknown_option(key, list(checks))
            raise InvalidArgument(message.replace("option", "filter", 1))
    return {key: checks[key](value) for key, value in given.items()}


def checked_limit(limit: object, what: str = "limit") -> int:
    """Return a checked limit; InvalidArgument unless it is from 1 to 100,000."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST:
        raise InvalidArgument(f"{what} must be an int from 1 to {_MOST}, not {limit!r}")
    return limit


def is_task(row: tuple[Any, ...]) -> bool:
    """Whether a row of `durable.list_tasks` is a task, not only a cursor to resume."""
    _, _, name, *_ = row
    return name is not None


def task_info(queue: str, row: tuple[Any, ...], payloads: PayloadConverter) -> TaskInfo:
    """Return a row of `durable.list_tasks` as a value."""
    text = row[-1]
    error = text and task_error(payloads.decode_error(json.loads(text)))
    fields = (queue, *row[:-1], error)
    return TaskInfo(*fields)


def filter_text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"a filter by text is a str, not {type(value).__name__}")
    PLAIN.dump(value)
    return value


def _states(value: object) -> list[str]:
    known = get_args(TaskState)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidArgument(f"states must be a list of states, not {value!r:.100}")
    states = list(value)
    for state in states:
        if state not in known:
            raise InvalidArgument(
                f"there is no state {state!r:.100}: there are {', '.join(known)}"
            )
    return states


def _ids(value: object) -> list[str]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise InvalidArgument(f"task_ids must be a list of ids, not {value!r:.100}")
    return [str(as_uuid(task_id)) for task_id in value]


def _headers(value: object) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"headers must be a mapping, not {type(value).__name__}")
    return _plain(dict(value))


def _plain(value: Any) -> Any:
    return json.loads(PLAIN.dump(value))


_CHECKS: Final[dict[str, Callable[[Any], Any]]] = {
    "name": filter_text,
    "states": _states,
    "task_ids": _ids,
    "parent_task_id": lambda value: str(as_uuid(value)),
    "worker": filter_text,
    "error_type": filter_text,
    "headers": _headers,
    "params": _plain,
    "spawned_after": lambda value: moment(value, "spawned_after").isoformat(),
    "spawned_before": lambda value: moment(value, "spawned_before").isoformat(),
    "finished_after": lambda value: moment(value, "finished_after").isoformat(),
    "finished_before": lambda value: moment(value, "finished_before").isoformat(),
    "all": bool,
}


@dataclass(frozen=True, slots=True)
class Actor:
    """The cause of a change to a task: a client, an ancestor task or a limit.

    For a client, `user` is its database role; `identity`, and the `queue` and `task_id`
    of the task whose code made the call, are set if the client passed them. For an
    ancestor that was cancelled, finished or retried, only `queue` and `task_id` are
    set. For a limit of the task, `limit` is start_timeout, execution_timeout or
    deadline.
    """

    user: str | None = None
    identity: Mapping[str, JSON] | None = None
    queue: str | None = None
    task_id: UUID | None = None
    limit: str | None = None

    def __str__(self) -> str:
        parts = [
            self.limit,
            None if self.identity is None else json.dumps(self.identity),
            None if self.task_id is None else f"task {self.task_id}",
            None if self.user is None else f"role {self.user}",
        ]
        return " ".join(part for part in parts if part is not None)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event in a task's history; without `at`, one that is still in progress.

    `kind` is spawned, copied (a checkpoint that a fork started with), started; step,
    step_failed, try_failed; slept, event, joined, first_finished, message_received,
    timed_out; child_spawned, event_emitted, message_sent, patched, recorded (any other
    checkpoint); attempt_failed, lease_lost, attempt_cancelled, retried; completed,
    failed, cancelled; or running, waiting, retrying. If the queue's `history` is
    "full", also claimed, suspended, woken, released.

    `name` is the name of the task or checkpoint; for suspended and woken, that of the
    wait. `worker` ran the attempt; `duration_ms` is the duration of a step. `by` is the
    Actor that cancelled, retried or forked the task. `queue` and `task_id` belong to
    the child that was spawned or finished first. `detail` has further facts: `error`
    (type, message); `until`, `event`, `topic`, `task_ids`, `queues` and `any_of` of a
    wait; `waits`, the names of several waits; `parent_task_id`, `parent_queue`,
    `idempotency_key`, `forked_from`, `deadline`; `version`; `saved_at` of a copied
    checkpoint.
    """

    at: datetime | None
    kind: str
    name: str | None = None
    attempt: int | None = None
    worker: str | None = None
    duration_ms: int | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    by: Actor | None = None
    queue: str | None = None
    task_id: UUID | None = None

    @property
    def said(self) -> str:
        """`detail` and `by` as one line of text."""
        parts = [_detail_text(key, value) for key, value in self.detail.items()]
        return ", ".join(parts if self.by is None else [*parts, f"by {self.by}"])


def history_entry(
    row: tuple[Any, ...], payloads: PayloadConverter, queue: str
) -> HistoryEntry:
    """Return a row of `durable.task_history` as a value; `queue` is the task's."""
    at, kind, name, attempt, worker, duration_ms, detail = row
    if kind == "try_failed":  # its whole detail is sealed
        with contextlib.suppress(UnreadablePayload):
            detail = payloads.decode(detail)
    known = json.loads(detail or "{}")
    by = actor(known.pop("by", None), queue)
    if "error" in known:
        error = payloads.decode_error(known["error"])
        known["error"] = {k: v for k, v in error.items() if k not in _OMITTED}
    entry = HistoryEntry(at, kind, name, attempt, worker, duration_ms, known, by)
    if kind not in _CHILDREN or "task_id" not in known:
        return entry
    child = known.get("queue", queue), UUID(known["task_id"])
    return replace(entry, queue=child[0], task_id=child[1])


def actor(recorded: Mapping[str, Any] | None, queue: str) -> Actor | None:
    """Return who did something as it was recorded in a queue; None if it was not."""
    if recorded is None or "task_id" not in recorded:
        return None if recorded is None else Actor(**recorded)
    found = {"queue": queue, **recorded, "task_id": UUID(recorded["task_id"])}
    return Actor(**found)


def _detail_text(key: str, value: Any) -> str:
    match value:
        case {"type": kind, "message": message}:
            line = " ".join(str(message).split())
            return f"{kind}: {line}" if line else str(kind)
        case {"task_id": task_id}:
            return f"{key} {task_id}"
        case str():
            return f"{key} {value}"
    return f"{key} {json.dumps(value)}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason why a task has not finished, or not started.

    `kind` is completed, failed, cancelled (it has finished); running, lease_expired;
    event, message, tasks, sleep (one for each wait); retry, delayed, released (until a
    time); expired, expires_first (a limit of its own); queue_paused, name_paused;
    no_worker, unknown_name, no_version (nobody claims it); locked, deferred; or queued:
    it can be claimed now. `message` is a sentence, with times in UTC; `detail` has its
    facts, with times as ISO 8601. `by` is the Actor that paused or cancelled it.
    """

    kind: str
    message: str
    detail: dict[str, Any] = field(default_factory=dict)
    by: Actor | None = None

    def __str__(self) -> str:
        return self.message


def explanation(
    row: tuple[Any, ...], payloads: PayloadConverter, queue: str
) -> Explanation:
    """Return a row of `durable.explain_task` as a value.

    SQL names the error's type only, since its message may be sealed.
    """
    kind, message, text = row
    detail: dict[str, Any] = json.loads(text or "{}")
    if "error" in detail:
        error = payloads.decode_error(detail["error"])
        detail["error"] = {k: v for k, v in error.items() if k not in _OMITTED}
        line = " ".join(str(error.get("message") or "").split())
        message = f"{message}: {line}" if line else message
    by = actor(detail.pop("by", None), queue)
    return Explanation(kind, message, detail, by)


@dataclass(frozen=True, slots=True)
class StreamEntry(Generic[T_co]):
    """One entry of a stream.

    `offset` counts from 0; to resume after it, start at `offset + 1`. `step` is the
    step whose function wrote it, None if the task's own code did. `restarted` says that
    this step started again: discard earlier entries of the same `step`.
    """

    offset: int
    value: T_co
    step: str | None
    attempt: int
    restarted: bool
    written_at: datetime


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a task's log.

    `level` is as in `logging`; `step` is the step that was running, None between steps;
    `message` includes the traceback if there was one.
    """

    at: datetime
    level: int
    logger: str
    step: str | None
    attempt: int
    message: str

    def __str__(self) -> str:
        level = logging.getLevelName(self.level)
        place = f" [{self.step}]" if self.step else ""
        return f"{self.at:%Y-%m-%d %H:%M:%S} {level}{place} {self.message}"


@dataclass(frozen=True, slots=True)
class EventInfo:
    """An event in a list.

    `emitted_at` is None for one that tasks have waited for, but nobody has emitted.
    `waiting` is how many tasks wait for it, at most 1,000.
    """

    name: str
    emitted_at: datetime | None
    payload: JSON
    waiting: int


def event_info(row: tuple[Any, ...], payloads: PayloadConverter) -> EventInfo:
    """Return a row of `durable.list_events` as a value.

    A payload that cannot be opened stays sealed, so that the others are shown.
    """
    name, emitted_at, payload, waiting = row
    if payload is not None:
        with contextlib.suppress(UnreadablePayload):
            payload = payloads.decode(payload)
        payload = json.loads(payload)
    return EventInfo(name, emitted_at, payload, waiting)


@dataclass(frozen=True, slots=True)
class PublishedInfo:
    """What a task has published: a value, or a stream.

    A stream has `entries`, without its end, and `closed` says whether it has ended.
    """

    kind: Literal["value", "stream"]
    name: str
    entries: int | None
    updated_at: datetime
    closed: bool | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a queue or a task name is paused, and the Actor that paused it."""

    at: datetime
    by: Actor | None

    def __str__(self) -> str:
        return f"since {self.at:%Y-%m-%d %H:%M:%S} by {self.by}"


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The number of tasks of a queue in each state, and its pauses.

    Finished tasks are not counted, but added up when they end; live ones are counted up
    to some 10,000. So numbers may be wrong after a crash of the database, by what its
    last ten seconds did, unless they were asked for as exact.

    `ready` tasks are claimable now, or will be when they are resumed, counted by name
    in `ready_by_name`; the oldest has been since `oldest_ready_at`, for
    `oldest_ready_age` seconds by the database's clock. The next sleeping task is due at
    `next_due_at`. `is_full`: spawns are refused because of `max_length`;
    counted by maintenance. `paused` is the pause of the queue, if it is paused, and
    `paused_names` those of task names.
    """

    queue: str
    pending: int
    running: int
    sleeping: int
    completed: int
    failed: int
    cancelled: int
    ready: int
    oldest_ready_at: datetime | None
    oldest_ready_age: float | None = field(compare=False)
    next_due_at: datetime | None
    ready_by_name: dict[str, int]
    max_length: int | None
    is_full: bool
    paused: Pause | None
    paused_names: dict[str, Pause]


def queue_stats(row: tuple[Any, ...]) -> QueueStats:
    """Return a row of `durable.queue_stats` as a value."""
    *counts, by_name, max_length, is_full, paused_at, paused_by, names = row
    queue = counts[0]

    def pause(at: datetime, by: Mapping[str, Any]) -> Pause:
        return Pause(at, actor(by, queue))

    paused = None if paused_at is None else pause(paused_at, json.loads(paused_by))
    paused_names = {
        name: pause(datetime.fromisoformat(known["at"]), known["by"])
        for name, known in json.loads(names).items()
    }
    about: Any = (json.loads(by_name), max_length, is_full, paused, paused_names)
    values: Any = (*counts, *about)
    return QueueStats(*values)


@dataclass(frozen=True, slots=True)
class AnnouncedTask:
    """A task definition that workers of a queue have announced.

    `options` are the defaults of a spawn, in SQL's form; `params_schema` is the JSON
    Schema of the params, if there is one. `version` is the application's version;
    `latest` marks the definition that spawns use if several versions have one.
    """

    name: str
    version: str | None
    latest: bool
    announced_at: datetime
    options: Mapping[str, Any]
    params_schema: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule in a list.

    `cron` in `time_zone`, or `every`, in seconds, says when it spawns `task`; for
    `catch_up`, `overlap` and `jitter` see `durable.schedules.ScheduleOptions`. `source`
    is "declared" by a task's code, "applied" by `apply_schedules`, or None. `next_at`
    is its next tick, None while it is paused, since `paused_at`. `last_at` is the tick
    of `last_task_id`, the task that it spawned last. If a due tick could not be
    handled, `error` says why; it is tried again, a minute after `failed_at`, which is
    None if it only waits for room in the queue.
    """

    queue: str
    name: str
    task: str
    cron: str | None
    every: int | None
    time_zone: str
    catch_up: str | int
    overlap: str
    jitter: float | None
    source: str | None
    created_at: datetime
    paused_at: datetime | None
    next_at: datetime | None
    last_at: datetime | None
    last_task_id: UUID | None
    failed_at: datetime | None
    error: str | None


def schedule_info(queue: str, row: tuple[Any, ...]) -> ScheduleInfo:
    """Return a row of `durable.list_schedules` as a value."""
    name, task, cron, every, time_zone, catch_up, *rest = row
    values: Any = (name, task, cron, every, time_zone, json.loads(catch_up), *rest)
    return ScheduleInfo(queue, *values)


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """The tasks of a queue with one `partition_key`.

    `ready` of them could be claimed now if no limit kept them, the oldest since
    `oldest_ready_at`, and `running` are held by workers; both are counted up to 1,000.
    `concurrency` and `rate` are limits of its own, None: those of the queue. `blocked`
    is why no attempt of it may begin now, a kind of `explain`: "partition_concurrency",
    "partition_order", until the task `blocked_by` ends, or "partition_rate", until
    `blocked_until`.
    """

    queue: str
    partition_key: str
    ready: int
    running: int
    oldest_ready_at: datetime | None
    concurrency: int | None
    rate: Rate | None
    blocked: str | None
    blocked_by: UUID | None
    blocked_until: datetime | None


def partition_info(queue: str, row: tuple[Any, ...]) -> PartitionInfo:
    """Return a row of `durable.list_partitions` as a value."""
    key, ready, running, oldest, concurrency, rate, *blocked = row
    if rate is not None:
        known = json.loads(rate)
        rate = Rate(known["starts"], per=known["period"])
    return PartitionInfo(
        queue, key, ready, running, oldest, concurrency, rate, *blocked
    )


@dataclass(frozen=True, slots=True)
class ScheduleRun:
    """A task that a schedule has spawned.

    `scheduled_at` is its tick or, if it was `triggered`, when that was.
    """

    queue: str
    scheduled_at: datetime
    triggered: bool
    task_id: UUID
    state: TaskState
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker of a queue.

    `running` of its `slots`, which all its queues share, run tasks of this queue; the
    first of their leases expires at `first_lease_expires_at`. `alive`: it was seen
    within the last minute. `draining`: it is stopping, and claims no more. A dead
    worker is listed for an hour, and as long as it holds a task. What a worker of
    another make has not announced is None.
    """

    queue: str
    worker: str
    version: str | None
    host: str | None
    pid: int | None
    slots: int | None
    running: int
    first_lease_expires_at: datetime | None
    started_at: datetime | None
    seen_at: datetime | None
    alive: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that needs an operator.

    `code` is one of the closed set that `durable.diagnose` describes; `subject` is the
    queue, session, table or setting; `remedy` says what to do, or the SQL for it.
    `severity` is "info" for what somebody has intended, such as a pause.
    """

    severity: Literal["error", "warning", "info"]
    code: str
    subject: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class VersionStats:
    """A version of the application in a queue, with counts of its live tasks.

    `latest`: in a queue with the policy "gate", tasks without a version go to it.
    `alive`: one of its workers was seen within the last minute. `live` counts all
    unfinished tasks, among them `running` and `ready`, which are claimable now; the
    oldest has been since `oldest_ready_at`. `first_seen_at` is None for a version that
    no worker has announced, and `last_seen_at` if none of its workers is listed by
    `list_workers`.
    """

    queue: str
    version: str
    latest: bool
    alive: bool
    first_seen_at: datetime | None
    last_seen_at: datetime | None
    live: int
    running: int
    ready: int
    oldest_ready_at: datetime | None

    @property
    def stranded(self) -> bool:
        """Whether it has live tasks but no live worker."""
        return self.live > 0 and not self.alive
