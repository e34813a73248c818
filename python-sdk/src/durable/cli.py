"""The command line: `durable --help`.

Commands call the client's public API. An error is one line on stderr; the exit code is
2 for invalid arguments, 1 for other errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import resources
from typing import Annotated, Any, Final, Literal, TextIO
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pydantic
import typer
from typer import Argument, Option

import durable
from durable import (
    Durable,
    DurableError,
    HistoryEntry,
    NotFound,
    PartitionInfo,
    QueueStats,
    ScheduleInfo,
    SpawnOptions,
    TaskHandle,
    WorkerOptions,
)
from durable._core import sql as statements
from durable._db import schema
from durable._db.conninfo import ENVIRONMENT, checked_conninfo, without_passwords
from durable._supervisor import configure_logging, load_app
from durable.options import nearest

__all__ = ["app", "main"]

app = typer.Typer(
    help="Durable execution that is nothing but Postgres.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
schedules = typer.Typer(
    help="List and change the schedules of a queue.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(schedules, name="schedules")
index = typer.Typer(
    help="Create or drop an index by which `durable tasks` finds params or headers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(index, name="index")


_FOUND: Final = 9  # the exit code of `durable doctor`
_MOMENTS: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}") from error


def _params(text: str) -> dict[str, Any]:
    """Parse params into keyword arguments, so that omitted params differ from null."""
    return {"params": _json(text)}


def _time(text: str) -> datetime:
    """Parse a time in ISO 8601; without a time zone it is this machine's."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time in ISO 8601") from None


def _given(**options: Any) -> Any:
    """Return the options that are not None; None without any."""
    return {name: one for name, one in options.items() if one is not None} or None


def _log_level(text: str) -> int:
    level = logging.getLevelNamesMapping().get(text.upper())
    if level is None:
        raise typer.BadParameter(f"{text!r} is not a logging level")
    return level


Dsn = Annotated[
    str, Option(envvar=ENVIRONMENT, help="The database: a URL or conninfo.")
]
Queue = Annotated[str, Argument(help="The queue's name.")]
OneQueue = Annotated[str | None, Argument(help="Only this queue.")]
ScheduleName = Annotated[str, Argument(metavar="SCHEDULE", help="Its name.")]
Moment = Annotated[
    datetime, Argument(formats=_MOMENTS, help="A time; UTC, unless with an offset.")
]
TaskId = Annotated[UUID, Argument(help="The task's id, as spawn prints it.")]
Json = Annotated[Any, Option(parser=_json, metavar="JSON")]
MaxAttempts = Annotated[int | None, Option(min=1)]
State = Annotated[list[str] | None, Option(help="Only this state; repeatable.")]
Name = Annotated[str | None, Option(help="Only this task name.")]
ErrorType = Annotated[
    str | None, Option(help="Only with this type of error, such as ValueError.")
]
ParamsFilter = Annotated[
    Any,
    Option(parser=_json, metavar="JSON", help="Only if its params contain this."),
]
HeadersFilter = Annotated[
    Any, Option(parser=_json, metavar="JSON", help="Only if its headers contain this.")
]
Searched = Annotated[Literal["params", "headers"], Argument(help="What to search by.")]
PausedTask = Annotated[
    str | None, Option("--task", help="Only tasks of this name, not the queue.")
]
AsJson = Annotated[bool, Option("--json", help="As JSON.")]


def _print_version(value: bool) -> None:  # noqa: FBT001 - as typer calls it
    if value:
        typer.echo(f"durable {schema.VERSION}")
        raise typer.Exit


VERSION = Option(
    "--version", callback=_print_version, is_eager=True, help="Print the version."
)


@app.callback()
def durably(*, version: Annotated[bool, VERSION] = False) -> None:
    """Durable execution that is nothing but Postgres."""


@app.command()
def migrate(
    *,
    dsn: Dsn = "",
    queue: Annotated[str, Option(help="Create this queue too.")] = "default",
    dump_sql: Annotated[
        bool, Option(help="Print the SQL that upgrades, for psql -f; change nothing.")
    ] = False,
    from_version: Annotated[
        str, Option("--from", help="With --dump-sql: only from this version.")
    ] = "",
    check: Annotated[
        bool, Option(help="Change nothing; exit with 1 if an upgrade is needed.")
    ] = False,
) -> None:
    """Install or upgrade the schema, and create the queue "default".

    Prints what it did.
    """
    if dump_sql:
        typer.echo(schema.for_psql(schema.upgrade_script(from_version)), nl=False)
        return
    if not dsn:
        raise typer.BadParameter(f"pass --dsn, or set {ENVIRONMENT}")
    if check:
        with _client(dsn, queue) as client:
            todo = client.check_schema()
        typer.echo(todo or "the schema is up to date")
        raise typer.Exit(1 if todo else 0)
    logger = logging.getLogger("durable.client")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.setLevel(logging.INFO)
    with _client(dsn, queue) as client:
        client.migrate()


