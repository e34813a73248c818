"""Tasks, as people write them: a class with a `run`, or a function under `@task`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from types import FunctionType, new_class
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Protocol,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from durable._json import JSON
from durable._names import check_task_name, default_task_name
from durable.errors import InvalidArgument
from durable.options import (
    ReplayCheck,
    TaskOptions,
    checked_no_retry,
    checked_replay_check,
    spawn_options_json,
)
from durable.retry import Retry

if TYPE_CHECKING:
    from durable import SyncTaskContext, TaskContext

__all__ = ["Task", "options_of", "task"]

P = TypeVar("P")
R = TypeVar("R")


class Task(ABC, Generic[P, R]):
    """A piece of work that takes P, gives R, and survives its worker.

        class ProcessOrder(Task[Order, str]):
            max_attempts = 5

            async def run(self, order: Order, ctx: TaskContext) -> str:
                return await ctx.step("charge", charge_card, order)

    P and R are anything pydantic can validate. What the class says below holds for
    every spawn that does not say otherwise.
    A wrong or misspelt option is refused when the class is made: InvalidArgument.
    """

    name: ClassVar[str]
    """1-100 bytes; the class's own name in kebab case if not given."""

    queue: ClassVar[str | None] = None
    """Where it is spawned; None: in the queue of whoever spawns it."""

    max_attempts: ClassVar[int | None]
    """How often it may be started, at least 1; None: no limit; left out: 5."""

    retry: ClassVar[Retry | None]
    """How long a failed attempt waits for the next; `Retry` has the choices."""

    headers: ClassVar[Mapping[str, JSON]]
    """JSON values that travel with the task."""

    max_delay: ClassVar[timedelta | float | None]
    """Seconds or timedelta it may wait for its first start, or it is cancelled."""

    max_duration: ClassVar[timedelta | float | None]
    """Seconds or timedelta from its first start to its end, or it is cancelled."""

    no_retry: ClassVar[tuple[type[Exception], ...]] = ()
    """Exceptions after which another attempt is pointless: they fail the task."""

    replay_check: ClassVar[ReplayCheck] = "warn"
    """What is done if its code no longer makes the calls that a task's history holds:
    "warn" logs it once; "strict" fails the attempt with NonDeterminism; or "off"."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        _refuse_typos(cls)
        if "name" not in vars(cls):
            cls.name = default_task_name(cls.__name__)
        options_of(cls)

    @abstractmethod
    def run(self, params: P, ctx: Any, /) -> R | Awaitable[R]:
        """Do the work and return the result.

        `async def` runs on the worker's loop and gets a `TaskContext`; `def` runs in a
        thread of its own and gets a `SyncTaskContext`.
        """


def options_of(source: type[Task[Any, Any]] | Task[Any, Any]) -> dict[str, Any]:
    """Return a task's options as `durable.spawn` takes them, all of them checked."""
    given = {
        option: getattr(source, option)
        for option in TaskOptions.__annotations__
        if hasattr(source, option)
    }
    if given["queue"] is None:
        del given["queue"]
    try:
        _refuse_none_as_headers(given)
        check_task_name(source.name)
        checked_no_retry(source.no_retry)
        checked_replay_check(source.replay_check)
        return spawn_options_json({}, given)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{_class_of(source).__qualname__}: {error.args[0]}", hint=error.hint
        ) from error


# the contexts tell the two apart: whatever is awaitable is a result, too
AsyncFunction: TypeAlias = "Callable[[P, TaskContext[Any]], Awaitable[R]]"
SyncFunction: TypeAlias = "Callable[[P, SyncTaskContext[Any]], R]"


class TaskArguments(TaskOptions, total=False):
    """What `@task` takes: the options of the class form."""

    name: str
    no_retry: tuple[type[Exception], ...]
    replay_check: ReplayCheck


