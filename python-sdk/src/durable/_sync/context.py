# Made from _async/context.py by tools/async_to_sync.py: edit that, not this.
"""What a running task is given: steps, waits, children, and what time it is.

Names are taken when a call is made, not when it is awaited, so the methods are plain
functions that return something to await. What is decided is decided by the run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack, overload
from uuid import UUID

import typing_extensions

from durable._ids import uuid7
from durable._names import check_event_name, check_step_name
from durable._requests import OMITTED, spawn_request, task_json
from durable._sync.retrying import tried
from durable._sync.transaction import Transaction, checked_isolation
from durable._time import moment, required_seconds, seconds
from durable._tries import Tries
from durable._values import PLAIN, UNTYPED, Codec, codec, step_codec
from durable._worker.blocking import BlockingRun
from durable._worker.history import Call
from durable._worker.outcomes import child_of, joined, read
from durable._worker.waits import Wait
from durable.children import ChildHandle
from durable.errors import InvalidArgument
from durable.options import JSON, Isolation, SpawnOptions, StepOptions
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["OpenStep", "SyncTaskContext"]

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")
State_co = typing_extensions.TypeVar("State_co", default=Any, covariant=True)


@dataclass(slots=True)
class OpenStep(Generic[T]):
    """A step that is done by hand between `begin_step` and `complete_step`.

    `done` says whether an earlier run completed it, `value` what with.
    """

    name: str
    done: bool
    value: T | None
    call: Call
    codec: Codec[Any]


class SyncTaskContext(Generic[State_co]):
    """What a task does so that it survives.

    Whatever it awaits of this may end in `Suspended`: let it pass.
    """

    def __init__(self, run: BlockingRun, prefix: str = "") -> None:
        self._run = run
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.task_id}, attempt {self.attempt}>"

    @property
    def task_id(self) -> UUID:
        """The task."""
        return self._run.claimed.task_id

    @property
    def run_id(self) -> UUID:
        """This attempt at it."""
        return self._run.run_id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._run.claimed.attempt

    @property
    def queue(self) -> str:
        """The queue the task belongs to."""
        return self._run.claimed.queue

    @property
    def parent_task_id(self) -> UUID | None:
        """The task that spawned it, if one did."""
        return self._run.claimed.parent_task_id

    @property
    def headers(self) -> Mapping[str, JSON]:
        """What was spawned with the task beside its params."""
        return self._run.headers

    @property
    def state(self) -> State_co:
        """What the application's `lifespan` yielded to this worker."""
        found: State_co = self._run.state
        return found

    def scope(self, name: str) -> SyncTaskContext[State_co]:
        """Return the same context with `name/` before every name: for a branch."""
        check_step_name(name)
        return type(self)(self._run, f"{self._prefix}{name}/")

    @overload
    def step(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    def step(
        self,
        name: str,
        fn: Callable[[*Ts], Any],
        /,
        *args: *Ts,
        as_type: type[T],
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    def step(
        self,
        name: str,
        fn: Callable[[*Ts], Any],
        /,
        *args: *Ts,
        as_type: Any,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    def step(  # type: ignore[misc] # mypy cannot match *Ts against *args: Any
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        as_type: Any = None,
        **options: Any,
    ) -> Any:
        """Call `fn(*args)` once, whatever crashes, and return what it returned.

        That is saved as JSON and read back as `as_type`, else as the function's return
        annotation: on the first run as on every replay. A crash between the function's
        effect and the save repeats the step; nothing else does. Raises what `fn`
        raises, and TypeError, before anything happens, for a type that has no schema.
        With the options of `StepOptions` it is tried again before it has failed.
        """
        kind = step_codec(fn, as_type)
        if not options:
            call = self._take("", check_step_name(name))
            return self._run.step(call, fn, args, kind)
        tries = Tries.of(options, fn)
        call = self._take("", check_step_name(name))
        step = partial(self._run.step, call, tries.bounded(fn), args, kind)
        return tried(self._run, call, tries, step)

    @overload
    def transaction(
        self,
        name: str,
        fn: Callable[[Any, *Ts], T],
        /,
        *args: *Ts,
        isolation: Isolation = ...,
        on: object = ...,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    def transaction(
        self,
        name: str,
        fn: Callable[[Any, *Ts], Any],
        /,
        *args: *Ts,
        isolation: Isolation = ...,
        on: object = ...,
        as_type: Any,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    def transaction(  # type: ignore[misc] # mypy cannot match *Ts against *args: Any
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        isolation: Isolation = "read committed",
        on: object = None,
        as_type: Any = None,
        **options: Any,
    ) -> Any:
        """Call `fn(conn, *args)` in a transaction, and save with it what it returned.

        What `fn` writes on `conn` and the checkpoint commit together: whatever crashes,
        it happens exactly once. What it raises rolls both back, and is raised here.
        `conn` is psycopg's, from a pool of the worker's own, or of `on`: an
        ConnectionPool, or an Engine of SQLAlchemy, to the same database. On
        it `app.spawn_with` and `app.emit_event_with` belong to the transaction.
        After a serialization failure, a deadlock or a lost connection `fn` is called
        again, in a new transaction, for as long as the task is this worker's. With the
        options of `StepOptions` it is tried again for other failures, too.
        """
        kind, tries = step_codec(fn, as_type), Tries.of(options, fn)
        level = checked_isolation(isolation)
        call = self._take("", check_step_name(name))
        begun = Transaction(self._run.transacting(call), on, level)
        return tried(
            self._run, call, tries, partial(begun.step, tries.bounded(fn), args, kind)
        )

    @overload
    def begin_step(self, name: str, *, as_type: type[T]) -> OpenStep[T]: ...
    @overload
    def begin_step(self, name: str, *, as_type: Any = ...) -> OpenStep[Any]: ...
    def begin_step(self, name: str, *, as_type: Any = UNTYPED) -> Any:
        """Begin a step whose work is done here, not in a function.

        Unless it is `.done`, do the work and hand its value to `complete_step`. A wait
        while a step is open is refused.
        """
        return self._begin_step(self._take("", check_step_name(name)), codec(as_type))

    def _begin_step(self, call: Call, kind: Codec[Any]) -> OpenStep[Any]:
        saved = self._run.begin_step(call)
        value = None if saved is None else read(saved, kind)
        return OpenStep(call.key, saved is not None, value, call, kind)

    def complete_step(self, step: OpenStep[T], value: T) -> T:
        """Save the value of a step that was begun; return it as it reads back."""
        saved: T = self._run.complete_step(step.call, value, step.codec)
        return saved

    def sleep_for(self, name: str, duration: timedelta | float) -> None:
        """Sleep for a while: a timedelta or seconds. It holds no worker meanwhile."""
        length = required_seconds(duration, "duration")
        call = self._take("sleep", check_step_name(name))
        wait = Wait(call.key, call.position, call.after, due=call.made + length)
        return self._sleep(call, wait)

    def sleep_until(self, name: str, until: datetime) -> None:
        """Sleep until a moment, an aware datetime, of the database's clock."""
        at = moment(until, "until")
        call = self._take("sleep", check_step_name(name))
        left = (at - self._run.database_now()).total_seconds()
        wait = Wait(call.key, call.position, call.after, due=call.made + max(left, 0))
        wait.until = at.isoformat()
        return self._sleep(call, wait)

    def _sleep(self, call: Call, wait: Wait) -> None:
        self._run.wait(call, wait)

    @overload
    def await_event(
        self, event: str, *, timeout: timedelta | float | None = ..., as_type: type[T]
    ) -> T: ...
    @overload
    def await_event(
        self,
        event: str,
        *,
        timeout: timedelta | float | None = ...,
        as_type: Any = ...,
    ) -> Any: ...
    def await_event(
        self,
        event: str,
        *,
        timeout: timedelta | float | None = None,
        as_type: Any = UNTYPED,
    ) -> Any:
        """Wait until an event of the task's queue is emitted; return its payload.

        The payload is read as `as_type`. Raises the builtin TimeoutError after
        `timeout`, a timedelta or seconds; that is recorded, so every replay sees it.
        """
        limit = seconds(timeout, "timeout")
        kind = codec(as_type)
        call = self._take("event", check_event_name(event))
        wait = Wait(call.key, call.position, call.after, event=event)
        wait.due = None if limit is None else call.made + limit
        return self._await_event(call, wait, kind)

    def _await_event(self, call: Call, wait: Wait, kind: Codec[Any]) -> Any:
        return read(self._run.wait(call, wait), kind)

    def emit_event(
        self, event: str, payload: Any = None, *, as_type: Any = None
    ) -> bool:
        """Emit an event in the task's queue; return whether it was the first time.

        It is emitted once, together with the checkpoint that says so.
        """
        check_event_name(event)
        text = codec(as_type or type(payload)).dump(payload)
        return self._emit(self._take("emit", event), event, text)

    def _emit(self, call: Call, event: str, payload: str) -> bool:
        return bool(read(self._run.emit(call, event, payload), PLAIN))

    @overload
    def spawn(
        self,
        name: str,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        **options: Unpack[SpawnOptions],
    ) -> ChildHandle[R]: ...
    @overload
    def spawn(
        self, name: str, task: str, params: Any = ..., **options: Unpack[SpawnOptions]
    ) -> ChildHandle[Any]: ...
    def spawn(
        self, name: str, task: AnyTask | str, params: Any = OMITTED, **options: Any
    ) -> Any:
        """Spawn a child, once, together with the checkpoint that says so.

        If this task fails or is cancelled the child is cancelled; if it completes the
        child goes on. Options are those of `spawn`. Raises as `spawn` does.
        """
        return self._spawn(*self._child(name, task, params, options))

    @overload
    def spawn_many(
        self,
        name: str,
        task: type[Task[P, R]] | Task[P, R],
        params: Iterable[P],
        **options: Unpack[SpawnOptions],
    ) -> list[ChildHandle[R]]: ...
    @overload
    def spawn_many(
        self,
        name: str,
        task: str,
        params: Iterable[Any],
        **options: Unpack[SpawnOptions],
    ) -> list[ChildHandle[Any]]: ...
    def spawn_many(
        self, name: str, task: AnyTask | str, params: Iterable[Any], **options: Any
    ) -> Any:
        """Spawn a child for each of the params, named `name:0`, `name:1` and so on."""
        children = [
            self._child(f"{name}:{index}", task, param, options)
            for index, param in enumerate(params)
        ]
        return self._spawn_many(children)

    def _child(
        self, name: str, task: AnyTask | str, params: Any, options: Mapping[str, Any]
    ) -> tuple[Call, str, str, Codec[Any]]:
        check_step_name(name)
        registry = self._run.application.registry
        request = spawn_request(registry, self.queue, task, params, options)
        if request.queue != self.queue:
            raise InvalidArgument(
                f"a child lives in its parent's queue {self.queue!r},"
                f" not in {request.queue!r}"
            )
        call = self._take("spawn", name)
        extra = (
            f'"name":{json.dumps(call.key)},'
            f'"position":{call.position},"after":{call.after},'
        )
        return call, name, task_json(request, extra), request.result_codec

    def _spawn(
        self, call: Call, name: str, child: str, kind: Codec[Any]
    ) -> ChildHandle[Any]:
        return child_of(self._run.spawn(call, child), name, self.queue, kind)

    def _spawn_many(
        self, children: Sequence[tuple[Call, str, str, Codec[Any]]]
    ) -> list[ChildHandle[Any]]:
        asked = [(call, child) for call, _, child, _ in children]
        saved = self._run.spawn_all(asked)
        return [
            child_of(one, name, self.queue, kind)
            for one, (_, name, _, kind) in zip(saved, children, strict=True)
        ]

    def join(
        self, child: ChildHandle[R], *, timeout: timedelta | float | None = None
    ) -> R:
        """Wait for a child to finish and return its output.

        Raises TaskFailed with its error, TaskCancelled, or the builtin TimeoutError
        after `timeout`; each is recorded, so every replay sees the same.
        """
        call, wait = self._joining(child.name, [child], timeout)
        return self._join(call, wait, child)

    def _join(self, call: Call, wait: Wait, child: ChildHandle[R]) -> R:
        (output,) = joined(self._run.wait(call, wait), [child])
        found: R = output
        return found

    def join_all(
        self,
        children: Iterable[ChildHandle[R]],
        *,
        timeout: timedelta | float | None = None,
        name: str = "all",
    ) -> list[R]:
        """Wait for all children to finish; return their outputs in the order given.

        It is one wait, however many they are. Raises as `join` does, for the first of
        them that did not complete.
        """
        awaited = list(children)
        call, wait = self._joining(check_step_name(name), awaited, timeout)
        return self._join_all(call, wait, awaited)

    def _join_all(
        self, call: Call, wait: Wait, children: list[ChildHandle[R]]
    ) -> list[R]:
        return joined(self._run.wait(call, wait), children)

    def _joining(
        self,
        name: str,
        children: Sequence[ChildHandle[Any]],
        timeout: timedelta | float | None,
    ) -> tuple[Call, Wait]:
        limit = seconds(timeout, "timeout")
        call = self._take("join", name)
        wait = Wait(call.key, call.position, call.after)
        wait.task_ids = [str(child.task_id) for child in children]
        wait.due = None if limit is None else call.made + limit
        return call, wait

    def heartbeat(self) -> None:
        """Extend the lease now, and end here if it is lost.

        A worker extends the leases of what it runs by itself.
        """
        self._run.heartbeat()

    def now(self) -> datetime:
        """Return the time of the database, aware: the same at every replay."""
        return self._recorded("now", self._run.database_now, codec(datetime))

    def random(self) -> float:
        """Return a random number from 0 to 1: the same at every replay."""
        return self._recorded("random", random.random, codec(float))

    def uuid7(self) -> UUID:
        """Return a new uuid v7: the same at every replay."""

        def make() -> UUID:
            return uuid7(int(self._run.database_now().timestamp() * 1000))

        return self._recorded("uuid7", make, codec(UUID))

    def _recorded(self, kind: str, make: Callable[[], T], how: Codec[T]) -> T:
        return self._record(self._take(kind, ""), make, how)

    def _record(self, call: Call, make: Callable[[], T], how: Codec[T]) -> T:
        return read(self._run.record(call, how.dump(make())), how)

    def _take(self, kind: str, name: str) -> Call:
        key = f"{self._prefix}{name}"
        return self._run.take(kind, key, None)
