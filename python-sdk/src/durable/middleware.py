"""Middleware: code around every spawn, run and step of an application."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
)
from uuid import UUID

from durable._core.spawn_requests import SpawnRequest
from durable._core.values import JSON, json_text
from durable.errors import Suspended
from durable.options import checked_headers

if TYPE_CHECKING:
    from durable import SyncTaskContext, TaskContext

__all__ = [
    "NOTHING",
    "Hooks",
    "Middleware",
    "Operation",
    "RunInfo",
    "Sending",
    "around",
    "run_info",
]

R = TypeVar("R")
AnyContext: TypeAlias = "TaskContext[Any] | SyncTaskContext[Any]"
Operation: TypeAlias = Literal["spawn", "emit", "send"]
Around: TypeAlias = Callable[..., AbstractContextManager[Any]]
NOTHING: Final = nullcontext[None]()


@dataclass(slots=True)
class Sending:
    """A spawn, an event or a message on its way to the database.

    `name` is that of the task, the event or the topic; of tasks with several names, it
    is None. `count` is the number of tasks of a spawn. `task_ids` are the tasks that it
    has returned, once it has succeeded; for a message, its receiver.
    """

    operation: Operation
    queue: str
    name: str | None
    count: int = 1
    task_ids: Sequence[UUID] = field(default=())


class RunInfo(NamedTuple):
    """Facts about a run for its middleware, which the task's own code must not use.

    `attempt` is that of `ctx.attempt`, whose reading has a price: the order of calls is
    not checked in later attempts. `resumed` says that an earlier run of the task has
    begun. It was claimed at `claimed_at`, and could have been since `available_at`.
    """

    attempt: int
    resumed: bool
    spawned_at: datetime
    available_at: datetime
    claimed_at: datetime
    claim: int
    run_id: UUID
    step: str | None
    step_try: int


class Middleware:
    """Code around every spawn, run and step: override what you need.

        class Tracing(Middleware):
            def run_task(self, ctx):
                return tracer.start_as_current_span(ctx.name)

        app = AsyncDurable(tasks=[…], middleware=[Tracing()])

    The first of several is the outermost. The methods are called for async and sync
    code alike: on the event loop, where they must not block, or in the thread of a
    synchronous task. They make no durable calls.
    """

    def spawn(
        self,
        task: str,  # noqa: ARG002 - for subclasses
        queue: str,  # noqa: ARG002
        headers: Mapping[str, JSON],  # noqa: ARG002
    ) -> Mapping[str, JSON] | None:
        """Return headers to add to a task that is being spawned.

        `headers` are those it has so far, with the class's and the parent's; a header
        of the same name is replaced. Called for each task of `spawn`, `spawn_many`,
        `spawn_with` and for each child, before anything is written, unless the spawn
        says `headers=None`; a replay calls it again, without effect. An exception is
        raised by the spawn.
        """
        return None

    def send(self, sending: Sending) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Return a context manager for one spawn, event or message.

        It is entered before the statement is sent, and before `spawn` is called for the
        tasks of a client, and left when the database has answered. In a task, it is
        entered once: a replay sends nothing. Exceptions are treated as in `run_task`.
        """
        return nullcontext()

    def run_task(self, ctx: AnyContext) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Return a context manager for one run of a task.

        It is entered before the task's code starts. An exception of the code is raised
        in it, and cannot be suppressed; its own counts as one of the task. A run that
        ends early, because the task waits or was cancelled, leaves it without an
        exception: `ctx.exit_reason` is set then.
        """
        return nullcontext()

    def run_step(
        self,
        ctx: AnyContext,  # noqa: ARG002
        name: str,  # noqa: ARG002
    ) -> AbstractContextManager[Any]:
        """Return a context manager for one call of a step's function.

        A replayed step calls no function, and a retried step several. `name` is that of
        the step's checkpoint. Transactions and HTTP requests are steps, too. Exceptions
        are treated as in `run_task`: its own counts as one of the step.
        """
        return nullcontext()


class Hooks:
    """The methods that the middleware of an application overrides, in order."""

    def __init__(self, middleware: Iterable[Middleware]) -> None:
        given = list(middleware)
        for one in given:
            if not isinstance(one, Middleware):
                raise TypeError(
                    f"middleware= takes instances of Middleware, not {one!r}"
                )
        self.spawn = _overridden(given, "spawn")
        self.send = _overridden(given, "send")
        self.run_task = _overridden(given, "run_task")
        self.run_step = _overridden(given, "run_step")

    def sending(
        self,
        operation: Operation,
        queue: str,
        name: str | None,
        count: int = 1,
        *,
        ids: Sequence[UUID] = (),
        run: _Run | None = None,
    ) -> AbstractContextManager[Sending | None]:
        """Return the middleware around what is sent, by a client or by a run."""
        if not self.send:
            return NOTHING
        return self._sending(Sending(operation, queue, name, count, ids), run)

    @contextmanager
    def _sending(self, sending: Sending, run: _Run | None) -> Iterator[Sending]:
        with around(self.send, run, sending):
            yield sending

    def with_headers(
        self, request: SpawnRequest[R], parents: Mapping[str, Any]
    ) -> SpawnRequest[R]:
        """Return a spawn request with the headers that the hooks add."""
        options = json.loads(request.options)
        headers: dict[str, JSON] | None = options.get("headers", {})
        if headers is None:
            return request
        shared = {k: v for k, v in parents.items() if not k.startswith("durable:")}
        for hook in self.spawn:
            known = MappingProxyType({**shared, **headers})
            added = hook(request.task, request.queue, known)
            headers = {**headers, **(checked_headers(added) or {})}
        if headers:
            options["headers"] = headers
        return replace(request, options=json_text(options))


def _overridden(middleware: Sequence[Middleware], name: str) -> list[Any]:
    base = getattr(Middleware, name)
    return [getattr(m, name) for m in middleware if getattr(type(m), name) is not base]


def run_info(ctx: AnyContext) -> RunInfo:
    """Return facts about the run of a context, and the step that is running in it."""
    info: RunInfo = ctx._run.info  # noqa: SLF001 - not for the task's own code
    return info


class _Run(Protocol):
    @property
    def exit_reason(self) -> Suspended | None: ...


@contextmanager
def around(hooks: Sequence[Around], run: _Run | None, *args: Any) -> Iterator[None]:
    """Enter the context managers of the hooks around a run, a step or a statement.

    They do not see that the run has exited as an exception, and cannot suppress one.
    """
    raised: BaseException | None = None
    try:
        with ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook(*args))
            try:
                yield
            except BaseException as error:
                raised = error
                is_over = run is not None and run.exit_reason is not None
                if not is_over and not isinstance(error, Suspended):
                    raise
        if raised is not None:
            raise raised
    finally:
        raised = None  # its traceback refers to this frame
