"""The command line: `durable --help`.

It calls what an application would call, and adds nothing. What goes wrong is one line
on stderr, and the exit code says so: 2 for a command that can't be understood, else 1.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import psycopg
import typer

import durable
from durable import (
    Durable,
    DurableError,
    HistoryEntry,
    NotFound,
    SpawnOptions,
    TaskHandle,
    WorkerOptions,
    _schema,
)
from durable._connections import ENVIRONMENT
from durable._printing import columns, moment, one_line, table, to_json

__all__ = ["app", "main"]

app = typer.Typer(
    help="Durable execution that is nothing but Postgres.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}") from error


def _params(text: str) -> dict[str, Any]:
    """Return params that might have been left out; null is not that."""
    return {"params": _json(text)}


Dsn = Annotated[
    str, typer.Option(envvar=ENVIRONMENT, help="The database: a URL or conninfo.")
]
Queue = Annotated[str, typer.Argument(help="The queue's name.")]
TaskId = Annotated[UUID, typer.Argument(help="The task's id, as spawn prints it.")]


def _tell_version(asked: bool) -> None:  # noqa: FBT001 - as typer calls it
    if asked:
        typer.echo(f"durable {_schema.VERSION}")
        raise typer.Exit


@app.callback()
def durably(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Print it."
        ),
    ] = False,
) -> None:
    """Durable execution that is nothing but Postgres."""


@app.command()
def migrate(
    *,
    dsn: Dsn,
    queue: Annotated[str, typer.Option(help="Create this queue too.")] = "default",
) -> None:
    """Install or upgrade the schema, and create the queue "default"."""
    with _client(dsn, queue) as client:
        client.migrate()


@app.command()
def worker(
    application: Annotated[str, typer.Argument(metavar="MODULE:APP")],
    *,
    processes: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    concurrency: Annotated[
        int, typer.Option(min=1, help="How many tasks each runs at once.")
    ] = 100,
    lease: Annotated[
        float, typer.Option(help="Seconds until a silent worker's tasks are free.")
    ] = 30,
    queue: Annotated[
        list[str] | None,
        typer.Option(help="Work on this queue; repeat it for more. Else: the app's."),
    ] = None,
) -> None:
    """Work for an application until SIGTERM or SIGINT; a second one ends it at once."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    options = WorkerOptions(concurrency=concurrency, lease=lease)
    if queue:
        options["queues"] = queue
    durable.run_worker(application, processes=processes, **options)


