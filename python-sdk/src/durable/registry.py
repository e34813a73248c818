"""The registry of an application's tasks, for clients and workers."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial, partialmethod
from inspect import Parameter
from types import FunctionType, NoneType
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast, overload

import typing_extensions
from pydantic import ConfigDict, ValidationError
from pydantic_core import from_json

from durable._core.annotations import (
    generic_arguments,
    innermost,
    keyword_parameters,
    parameter_type,
    return_type,
    returns_awaitable,
)
from durable._core.values import Codec, codec
from durable.errors import InvalidArgument
from durable.options import ReplayCheck, nearest
from durable.schedules import Schedule, checked_schedules
from durable.task import Task, options_of, partition_key_of

__all__ = ["AnyTask", "Registry", "TaskDefinition", "define"]

P = TypeVar("P")
R = TypeVar("R")

AnyTask: TypeAlias = "type[Task[Any, Any]] | Task[Any, Any]"


@dataclass(frozen=True, slots=True)
class TaskDefinition(Generic[P, R]):
    """A registered task, resolved and checked once.

    `options` are those of the class as `durable.spawn` takes them; `is_async` says
    whether to await the result of `run`, or to call `run` in a thread.
    """

    name: str
    queue: str | None
    params_codec: Codec[P]
    result_codec: Codec[R]
    options: Mapping[str, Any]
    partition_key: Callable[[P], str | None] | None
    non_retryable: tuple[type[Exception], ...]
    replay_check: ReplayCheck
    schedules: tuple[Schedule, ...]
    is_async: bool
    source: type[Task[P, R]] | Task[P, R] = field(repr=False)

    def load_params(self, text: str) -> P:
        """Return params as the task takes them.

        SQL's default is `{}`, which becomes None for a task that takes None.
        """
        is_default = text == "{}" and self.params_codec.type is NoneType
        return self.params_codec.load("null" if is_default else text)

    def bind(self) -> Callable[[P, Any], R | Awaitable[R]]:
        """Return the `run` method, of a new instance if a class was registered.

        It takes params and a context, also if these are the keywords of `run` itself.
        """
        task = self.source() if isinstance(self.source, type) else self.source
        if isinstance(self.params_codec, KeywordCodec):
            return partial(_with_keywords, task.run)
        return task.run


@overload
def define(task: type[Task[P, R]]) -> TaskDefinition[P, R]: ...
@overload
def define(task: Task[P, R]) -> TaskDefinition[P, R]: ...
def define(task: AnyTask) -> TaskDefinition[Any, Any]:
    """Return the definition of a task class or instance.

    Raises TypeError if it cannot be run, or if pydantic has no schema for its params or
    result.
    """
    cls = _class(task)
    _refuse_unless_runnable(task, cls)
    params, result = _codecs(cls, task.name)
    return TaskDefinition(
        name=task.name,
        queue=task.queue,
        params_codec=params,
        result_codec=result,
        options=options_of(task),
        partition_key=partition_key_of(task),
        non_retryable=task.non_retryable,
        replay_check=task.replay_check,
        schedules=checked_schedules(task.schedule),
        is_async=returns_awaitable(task.run),
        source=task,
    )


class Registry:
    """Tasks by their unique names."""

    def __init__(self, tasks: Iterable[AnyTask] = ()) -> None:
        self.by_name: dict[str, TaskDefinition[Any, Any]] = {}
        self._spawned: dict[str, TaskDefinition[Any, Any]] = {}
        self._reported: set[str] = set()
        if not isinstance(tasks, Iterable):
            raise TypeError(f"tasks= takes a list of tasks, not {tasks!r}")
        for task in tasks:
            self.add(task)

    def add(self, task: AnyTask) -> TaskDefinition[Any, Any]:
        """Register a task; a second time has no effect.

        Raises InvalidArgument if another task has its name, TypeError as `define` does.
        """
        known = self.by_name.get(_name(task))
        if known is None:
            known = self.by_name[task.name] = define(task)
        elif known.source is not task:
            raise InvalidArgument(_clash(task, known))
        return known

    @overload
    def definition_for(self, task: type[Task[P, R]]) -> TaskDefinition[P, R]: ...
    @overload
    def definition_for(self, task: Task[P, R]) -> TaskDefinition[P, R]: ...
    @overload
    def definition_for(self, task: str) -> TaskDefinition[Any, Any]: ...
    def definition_for(self, task: AnyTask | str) -> TaskDefinition[Any, Any]:
        """Return the definition of a task to be spawned.

        A class stands for its registered instance. A client that only spawns a task
        need not register it. Raises InvalidArgument for a name that is not registered,
        or that belongs to another task.
        """
        if isinstance(task, str):
            if task not in self.by_name:
                raise InvalidArgument(self.unknown(task))
            return self.by_name[task]
        known = self.find(name := _name(task))
        if known is None:
            known = self._spawned[name] = define(task)
        elif known.source is not task and _class(known.source) is not _class(task):
            raise InvalidArgument(_clash(task, known))
        return known

    def source_of(self, name: str) -> AnyTask | None:
        """Return the task registered under a name, if there is one."""
        known = self.by_name.get(name)
        return None if known is None else known.source

    def find(self, name: str) -> TaskDefinition[Any, Any] | None:
        """Return the definition of a task that was registered or spawned here."""
        return self.by_name.get(name) or self._spawned.get(name)

    def should_warn_of(self, name: str) -> bool:
        """Return True the first time an unregistered name is spawned.

        Always False in an application without tasks, which only spawns by name.
        """
        if not self.by_name or name in self._reported:
            return False
        self._reported.add(name)
        return True

    def unknown(self, name: str) -> str:
        """Return the message for a name that is not registered, with the nearest."""
        meant = nearest(name, list(self.by_name))
        advice = f'did you mean "{meant}"?' if meant else "pass it in tasks=[…]"
        return f'no task named "{name}" is registered here: {advice}'


def _class(task: AnyTask) -> type[Task[Any, Any]]:
    return task if isinstance(task, type) else type(task)


def _name(task: AnyTask) -> str:
    """Return the task's name; TypeError if it is not a task."""
    cls = _class(task)
    if cls is Task or Task not in cls.__mro__:
        raise TypeError(
            f"{task!r:.100} is not a task: pass a Task class, an instance of one, a"
            " function under @task, or a registered name"
        )
    return task.name


