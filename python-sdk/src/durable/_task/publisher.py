"""Publishes values, stream entries and log lines of one run.

They are queued in memory, and saved together with the next write of the run, or in a
write of their own as soon as none is in progress. Writes are sent one after the other,
so numbers ascend in the order of commits: a reader of a stream never sees a gap that is
filled later.

Entries that the task's own code writes are counted by name, and a replay skips as many
as are saved. Entries that a step's function writes repeat whenever the function runs
again; the first entry of a repetition is marked.

`ctx.logger` is a logger of the run. Its records are kept, and passed on to the logger
`durable.task` of the process if that is enabled for their level. During a replay it
drops all records. With `keep_logs`, records of all other loggers are kept as well while
a task's code runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from durable._core import sql
from durable._core.payloads import PayloadConverter
from durable._task.checkpoints import Execution, Write, inside_a_step

if TYPE_CHECKING:
    from durable._task.run import Run

__all__ = ["LINES_AT_MOST", "Publisher", "TaskLogger", "current_run", "kept_logs"]

LINES_AT_MOST: Final = 5_000
"""The maximum number of log lines kept for one task."""

_LINGER_SECONDS: Final = 0.5  # for which a log line waits for another write
_RETRY_SECONDS: Final = 0.05
_MAX_ENTRIES: Final = 1_000
_MAX_BYTES: Final = 1024 * 1024
_LONGEST_LINE: Final = 8_000
_LONGEST_STORED: Final = 20_000  # the database truncates longer ones
_LONGEST_IF_LONGER: Final = 2_000
_INTERNAL_LOGGERS: Final = ("durable.worker", "durable.client")  # not about a task
_KEPT: Final = "durable_kept"
_text: Final = logging.Formatter()
_quoted: Final = json.JSONEncoder().encode
_LIMIT_REACHED: Final = (
    f"… further lines are dropped: at most {LINES_AT_MOST:,} are kept for a task"
)


# Set while a task's code runs, if its log lines are kept.
current_run: contextvars.ContextVar[Run | None] = contextvars.ContextVar(
    "durable.current_run", default=None
)


class _Line(NamedTuple):
    """A log line that has no number yet."""

    at: str
    level: int
    logger: str
    step: str | None
    message: str

    def as_json(self, number: int) -> str:
        """Return the line as `durable.publish` takes it."""
        step = "null" if self.step is None else _quoted(self.step)
        return (
            f'{{"number":{number},"at":"{self.at}","level":{self.level},'
            f'"logger":{_quoted(self.logger)},"step":{step},'
            f'"message":{_quoted(self.message)}}}'
        )


class _Entry(NamedTuple):
    """An entry of a stream; the value None closes the stream.

    `execution` is the step that wrote it; entries of the task's own code have none, and
    are counted by `ordinal`.
    """

    stream: str
    source: str
    ordinal: int
    execution: Execution | None
    value: str | None


class _Setting(NamedTuple):
    """A value. `ordinal` counts from 1 if the task's own code set it, else it is 0."""

    key: str
    ordinal: int
    value: str