@app.command()
def spawn(
    queue: Queue,
    task: Annotated[str, typer.Argument(help="The task's name.")],
    *,
    dsn: Dsn,
    params: Annotated[Any, typer.Option(parser=_json, metavar="JSON")] = "{}",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: one key, one task.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Spawn a task, and print its id."""
    options: SpawnOptions = {}
    if key is not None:
        options["idempotency_key"] = key
    if max_attempts is not None:
        options["max_attempts"] = max_attempts
    with _client(dsn, queue) as client:
        typer.echo(client.spawn(task, params, **options).task_id)


@app.command()
def emit(
    queue: Queue,
    event: Annotated[str, typer.Argument(help="The event's name.")],
    *,
    dsn: Dsn,
    payload: Annotated[Any, typer.Option(parser=_json, metavar="JSON")] = "null",
) -> None:
    """Emit an event; print whether it was the first of its name, which counts."""
    with _client(dsn, queue) as client:
        first = client.emit_event(event, payload)
    typer.echo("emitted" if first else "already emitted")


@app.command()
def send(
    queue: Queue,
    task_id: TaskId,
    topic: Annotated[str, typer.Argument(help="What the message is about.")],
    *,
    dsn: Dsn,
    payload: Annotated[Any, typer.Option(parser=_json, metavar="JSON")] = "null",
    key: Annotated[
        str | None, typer.Option(help="Dedup key: one key, one message.")
    ] = None,
) -> None:
    """Send a task a message; print whether it is new, which a key decides."""
    with _client(dsn, queue) as client:
        is_new = client.send(task_id, topic, payload, dedup_key=key)
    typer.echo("sent" if is_new else "already sent")


@app.command()
def cancel(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    reason: Annotated[str | None, typer.Option(help="Kept with the task.")] = None,
) -> None:
    """Cancel a task and all below it; print whether it was live."""
    with _client(dsn, queue) as client:
        live = client.cancel(task_id, reason=reason)
    typer.echo("cancelled" if live else "already finished")


@app.command()
def retry(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    max_attempts: Annotated[int | None, typer.Option(min=1)] = None,
    params: Annotated[
        Any, typer.Option(parser=_params, metavar="JSON", help="From now on.")
    ] = None,
) -> None:
    """Give a failed or cancelled task one more attempt, and print its number.

    What sleeps until its next attempt starts that now.
    """
    with _client(dsn, queue) as client:
        handle: TaskHandle[Any] = client.retry(
            task_id, max_attempts=max_attempts, **(params or {})
        )
    typer.echo(f"attempt {handle.attempt}")


@app.command()
def fork(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    before: Annotated[
        str | None, typer.Option(help="The step it is to begin with.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="The step it is to begin behind.")
    ] = None,
    params: Annotated[
        Any,
        typer.Option(parser=_params, metavar="JSON", help="Others than its origin's."),
    ] = None,
) -> None:
    """Spawn a task that begins where another one stood, and print its id."""
    with _client(dsn, queue) as client:
        origin = client.handle(task_id)
        typer.echo(origin.fork(before=before, after=after, **(params or {})).task_id)


@app.command()
def tasks(
    queue: Queue,
    *,
    dsn: Dsn,
    state: Annotated[
        list[str] | None, typer.Option(help="In this state; repeat it for more.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many.")] = 20,
    after: Annotated[
        UUID | None, typer.Option(help="The last of the page before.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List tasks, the newest first."""
    wanted: Any = {"states": state, "name": name}
    wanted = {key: value for key, value in wanted.items() if value}
    with _client(dsn, queue) as client:
        found = client.list_tasks(limit=limit, after=after, **wanted)
    if as_json:
        typer.echo(to_json(found))
        return
    lines = [["task_id", "name", "state", "attempt", "spawned", "error"]]
    lines += [
        [
            str(task.task_id),
            task.name,
            task.state,
            str(task.attempt),
            moment(task.spawned_at),
            str(task.error or "").partition("\n")[0],
        ]
        for task in found
    ]
    typer.echo(columns(lines))


@app.command()
def history(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    tree: Annotated[
        bool, typer.Option(help="With its children's, below where each was spawned.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell what has happened to a task, in order; what goes on comes last."""
    with _client(dsn, queue) as client:
        handle = client.handle(task_id)
        entries = [(0, entry) for entry in handle.history()]
        if tree:
            entries = list(_with_children(client, entries))
    if as_json:
        typer.echo(to_json(entry for _, entry in entries))
        return
    lines = [["at", "attempt", "what", "name", "took", "worker", "detail"]]
    lines += [
        [
            moment(entry.at),
            str(entry.attempt or ""),
            "  " * depth + entry.kind,
            entry.name or "",
            "" if entry.duration_ms is None else f"{entry.duration_ms} ms",
            entry.worker or "",
            entry.said,
        ]
        for depth, entry in entries
    ]
    typer.echo(columns(lines))


@app.command()
def result(
    queue: Queue,
    task_id: TaskId,
    *,
    dsn: Dsn,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for its end.")
    ] = 0,
) -> None:
    """Print a task's result as JSON; exit with 1 if it has none (yet)."""
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
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")
    ] = False,
) -> None:
    """Print what a task has logged."""
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
def stats(
    queue: Annotated[str | None, typer.Argument(help="Only this queue.")] = None,
    *,
    dsn: Dsn,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Count the tasks of every queue by state; `ready` are those claimable now."""
    with _client(dsn) as client:
        names = [queue] if queue is not None else client.list_queues()
        found = [client.queue_stats(name) for name in names]
    if as_json:
        typer.echo(to_json(found))
    else:
        typer.echo(table(found))


@app.command()
def versions(
    queue: Annotated[str | None, typer.Argument(help="Only this queue.")] = None,
    *,
    dsn: Dsn,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List versions that work, or that tasks wait for; `!` marks what nobody runs."""
    with _client(dsn) as client:
        names = [queue] if queue is not None else client.list_queues()
        found = [row for name in names for row in client.list_versions(name)]
    if as_json:
        typer.echo(to_json(found))
        return
    for row in found:
        mark = "!" if row.stranded else "*" if row.latest else " "
        seen = "never" if row.last_seen_at is None else f"{row.last_seen_at:%F %T}"
        typer.echo(
            f"{mark} {row.queue}  {row.version}  live {row.live}"
            f"  ready {row.ready}  running {row.running}  last seen {seen}"
        )


@app.command()
def errors() -> None:
    """Print the errors the database raises on purpose: SQLSTATE, name, meaning."""
    for code, cls in sorted(DurableError.by_code.items()):
        meaning = (cls.__doc__ or "").partition("\n")[0]
        typer.echo(f"{code}  {cls.__name__:<16} {meaning}")


@app.command()
def sql() -> None:
    """Print the schema as one SQL file, for `psql -f`."""
    typer.echo(_schema.flatten(), nl=False)


@app.command()
def demo() -> None:
    """Kill a real job halfway with kill -9, and see that it goes on."""
    from durable.demo import main as play  # noqa: PLC0415 - needs durable[demo]

    play()


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="durable")
    except Exception as error:  # noqa: BLE001 - the outermost place there is
        typer.echo(f"durable: {one_line(error)}", err=True)
        sys.exit(1)


@contextlib.contextmanager
def _client(dsn: str, queue: str = "default") -> Iterator[Durable]:
    # a pool would go on trying where one attempt says what is wrong
    psycopg.connect(dsn, connect_timeout=10).close()
    with Durable(dsn, queue=queue) as client:
        yield client


def _with_children(
    client: Durable, entries: list[tuple[int, HistoryEntry]]
) -> Iterator[tuple[int, HistoryEntry]]:
    for depth, entry in entries:
        yield depth, entry
        if entry.kind == "child_spawned" and entry.task_id is not None:
            child = client.handle(entry.task_id, queue=entry.queue)
            with contextlib.suppress(NotFound):  # it may have been deleted
                below = [(depth + 1, told) for told in child.history()]
                yield from _with_children(client, below)
