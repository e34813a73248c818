# Made from _async/steps.py by tools/async_to_sync.py: edit that, not this.
"""Steps: what is done once, and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple, Unpack, overload

from durable._names import check_step_name
from durable._sync.calling import Calling
from durable._sync.retrying import tried
from durable._sync.transaction import Transaction, checked_isolation
from durable._tries import Tries
from durable._values import UNTYPED, Codec, codec, step_codec
from durable._worker.history import Call
from durable._worker.outcomes import read
from durable.options import Isolation, StepOptions

__all__ = ["OpenStep", "Steps"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


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


class Steps(Calling):
    """The steps of a task."""

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
            return self._made(call, self._run.step(call, fn, args, kind))
        tries = Tries.of(options, fn)
        call = self._take("", check_step_name(name))
        step = partial(self._run.step, call, tries.bounded(fn), args, kind)
        return self._made(call, tried(self._run, call, tries, step))

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
        """Call `fn(conn, *args)` in a transaction, and save with it what it returned.

        What `fn` writes on `conn` and the checkpoint commit together: whatever crashes,
        it happens exactly once. What it raises rolls both back, and is raised here.
        `conn` is psycopg's, from a pool of the worker's own, or of `on`: an
        ConnectionPool, or an Engine of SQLAlchemy, to the same database. On
        it `app.spawn_with`, `emit_event_with` and `send_with` belong to it.
        After a serialization failure, a deadlock or a lost connection `fn` is called
        again, in a new transaction, for as long as the task is this worker's. With the
        options of `StepOptions` it is tried again for other failures, too.

        With `completes=True` the task completes in that transaction, with what `fn`
        returned as its result: return that, no durable call can follow.
        """
        kind = self._run.result_codec if completes else step_codec(fn, as_type)
        tries = Tries.of(options, fn)
        level = checked_isolation(isolation)
        call = self._take("", check_step_name(name))
        run = self._run.transacting(call)
        begun = Transaction(run, on, level, completes=completes)
        step = partial(begun.step, tries.bounded(fn), args, kind)
        return self._made(call, tried(self._run, call, tries, step))

    @overload
    def begin_step(self, name: str, *, as_type: type[T]) -> OpenStep[T]: ...
    @overload
    def begin_step(self, name: str, *, as_type: Any = ...) -> OpenStep[Any]: ...
    def begin_step(self, name: str, *, as_type: Any = UNTYPED) -> Any:
        """Begin a step whose work is done here, not in a function.

        Unless it is `.done`, do the work and hand its value to `complete_step`. A wait
        while a step is open is refused.
        """
        call, kind = self._take("", check_step_name(name)), codec(as_type)
        return self._made(call, self._begin_step(call, kind))

    def _begin_step(self, call: Call, kind: Codec[Any]) -> OpenStep[Any]:
        saved = self._run.begin_step(call)
        value = None if saved is None else read(saved, kind)
        return OpenStep(call.key, saved is not None, value, call, kind)

    def complete_step(self, step: OpenStep[T], value: T) -> T:
        """Save the value of a step that was begun; return it as it reads back."""
        saved: T = self._run.complete_step(step.call, value, step.codec)
        return saved
