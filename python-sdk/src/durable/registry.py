"""The tasks an application knows, in the form a worker and a client use."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Generic, TypeAlias, TypeVar, cast, overload

from durable._annotations import generic_arguments, parameter_type, return_type
from durable._values import Codec, codec
from durable.errors import InvalidArgument
from durable.options import ReplayCheck, nearest
from durable.task import Task, options_of

__all__ = ["AnyTask", "Registry", "TaskDefinition", "define"]

P = TypeVar("P")
R = TypeVar("R")

AnyTask: TypeAlias = "type[Task[Any, Any]] | Task[Any, Any]"


@dataclass(frozen=True, slots=True)
class TaskDefinition(Generic[P, R]):
    """A task as it was registered: everything settled and checked once.

    `options` are those of the class as `durable.spawn` takes them; `is_async` says
    whether `run` is a coroutine function, or needs a thread.
    """

    name: str
    queue: str | None
    params_codec: Codec[P]
    result_codec: Codec[R]
    options: Mapping[str, Any]
    no_retry: tuple[type[Exception], ...]
    replay_check: ReplayCheck
    is_async: bool
    source: type[Task[P, R]] | Task[P, R] = field(repr=False)

    def load_params(self, text: str) -> P:
        """Return params as the task takes them.

        SQL spawns with `{}` if nothing is said: None, to a task that takes that.
        """
        nothing = text == "{}" and self.params_codec.type is NoneType
        return self.params_codec.load("null" if nothing else text)

    def bind(self) -> Callable[[P, Any], R | Awaitable[R]]:
        """Return the `run` of one run: of a new instance, if a class was registered."""
        task = self.source() if isinstance(self.source, type) else self.source
        return task.run


@overload
def define(task: type[Task[P, R]]) -> TaskDefinition[P, R]: ...
@overload
def define(task: Task[P, R]) -> TaskDefinition[P, R]: ...
def define(task: AnyTask) -> TaskDefinition[Any, Any]:
    """Settle what a task class or instance says of itself.

    Raises TypeError if it cannot be run, or if pydantic has no schema for what it takes
    or gives.
    """
    cls = _class(task)
    _refuse_unless_runnable(task, cls)
    params, result = _types(cls)
    return TaskDefinition(
        name=task.name,
        queue=task.queue,
        params_codec=codec(params),
        result_codec=codec(result),
        options=options_of(task),
        no_retry=task.no_retry,
        replay_check=task.replay_check,
        is_async=inspect.iscoroutinefunction(cls.run),
        source=task,
    )


class Registry:
    """Tasks by name; no two of them share one."""

    def __init__(self, tasks: Iterable[AnyTask] = ()) -> None:
        self.by_name: dict[str, TaskDefinition[Any, Any]] = {}
        self._spawned: dict[str, TaskDefinition[Any, Any]] = {}
        self._foreign: set[str] = set()
        if not isinstance(tasks, Iterable):
            raise TypeError(f"tasks= takes a list of tasks, not {tasks!r}")
        for task in tasks:
            self.add(task)

    def add(self, task: AnyTask) -> TaskDefinition[Any, Any]:
        """Register a task, which may have been registered before.

        Raises InvalidArgument if another one has its name, TypeError as `define` does.
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
        """Return the definition of a task that is to be spawned.

        A class stands for the instance of it that was registered. Who only spawns a
        task need not register it. Raises InvalidArgument for a name that nobody
        registered, or that belongs to another task.
        """
        if isinstance(task, str):
            if task not in self.by_name:
                raise InvalidArgument(self.unknown(task))
            return self.by_name[task]
        name = _name(task)
        known = self.by_name.get(name) or self._spawned.get(name)
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
        """Return what is known here of a task's name: registered, or once spawned."""
        return self.by_name.get(name) or self._spawned.get(name)

    def is_news(self, name: str) -> bool:
        """Whether a name that is not registered here is new, where others are."""
        if not self.by_name or name in self._foreign:
            return False
        self._foreign.add(name)
        return True

    def unknown(self, name: str) -> str:
        """Say that nobody registered the name, and what was probably meant."""
        meant = nearest(name, list(self.by_name))
        advice = f'did you mean "{meant}"?' if meant else "pass it in tasks=[…]"
        return f'no task named "{name}" is registered here: {advice}'


def _class(task: AnyTask) -> type[Task[Any, Any]]:
    return task if isinstance(task, type) else type(task)


def _name(task: AnyTask) -> str:
    """Return the task's name; TypeError for what is no task."""
    cls = _class(task)
    if cls is Task or Task not in cls.__mro__:
        raise TypeError(
            f"{task!r:.100} is no task: pass a Task class, an instance of one, a"
            " function under @task, or a registered name"
        )
    return task.name


def _clash(task: AnyTask, known: TaskDefinition[Any, Any]) -> str:
    mine, other = _class(task).__qualname__, _class(known.source).__qualname__
    return f'two tasks are named "{known.name}": {other} and {mine}'


def _refuse_unless_runnable(task: AnyTask, cls: type[Task[Any, Any]]) -> None:
    name = cls.__qualname__
    if inspect.isabstract(cls):
        raise TypeError(f"{name} has no run, so it is no task yet")
    if inspect.isgeneratorfunction(cls.run) or inspect.isasyncgenfunction(cls.run):
        raise TypeError(f"{name}.run yields, but a task has one result: return it")
    if task is cls:
        try:
            inspect.signature(cls).bind()
        except TypeError as error:
            raise TypeError(
                f"{name} needs arguments: register an instance, {name}(…)"
            ) from error


def _types(cls: type[Task[Any, Any]]) -> tuple[Any, Any]:
    """Return the types of params and result: Task[P, R]'s, else those `run` has."""
    stated = generic_arguments(cls, Task)
    if stated is not None:
        params, result = stated
        return params, result
    run = inspect.getattr_static(cls, "run")
    position = 0 if isinstance(run, staticmethod) else 1
    function = inspect.unwrap(cast("Any", cls.run))
    return parameter_type(function, position), return_type(function)