class Publisher:
    """The pending entries of one run, and counts of those that are saved.

    Everything runs on the worker's loop, except `publish`, `log` and `submit`, which
    any thread may call.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_loaded = run.claimed.is_first_claim  # nothing was published before
        self._lock = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight: asyncio.Future[str] | None = None
        self._error: BaseException | None = None
        self._entries: list[_Entry] = []
        self._settings: list[_Setting] = []
        self._lines: list[_Line] = []
        self._bytes = 0
        self._submitted: Counter[str] = Counter()  # by the task's code, by source
        self._closed: set[str] = set()
        self._next: Counter[str] = Counter()  # next number, by stream
        self._written: Counter[tuple[str, str]] = Counter()  # by stream and source
        self._set_counts: Counter[str] = Counter()  # by key of a value
        self._logged = 0
        self._writers: dict[tuple[str, str], Execution] = {}  # by stream and source

    # -- adding entries ------------------------------------------------------------

    def publish(
        self,
        kind: str,
        scope: str,
        name: str,
        execution: Execution | None,
        value: str | None,
    ) -> None:
        """Publish an entry of a stream, or a value. Safe to call from any thread."""
        if value is not None:
            value = self._run.services.application.payloads.encode(value)
        if self._error is not None:  # of a failed save
            raise self._error
        if kind == "stream" and name in self._closed:
            raise RuntimeError(f"the stream {name!r} is closed")
        key = f"{scope}{name}"
        if kind == "value":
            self.submit(self._set, key, execution, value)
        else:
            source = f"$stream:{key}" if execution is None else execution.step
            self.submit(self._write, name, source, execution, value)

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Call a method on the worker's loop: now, if this is it."""
        if threading.get_ident() == self._run.services.thread:
            function(*args)
        else:
            self._run.loop.call_soon_threadsafe(function, *args)

    def _write(
        self, stream: str, source: str, execution: Execution | None, value: str | None
    ) -> None:
        if execution is None:
            self._submitted[source] += 1
        if value is None:
            self._closed.add(stream)
        ordinal = self._submitted[source]
        self._entries.append(_Entry(stream, source, ordinal, execution, value))
        self._bytes += len(value or "")
        self._send_soon()

    def _set(self, key: str, execution: Execution | None, value: str) -> None:
        source = f"$value:{key}"
        if execution is None:
            self._submitted[source] += 1
        ordinal = self._submitted[source] if execution is None else 0
        self._settings.append(_Setting(key, ordinal, value))
        self._bytes += len(value)
        self._send_soon()

    def log(self, line: _Line) -> None:
        """Add a log line, unless more lines are pending than can be kept."""
        self.submit(self._log, line)

    def _log(self, line: _Line) -> None:
        if len(self._lines) > LINES_AT_MOST:
            return
        self._lines.append(line)
        if self._timer is None and self._sender is None:
            self._timer = self._run.loop.call_later(_LINGER_SECONDS, self._send_soon)

    @property
    def is_full(self) -> bool:
        """Whether so much is pending that the task should wait before adding more."""
        waiting = len(self._entries) + len(self._settings)
        return waiting >= _MAX_ENTRIES or self._bytes >= _MAX_BYTES

    async def wait_for_room(self) -> None:
        """Wait until there is room for more."""
        while self.is_full and self._sender is not None and self._error is None:
            await asyncio.wait({self._sender}, timeout=_RETRY_SECONDS)

    # -- saving --------------------------------------------------------------------

    async def save(self, write: Write | None = None) -> str:
        """Save what is pending together with a write, in one commit.

        Returns the outcome as `CheckpointFlusher.submit` does.
        """
        async with self._lock:
            await self._wait_for_previous()
            fails = write is not None and write.failure
            if self._error is not None and not fails:
                raise self._error
            if not self._is_loaded:
                await self._load()
            published = "" if self._error is not None else self._take()
            if write is None and not published:
                return "ok"
            write = write or self._run.checkpoints.empty_write()
            if write.completion or write.failure:  # notify the readers of its streams
                published = published or self._run.checkpoints.claim_json()
            write = write._replace(published=published)
            self._in_flight = self._run.services.flusher.submit(write)
            # shielded: the entries have their numbers, so they must be written
            return await asyncio.shield(self._in_flight)

    async def _wait_for_previous(self) -> None:
        """Wait for the previous write, and keep its error.

        If it failed, the entries published with it are lost, so the task can only fail.
        """
        previous = self._in_flight
        if previous is not None:
            await asyncio.wait({previous})
            self._in_flight = None
            self._error = self._error or _exception_of(previous)

    def end(self) -> None:
        """Cancel pending saves because the run has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _send_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is None and self._run.exit_reason is None:
            self._sender = self._run.loop.create_task(
                self._send(),
                context=contextvars.Context(),  # not the context of the task's code
            )

    async def _send(self) -> None:
        """Save until nothing is pending."""
        run = self._run
        try:
            while self._entries or self._settings or self._lines:
                await asyncio.sleep(0)  # collect what the code adds without awaiting
                await run.branches.wait_for_gate()
                if run.exit_reason is not None or run.completed or run.has_ended:
                    return
                if run.lease_pauses:  # a transaction step has locked the row
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                outcome = await self.save()
                if outcome != "ok":
                    run.exit(outcome)
                    return
        except Exception as error:  # noqa: BLE001 - raised by the next save
            self._error = error
        finally:
            self._sender = None

    async def _load(self) -> None:
        """Load how much the task has published before this run."""
        claimed = self._run.claimed
        rows = await self._run.services.call_connection.fetch(
            sql.load_published(claimed.queue, claimed.task_id)
        )
        for kind, name, source, times, after in rows:
            if kind == "stream":
                self._written[name, source] = times
                self._next[name] = max(self._next[name], after)
            elif kind == "value":
                self._set_counts[name] = times
            else:
                self._logged = after
        self._is_loaded = True

    # -- as JSON -------------------------------------------------------------------

    def _take(self) -> str:
        """Return what is pending as `durable.publish` takes it; "" if nothing is."""
        parts = {
            "sets": self._take_settings(),
            "entries": self._take_entries(),
            "lines": self._take_lines(),
        }
        self._bytes = 0
        objects = [f'"{part}":[{",".join(of)}]' for part, of in parts.items() if of]
        return self._run.checkpoints.claim_json(*objects) if objects else ""

    def _take_settings(self) -> list[str]:
        """Return the last setting of each value; skip those an earlier run has set."""
        latest: dict[str, str] = {}
        for key, ordinal, value in self._settings:
            if ordinal and ordinal <= self._set_counts[key]:
                continue
            self._set_counts[key] = max(self._set_counts[key], ordinal)
            latest[key] = value
        self._settings = []
        return [
            f'{{"key":{_quoted(key)},"times":{self._set_counts[key]},"value":{value}}}'
            for key, value in latest.items()
        ]

    def _take_entries(self) -> list[str]:
        entries, self._entries = self._entries, []
        return [text for entry in entries if (text := self._entry_json(entry))]

    def _entry_json(self, entry: _Entry) -> str:
        """Return an entry with its number; "" if an earlier run has written it."""
        where = entry.stream, entry.source
        restarted = "false"
        if entry.execution is None:
            if entry.ordinal <= self._written[where]:
                return ""
        elif self._writers.get(where) is not entry.execution:
            self._writers[where] = entry.execution
            restarted = "true" if self._written[where] else "false"
        self._written[where] += 1
        number = self._next[entry.stream]
        self._next[entry.stream] += 1
        value = '"closes":true' if entry.value is None else f'"value":{entry.value}'
        return (
            f'{{"stream":{_quoted(entry.stream)},"number":{number},'
            f'"source":{_quoted(entry.source)},"restarted":{restarted},{value}}}'
        )

    def _take_lines(self) -> list[str]:
        """Return lines with their numbers. The first above the limit says so."""
        lines, self._lines = self._lines, []
        taken = []
        for line in lines[: LINES_AT_MOST + 1 - self._logged]:
            full = self._logged == LINES_AT_MOST
            kept = line._replace(step=None, message=_LIMIT_REACHED) if full else line
            taken.append(kept.as_json(self._logged))
            self._logged += 1
        return taken


def _exception_of(done: asyncio.Future[Any]) -> BaseException | None:
    return None if done.cancelled() else done.exception()


# -- log lines ----------------------------------------------------------------------


class TaskLogger(logging.Logger):
    """The logger of one run; its records carry the ids of the task."""

    def __init__(self, run: Run) -> None:
        super().__init__("durable.task")
        self._run = run
        self._outside = logging.getLogger(self.name)

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - of logging
        """Whether the line would be kept or printed; never during a replay."""
        wanted = level >= self._run.services.application.logs_from
        return not self._run.is_replaying and (
            wanted or self._outside.isEnabledFor(level)
        )

    def getEffectiveLevel(self) -> int:  # noqa: N802 - of logging
        """Return the lowest level that is kept."""
        return self._run.services.application.logs_from

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 - of logging
        """Keep the record and pass it on."""
        for name, value in self._run.ids.items():
            setattr(record, name, value)
        if record.levelno >= self._run.services.application.logs_from:
            _keep_line(self._run, record)
        record.__dict__[_KEPT] = True
        if self._outside.isEnabledFor(record.levelno):
            self._outside.callHandlers(record)


class _Keeper(logging.Handler):
    """Keeps records that are logged while a task's code runs."""

    def emit(self, record: logging.LogRecord) -> None:
        run = current_run.get()
        if (
            run is None
            or _KEPT in record.__dict__
            or record.name.startswith(_INTERNAL_LOGGERS)
        ):
            return
        record.__dict__[_KEPT] = True  # a process may have several workers
        level = run.services.application.logs_from
        if record.levelno >= level and not run.is_replaying:
            _keep_line(run, record)


