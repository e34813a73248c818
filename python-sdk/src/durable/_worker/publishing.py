"""What one run publishes: values, entries of streams, lines of its log.

It is handed in at once, and saved with the next thing that the run saves, or as soon as
nothing of the run is on its way. One write follows the other, so that numbers ascend in
the order of commits: who follows a stream sees no gap that is filled later.

What the task's own code says is counted by name, and a replay passes over as many as
are saved. What a step's function says is said as often as the function runs; the first
entry of a repetition is marked. Lines are suppressed while the run replays.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from durable import _sql
from durable._worker.executing import Execution
from durable._worker.saving import Write

if TYPE_CHECKING:
    from durable._worker.run import Run

__all__ = ["LINES_AT_MOST", "Line", "Publishing"]

LINES_AT_MOST: Final = 5_000
"""How many lines of one task are kept."""

_LINGER_SECONDS: Final = 0.5  # how long a line waits for a checkpoint to go with
_RESTING_SECONDS: Final = 0.05
_CROWD: Final = 1_000  # entries, or
_CROWD_BYTES: Final = 1024 * 1024
_quoted: Final = json.JSONEncoder().encode
_FULL: Final = f"… further lines are dropped: of one task {LINES_AT_MOST:,} are kept"


class Line(NamedTuple):
    """What was logged, before it has a number."""

    at: str
    level: int
    logger: str
    step: str | None
    message: str

    def as_json(self, number: int) -> str:
        """Return it as `durable.publish` takes it."""
        step = "null" if self.step is None else _quoted(self.step)
        return (
            f'{{"number":{number},"at":"{self.at}","level":{self.level},'
            f'"logger":{_quoted(self.logger)},"step":{step},'
            f'"message":{_quoted(self.message)}}}'
        )


class _Entry(NamedTuple):
    """An entry of a stream, None to close it; counted, if it was no step that wrote."""

    stream: str
    source: str
    ordinal: int
    execution: Execution | None
    value: str | None


class _Setting(NamedTuple):
    """A value; counted from 1 if the task's own code set it, else 0."""

    key: str
    ordinal: int
    value: str