class Decorator(Protocol):
    """What `@task(…)` returns: it turns a function into a task."""

    @overload
    def __call__(self, function: AsyncFunction[P, R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: SyncFunction[P, R], /) -> Task[P, R]: ...


@overload
def task(function: AsyncFunction[P, R], /) -> Task[P, R]: ...
@overload
def task(function: SyncFunction[P, R], /) -> Task[P, R]: ...
@overload
def task(**options: Unpack[TaskArguments]) -> Decorator: ...
def task(function: Callable[[Any, Any], Any] | None = None, /, **options: Any) -> Any:
    """Make a task of a function that takes params and a context.

        @task(max_attempts=5)
        async def process_order(order: Order, ctx: TaskContext) -> str: ...

    The types of params and result are its annotations, its name in kebab case the
    default for the task's. The function itself stays reachable as `.run`. Raises
    InvalidArgument as a `Task` class does, TypeError if it cannot take both arguments.
    """
    if function is not None:
        return _task_of(function, options)
    return lambda function: _task_of(function, options)


def _task_of(
    function: Callable[[Any, Any], Any], options: Mapping[str, Any]
) -> Task[Any, Any]:
    if not isinstance(function, FunctionType):
        raise TypeError(f"@task belongs on a function, not on {function!r}")
    try:
        inspect.signature(function).bind("params", "ctx")
    except TypeError as error:
        raise TypeError(
            f"{function.__qualname__} must take two arguments, params and context"
        ) from error
    _refuse_context_first(function)
    unknown = [option for option in options if option not in TASK_OPTIONS]
    if unknown:
        raise InvalidArgument(
            f"@task has no option {unknown[0]}: there are {_listed()}"
        )
    body = {
        "run": staticmethod(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        **options,
    }
    cls = new_class(function.__name__, (Task,), {}, lambda names: names.update(body))
    return cast("Task[Any, Any]", cls())


def _refuse_context_first(function: FunctionType) -> None:
    """Refuse `(ctx, params)`, as far as the annotation of the first one tells."""
    first = next(iter(inspect.signature(function).parameters.values())).annotation
    named = first if isinstance(first, str) else getattr(first, "__name__", "")
    if named.partition("[")[0].rpartition(".")[2] in ("TaskContext", "SyncTaskContext"):
        raise TypeError(
            f"{function.__qualname__} must take its params first, then the context"
        )


TASK_OPTIONS: Final = tuple(TaskArguments.__annotations__)


def _listed() -> str:
    return ", ".join(sorted(TASK_OPTIONS))


def _class_of(source: type[Task[Any, Any]] | Task[Any, Any]) -> type[Task[Any, Any]]:
    return source if isinstance(source, type) else type(source)


def _refuse_none_as_headers(given: Mapping[str, Any]) -> None:
    """Refuse what only a spawn can want: to be without its class's and its parent's."""
    if given.get("headers", {}) is None:
        raise InvalidArgument("headers must be a mapping, not None")


def _refuse_typos(cls: type[Task[Any, Any]]) -> None:
    """Refuse an attribute that is one slip of the finger away from an option."""
    for attribute, value in vars(cls).items():
        if callable(value) or attribute.startswith("_"):
            continue
        for option in TASK_OPTIONS:
            if _one_typo_apart(attribute, option):
                message = f"{cls.__qualname__}.{attribute}: did you mean {option}?"
                hint = "An attribute of your own should have another name."
                raise InvalidArgument(message, hint=hint)


def _one_typo_apart(word: str, other: str) -> bool:
    """Whether one letter is missing, extra or another, or two have changed places."""
    if word == other or abs(len(word) - len(other)) > 1:
        return False
    start = 0
    while word[start : start + 1] == other[start : start + 1]:
        start += 1
    left, right = word[start:], other[start:]
    return (
        left[1:] == right
        or left == right[1:]
        or left[1:] == right[1:]
        or (left[1::-1] == right[:2] and left[2:] == right[2:])
    )
