"""Task definitions: a class with a `run` method, or a function under `@task`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from inspect import getattr_static, signature
from types import FunctionType, new_class
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Final,
    Generic,
    Protocol,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import typing_extensions

from durable._core.annotations import keyword_parameters
from durable._core.arguments import (
    check_partition_key,
    check_task_name,
    default_task_name,
)
from durable._core.values import JSON
from durable.errors import InvalidArgument
from durable.options import (
    ReplayCheck,
    TaskOptions,
    check_choice,
    checked_non_retryable,
    spawn_options_json,
)
from durable.retry import Retry
from durable.schedules import Schedule, checked_schedules

if TYPE_CHECKING:
    from durable import SyncTaskContext, TaskContext

__all__ = ["Task", "options_of", "partition_key_of", "task"]

P = TypeVar("P")
R = TypeVar("R")
Q = typing_extensions.ParamSpec("Q")
Rest = typing_extensions.ParamSpec("Rest", default=[Any])


class Task(ABC, Generic[P, R, Rest]):
    """A durable task that takes params P, returns R and survives its worker.

        class ProcessOrder(Task[Order, str]):
            max_attempts = 5

            async def run(self, order: Order, ctx: TaskContext) -> str:
                return await ctx.step("charge", charge_card, order)

    P and R are any types that pydantic can validate. The options below apply to every
    spawn that does not override them. An invalid option raises InvalidArgument when the
    class is defined.

    A `run` without params, or with keyword parameters of its own, belongs to a
    `Task[Any, R, ...]`. Its params are a dict of those parameters:

        class Ship(Task[Any, str, ...]):
            async def run(self, ctx: TaskContext, *, order_id: int) -> str: ...
    """

    name: ClassVar[str]
    """1-100 bytes; by default the class's name in kebab case."""

    queue: ClassVar[str | None] = None
    """The queue to spawn it in; None: the queue of the client or parent."""

    max_attempts: ClassVar[int | None]
    """How often the task may be started, at least 1; None: no limit; default 5."""

    retry: ClassVar[Retry | None]
    """The delay between a failed attempt and the next one."""

    headers: ClassVar[Mapping[str, JSON]]
    """JSON values stored with the task."""

    start_timeout: ClassVar[timedelta | float | None]
    """Seconds or timedelta until the first start; then the task is cancelled."""

    execution_timeout: ClassVar[timedelta | float | None]
    """Seconds or timedelta from the first start; then the task is cancelled."""

    priority: ClassVar[int | None]
    """From -32768 to 32767, higher ones start first, in queues whose policy has limits
    or priorities; default 0. Others ignore it."""

    non_retryable: ClassVar[tuple[type[Exception], ...]] = ()
    """Exceptions that fail the task without another attempt."""

    replay_check: ClassVar[ReplayCheck] = "warn"
    """The reaction if the code no longer makes the calls of a task's history: "warn"
    logs once; "strict" fails the attempt with NonDeterminism; "off" does not check."""

    schedule: ClassVar[Schedule | Sequence[Schedule]] = ()
    """When the task is spawned periodically; workers create these schedules in the
    task's queue when they start."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in vars(cls):
            cls.name = default_task_name(cls.__name__)
        options_of(cls)

    @classmethod
    def params(
        cls: type[_Keywords[Q]], /, *_: Q.args, **keywords: Q.kwargs
    ) -> dict[str, Any]:
        """Return params for a task whose `run` has keyword parameters.

            await app.spawn(Ship, Ship.params(order_id=7))

        It is the dict of them; type checkers compare it with the signature of `run`.
        """
        return dict(keywords)

    def partition_key(self, params: P, /) -> str | None:  # noqa: ARG002
        """Return what a task belongs to for the limits of its queue, such as a tenant.

        It is called with the params of each spawn that has no `partition_key` of its
        own; None, the default: it is in no partition. Queues without limits and
        priorities ignore it. Workers do not call it.
        """
        return None

    @abstractmethod
    def run(
        self, params: P, /, *ctx: Rest.args, **keywords: Rest.kwargs
    ) -> R | Awaitable[R]:
        """Do the work and return the result.

        Takes params and the context, or the context and keyword-only parameters.

        `async def` runs on the worker's event loop and gets a `TaskContext`; `def` runs
        in a thread of its own and gets a `SyncTaskContext`. A function wrapped with
        `functools.wraps` or `functools.partial` counts as the inner function.
        """


def options_of(
    source: type[Task[Any, Any, ...]] | Task[Any, Any, ...],
) -> dict[str, Any]:
    """Return a task's options, checked, as `durable.spawn` takes them."""
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
        checked_non_retryable(source.non_retryable)
        check_choice(source.replay_check, ReplayCheck, "replay_check")
        checked_schedules(source.schedule)
        _check_partition_key(source)
        options = spawn_options_json({}, given)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{_class_of(source).__qualname__}: {error.args[0]}", hint=error.hint
        ) from error
    if (priority := options.pop("priority", None)) is not None:
        options["defaults"] = {"priority": priority}
    return options


def partition_key_of(
    source: type[Task[P, Any, ...]] | Task[P, Any, ...],
) -> Callable[[P], str | None] | None:
    """Return the function that a task's partition keys come from; None: it has none."""
    cls = _class_of(source)
    key: Any = cls.partition_key
    if key is Task.partition_key:
        return None
    if isinstance(key, str):  # of a decorated function
        return lambda _: key
    owner: Any = source
    if isinstance(source, type) and _has_partition_key_method(cls):
        owner = source()
    return cast("Callable[[P], str | None]", owner.partition_key)