def _clash(task: AnyTask, known: TaskDefinition[Any, Any]) -> str:
    mine, other = _class(task).__qualname__, _class(known.source).__qualname__
    return f'two tasks are named "{known.name}": {other} and {mine}'


def _refuse_unless_runnable(task: AnyTask, cls: type[Task[Any, Any]]) -> None:
    name = cls.__qualname__
    if inspect.isabstract(cls):
        raise TypeError(f"{name} has no run method")
    if inspect.isgeneratorfunction(cls.run) or inspect.isasyncgenfunction(cls.run):
        raise TypeError(f"{name}.run yields, but a task has one result: return it")
    if task is cls:
        try:
            inspect.signature(cls).bind()
        except TypeError as error:
            raise TypeError(
                f"{name} needs arguments: register an instance, {name}(…)"
            ) from error


def _codecs(cls: type[Task[Any, Any]], name: str) -> tuple[Codec[Any], Codec[Any]]:
    """Return the codecs of params and result: of Task[P, R], else of `run`."""
    stated = generic_arguments(cls, Task)
    run = cast("Callable[..., Any]", cls.run)
    function = innermost(run)
    if function is None:  # written in C
        params, result = stated or (Any, Any)
        return codec(params), codec(result)
    is_method = isinstance(inspect.getattr_static(cls, "run"), _METHODS)
    keywords = keyword_parameters(run, f"{cls.__qualname__}.run", is_method=is_method)
    result = codec(return_type(function) if stated is None else stated[1])
    takes_none = stated is None or stated[0] in (Any, NoneType)
    if keywords or (keywords is not None and takes_none):
        return KeywordCodec(name, keywords, function), result
    if stated is not None:
        return codec(stated[0]), result
    first = list(inspect.signature(run).parameters)[is_method]
    return codec(parameter_type(function, first)), result


_METHODS: Final = (FunctionType, partialmethod)


def _with_keywords(
    run: Callable[..., R], keywords: Mapping[str, Any], context: object
) -> R:
    return run(context, **keywords)


class KeywordCodec(Codec[dict[str, Any]]):
    """The codec of the keyword parameters of a task's `run`, as one JSON object.

    Null is the empty object. A parameter that is left out gets its default when the
    task runs. Raises InvalidArgument for a missing or unknown parameter.
    """

    __slots__ = ("_parameters", "_task")

    def __init__(
        self, task: str, parameters: Iterable[Parameter], function: FunctionType
    ) -> None:
        self._task = task
        self._parameters = {one.name: one for one in parameters}
        types = {name: parameter_type(function, name) for name in self._parameters}
        for name, parameter in self._parameters.items():
            if parameter.default is not Parameter.empty:
                types[name] = typing_extensions.NotRequired[types[name]]
        make: Any = typing_extensions.TypedDict  # its keys are not known to mypy
        keywords = make(task, types)
        keywords.__pydantic_config__ = ConfigDict(extra="forbid")
        super().__init__(keywords)

    def load(self, text: str | bytes) -> dict[str, Any]:
        try:
            return super().load("{}" if text == "null" else text)
        except ValidationError:
            self._check_names(from_json(text))
            raise

    def validate(self, value: object) -> dict[str, Any]:
        given = {} if value is None else value
        self._check_names(given)
        return super().validate(given)

    def _check_names(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise InvalidArgument(
                f'task "{self._task}" takes its parameters by name, as a dict,'
                f" not {type(given).__name__}"
            )
        known = self._parameters
        for name in given:
            if name not in known:
                meant = nearest(str(name), list(known))
                names = ", ".join(known) or "none"
                advice = f"did you mean {meant}?" if meant else f"it has {names}"
                raise InvalidArgument(
                    f'task "{self._task}" has no parameter {name}: {advice}'
                )
        for name, parameter in known.items():
            if name not in given and parameter.default is Parameter.empty:
                raise InvalidArgument(f'task "{self._task}" needs the parameter {name}')
