# Made from _async/context.py by tools/async_to_sync.py: edit that, not this.
"""The context of a running task: steps, waits, children, messages, published values.

A call takes its checkpoint key when it is made, not when it is awaited, so the methods
are plain functions that return an awaitable.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import (
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import (
    Any,
    Final,
    Generic,
    TypeAlias,
    TypedDict,
    TypeVar,
    TypeVarTuple,
    Unpack,
    overload,
)
from uuid import UUID

import typing_extensions

from durable._core.arguments import (
    check_event_name,
    check_step_name,
    check_topic,
    moment,
    required_seconds,
    seconds,
    uuid7,
)
from durable._core.messages import Recipient, message, queue_of
from durable._core.outcomes import (
    Resolved,
    check_handles,
    read,
    resolve_first,
    resolve_join,
    resolve_spawn,
    resolve_wait,
)
from durable._core.spawn_requests import UNSET, spawn_request, task_json
from durable._core.step_retry_policy import StepRetryPolicy
from durable._core.values import PLAIN, UNTYPED, Codec, codec, step_codec
from durable._task._sync.http import Requests
from durable._task._sync.step_retries import with_retries
from durable._task._sync.transaction import Transaction, checked_isolation
from durable._task.branches import Wait
from durable._task.checkpoints import Call
from durable._task.run import Child
from durable._task.sync_run import SyncRun
from durable.children import ChildHandle, Joinable
from durable.errors import InvalidArgument
from durable.options import (
    JSON,
    Isolation,
    SpawnOptions,
    StepOptions,
    check_no_unique_key,
)
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["OpenStep", "SyncTaskContext"]

T = TypeVar("T")
State_co = typing_extensions.TypeVar("State_co", default=Any, covariant=True)
Ts = TypeVarTuple("Ts")
P = TypeVar("P")
R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")
R6 = TypeVar("R6")
J = TypeVar("J", bound=Joinable[Any])

_IDENTITY: Final = "durable:identity"  # the header in which SQL keeps it
_SCHEDULE: Final = "durable:schedule"  # the same for the schedule and its tick


@dataclass(slots=True)
class OpenStep(Generic[T]):
    """A step whose work is done between `begin_step` and `complete_step`.

    `done` says whether an earlier run has completed it; `value` is its saved value.
    """

    name: str
    done: bool
    value: T | None
    call: Call
    codec: Codec[Any]


Timeout: TypeAlias = timedelta | float | None


class _JoinOptions(TypedDict, total=False):
    name: str
    timeout: Timeout


_BOOL = codec(bool)


class SyncTaskContext(Generic[State_co]):
    """The durable calls of a running task.

    Every awaited call may raise `Suspended`: do not catch it.
    """

    def __init__(self, calls: SyncRun, prefix: str = "") -> None:
        self._calls = calls  # those that wait for something
        self._run = calls.run
        self._prefix = prefix

    # -- the task ----------------------------------------------------------------

    def __repr__(self) -> str:
        claimed = self._run.claimed
        name = type(self).__name__
        return f"<{name} of {claimed.task_id}, attempt {claimed.attempt}>"

    @property
    def task_id(self) -> UUID:
        """The id of the task."""
        return self._run.claimed.task_id

    @property
    def name(self) -> str:
        """The name of the task's definition."""
        return self._run.claimed.name

    @property
    def run_id(self) -> UUID:
        """The id of this attempt."""
        return self._run.claimed.run_id

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1.

        Code that reads it may make other calls in each attempt; so the order of its
        calls is not checked in later attempts.
        """
        return self._run.attempt

    @property
    def exit_reason(self) -> str | None:
        """Why the run ends early, such as "waiting", "cancelled" or "lease lost".

        None while the code runs, and after it has returned or raised.
        """
        found = self._run.exit_reason
        return None if found is None else found.reason

    @property
    def parent_task_id(self) -> UUID | None:
        """The id of the parent, the task that spawned it; None without one."""
        return self._run.claimed.parent_task_id

    @property
    def deadline(self) -> datetime | None:
        """The time at which the task is cancelled unless it has finished; or None.

        The earliest of its own deadline, its ancestors', and its execution_timeout.
        """
        return self._run.claimed.expires_at

    @property
    def version(self) -> str | None:
        """The version of the application that runs it, if it has one."""
        return self._run.services.application.version

    @property
    def queue(self) -> str:
        """The task's queue."""
        return self._run.claimed.queue

    @property
    def headers(self) -> Mapping[str, JSON]:
        """The headers given at the spawn, and those inherited."""
        own = (_IDENTITY, _SCHEDULE)
        return {k: v for k, v in self._run.headers.items() if k not in own}

    @property
    def identity(self) -> Mapping[str, JSON] | None:
        """The identity of the requester, given at the spawn or inherited; or None."""
        return self._run.headers.get(_IDENTITY)

    @property
    def scheduled_at(self) -> datetime | None:
        """The tick of the schedule that spawned this task, or an ancestor of it.

        If the schedule was triggered, when that was. None for all other tasks.
        """
        scheduled = self._run.headers.get(_SCHEDULE)
        return None if scheduled is None else datetime.fromisoformat(scheduled["at"])

    @property
    def state(self) -> State_co:
        """The value that the application's `lifespan` yielded in this worker."""
        found: State_co = self._run.services.state
        return found

    @property
    def http(self) -> Requests:
        """HTTP requests as steps, with recorded responses. Needs httpx."""
        return Requests(self, self._run)

    def scope(self, name: str) -> SyncTaskContext[State_co]:
        """Return a context that puts `name/` before every name, for a branch."""
        check_step_name(name)
        return type(self)(self._calls, f"{self._prefix}{name}/")

    def _take(self, kind: str, name: str) -> Call:
        return self._run.take(kind, f"{self._prefix}{name}")

    def _made(self, call: Call, made: T) -> T:
        """Return the coroutine of a call, and note it, to detect if it never starts."""
        del call
        return made

    def emit_event(
        self, event: str, payload: Any = None, *, as_type: Any = None
    ) -> bool:
        """Emit an event in the task's queue; return whether it was the first.

        It is emitted exactly once, in one transaction with its checkpoint.
        """
        check_event_name(event)
        text = codec(as_type or type(payload)).dump(payload)
        call = self._take("emit", event)
        return self._made(call, self._read(_BOOL, self._calls.emit, call, event, text))

    def _read(self, codec: Codec[T], do: Callable[..., Resolved], *args: Any) -> T:
        return read(do(*args), codec)

    def heartbeat(self) -> None:
        """Extend the lease now, and raise Suspended if it is lost.

        Workers extend the leases of their tasks by themselves.
        """
        self._calls.heartbeat()

    def now(self) -> datetime:
        """Return the database's time, an aware datetime: the same at every replay."""
        return self._record("now", self._run.database_now, codec(datetime))

    def random(self) -> float:
        """Return a random number from 0 to 1: the same at every replay."""
        return self._record("random", random.random, codec(float))

    def uuid7(self) -> UUID:
        """Return a new uuid v7: the same at every replay."""

        def make() -> UUID:
            return uuid7(int(self._run.database_now().timestamp() * 1_000_000))

        return self._record("uuid7", make, codec(UUID))

    def _record(self, kind: str, make: Callable[[], T], codec: Codec[T]) -> T:
        call = self._take(kind, "")
        return self._made(call, self._recorded(call, make, codec))

    def _recorded(self, call: Call, make: Callable[[], T], codec: Codec[T]) -> T:
        return read(self._calls.record(call, codec.dump(make())), codec)

    # -- steps -------------------------------------------------------------------

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
        """Call `fn(*args)`, save its result and return it; a replay returns it again.

        The result is saved as JSON and read back as `as_type`, else as the function's
        return annotation, on the first run and on every replay. Only a crash between
        the function's effect and the save repeats the step. Raises the exception of
        `fn`, and TypeError, before anything happens, for a type without a schema. With
        `StepOptions` a failing call is retried first.
        """
        kind = step_codec(fn, as_type)
        if not options:
            call = self._take("", check_step_name(name))
            return self._made(call, self._calls.step(call, fn, args, kind))
        policy = StepRetryPolicy.of(options, fn)
        call = self._take("", check_step_name(name))
        step = partial(self._calls.step, call, policy.bounded(fn), args, kind)
        return self._made(call, with_retries(self._calls, call, policy, step))

    @overload
    def transaction(
        self,
        name: str,
        fn: Callable[[Any, *Ts], T],
        /,
        *args: *Ts,
        isolation: Isolation = ...,
        on: object = ...,
        completes: bool = ...,
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
        completes: bool = ...,
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
        completes: bool = False,
        as_type: Any = None,
        **options: Any,
    ) -> Any:
        """Call `fn(conn, *args)` in a transaction, and save its result in it.

        The writes of `fn` on `conn` and the checkpoint commit together, so they happen
        exactly once. An exception rolls both back, and is raised here. `conn` is a
        psycopg connection of the worker, or one of `on`: an ConnectionPool, or an
        Engine of SQLAlchemy, for the same database. `app.spawn_with`,
        `emit_event_with` and `send_with` on it join the transaction. After a
        serialization failure, a deadlock or a lost connection `fn` is called again, in
        a new transaction, while this worker holds the lease. With `StepOptions` it is
        retried after other failures, too.

        With `completes=True` the task completes in that transaction, with the result of
        `fn` as its own: return it, since no durable call can follow.
        """
        result = self._run.definition.result_codec
        kind = result if completes else step_codec(fn, as_type)
        policy = StepRetryPolicy.of(options, fn)
        level = checked_isolation(isolation)
        call = self._take("", check_step_name(name))
        transaction = Transaction(self._calls, call, on, level, completes=completes)
        step = partial(transaction.step, policy.bounded(fn), args, kind)
        return self._made(call, with_retries(self._calls, call, policy, step))

    @overload
    def begin_step(self, name: str, *, as_type: type[T]) -> OpenStep[T]: ...
    @overload
    def begin_step(self, name: str, *, as_type: Any = ...) -> OpenStep[Any]: ...
    def begin_step(self, name: str, *, as_type: Any = UNTYPED) -> Any:
        """Begin a step whose work the task's own code does, not a function.

        Unless it is `.done`, do the work and pass its value to `complete_step`. Waits
        are refused while a step is open.
        """
        call, kind = self._take("", check_step_name(name)), codec(as_type)
        return self._made(call, self._begin_step(call, kind))

    def _begin_step(self, call: Call, kind: Codec[Any]) -> OpenStep[Any]:
        saved = self._calls.begin_step(call)
        value = None if saved is None else read(saved, kind)
        return OpenStep(call.key, saved is not None, value, call, kind)

    def complete_step(self, step: OpenStep[T], value: T) -> T:
        """Save the value of an open step; return it as it reads back."""
        saved: T = self._calls.complete_step(step.call, value, step.codec)
        return saved

    # -- waits -------------------------------------------------------------------

    def sleep_for(self, name: str, duration: timedelta | float) -> None:
        """Sleep for a timedelta or seconds. The sleeping task holds no worker."""
        length = required_seconds(duration, "duration")
        call = self._take("sleep", check_step_name(name))
        return self._wait(Wait(call, due=call.made + length), _woken)

    def sleep_until(self, name: str, until: datetime) -> None:
        """Sleep until an aware datetime, by the database's clock."""
        at = moment(until, "until")
        call = self._take("sleep", check_step_name(name))
        length = max((at - self._run.database_now()).total_seconds(), 0)
        due = call.made + length
        return self._wait(Wait(call, due=due, until=at.isoformat()), _woken)

    @overload
    def await_event(
        self, event: str, *, timeout: Timeout = ..., as_type: type[T]
    ) -> T: ...
    @overload
    def await_event(
        self, event: str, *, timeout: Timeout = ..., as_type: Any = ...
    ) -> Any: ...
    def await_event(
        self,
        event: str,
        *,
        timeout: Timeout = None,
        as_type: Any = UNTYPED,
    ) -> Any:
        """Wait until an event of the task's queue is emitted; return its payload.

        The payload is read as `as_type`. Raises the builtin TimeoutError after
        `timeout`, a timedelta or seconds; that is recorded, so every replay raises it.
        """
        limit = seconds(timeout, "timeout")
        kind = codec(as_type)
        call = self._take("event", check_event_name(event))
        wait = Wait(call, event=event, due=_due(call, limit))
        resolve = partial(resolve_wait, what=f"event {event!r}", how=kind)
        return self._wait(wait, resolve)

    def _wait(self, wait: Wait, resolve: Callable[[Resolved], T]) -> T:
        return self._made(wait.call, self._waited(wait, resolve))

    def _waited(self, wait: Wait, resolve: Callable[[Resolved], T]) -> T:
        return resolve(self._calls.wait(wait))

    # -- children ----------------------------------------------------------------

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
        self, name: str, task: AnyTask | str, params: Any = UNSET, **options: Any
    ) -> Any:
        """Spawn a child exactly once, in one transaction with its checkpoint.

        With `queue` it is spawned in that queue. If this task fails or is cancelled,
        the child is cancelled; if it completes, the child continues. Options are those
        of `app.spawn`, without unique, throttle and debounce; the child inherits this
        task's headers and identity. Raises as `app.spawn` does, and Forbidden.
        """
        child = self._child(name, task, params, options)
        return self._made(child.call, self._spawn(child))

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
        spawning = self._spawn_many(children)
        return self._made(children[0].call, spawning) if children else spawning

    def _child(
        self, name: str, task: AnyTask | str, params: Any, options: Mapping[str, Any]
    ) -> Child:
        check_step_name(name)
        check_no_unique_key(options, "a child")
        application = self._run.services.application
        given = application.stamped(options)
        request = spawn_request(application.registry, self.queue, task, params, given)
        request = application.prepared(request, self._run.headers)
        call = self._take("spawn", name)
        extra = (
            f'"name":{json.dumps(call.key)},'
            f'"position":{call.position},"after":{call.after},'
        )
        text = task_json(request, extra)
        kind = request.result_codec
        return Child(call, name, request.task, request.queue, text, kind)

    def _spawn(self, child: Child) -> ChildHandle[Any]:
        (handle,) = self._spawn_many([child])
        return handle

    def _spawn_many(self, children: Sequence[Child]) -> list[ChildHandle[Any]]:
        saved = self._calls.spawn(children)
        return [
            resolve_spawn(one, child.name, self.queue, child.codec)
            for one, child in zip(saved, children, strict=True)
        ]

    @overload
    def call(
        self,
        name: str,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        *,
        timeout: Timeout = ...,
        **options: Unpack[SpawnOptions],
    ) -> R: ...
    @overload
    def call(
        self,
        name: str,
        task: str,
        params: Any = ...,
        *,
        timeout: Timeout = ...,
        **options: Unpack[SpawnOptions],
    ) -> Any: ...
    def call(
        self,
        name: str,
        task: AnyTask | str,
        params: Any = UNSET,
        *,
        timeout: Timeout = None,
        **options: Any,
    ) -> Any:
        """Spawn a child and return its output: `spawn` and `join` under one name.

        Both save a checkpoint. Options are those of `spawn`; `timeout` is that of
        `join`, counts from now, and does not cancel the child. Raises as both do.
        """
        child = self._child(name, task, params, options)
        limit = seconds(timeout, "timeout")
        joining = self._call(child, self._take("join", name), limit)
        return self._made(child.call, joining)

    def _call(self, child: Child, call: Call, limit: float | None) -> Any:
        handle = self._spawn(child)
        wait = self._joining(call, [handle], limit)
        return self._waited(wait, partial(_only_output, handle))

    # -- joins -------------------------------------------------------------------

    def join(self, child: Joinable[R], *, timeout: Timeout = None) -> R:
        """Wait for a task to finish and return its output.

        It may be a child or any other task, of any queue that this worker may use.
        Raises TaskFailed with its error, TaskCancelled, NotFound if it has been
        deleted, or the builtin TimeoutError after `timeout`, a timedelta or seconds;
        each is recorded, so every replay raises the same.
        """
        check_handles([child])
        call = self._take("join", getattr(child, "name", None) or str(child.task_id))
        wait = self._joining(call, [child], timeout)
        return self._wait(wait, partial(_only_output, child))

    @overload
    def gather(
        self, a: Joinable[R1], /, **options: Unpack[_JoinOptions]
    ) -> tuple[R1]: ...
    @overload
    def gather(
        self, a: Joinable[R1], b: Joinable[R2], /, **options: Unpack[_JoinOptions]
    ) -> tuple[R1, R2]: ...
    @overload
    def gather(
        self,
        a: Joinable[R1],
        b: Joinable[R2],
        c: Joinable[R3],
        /,
        **options: Unpack[_JoinOptions],
    ) -> tuple[R1, R2, R3]: ...
    @overload
    def gather(
        self,
        a: Joinable[R1],
        b: Joinable[R2],
        c: Joinable[R3],
        d: Joinable[R4],
        /,
        **options: Unpack[_JoinOptions],
    ) -> tuple[R1, R2, R3, R4]: ...
    @overload
    def gather(
        self,
        a: Joinable[R1],
        b: Joinable[R2],
        c: Joinable[R3],
        d: Joinable[R4],
        e: Joinable[R5],
        /,
        **options: Unpack[_JoinOptions],
    ) -> tuple[R1, R2, R3, R4, R5]: ...
    @overload
    def gather(
        self,
        a: Joinable[R1],
        b: Joinable[R2],
        c: Joinable[R3],
        d: Joinable[R4],
        e: Joinable[R5],
        f: Joinable[R6],
        /,
        **options: Unpack[_JoinOptions],
    ) -> tuple[R1, R2, R3, R4, R5, R6]: ...
    @overload
    def gather(
        self, *tasks: Joinable[R], **options: Unpack[_JoinOptions]
    ) -> tuple[R, ...]: ...
    @overload
    def gather(
        self, *, name: str = ..., timeout: Timeout = ..., **named: Joinable[Any]
    ) -> dict[str, Any]: ...
    def gather(
        self,
        *tasks: Joinable[Any],
        name: str = "gather",
        timeout: Timeout = None,
        **named: Joinable[Any],
    ) -> Any:
        """Wait for several tasks of any types; return their outputs.

        In the order given: `a, b = ctx.gather(first, second)`. Or by name:
        `ctx.gather(pay=first, ship=second)` returns a dict with those keys. Type
        checkers know the types of up to six tasks in order, but not those of a dict. It
        is a single wait, whose checkpoint is called `name`. Raises as `join` does, for
        the first of them that did not complete.
        """
        if tasks and named:
            raise InvalidArgument(
                "gather takes tasks in order or by name, not both",
                hint="Give each of them a name.",
            )
        call = self._take("join", check_step_name(name))
        awaited = [*tasks, *named.values()]
        names = list(named)

        def resolve(saved: Resolved) -> Any:
            outputs = resolve_join(saved, awaited)
            return dict(zip(names, outputs, strict=True)) if names else tuple(outputs)

        return self._wait(self._joining(call, awaited, timeout), resolve)

    @overload
    def first(
        self, a: ChildHandle[R1], b: ChildHandle[R2], /, **options: Unpack[_JoinOptions]
    ) -> ChildHandle[R1 | R2]: ...
    @overload
    def first(
        self,
        a: ChildHandle[R1],
        b: ChildHandle[R2],
        c: ChildHandle[R3],
        /,
        **options: Unpack[_JoinOptions],
    ) -> ChildHandle[R1 | R2 | R3]: ...
    @overload
    def first(
        self, *tasks: ChildHandle[R], **options: Unpack[_JoinOptions]
    ) -> ChildHandle[R]: ...
    @overload
    def first(self, *tasks: J, **options: Unpack[_JoinOptions]) -> J: ...
    def first(self, *tasks: Any, name: str = "first", timeout: Timeout = None) -> Any:
        """Wait until one of several tasks has finished or failed; return its handle.

        `ctx.join(handle)` returns its output, or raises its failure. It is
        recorded: every replay returns the same handle. Of tasks that have finished
        already, it is the one that finished first, and of those that finished at the
        same time, the one given first. The others continue. Raises the builtin
        TimeoutError after `timeout`, which is recorded too.
        """
        if not tasks:
            raise InvalidArgument("first takes at least one task")
        call = self._take("first", check_step_name(name))
        wait = self._joining(call, tasks, timeout)
        wait.any_of = True
        return self._wait(wait, partial(resolve_first, tasks=tasks))

    def _joining(
        self, call: Call, tasks: Sequence[Joinable[Any]], timeout: Timeout
    ) -> Wait:
        """Return a wait for all tasks. InvalidArgument if this task is among them."""
        check_handles(tasks)
        due = _due(call, seconds(timeout, "timeout"))
        if any(task.task_id == self.task_id for task in tasks):
            raise InvalidArgument(f"task {self.task_id} would wait for itself")
        ids = [str(task.task_id) for task in tasks]
        queues = [None if task.queue == self.queue else task.queue for task in tasks]
        return Wait(call, task_ids=ids, queues=queues if any(queues) else None, due=due)

    # -- messages ----------------------------------------------------------------

    def send(
        self,
        to: Recipient,
        topic: str,
        payload: Any = None,
        *,
        dedup_key: str | None = None,
        queue: str | None = None,
        as_type: Any = None,
    ) -> bool:
        """Send a message to an unfinished task, which gets it once with `recv(topic)`.

        `to` is a child, a handle, or the id of a task of this queue, or of `queue`; the
        parent is found in any queue. The message is sent exactly once, in one
        transaction with its checkpoint. Returns False if a message with this
        `dedup_key` was sent to that task before. Raises NotFound, UnknownQueue, and
        AlreadyFinished if the task has finished.
        """
        home = queue_of(to, queue, self.queue)
        sent = message(to, home, topic, payload, dedup_key=dedup_key, as_type=as_type)
        sealed = sent.encoded(self._run.services.application.payloads)
        call = self._take("send", topic)
        return self._made(call, self._read(_BOOL, self._calls.send, call, sealed))

    @overload
    def recv(self, topic: str, *, timeout: Timeout = ..., as_type: type[T]) -> T: ...
    @overload
    def recv(
        self, topic: str, *, timeout: Timeout = ..., as_type: Any = ...
    ) -> Any: ...
    def recv(
        self,
        topic: str,
        *,
        timeout: Timeout = None,
        as_type: Any = UNTYPED,
    ) -> Any:
        """Wait for the next message of a topic; return its payload, read as `as_type`.

        Messages come in the order of sending, each to one `recv`, also those sent
        before this call. Raises the builtin TimeoutError after `timeout`, a timedelta
        or seconds; that is recorded, so every replay raises it.
        """
        limit = seconds(timeout, "timeout")
        kind = codec(as_type)
        call = self._take("recv", check_topic(topic))
        wait = Wait(call, topic=topic, due=_due(call, limit))
        resolve = partial(resolve_wait, what=f"a message on {topic!r}", how=kind)
        return self._wait(wait, resolve)

    # -- published values --------------------------------------------------------

    @property
    def logger(self) -> logging.Logger:
        """A logger whose lines are stored with the task; read them by `handle.logs()`.

        Lines are stored from INFO on, or from the application's `keep_logs`. While the
        run replays recorded calls, nothing is logged. Lines propagate to the logger
        `durable.task`, with the ids of the task.
        """
        return self._run.logger

    def set_value(self, key: str, value: Any, *, as_type: Any = None) -> None:
        """Publish a value of the task, for `handle.value(key)`; the last one counts.

        It is saved soon after, with the task's next checkpoint or alone. A step's
        function may call it too, also from a thread and without `await`. A scope's name
        is put before the key.
        """
        text, _ = codec(as_type or type(value)).roundtrip(value)
        return self._publish("value", key, text)

    def write_stream(self, stream: str, value: Any, *, as_type: Any = None) -> None:
        """Append a value to a stream of the task, for `handle.stream(stream)`.

        It is saved soon after, in batches; awaiting it returns at once unless the
        buffer is full. The task's own code writes each entry exactly once. A step's
        function may write too, also from a thread and without `await`; it writes again
        when it runs again. Raises RuntimeError once the stream is closed.
        """
        text, _ = codec(as_type or type(value)).roundtrip(value)
        return self._publish("stream", stream, text)

    def close_stream(self, stream: str) -> None:
        """Close a stream, which ends its readers. Not allowed inside a step."""
        return self._publish("stream", stream, None)

    def _publish(self, kind: str, name: str, text: str | None) -> None:
        check_step_name(name, f"a {kind}'s name")
        self._run.publish(kind, self._prefix, name, text)
        self._calls.make_room()

    # -- patches -----------------------------------------------------------------

    def patched(self, name: str) -> bool:
        """Return whether to run the new code here: the same at every replay.

            if ctx.patched("ask-the-bank"):
                ctx.step("authorize", authorize, order)
            else:
                ctx.step("charge", charge, order)

        True, and recorded, for a task that reaches this call for the first time; False
        for one whose history already has later calls but not the patch. Calls of
        concurrent branches count as later, so call it before branches start. Each call,
        in a loop for instance, is decided separately.
        """
        call = self._run.take_patch(f"{self._prefix}{check_step_name(name)}")
        answer = self._patched(call)
        return answer if call is None else self._made(call, answer)

    def _patched(self, call: Call | None) -> bool:
        if call is None:
            return False
        return read(self._calls.record(call, "true"), _BOOL)

    def deprecate_patch(self, name: str) -> None:
        """Accept a recorded patch, in the place of a former `patched` call.

        Use it when no task needs the old code any more: the old code and the call of
        `patched` are removed, while tasks that have recorded the patch still run.
        """
        self._run.accept_patch(f"{self._prefix}{check_step_name(name)}")


def _due(call: Call, limit: float | None) -> float | None:
    return None if limit is None else call.made + limit


def _woken(saved: Resolved) -> None:
    resolve_wait(saved, "the moment", PLAIN)


def _only_output(task: Joinable[R], saved: Resolved) -> R:
    (output,) = resolve_join(saved, [task])
    found: R = output
    return found
