# Made from _async/handle.py by tools/async_to_sync.py: edit that, not this.
"""A client's reference to a spawned task, and to its streams."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar, Unpack, overload
from uuid import UUID

from durable._client._sync.waiters import Backend
from durable._core import sql
from durable._core.arguments import check_step_name, moment, moment_text, seconds
from durable._core.messages import message
from durable._core.payloads import PayloadConverter
from durable._core.reports import (
    Explanation,
    HistoryEntry,
    LogLine,
    PublishedInfo,
    StreamEntry,
    TaskInfo,
    TaskResult,
    explanation,
    history_entry,
    not_found,
    output,
    task_info,
    task_result,
)
from durable._core.spawn_requests import UNSET, check_reason
from durable._core.sql import Statement
from durable._core.values import (
    JSON,
    PLAIN,
    UNTYPED,
    Codec,
    codec,
    json_text,
    with_fractions,
)
from durable._task.current import current
from durable.children import Joinable
from durable.errors import AlreadyFinished, InvalidArgument
from durable.options import (
    SpawnOptions,
    check_no_unique_key,
    checked_identity,
    checked_priority,
    spawn_options_json,
)

__all__ = ["TaskHandle", "TaskStream", "caller"]

_LONGEST_IDENTITY: Final = 3_500  # in bytes: the rest of durable.caller fits beside it

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class TaskStream(Generic[T_co]):
    """A stream of a task from an offset on; each `async for` starts there.

        for token in handle.stream("tokens"):
            print(token)

    It yields every entry once, in order, as it is written, and ends when the stream is
    closed or the task has finished. Reconnects if the connection is lost. Raises
    NotFound if the task does not exist, or is not committed yet.
    """

    def __init__(
        self,
        backend: Backend,
        queue: str,
        task_id: UUID,
        name: str,
        *,
        start: int,
        codec: Codec[T_co],
    ) -> None:
        self._backend = backend
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
        """Yield StreamEntry objects instead of values, with offset and step.

        A step's function that runs again writes its entries again: the first of them is
        `restarted`, and earlier entries of this step are void.
        """
        backend, after = self._backend, self.start
        with backend.reading(self._queue, self._task_id) as reader:
            while not reader.ended:
                statement = sql.get_stream(self._queue, self._task_id, self.name, after)
                for _, number, text, closes, *about in backend.read(reader, statement):
                    if closes:
                        return
                    if number is not None:
                        after = number + 1
                        plain = backend.application.payloads.decode(text)
                        yield StreamEntry(number, self._codec.load(plain), *about)


class TaskHandle(Joinable[R_co]):
    """A handle of a spawned task. To get one from an id: `app.handle(id, Task)`.

    `created` is false if a task with the idempotency key existed already. `run_id`,
    `attempt` and `created` are None on a handle made from an id.
    """

    def __init__(
        self,
        backend: Backend,
        queue: str,
        task_id: UUID,
        codec: Codec[R_co],
        *,
        run_id: UUID | None = None,
        attempt: int | None = None,
        created: bool | None = None,
    ) -> None:
        self._backend = backend
        self.codec = codec
        self.queue = queue
        self.task_id = task_id
        self.run_id = run_id
        self.attempt = attempt
        self.created = created

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id} in {self.queue!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return (self.queue, self.task_id) == (other.queue, other.task_id)

    def __hash__(self) -> int:
        return hash((self.queue, self.task_id))

    def state(self) -> str:
        """Return pending, running, sleeping, completed, failed or cancelled.

        Raises NotFound if the task does not exist, or is not committed yet.
        """
        row = self._row()
        return str(row[1])

    def snapshot(self) -> TaskResult[R_co]:
        """Return the task's state, with its result or error. Raises NotFound."""
        return task_result(self._row(), self._payloads, self.codec)

    def result(self, timeout: timedelta | float | None = None) -> R_co:
        """Wait until the task has finished, and return its output.

        Raises TaskFailed with its error, TaskCancelled, or the builtin TimeoutError
        after `timeout`, a timedelta or seconds; NotFound at once if the task does not
        exist, as before the commit of a `spawn_with`. Reconnects if the connection is
        lost.
        """
        limit = seconds(timeout, "timeout")
        backend = self._backend
        row = backend.result(self.queue, self.task_id, limit)
        return output(row, backend.application.payloads, self.codec)

    def send(
        self,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send the task a message, as `app.send` does."""
        sent = message(
            self, self.queue, topic, payload, dedup_key=dedup_key, as_type=as_type
        )
        sealed = sent.encoded(self._payloads)
        with self._backend.application.sending(sealed):
            ((is_new,),) = self._fetch(sql.send_message(*sealed))
        return bool(is_new)

    def cancel(
        self,
        *,
        reason: str | None = None,
        identity: Mapping[str, JSON] | None = None,
    ) -> bool:
        """Cancel the task, as `app.cancel` does; return whether it was unfinished."""
        checked = None if reason is None else check_reason(reason)
        statement = sql.cancel_task(self.queue, self.task_id, checked, caller(identity))
        ((cancelled,),) = self._fetch(statement)
        return bool(cancelled)

    def retry(
        self,
        *,
        max_attempts: int | None = None,
        params: Any = UNSET,
        spawn_new: bool = False,
        deadline: datetime | None = UNSET,
        identity: Mapping[str, JSON] | None = None,
    ) -> TaskHandle[R_co]:
        """Give the failed or cancelled task one more attempt, as `app.retry` does.

        Returns a handle with the new attempt; `params` replace the task's params.
        Raises as `app.retry` does.
        """
        options: dict[str, Any] = {"spawn_new": spawn_new}
        if max_attempts is not None:
            options["max_attempts"] = max_attempts
        if params is not UNSET:
            options |= self._params_json(params, has_key=True)
        if deadline is not UNSET:
            options["deadline"] = moment_text(deadline, "deadline")
        by = caller(identity)
        statement = sql.retry_task(self.queue, self.task_id, json_text(options), by)
        return self._spawned(statement, self.queue)

    def reschedule(
        self, run_at: datetime, *, identity: Mapping[str, JSON] | None = None
    ) -> bool:
        """Let the task start at another time, as `app.reschedule` does."""
        at = moment(run_at, "run_at")
        statement = sql.reschedule_task(self.queue, self.task_id, at, caller(identity))
        ((is_changed,),) = self._fetch(statement)
        return bool(is_changed)

    def reprioritize(
        self, priority: int, *, identity: Mapping[str, JSON] | None = None
    ) -> None:
        """Give the task another priority, as `app.reprioritize` does."""
        wanted, by = checked_priority(priority), caller(identity)
        self._fetch(sql.reprioritize_task(self.queue, self.task_id, wanted, by))

    def children(self) -> list[TaskInfo]:
        """Return the tasks that it spawned, finished ones too, oldest first.

        They may be in other queues; those in queues that your role may not use are left
        out. Use `app.handle(info.task_id, queue=info.queue)` to get a handle. Raises
        NotFound.
        """
        children: list[TaskInfo] = []
        after: UUID | None = None
        while True:
            statement = sql.list_children(self.queue, self.task_id, after)
            rows = self._fetch(statement)
            children += [task_info(row[-1], row[:-1], self._payloads) for row in rows]
            if len(rows) < sql.LISTED_AT_ONCE:
                return children
            after = children[-1].task_id

    def history(self) -> list[HistoryEntry]:
        """Return the task's history in order; what is in progress comes last.

        It is derived from the task's rows. The times at which it was claimed again,
        suspended, woken or released are recorded only if the queue's `history` is
        "full". Raises NotFound.
        """
        statement = sql.task_history(self.queue, self.task_id)
        rows = self._fetch(statement)
        return [history_entry(row, self._payloads, self.queue) for row in rows]

    def explain(self) -> list[Explanation]:
        """Return why the task has not finished, or not started.

        The reasons come in the order in which they have to be removed; a task that can
        be claimed has the reason `queued`, one that has finished its state. Raises
        NotFound.
        """
        rows = self._fetch(sql.explain_task(self.queue, self.task_id))
        return [explanation(row, self._payloads, self.queue) for row in rows]

    def export_history(self) -> dict[str, Any]:
        """Return the task and its checkpoints as plain JSON, for a replay test.

        The keys are version (1), queue, task_id, name, params, headers, attempt, and
        checkpoints: a list of name, position, after, state, value and attempt, in order
        of position. Sealed values are opened. Raises NotFound, and UnreadablePayload if
        a codec or a key is missing.
        """
        statement = sql.export_history(self.queue, self.task_id)
        ((text,),) = self._fetch(statement)
        exported: dict[str, Any] = json.loads(self._payloads.decode(text))
        return exported

    # -- what it publishes ---------------------------------------------------------

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
        """Return the last value that the task has set for this key.

        Waits for the first one. Raises the builtin TimeoutError after `timeout`, a
        timedelta or seconds; 0 checks once, None waits for ever. Raises AlreadyFinished
        if the task has finished without it, NotFound if the task does not exist, or is
        not committed yet.
        """
        limit, kind = seconds(timeout, "timeout"), codec(as_type)
        check_step_name(key, "a value's name")
        backend = self._backend
        statement = sql.get_value(self.queue, self.task_id, key)
        with backend.reading(self.queue, self.task_id, limit) as reader:
            while True:
                ((state, text, _),) = backend.read(reader, statement)
                if text is not None:
                    return kind.load(self._payloads.decode(text))
                if reader.ended:
                    raise AlreadyFinished(
                        f"task {self.task_id} is {state}, without a value {key!r}"
                    )

    @overload
    def values(self, key: str, *, as_type: type[T]) -> Iterator[T]: ...
    @overload
    def values(self, key: str, *, as_type: Any = ...) -> Iterator[Any]: ...
    def values(self, key: str, *, as_type: Any = UNTYPED) -> Iterator[Any]:
        """Iterate over the values that the task sets for this key, until it finishes.

            for percent in handle.values("progress", as_type=int):
                print(percent)

        It starts with the current value, if there is one. Values come in order, each at
        most once; a reader that is slower than the task misses some, but never the
        last. Reconnects if the connection is lost. Raises NotFound if the task does not
        exist, or is not committed yet.
        """
        check_step_name(key, "a value's name")
        return self._versions(key, codec(as_type))

    def _versions(self, key: str, kind: Codec[T]) -> Iterator[T]:
        backend, last = self._backend, None
        statement = sql.get_value(self.queue, self.task_id, key)
        with backend.reading(self.queue, self.task_id) as reader:
            while not reader.ended:
                ((_, *found),) = backend.read(reader, statement)
                if found[0] is not None and found != last:
                    last = found
                    yield kind.load(self._payloads.decode(found[0]))

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
        """Return a stream of the task, to iterate over from the offset `start` on.

        Its values are read as `as_type`.
        """
        if start < 0:
            raise InvalidArgument(f"start must be an offset from 0, not {start}")
        return TaskStream(
            self._backend,
            self.queue,
            self.task_id,
            check_step_name(stream, "a stream's name"),
            start=start,
            codec=codec(as_type),
        )

    def logs(self, *, follow: bool = False) -> Iterator[LogLine]:
        """Iterate over the task's log; with `follow`, until the task has finished.

        A sealed line that cannot be opened is shown as "sealed by …". Raises NotFound
        if the task does not exist, or is not committed yet.
        """
        backend, after = self._backend, 0
        with backend.reading(self.queue, self.task_id) as reader:
            while not reader.ended:
                statement = sql.get_log_lines(self.queue, self.task_id, after)
                rows = backend.read(reader, statement)
                for _, number, *line in rows:
                    if number is not None:
                        after = number + 1
                        line[-1] = self._payloads.decode_text(line[-1])
                        yield LogLine(*line)
                if not follow and len(rows) < sql.PUBLISHED_AT_ONCE:
                    return

    def list_published(self) -> list[PublishedInfo]:
        """Return what the task has published, without values: keys, then streams.

        Raises NotFound.
        """
        rows = self._fetch(sql.list_published(self.queue, self.task_id))
        return [PublishedInfo(*row) for row in rows]

    # -- copies --------------------------------------------------------------------

    def fork(
        self,
        *,
        before: str | None = None,
        after: str | None = None,
        position: int | None = None,
        params: Any = UNSET,
        **options: Unpack[SpawnOptions],
    ) -> TaskHandle[R_co]:
        """Spawn a copy of the task with its checkpoints; see the client's `fork`."""
        check_no_unique_key(options, "a fork")
        settings = _fork_point(before=before, after=after, position=position)
        settings |= spawn_options_json({}, options)
        queue = options.get("queue") or self.queue
        if queue != self.queue:
            settings["queue"] = queue
        if params is not UNSET:
            has_key = "idempotency_key" in settings
            settings |= self._params_json(params, has_key=has_key)
        by = caller(options.get("identity"))
        statement = sql.fork_task(self.queue, self.task_id, json_text(settings), by)
        return self._spawned(statement, queue)

    @property
    def _payloads(self) -> PayloadConverter:
        return self._backend.application.payloads

    def _fetch(self, statement: Statement) -> list[tuple[Any, ...]]:
        return self._backend.database.fetch(statement)

    def _row(self) -> tuple[Any, ...]:
        rows = self._fetch(sql.get_task_result(self.queue, self.task_id))
        if not rows:
            raise not_found(self.queue, self.task_id)
        return rows[0]

    def _spawned(self, statement: Statement, queue: str) -> TaskHandle[R_co]:
        """Return the handle of the task that a retry or a fork has spawned."""
        ((task_id, run_id, attempt, created),) = self._fetch(statement)
        return type(self)(
            self._backend,
            queue,
            task_id,
            self.codec,
            run_id=run_id,
            attempt=attempt,
            created=created,
        )

    def _params_json(self, params: Any, *, has_key: bool) -> dict[str, Any]:
        """Return the options for new params: validated as the task's type, and sealed.

        The type is found by the task's name; if it is not registered here, params must
        be plain JSON. If the task may have an idempotency key, the options include
        fingerprints. Raises NotFound, and pydantic's ValidationError.
        """
        rows = self._fetch(sql.get_task_name(self.queue, self.task_id))
        if not rows:
            raise not_found(self.queue, self.task_id)
        known = self._backend.application.registry.find(rows[0][0])
        kind = PLAIN if known is None else known.params_codec
        plain = kind.dump(kind.validate(params))
        sealed = self._payloads.encode(plain)
        options: dict[str, Any] = {"params": json.loads(sealed)}
        if sealed is not plain and has_key:
            options["fingerprint"] = self._payloads.fingerprints(plain)
        return options


def _fork_point(**given: str | int | None) -> dict[str, Any]:
    """Return the option of `durable.fork_task`; InvalidArgument for several."""
    options = {key: value for key, value in given.items() if value is not None}
    if len(options) > 1:
        raise InvalidArgument(f"a fork starts at one place, not {options!r:.200}")
    for key, value in options.items():
        kind = int if key == "position" else str
        if isinstance(value, bool) or not isinstance(value, kind):
            raise InvalidArgument(f"{key} must be of type {kind.__name__}")
        PLAIN.dump(value)
    return options


def caller(identity: Mapping[str, JSON] | None) -> str | None:
    """Return the setting `durable.caller`: the identity and the task whose code calls.

    None if neither is known; then the history has the database role only. Raises
    InvalidArgument for an identity that is not JSON, or longer than 3,500 bytes.
    """
    found: dict[str, Any] = {}
    context = current(None)
    if context is not None:
        found |= {"queue": context.queue, "task_id": str(context.task_id)}
    if (checked := checked_identity(identity)) is not None:
        found["identity"] = checked
        size = len(json.dumps(checked, ensure_ascii=False).encode())
        if size > _LONGEST_IDENTITY:
            raise InvalidArgument(
                f"identity is {size} bytes long, of at most {_LONGEST_IDENTITY}"
            )
    return with_fractions(json.dumps(found, ensure_ascii=False)) if found else None