if TYPE_CHECKING:

    class _Keywords(Protocol[Q]):
        """A task whose `run` has keyword parameters of its own."""

        def run(self, ctx: Any, /, *args: Q.args, **keywords: Q.kwargs) -> Any: ...

    class KeywordTask(Task[Mapping[str, Any], R, ...], Generic[Q, R]):
        """The task that `@task` makes of a function with keyword parameters."""

        @abstractmethod
        def run(
            self, ctx: Any, /, *args: Q.args, **keywords: Q.kwargs
        ) -> R | Awaitable[R]: ...


# Overloads differ by the context, since an awaitable may be a result, too. They overlap
# for functions that take a context first, and then another one.
AsyncFunction: TypeAlias = "Callable[[P, TaskContext[Any]], Awaitable[R]]"
SyncFunction: TypeAlias = "Callable[[P, SyncTaskContext[Any]], R]"
AsyncKeywords: TypeAlias = "Callable[Concatenate[TaskContext[Any], Q], Awaitable[R]]"
SyncKeywords: TypeAlias = "Callable[Concatenate[SyncTaskContext[Any], Q], R]"


class TaskArguments(TaskOptions, total=False):
    """The options of `@task`, which are those of a Task class."""

    name: str
    partition_key: str | Callable[[Any], str | None]
    non_retryable: tuple[type[Exception], ...]
    replay_check: ReplayCheck
    schedule: Schedule | Sequence[Schedule]


class Decorator(Protocol):
    """The decorator that `@task(…)` returns."""

    @overload
    def __call__(self, function: AsyncFunction[P, R], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: SyncFunction[P, R], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: AsyncKeywords[Q, R], /) -> KeywordTask[Q, R]: ...
    @overload
    def __call__(self, function: SyncKeywords[Q, R], /) -> KeywordTask[Q, R]: ...


@overload
def task(function: AsyncFunction[P, R], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
@overload
def task(function: SyncFunction[P, R], /) -> Task[P, R]: ...  # type: ignore[overload-overlap]
@overload
def task(function: AsyncKeywords[Q, R], /) -> KeywordTask[Q, R]: ...
@overload
def task(function: SyncKeywords[Q, R], /) -> KeywordTask[Q, R]: ...
@overload
def task(**options: Unpack[TaskArguments]) -> Decorator: ...
def task(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a task from a function.

        @task(max_attempts=5)
        async def process_order(order: Order, ctx: TaskContext) -> str: ...

        @task
        async def ship(ctx: TaskContext, *, order_id: int) -> str: ...

    It takes params and a context, or a context and keyword-only parameters, or only a
    context. The types of params and result come from its annotations, and the task's
    name is by default the function's in kebab case. The function itself is available as
    `.run`. Raises InvalidArgument as a `Task` class does, and TypeError for any other
    parameters.
    """
    if function is not None:
        return _task_of(function, options)
    return lambda function: _task_of(function, options)


def _task_of(
    function: Callable[..., Any], options: Mapping[str, Any]
) -> Task[Any, Any]:
    if not isinstance(function, FunctionType):
        raise TypeError(f"@task belongs on a function, not on {function!r}")
    keyword_parameters(function, function.__qualname__)
    unknown = [option for option in options if option not in TASK_OPTIONS]
    if unknown:
        raise InvalidArgument(
            f"@task has no option {unknown[0]}: there are"
            f" {', '.join(sorted(TASK_OPTIONS))}"
        )
    if callable(key := options.get("partition_key")):
        options = {**options, "partition_key": staticmethod(key)}
    body = {
        "run": staticmethod(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        **options,
    }
    cls = new_class(function.__name__, (Task,), {}, lambda names: names.update(body))
    return cast("Task[Any, Any]", cls())


TASK_OPTIONS: Final = tuple(TaskArguments.__annotations__)


def _class_of(
    source: type[Task[Any, Any, ...]] | Task[Any, Any, ...],
) -> type[Task[Any, Any, ...]]:
    return source if isinstance(source, type) else type(source)


def _check_partition_key(
    source: type[Task[Any, Any, ...]] | Task[Any, Any, ...],
) -> None:
    cls = _class_of(source)
    key: Any = cls.partition_key
    if isinstance(key, str):
        check_partition_key(key)
        return
    arguments = [None] * (1 + _has_partition_key_method(cls))
    try:
        signature(key).bind(*arguments)
    except TypeError as error:
        raise InvalidArgument(
            f"partition_key cannot be called with params: {error}",
            hint="For instance def partition_key(self, params): return params.tenant.",
        ) from error


def _has_partition_key_method(cls: type[Task[Any, Any, ...]]) -> bool:
    """Whether `partition_key` takes an instance, and is no static or class method."""
    return isinstance(getattr_static(cls, "partition_key"), FunctionType)


def _refuse_none_as_headers(given: Mapping[str, Any]) -> None:
    """Refuse None as headers of a class: only a spawn can drop inherited headers."""
    if given.get("headers", {}) is None:
        raise InvalidArgument("headers must be a mapping, not None")