def _keep_line(run: Run, record: logging.LogRecord) -> None:
    """Keep a line with its task, unless the run has ended. Safe in any thread."""
    if run.has_ended:
        return
    execution = inside_a_step.get()
    line = _Line(
        run.database_now().astimezone(UTC).isoformat(),
        record.levelno,
        record.name,
        None if execution is None else execution.step,
        encoded_line(run.services.application.payloads, _text.format(record)),
    )
    run.publisher().log(line)


def encoded_line(payloads: PayloadConverter, message: str) -> str:
    """Encode a line, truncated so that the database keeps it whole."""
    if len(message) > _LONGEST_LINE:
        message = f"{message[:_LONGEST_LINE]}…"
    text = message.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
    sealed = payloads.encode_text(text)
    if len(sealed) > _LONGEST_STORED:
        sealed = payloads.encode_text(f"{text[:_LONGEST_IF_LONGER]}…")
    return sealed


@contextlib.contextmanager
def kept_logs(level: int | None) -> Iterator[None]:
    """Keep records of all loggers from this level, in tasks; None keeps nothing."""
    if level is None:
        yield
        return
    keeper = _Keeper(level)
    root = logging.getLogger()
    root.addHandler(keeper)
    try:
        yield
    finally:
        root.removeHandler(keeper)