@app.command()
def worker(
    application: Annotated[str, Argument(metavar="MODULE:APP")],
    *,
    processes: Annotated[int, Option(min=1, help="Worker processes.")] = 1,
    concurrency: Annotated[
        int, Option(min=1, help="Concurrent tasks per process.")
    ] = 100,
    lease: Annotated[
        float, Option(help="Seconds until another worker may take over a task.")
    ] = 30,
    queue: Annotated[
        list[str] | None,
        Option(help="Work on this queue; repeatable. Default: the app's."),
    ] = None,
    log_level: Annotated[
        Any,
        Option(
            parser=_log_level,
            metavar="debug|info|warning|error|critical",
            help="Log from this level on. Default: the app's, or info.",
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"] | None,
        Option(metavar="text|json", help="Default: the app's, or text."),
    ] = None,
    health: Annotated[
        str | None,
        Option(metavar="HOST:PORT", help="Serve /healthz, /readyz and /metrics here."),
    ] = None,
) -> None:
    """Run workers of an application until SIGTERM, SIGINT or SIGHUP.

    A second SIGTERM or SIGINT ends the processes at once.
    """
    load_app(application)  # first, since it may configure logging
    configure_logging(log_level, log_format)
    options = WorkerOptions(concurrency=concurrency, lease=lease)
    if queue:
        options["queues"] = queue
    durable.run_worker(application, processes=processes, health=health, **options)


@app.command()
def spawn(
    queue: Queue,
    task: Annotated[str, Argument(help="The task's name.")],
    *,
    dsn: Dsn,
    params: Json = "{}",
    key: Annotated[
        str | None, Option(help="Idempotency key: one key, one task.")
    ] = None,
    max_attempts: MaxAttempts = None,
    delay: Annotated[
        float | None, Option(help="Seconds until it may start.", min=0)
    ] = None,
    run_at: Annotated[
        datetime | None, Option(parser=_time, metavar="TIME", help="When it may.")
    ] = None,
    partition_key: Annotated[
        str | None, Option(help="What it belongs to for the queue's limits.")
    ] = None,
    priority: Annotated[
        int | None, Option(help="Higher ones start first; by default 0.")
    ] = None,
    unique: Annotated[
        str | None, Option(metavar="KEY", help="One unfinished task per key.")
    ] = None,
    on_conflict: Annotated[
        str | None,
        Option(metavar="return|reject|replace", help="If --unique finds a task."),
    ] = None,
    throttle: Annotated[
        str | None, Option(metavar="KEY", help="One task per key in a --period.")
    ] = None,
    period: Annotated[
        float | None, Option(help="Seconds, of --throttle.", min=0)
    ] = None,
    debounce: Annotated[
        str | None,
        Option(metavar="KEY", help="Only the last of a burst, --delay after it."),
    ] = None,
    max_wait: Annotated[
        float | None, Option(help="Seconds that --debounce may postpone it.", min=0)
    ] = None,
) -> None:
    """Spawn a task, and print its id; with a key, that of the task that has it."""
    is_debounced = debounce is not None or max_wait is not None
    options: SpawnOptions = {
        "delay": None if is_debounced else delay,
        "run_at": run_at,
        "unique": _given(key=unique, on_conflict=on_conflict),
        "throttle": _given(key=throttle, period=period),
        "partition_key": partition_key,
        "priority": priority,
    }
    if is_debounced:
        options["debounce"] = _given(key=debounce, delay=delay, max_wait=max_wait)
    if key is not None:
        options["idempotency_key"] = key
    if max_attempts is not None:
        options["max_attempts"] = max_attempts
    with _client(dsn, queue) as client:
        typer.echo(client.spawn(task, params, **options).task_id)
        if unknown := _unknown(client, queue, [task]):
            typer.echo(f"durable: {unknown[0]}", err=True)


@app.command()
def emit(
    queue: Queue,
    event: Annotated[str, Argument(help="The event's name.")],
    *,
    dsn: Dsn,
    payload: Json = "null",
) -> None:
    """Emit an event, and print whether it was emitted already; the first one counts."""
    with _client(dsn, queue) as client:
        first = client.emit_event(event, payload)
    typer.echo("emitted" if first else "already emitted")


@app.command()
def send(
    queue: Queue,
    task_id: TaskId,
    topic: Annotated[str, Argument(help="The message's topic.")],
    *,
    dsn: Dsn,
    payload: Json = "null",
    key: Annotated[str | None, Option(help="Dedup key: one key, one message.")] = None,
) -> None:
    """Send a message to a task, and print whether its key was sent already."""
    with _client(dsn, queue) as client:
        is_new = client.send(task_id, topic, payload, dedup_key=key)
    typer.echo("sent" if is_new else "already sent")


@app.command()
def cancel(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    reason: Annotated[str | None, Option(help="Stored with the task.")] = None,
) -> None:
    """Cancel a task and its descendants, and print whether it had finished."""
    with _client(dsn, queue) as client:
        live = client.cancel(task_id, reason=reason)
    typer.echo("cancelled" if live else "already finished")


@app.command()
def reschedule(
    queue: Queue,
    task_id: TaskId,
    run_at: Annotated[
        datetime, Argument(parser=_time, metavar="TIME", help="When it may start.")
    ],
    *,
    dsn: Dsn,
) -> None:
    """Let a task that has not started start at another time, and print whether it will.

    TIME is in ISO 8601, such as 2030-01-31T08:00+01:00.
    """
    with _client(dsn, queue) as client:
        is_changed = client.reschedule(task_id, run_at)
    typer.echo("rescheduled" if is_changed else "already started")


@app.command(context_settings={"ignore_unknown_options": True})
def reprioritize(
    queue: Queue,
    task_id: TaskId,
    priority: Annotated[int, Argument(help="Higher ones start first.")],
    *,
    dsn: Dsn,
) -> None:
    """Give an unfinished task another priority, from its next claim on."""
    with _client(dsn, queue) as client:
        client.reprioritize(task_id, priority)
    typer.echo("reprioritized")


@app.command()
def retry(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    max_attempts: MaxAttempts = None,
    params: Annotated[
        Any, Option(parser=_params, metavar="JSON", help="New params.")
    ] = None,
) -> None:
    """Give a failed or cancelled task one more attempt, and print its number.

    A task that sleeps until its next attempt starts it now.
    """
    with _client(dsn, queue) as client:
        handle: TaskHandle[Any] = client.retry(
            task_id, max_attempts=max_attempts, **(params or {})
        )
    typer.echo(f"attempt {handle.attempt}")


@app.command()
def retry_many(
    queue: Queue,
    *,
    dsn: Dsn,
    state: State = None,
    name: Name = None,
    error_type: ErrorType = None,
    task_id: Annotated[
        list[UUID] | None, Option(help="Only this task; repeatable.")
    ] = None,
    every: Annotated[
        bool, Option("--all", help="Every task of the queue; no other filter.")
    ] = False,
) -> None:
    """Retry the failed and cancelled tasks that match, and print how many.

    Tasks that sleep until their next attempt start it now. Pass at least one filter,
    such as --state failed, or --all.
    """
    wanted = _filter(state, name, error_type)
    if task_id:
        wanted["task_ids"] = task_id
    if every:
        wanted["all"] = True
    with _client(dsn, queue) as client:
        typer.echo(f"retried {client.retry_many(**wanted)}")


@app.command()
def fork(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    before: Annotated[str | None, Option(help="The first step to run again.")] = None,
    after: Annotated[str | None, Option(help="The last step to keep.")] = None,
    params: Annotated[
        Any,
        Option(
            parser=_params, metavar="JSON", help="New params. Default: the origin's."
        ),
    ] = None,
) -> None:
    """Spawn a copy of a task that starts from one of its steps, and print its id."""
    with _client(dsn, queue) as client:
        origin = client.handle(task_id)
        typer.echo(origin.fork(before=before, after=after, **(params or {})).task_id)


@app.command()
def tasks(
    queue: Queue,
    *,
    dsn: Dsn,
    state: State = None,
    name: Name = None,
    error_type: ErrorType = None,
    params: ParamsFilter = None,
    headers: HeadersFilter = None,
    limit: Annotated[int, Option(min=1, max=100_000, help="At most.")] = 20,
    after: Annotated[
        UUID | None, Option(help="The last task of the previous page.")
    ] = None,
    scan: Annotated[
        int, Option(min=1, max=100_000, help="How many tasks to look at, at most.")
    ] = 50_000,
    as_json: AsJson = False,
) -> None:
    """List tasks, the newest first.

    Says on stderr if it has not looked at all tasks, and where to continue.
    """
    wanted = _filter(state, name, error_type, params=params, headers=headers)
    with _client(dsn, queue) as client:
        found = client.list_tasks(limit=limit, after=after, scan=scan, **wanted)
    if found.reached is not None:
        typer.echo(
            f"durable: looked at {scan} tasks, back to {_moment(found.reached)};"
            f" --after {found.next} continues",
            err=True,
        )
    if as_json:
        _print_json(found)
        return
    lines = [["task_id", "name", "state", "attempt", "spawned", "error"]]
    for task in found:
        error = str(task.error or "").partition("\n")[0]
        spawned = _moment(task.spawned_at)
        line = [str(task.task_id), task.name, task.state, str(task.attempt)]
        lines.append([*line, spawned, error])
    _print_columns(lines)


@app.command()
def history(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    tree: Annotated[
        bool, Option(help="Include each child's history, below its spawn.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a task's history in order; what is in progress comes last."""
    with _client(dsn, queue) as client:
        handle = client.handle(task_id)
        entries = [(0, entry) for entry in handle.history()]
        if tree:
            entries = list(_with_children(client, entries))
    if as_json:
        _print_json(entry for _, entry in entries)
        return
    lines = [["at", "attempt", "what", "name", "took", "worker", "detail"]]
    for depth, entry in entries:
        took = "" if entry.duration_ms is None else f"{entry.duration_ms} ms"
        what = "  " * depth + entry.kind
        line = [_moment(entry.at), str(entry.attempt or ""), what, entry.name or ""]
        lines.append([*line, took, entry.worker or "", entry.said])
    _print_columns(lines)


@app.command()
def explain(
    queue: Queue, task_id: TaskId, *, dsn: Dsn, as_json: AsJson = False
) -> None:
    """Print why a task is pending or late: what it waits for, what holds it up.

    The reasons come in the order in which they have to be removed.
    """
    with _client(dsn, queue) as client:
        reasons = client.explain(task_id)
    if as_json:
        _print_json(reasons)
        return
    for reason in reasons:
        typer.echo(f"{reason.kind}: {reason.message}")


@app.command()
def result(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    timeout: Annotated[
        float, Option(min=0, help="Seconds to wait for the task to finish.")
    ] = 0,
) -> None:
    """Print a task's result as JSON; exit with 1 if it has none yet or failed."""
    with _client(dsn, queue) as client:
        output = client.handle(task_id).result(timeout=timeout)
    typer.echo(json.dumps(output))


@app.command()
def logs(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    follow: Annotated[
        bool, Option("--follow", "-f", help="Follow until the task finishes.")
    ] = False,
) -> None:
    """Print a task's log."""
    with _client(dsn, queue) as client:
        for line in client.handle(task_id).logs(follow=follow):
            typer.echo(str(line))


@app.command()
def queues(*, dsn: Dsn) -> None:
    """Print the names of all queues."""
    with _client(dsn) as client:
        for name in client.list_queues():
            typer.echo(name)


@app.command()
def pause(queue: Queue, *, dsn: Dsn, task: PausedTask = None) -> None:
    """Pause a queue, or one task name of it; running tasks go on.

    Prints whether it was paused already.
    """
    with _client(dsn, queue) as client:
        typer.echo("paused" if client.pause_queue(task=task) else "already paused")
        if task is not None and (unknown := _unknown(client, queue, [task])):
            typer.echo(f"durable: {unknown[0]}", err=True)


@app.command()
def resume(queue: Queue, *, dsn: Dsn, task: PausedTask = None) -> None:
    """Resume a queue, or one task name of it; print whether it was paused."""
    with _client(dsn, queue) as client:
        typer.echo("resumed" if client.resume_queue(task=task) else "not paused")


@app.command()
def stats(
    queue: OneQueue = None,
    *,
    dsn: Dsn,
    exact: Annotated[bool, Option(help="Count all; may take long.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print how many tasks every queue has by state; `ready` are claimable now.

    Says on stderr which queues are paused or full, and which names nobody knows.
    """
    with _client(dsn) as client:
        found = [
            client.queue_stats(name, exact=exact) for name in _queues(client, queue)
        ]
        warnings = [
            line
            for stats in found
            for line in [
                *_held_up(stats),
                *_unknown(client, stats.queue, stats.ready_by_name),
            ]
        ]
    if as_json:
        _print_json(found)
        return
    columns = ["queue", "pending", "running", "sleeping"]
    columns += ["completed", "failed", "cancelled", "ready"]
    lines = [columns, *([str(getattr(row, name)) for name in columns] for row in found)]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    for name, *counts in lines:
        typer.echo("  ".join([name.ljust(first), *map(str.rjust, counts, rest)]))
    for line in warnings:
        typer.echo(f"durable: {line}", err=True)


@app.command()
def partitions(queue: Queue, *, dsn: Dsn, as_json: AsJson = False) -> None:
    """List the partitions of a queue: how many tasks wait, and what blocks them."""
    found: list[PartitionInfo] = []
    with _client(dsn, queue) as client:
        while page := client.list_partitions(
            limit=1000, after=found[-1].partition_key if found else None
        ):
            found += page
    if as_json:
        _print_json(found)
        return
    lines = [["partition", "ready", "running", "oldest", "concurrency", "rate"]]
    lines[0] += ["blocked", "by", "until"]
    for one in found:
        line = [one.partition_key, str(one.ready), str(one.running)]
        line += [_moment(one.oldest_ready_at)[:-4], str(one.concurrency or "")]
        rate = one.rate and one.rate.as_policy()
        line.append(f"{rate['starts']:g} in {rate['period']:g} s" if rate else "")
        line += [one.blocked or "", str(one.blocked_by or "")]
        lines.append([*line, _moment(one.blocked_until)])
    _print_columns(lines)


@app.command()
def events(
    queue: Queue,
    *,
    dsn: Dsn,
    prefix: Annotated[str, Option(help="Only names that begin with this.")] = "",
    waited_for: Annotated[bool, Option(help="Only those that tasks wait for.")] = False,
    limit: Annotated[int, Option(min=1, max=100_000, help="At most.")] = 20,
    after: Annotated[
        str | None, Option(help="The last name of the previous page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List events by name: when they were emitted, and how many tasks wait for them."""
    with _client(dsn, queue) as client:
        found = client.list_events(
            prefix=prefix, limit=limit, after=after, waited_for=waited_for
        )
    if as_json:
        _print_json(found)
        return
    lines = [["event", "emitted", "waiting", "payload"]]
    for event in found:
        payload = "" if event.emitted_at is None else json.dumps(event.payload)
        line = [event.name, _moment(event.emitted_at), str(event.waiting or "")]
        lines.append([*line, payload])
    _print_columns(lines)


@app.command()
def find(task_id: TaskId, *, dsn: Dsn) -> None:
    """Print the queue of a task."""
    with _client(dsn) as client:
        typer.echo(client.find_task(task_id).queue)


@app.command()
def audit(
    queue: OneQueue = None,
    *,
    dsn: Dsn,
    action: Annotated[
        str | None, Option(help="Only calls of this function, such as retry_tasks.")
    ] = None,
    task_id: Annotated[UUID | None, Option(help="Only of this task.")] = None,
    user: Annotated[str | None, Option(help="Only by this database role.")] = None,
    since: Annotated[
        datetime | None, Option(parser=_time, metavar="TIME", help="From then on.")
    ] = None,
    limit: Annotated[int, Option(min=1, max=100_000, help="At most.")] = 20,
    after: Annotated[
        UUID | None, Option(help="The audit_id of the last entry of the previous page.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what operators have done, the latest first, also in dropped queues."""
    wanted = _given(action=action, task_id=task_id, user=user, since=since) or {}
    with _client(dsn, queue or "default") as client:
        found = client.list_audit(
            limit=limit, after=after, all_queues=queue is None, **wanted
        )
    if as_json:
        _print_json(found)
        return
    lines = [["at", "queue", "action", "task_id", "by", "detail"]]
    for entry in found:
        task = "" if entry.task_id is None else str(entry.task_id)
        detail = json.dumps(entry.detail) if entry.detail else ""
        line = [_moment(entry.at), entry.queue, entry.action, task]
        lines.append([*line, str(entry.by), detail])
    _print_columns(lines)


@app.command()
def doctor(*, dsn: Dsn, as_json: AsJson = False) -> None:
    """Print what needs an operator and what helps; exit with 9 if anything does.

    Pauses are printed too, but are no reason to fail.
    """
    with _client(dsn) as client:
        found = client.diagnose()
    if as_json:
        _print_json(found)
    else:
        for one in found:
            typer.echo(f"{one.severity}: {one.subject}: {one.message}")
            typer.echo(f"    {one.remedy}")
        if not found:
            typer.echo("all is well")
    if any(one.severity != "info" for one in found):
        raise typer.Exit(_FOUND)


@app.command()
def workers(queue: OneQueue = None, *, dsn: Dsn, as_json: AsJson = False) -> None:
    """List workers, how many of their slots run tasks, and when they were last seen."""
    with _client(dsn) as client:
        found = [
            row for name in _queues(client, queue) for row in client.list_workers(name)
        ]
    if as_json:
        _print_json(found)
        return
    lines = [["queue", "worker", "state", "version", "running", "started", "last seen"]]
    for row in found:
        state = "dead" if not row.alive else "draining" if row.draining else "alive"
        running = f"{row.running}/{row.slots or '?'}"
        line = [row.queue, row.worker, state, row.version or "", running]
        lines.append([*line, _moment(row.started_at)[:-4], _moment(row.seen_at)[:-4]])
    _print_columns(lines)


@app.command()
def throughput(
    queue: Queue,
    *,
    dsn: Dsn,
    since: Annotated[
        datetime | None, Option(parser=_time, help="Default: a day ago.")
    ] = None,
    until: Annotated[
        datetime | None, Option(parser=_time, help="Default: now.")
    ] = None,
    bucket: Annotated[float, Option(min=60, help="In seconds.")] = 3600,
    by_name: Annotated[bool, Option(help="Each task name for itself.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print how many tasks were spawned and ended over time, and their latencies.

    In seconds: `wait` from the spawn to the first start, `run` from there to the end.
    """
    with _client(dsn, queue) as client:
        found = client.queue_throughput(
            since=since, until=until, bucket=bucket, by_name=by_name
        )
    if as_json:
        _print_json(found)
        return
    counts = ["spawned", "completed", "failed", "cancelled", "retried", "lost"]
    seconds = ["wait_p50", "wait_p95", "run_p50", "run_p95"]
    lines = [["at", *(["name"] if by_name else []), *counts, *seconds]]
    for row in found:
        names = [row.name or ""] if by_name else []
        took = [getattr(row, name) for name in seconds]
        line = [_moment(row.at)[:-4], *names, *(str(getattr(row, n)) for n in counts)]
        lines.append([*line, *("" if one is None else f"{one:.3g}" for one in took)])
    _print_columns(lines)


@index.command("create")
def create_index(what: Searched, *, dsn: Dsn) -> None:
    """Create the index, without blocking anybody. It needs the owner's rights."""
    _change_index(dsn, statements.drop_index[what], statements.create_index[what])


@index.command("drop")
def drop_index(what: Searched, *, dsn: Dsn) -> None:
    """Drop the index. It needs the owner's rights."""
    _change_index(dsn, statements.drop_index[what])


def _change_index(dsn: str, *changes: statements.Statement) -> None:
    with psycopg.connect(checked_conninfo(dsn), autocommit=True) as connection:
        for change in changes:
            connection.execute(change.text.encode())


@app.command()
def versions(queue: OneQueue = None, *, dsn: Dsn, as_json: AsJson = False) -> None:
    """List versions that workers run or tasks need; `!` marks one without workers."""
    with _client(dsn) as client:
        found = [
            row for name in _queues(client, queue) for row in client.list_versions(name)
        ]
    if as_json:
        _print_json(found)
        return
    for row in found:
        mark = "!" if row.stranded else "*" if row.latest else " "
        seen = "never" if row.last_seen_at is None else f"{row.last_seen_at:%F %T}"
        typer.echo(
            f"{mark} {row.queue}  {row.version}  live {row.live}"
            f"  ready {row.ready}  running {row.running}  last seen {seen}"
        )


@schedules.command("list")
def list_schedules(queue: Queue, *, dsn: Dsn, as_json: AsJson = False) -> None:
    """List the schedules of a queue, with the next tick and the last task of each."""
    found: list[ScheduleInfo] = []
    with _client(dsn, queue) as client:
        while page := client.list_schedules(after=found[-1].name if found else None):
            found += page
    if as_json:
        _print_json(found)
        return
    lines = [["schedule", "task", "when", "next", "last", "last task", "error"]]
    for one in found:
        when = f"every {one.every} s" if one.cron is None else one.cron
        if one.time_zone != "UTC":
            when = f"{when} {one.time_zone}"
        following = "paused" if one.paused_at else _moment(one.next_at)[:-4]
        last = [_moment(one.last_at)[:-4], str(one.last_task_id or "")]
        lines.append([one.name, one.task, when, following, *last, one.error or ""])
    _print_columns(lines)


@schedules.command("runs")
def list_schedule_runs(
    queue: Queue,
    schedule: ScheduleName,
    *,
    dsn: Dsn,
    limit: Annotated[int, Option(min=1, max=100_000, help="At most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the tasks that a schedule has spawned, the latest first."""
    with _client(dsn, queue) as client:
        found = client.list_schedule_runs(schedule, limit=limit)
    if as_json:
        _print_json(found)
        return
    lines = [["scheduled", "task_id", "state", "attempt", "started", "finished"]]
    for run in found:
        line = [_moment(run.scheduled_at)[:-4], str(run.task_id), run.state]
        line += [str(run.attempt), _moment(run.started_at), _moment(run.finished_at)]
        lines.append(line)
    _print_columns(lines)


@schedules.command("pause")
def pause_schedule(queue: Queue, schedule: ScheduleName, *, dsn: Dsn) -> None:
    """Pause a schedule, and print whether it was paused already."""
    with _client(dsn, queue) as client:
        is_new = client.pause_schedule(schedule)
    typer.echo("paused" if is_new else "already paused")


@schedules.command("resume")
def resume_schedule(queue: Queue, schedule: ScheduleName, *, dsn: Dsn) -> None:
    """Resume a paused schedule with its next tick."""
    with _client(dsn, queue) as client:
        is_new = client.resume_schedule(schedule)
    typer.echo("resumed" if is_new else "not paused")


@schedules.command("drop")
def drop_schedule(queue: Queue, schedule: ScheduleName, *, dsn: Dsn) -> None:
    """Delete a schedule; its tasks stay."""
    with _client(dsn, queue) as client:
        is_gone = client.drop_schedule(schedule)
    typer.echo("dropped" if is_gone else "no such schedule")


@schedules.command("trigger")
def trigger_schedule(queue: Queue, schedule: ScheduleName, *, dsn: Dsn) -> None:
    """Spawn a task of a schedule now, and print its id."""
    with _client(dsn, queue) as client:
        typer.echo(client.trigger_schedule(schedule).task_id)


@schedules.command("backfill")
def backfill_schedule(
    queue: Queue, schedule: ScheduleName, start: Moment, end: Moment, *, dsn: Dsn
) -> None:
    """Spawn the tasks of past ticks from START on and before END; print new ids."""
    with _client(dsn, queue) as client:
        handles = client.backfill_schedule(schedule, _aware(start), _aware(end))
    for handle in handles:
        if handle.created:
            typer.echo(handle.task_id)


@schedules.command("next")
def next_fires(
    cron: Annotated[str, Argument(help='A cron expression, such as "0 3 * * *".')],
    *,
    dsn: Dsn,
    time_zone: Annotated[str, Option(help="Its time zone.")] = "UTC",
    count: Annotated[int, Option(min=1, max=10_000, help="How many.")] = 5,
) -> None:
    """Print the next times of a cron expression, in its time zone."""
    with _client(dsn) as client:
        found = client.next_fires(cron, time_zone=time_zone, count=count)
    for at in found:
        typer.echo(at.astimezone(ZoneInfo(time_zone)).isoformat(sep=" "))


@app.command()
def metrics(
    *,
    dsn: Dsn = "",
    queue: Annotated[
        list[str] | None, Option(help="Only this queue; repeatable.")
    ] = None,
    listen: Annotated[
        str | None, Option(metavar="HOST:PORT", help="Serve them here at /metrics.")
    ] = None,
    grafana: Annotated[
        bool, Option("--grafana", help="Print a dashboard for Grafana instead.")
    ] = False,
    alerts: Annotated[
        bool, Option("--alerts", help="Print alert rules for Prometheus instead.")
    ] = False,
) -> None:
    """Print the metrics of queues as text for Prometheus, or serve them."""
    from durable.telemetry.queues import QueueReader, serve_queues  # noqa: PLC0415
    from durable.telemetry.serving import address_of  # noqa: PLC0415

    if grafana or alerts:
        file = "grafana.json" if grafana else "alerts.yml"
        shipped = resources.files("durable.telemetry").joinpath(file)
        typer.echo(shipped.read_text(), nl=False)
        return
    if not dsn:
        raise typer.BadParameter(f"pass --dsn, or set {ENVIRONMENT}")
    with _client(dsn) as client:
        reader = QueueReader(client, queue)
        if listen is None:
            typer.echo(reader.text(), nl=False)
        else:
            configure_logging(None)
            asyncio.run(serve_queues(reader, *address_of(listen)))


@app.command()
def errors() -> None:
    """Print the engine's errors: SQLSTATE, name, meaning."""
    for code, cls in sorted(DurableError.by_code.items()):
        meaning = (cls.__doc__ or "").partition("\n")[0]
        typer.echo(f"{code}  {cls.__name__:<16} {meaning}")


@app.command()
def sql() -> None:
    """Print the schema as one SQL file, for `psql -f`."""
    typer.echo(schema.for_psql(schema.script(None)), nl=False)


@app.command()
def demo() -> None:
    """Kill a job halfway with kill -9, and show that it resumes."""
    from durable.demo import main as play  # noqa: PLC0415 - needs the extra demo

    play()


def main() -> None:
    """Run the command line."""
    # usage errors quote arguments, and one of them may be an address
    sys.stderr = _WithoutPasswords(sys.stderr)
    try:
        app(prog_name="durable")
    except Exception as error:  # noqa: BLE001 - the outermost handler
        typer.echo(f"durable: {_one_line(error)}", err=True)
        sys.exit(1)


class _WithoutPasswords:
    """A stream that masks passwords in the addresses written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(without_passwords(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _client(dsn: str, queue: str = "default") -> Iterator[Durable]:
    # a pool would keep retrying; one attempt raises the error
    psycopg.connect(checked_conninfo(dsn), connect_timeout=10).close()
    with Durable(dsn, queue=queue) as client:
        yield client


def _queues(client: Durable, queue: str | None) -> list[str]:
    return client.list_queues() if queue is None else [queue]


def _unknown(client: Durable, queue: str, names: Iterable[str]) -> list[str]:
    """Return a warning for each name that no worker of the queue has announced."""
    try:
        announced = {one.name for one in client.list_definitions(queue)}
    except DurableError:  # a role that may spawn need not be allowed to list
        return []
    return [
        f'no worker of queue "{queue}" has announced a task named "{name}"'
        + (f': did you mean "{meant}"?' if (meant := nearest(name, announced)) else "")
        for name in names
        if name not in announced
    ]


def _held_up(stats: QueueStats) -> list[str]:
    """Return a line for each pause of a queue, and one if it is full."""
    pauses = [("", stats.paused)] if stats.paused else []
    pauses += [(f'tasks "{name}" of ', it) for name, it in stats.paused_names.items()]
    lines = [f'{what}queue "{stats.queue}" paused {pause}' for what, pause in pauses]
    if stats.is_full:
        lines.append(f'queue "{stats.queue}" is full: max_length {stats.max_length}')
    return lines


def _filter(
    states: list[str] | None, name: str | None, error_type: str | None, **more: Any
) -> dict[str, Any]:
    given = {"states": states, "name": name, "error_type": error_type}
    return {key: value for key, value in given.items() if value} | {
        key: value for key, value in more.items() if value is not None
    }


def _with_children(
    client: Durable, entries: list[tuple[int, HistoryEntry]]
) -> Iterator[tuple[int, HistoryEntry]]:
    for depth, entry in entries:
        yield depth, entry
        if entry.kind == "child_spawned" and entry.task_id is not None:
            child = client.handle(entry.task_id, queue=entry.queue)
            with contextlib.suppress(NotFound):  # it may have been deleted
                below = [(depth + 1, entry) for entry in child.history()]
                yield from _with_children(client, below)


def _print_json(rows: Iterable[Any]) -> None:
    """Print dataclasses as a JSON array."""
    found = [dataclasses.asdict(row) for row in rows]
    typer.echo(json.dumps(found, indent=2, default=str))


def _print_columns(lines: list[list[str]]) -> None:
    """Print a table, without the columns that are empty below the header."""
    shown = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in shown]
    rows = zip(*shown, strict=True)
    typer.echo(
        "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    )


def _moment(at: datetime | None) -> str:
    """Return a time in UTC, to the millisecond; empty for None."""
    return "" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _aware(at: datetime) -> datetime:
    """Return a time with its time zone, which is UTC unless it has one."""
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _one_line(error: Exception) -> str:
    """Return an error's message in one line; with the place if it is unexpected."""
    text = str(error).replace("\nHint:", ". Hint:")
    if isinstance(error, psycopg.Error):
        text = error.diag.message_primary or text
    text = " ".join(text.split())
    expected = (DurableError, psycopg.Error, TimeoutError, pydantic.ValidationError)
    if text and isinstance(error, expected):
        return text
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {text} ({last.filename}:{last.lineno})"
