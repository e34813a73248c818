# Made from _async/following.py by tools/async_to_sync.py: edit that, not this.
"""Following a task: its values, its streams, its log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload
from uuid import UUID

from durable import _sql
from durable._names import check_step_name
from durable._published import LogLine, StreamEntry
from durable._results import FINAL
from durable._sync.watching import Watching
from durable._time import seconds
from durable._values import UNTYPED, Codec, codec
from durable.errors import AlreadyFinished, InvalidArgument

if TYPE_CHECKING:
    from durable._sync.connected import Connected

__all__ = ["Following", "TaskStream"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class TaskStream(Generic[T_co]):
    """A stream of a task, from one of its entries on; each `async for` begins there.

        for token in handle.stream("tokens"):
            print(token)

    It gives every entry once, in order, as it is written, and ends when the stream is
    closed or the task has ended. A connection that is lost meanwhile is made again.
    Raises NotFound if there is no such task, or not yet.
    """

    def __init__(
        self,
        app: Connected,
        queue: str,
        task_id: UUID,
        name: str,
        *,
        start: int,
        codec: Codec[T_co],
    ) -> None:
        self._app = app
        self._queue = queue
        self._task_id = task_id
        self.name = name
        self.start = start
        self._codec = codec

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self._task_id}>"

    def __iter__(self) -> Iterator[T_co]:
        return self._values()

    def _values(self) -> Iterator[T_co]:
        for entry in self.entries():
            yield entry.value

    def entries(self) -> Iterator[StreamEntry[T_co]]:
        """Give entries instead of values: with offset, step, and whether it restarted.

        A step's function that was interrupted writes again what it writes: the first
        of its new entries is `restarted`, and those before it of this step are void.
        """
        after, vault = self.start, self._app.application.vault
        with Watching(self._app, self._queue, self._task_id) as watching:
            while True:
                rows = watching.look(
                    _sql.get_stream(self._queue, self._task_id, self.name, after)
                )
                news = [row for row in rows if row[1] is not None]
                for _, number, text, closes, *about in news:
                    if closes:
                        return
                    after = number + 1
                    value = self._codec.load(vault.opened(text))
                    yield StreamEntry(number, value, *about)
                if len(news) == _sql.PUBLISHED_AT_ONCE:
                    continue
                if rows[-1][0] in FINAL:  # as it was at that very moment
                    return
                watching.rest(anew=bool(news))


class Following:
    """What a handle tells of what its task publishes."""

    _app: Connected
    queue: str
    task_id: UUID

    @overload
    def value(
        self, key: str, *, timeout: timedelta | float | None = ..., as_type: type[T]
    ) -> T: ...
    @overload
    def value(
        self, key: str, *, timeout: timedelta | float | None = ..., as_type: Any = ...
    ) -> Any: ...
    def value(
        self,
        key: str,
        *,
        timeout: timedelta | float | None = None,
        as_type: Any = UNTYPED,
    ) -> Any:
        """Return the last value that the task has set under this key.

        Waits for the first one: for ever, or `timeout`, a timedelta or seconds, then
        raises the builtin TimeoutError; 0 looks once. Raises AlreadyFinished if the
        task has ended without it, NotFound if there is no such task, or not yet.
        """
        limit, kind = seconds(timeout, "timeout"), codec(as_type)
        check_step_name(key, "a value's name")
        statement = _sql.get_value(self.queue, self.task_id, key)
        vault = self._app.application.vault
        with Watching(self._app, self.queue, self.task_id, limit) as watching:
            while True:
                ((state, text, _),) = watching.look(statement)
                if text is not None:
                    return kind.load(vault.opened(text))
                if state in FINAL:
                    raise AlreadyFinished(
                        f"task {self.task_id} is {state}, without a value {key!r}"
                    )
                watching.rest(anew=False)

    @overload
    def values(self, key: str, *, as_type: type[T]) -> Iterator[T]: ...
    @overload
    def values(self, key: str, *, as_type: Any = ...) -> Iterator[Any]: ...
    def values(self, key: str, *, as_type: Any = UNTYPED) -> Iterator[Any]:
        """Iterate over what the task sets under this key, as it does, until it ends.

            for percent in handle.values("progress", as_type=int):
                print(percent)

        The first is the one that stands there, if any does. Each is given once and
        none after a later one; who is slower than the task misses those in between,
        but never the last. A connection that is lost meanwhile is made again. Raises
        NotFound if there is no such task, or not yet.
        """
        check_step_name(key, "a value's name")
        return self._versions(key, codec(as_type))

    def _versions(self, key: str, kind: Codec[T]) -> Iterator[T]:
        statement = _sql.get_value(self.queue, self.task_id, key)
        vault, given = self._app.application.vault, None
        with Watching(self._app, self.queue, self.task_id) as watching:
            while True:
                ((state, *found),) = watching.look(statement)
                news = found[0] is not None and found != given
                if news:
                    given = found
                    yield kind.load(vault.opened(found[0]))
                if state in FINAL:  # as it was at that very moment
                    return
                watching.rest(anew=news)

    @overload
    def stream(
        self, stream: str, *, start: int = ..., as_type: type[T]
    ) -> TaskStream[T]: ...
    @overload
    def stream(
        self, stream: str, *, start: int = ..., as_type: Any = ...
    ) -> TaskStream[Any]: ...
    def stream(
        self, stream: str, *, start: int = 0, as_type: Any = UNTYPED
    ) -> TaskStream[Any]:
        """Return a stream of the task, to be iterated over from the offset `start` on.

        Its values are read as `as_type`.
        """
        if start < 0:
            raise InvalidArgument(f"start must be an offset from 0, not {start}")
        return TaskStream(
            self._app,
            self.queue,
            self.task_id,
            check_step_name(stream, "a stream's name"),
            start=start,
            codec=codec(as_type),
        )

    def logs(self, *, follow: bool = False) -> Iterator[LogLine]:
        """Iterate over what the task has logged; `follow` goes on until it has ended.

        A line that is sealed and cannot be opened here says so. Raises NotFound if
        there is no such task, or not yet.
        """
        after, vault = 0, self._app.application.vault
        with Watching(self._app, self.queue, self.task_id) as watching:
            while True:
                rows = watching.look(
                    _sql.get_log_lines(self.queue, self.task_id, after)
                )
                news = [row for row in rows if row[1] is not None]
                for _, number, *line in news:
                    after = number + 1
                    line[-1] = vault.shown_text(line[-1])
                    yield LogLine(*line)
                if len(news) == _sql.PUBLISHED_AT_ONCE:
                    continue
                if not follow or rows[-1][0] in FINAL:
                    return
                watching.rest(anew=bool(news))