class Publishing:
    """What one run has handed in and not yet saved; and what is saved, by numbers.

    Everything happens on the worker's loop but `hand_in`, which any thread may call.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known = run.claimed.claim == 1  # nothing was published before
        self._turn = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_its_way: asyncio.Future[str] | None = None
        self._error: BaseException | None = None
        self._entries: list[_Entry] = []
        self._settings: list[_Setting] = []
        self._lines: list[Line] = []
        self._bytes = 0
        self._handed_in: Counter[str] = Counter()  # by the task's code, by source
        self._closed: set[str] = set()
        self._next: Counter[str] = Counter()  # numbers, by stream
        self._written: Counter[tuple[str, str]] = Counter()  # by stream and source
        self._times: Counter[str] = Counter()  # by key of a value
        self._logged = 0
        self._writing: dict[tuple[str, str], Execution] = {}  # who wrote there last

    # -- handing in ----------------------------------------------------------------

    def hand_in(self, what: str, *args: Any) -> None:
        """Write, set or log something: now on the worker's loop, else soon there."""
        function = getattr(self, what)
        if threading.get_ident() == self._run.services.thread:
            function(*args)
        else:
            self._run.loop.call_soon_threadsafe(function, *args)

    def write(
        self, stream: str, source: str, execution: Execution | None, value: str | None
    ) -> None:
        """Hand in an entry."""
        if execution is None:
            self._handed_in[source] += 1
        if value is None:
            self._closed.add(stream)
        ordinal = self._handed_in[source]
        self._entries.append(_Entry(stream, source, ordinal, execution, value))
        self._bytes += len(value or "")
        self._hurry()

    def set(self, key: str, execution: Execution | None, value: str) -> None:
        """Hand in a value."""
        source = f"$value:{key}"
        if execution is None:
            self._handed_in[source] += 1
        ordinal = self._handed_in[source] if execution is None else 0
        self._settings.append(_Setting(key, ordinal, value))
        self._bytes += len(value)
        self._hurry()

    def log(self, line: Line) -> None:
        """Hand in a line, unless there are more than can be kept."""
        if len(self._lines) > LINES_AT_MOST:
            return
        self._lines.append(line)
        if self._timer is None and self._sender is None:
            self._timer = self._run.loop.call_later(_LINGER_SECONDS, self._hurry)

    def refuse(self, stream: str) -> None:
        """Raise RuntimeError if the stream is closed, or what saving failed with."""
        if self._error is not None:
            raise self._error
        if stream in self._closed:
            raise RuntimeError(f"the stream {stream!r} is closed")

    @property
    def is_crowded(self) -> bool:
        """Whether so much waits that who writes more should wait, too."""
        waiting = len(self._entries) + len(self._settings)
        return waiting >= _CROWD or self._bytes >= _CROWD_BYTES

    async def thins_out(self) -> None:
        """Return when there is room for more."""
        while self.is_crowded and self._sender is not None and self._error is None:
            await asyncio.wait({self._sender}, timeout=_RESTING_SECONDS)

    # -- saving --------------------------------------------------------------------

    async def save(self, write: Write | None = None) -> str:
        """Save what was handed in, together with what a write says, in one commit.

        Returns the outcome as `Saving.submit` does.
        """
        async with self._turn:
            await self._former_is_saved()
            fails = write is not None and write.failure
            if self._error is not None and not fails:
                raise self._error
            if not self._known:
                await self._load()
            published = "" if self._error is not None else self._take()
            if write is None and not published:
                return "ok"
            claimed = self._run.claimed
            write = write or Write(claimed.queue, claimed.task_id, "")
            if write.completion or write.failure:  # who follows is told
                published = published or self._run.history.holder_json()
            write = write._replace(published=published)
            self._on_its_way = self._run.services.saving.submit(write)
            # even if who asks is cancelled: what it publishes has its numbers
            return await asyncio.shield(self._on_its_way)

    async def _former_is_saved(self) -> None:
        """Wait for the last write, and keep what it failed with.

        What was published with it is missing then: the task cannot go on as if it were
        not, and can only fail.
        """
        former = self._on_its_way
        if former is not None:
            await asyncio.wait({former})
            self._on_its_way = None
            self._error = self._error or _failure(former)

    def end(self) -> None:
        """Save nothing more: the run has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _hurry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sender is None and self._run.left is None:
            self._sender = self._run.loop.create_task(
                self._send(),
                context=contextvars.Context(),  # it is not the task's code
            )

    async def _send(self) -> None:
        """Save as long as there is something, whatever else the run is doing."""
        run = self._run
        try:
            while self._entries or self._settings or self._lines:
                await asyncio.sleep(0)  # what is said in one go is saved in one go
                await run.waits.gate_opens()
                if run.left is not None or run.completed or run.has_ended:
                    return
                if run.resting:  # a transaction of its own holds the row
                    await asyncio.sleep(_RESTING_SECONDS)
                    continue
                outcome = await self.save()
                if outcome != "ok":
                    run.lose(outcome)
                    return
        except Exception as error:  # noqa: BLE001 - told to the next who saves
            self._error = error
        finally:
            self._sender = None

    async def _load(self) -> None:
        """Learn how much the task has published before this run."""
        claimed = self._run.claimed
        rows = await self._run.services.calling.fetch(
            _sql.load_published(claimed.queue, claimed.task_id)
        )
        for kind, name, source, times, after in rows:
            if kind == "stream":
                self._written[name, source] = times
                self._next[name] = max(self._next[name], after)
            elif kind == "value":
                self._times[name] = times
            else:
                self._logged = after
        self._known = True

    # -- as JSON -------------------------------------------------------------------

    def _take(self) -> str:
        """Return what is to be saved, as `durable.publish` takes it, or nothing."""
        parts = {
            "sets": self._take_settings(),
            "entries": self._take_entries(),
            "lines": self._take_lines(),
        }
        self._bytes = 0
        said = [f'"{part}":[{",".join(of)}]' for part, of in parts.items() if of]
        return self._run.history.holder_json(*said) if said else ""

    def _take_settings(self) -> list[str]:
        """Of each value the last; what a former run has set is passed over."""
        latest: dict[str, str] = {}
        for key, ordinal, value in self._settings:
            if ordinal and ordinal <= self._times[key]:
                continue
            self._times[key] = max(self._times[key], ordinal)
            latest[key] = value
        self._settings = []
        return [
            f'{{"key":{_quoted(key)},"times":{self._times[key]},"value":{value}}}'
            for key, value in latest.items()
        ]

    def _take_entries(self) -> list[str]:
        entries, self._entries = self._entries, []
        return [text for entry in entries if (text := self._entry_json(entry))]

    def _entry_json(self, entry: _Entry) -> str:
        """Return an entry under its number; empty, if a former run has written it."""
        where = entry.stream, entry.source
        restarted = "false"
        if entry.execution is None:
            if entry.ordinal <= self._written[where]:
                return ""
        elif self._writing.get(where) is not entry.execution:
            self._writing[where] = entry.execution
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
        """Return lines under their numbers; the first too many says so, as the last."""
        lines, self._lines = self._lines, []
        taken = []
        for line in lines[: LINES_AT_MOST + 1 - self._logged]:
            full = self._logged == LINES_AT_MOST
            kept = line._replace(step=None, message=_FULL) if full else line
            taken.append(kept.as_json(self._logged))
            self._logged += 1
        return taken


def _failure(done: asyncio.Future[Any]) -> BaseException | None:
    return None if done.cancelled() else done.exception()
