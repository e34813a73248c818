# Made from _async/joining.py by tools/async_to_sync.py: edit that, not this.
"""Waiting for tasks: for one, for all of several, for the first of them.

A task is waited for wherever it lives, in whichever queue, and whoever spawned it. Each
of these is one wait and one checkpoint, however many the tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, overload

from durable._names import check_step_name
from durable._sync.calling import Calling
from durable._sync.handle import TaskHandle
from durable._time import seconds
from durable._worker.history import Call
from durable._worker.outcomes import Joinable, joined, refuse_unless_tasks, winner
from durable._worker.waits import Wait
from durable.children import ChildHandle
from durable.errors import InvalidArgument

__all__ = ["Joining"]

R = TypeVar("R")
R1 = TypeVar("R1")
R2 = TypeVar("R2")
R3 = TypeVar("R3")
R4 = TypeVar("R4")
R5 = TypeVar("R5")
R6 = TypeVar("R6")
Handle: TypeAlias = ChildHandle[R] | TaskHandle[R]
Timeout: TypeAlias = timedelta | float | None


class Joining(Calling):
    """The tasks that a task waits for."""

    def join(self, child: Handle[R], *, timeout: Timeout = None) -> R:
        """Wait for a task to finish and return its output.

        It may be a child or any other task, of any queue that this worker may use.
        Raises TaskFailed with its error, TaskCancelled, NotFound if it has been
        deleted, or the builtin TimeoutError after `timeout`, a timedelta or seconds;
        each is recorded, so every replay sees the same.
        """
        refuse_unless_tasks([child])
        call = self._take("join", getattr(child, "name", None) or str(child.task_id))
        wait = self._waiting(call, [child], timeout)
        return self._made(call, self._join(call, wait, child))

    def _join(self, call: Call, wait: Wait, child: Handle[R]) -> R:
        (output,) = joined(self._run.wait(call, wait), [child])
        found: R = output
        return found

    def join_all(
        self,
        children: Iterable[Handle[R]],
        *,
        timeout: Timeout = None,
        name: str = "all",
    ) -> list[R]:
        """Wait for all tasks to finish; return their outputs in the order given.

        It is one wait, however many they are. Raises as `join` does, for the first of
        them that did not complete.
        """
        call, awaited = self._take("join", check_step_name(name)), list(children)
        wait = self._waiting(call, awaited, timeout)
        return self._made(call, self._join_all(call, wait, awaited))

    def _join_all(self, call: Call, wait: Wait, tasks: Sequence[Joinable]) -> list[Any]:
        return joined(self._run.wait(call, wait), tasks)

    @overload
    def gather(
        self, a: Handle[R1], /, *, name: str = ..., timeout: Timeout = ...
    ) -> tuple[R1]: ...
    @overload
    def gather(
        self,
        a: Handle[R1],
        b: Handle[R2],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> tuple[R1, R2]: ...
    @overload
    def gather(
        self,
        a: Handle[R1],
        b: Handle[R2],
        c: Handle[R3],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> tuple[R1, R2, R3]: ...
    @overload
    def gather(
        self,
        a: Handle[R1],
        b: Handle[R2],
        c: Handle[R3],
        d: Handle[R4],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> tuple[R1, R2, R3, R4]: ...
    @overload
    def gather(
        self,
        a: Handle[R1],
        b: Handle[R2],
        c: Handle[R3],
        d: Handle[R4],
        e: Handle[R5],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> tuple[R1, R2, R3, R4, R5]: ...
    @overload
    def gather(
        self,
        a: Handle[R1],
        b: Handle[R2],
        c: Handle[R3],
        d: Handle[R4],
        e: Handle[R5],
        f: Handle[R6],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> tuple[R1, R2, R3, R4, R5, R6]: ...
    @overload
    def gather(
        self, *tasks: Handle[R], name: str = ..., timeout: Timeout = ...
    ) -> tuple[R, ...]: ...
    @overload
    def gather(
        self, *, name: str = ..., timeout: Timeout = ..., **named: Handle[Any]
    ) -> dict[str, Any]: ...
    def gather(
        self,
        *tasks: Handle[Any],
        name: str = "gather",
        timeout: Timeout = None,
        **named: Handle[Any],
    ) -> Any:
        """Wait for all of several tasks, of whatever types; return their outputs.

        In the order given: `a, b = ctx.gather(first, second)`. Or by name:
        `ctx.gather(pay=first, ship=second)` returns a dict with those keys, of
        which type checkers know no types; of up to six in order they know each. It is
        one wait, whose checkpoint is called `name`. Raises as `join` does, for the
        first of them that did not complete.
        """
        if tasks and named:
            raise InvalidArgument(
                "gather takes tasks in order or by name, not both",
                hint="Give each of them a name.",
            )
        call = self._take("join", check_step_name(name))
        awaited = [*tasks, *named.values()]
        wait = self._waiting(call, awaited, timeout)
        return self._made(call, self._gather(call, wait, awaited, list(named)))

    def _gather(
        self, call: Call, wait: Wait, tasks: Sequence[Joinable], names: Sequence[str]
    ) -> Any:
        outputs = joined(self._run.wait(call, wait), tasks)
        return dict(zip(names, outputs, strict=True)) if names else tuple(outputs)

    @overload
    def first(
        self,
        a: ChildHandle[R1],
        b: ChildHandle[R2],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> ChildHandle[R1 | R2]: ...
    @overload
    def first(
        self,
        a: ChildHandle[R1],
        b: ChildHandle[R2],
        c: ChildHandle[R3],
        /,
        *,
        name: str = ...,
        timeout: Timeout = ...,
    ) -> ChildHandle[R1 | R2 | R3]: ...
    @overload
    def first(
        self, *tasks: ChildHandle[R], name: str = ..., timeout: Timeout = ...
    ) -> ChildHandle[R]: ...
    @overload
    def first(
        self, *tasks: TaskHandle[R], name: str = ..., timeout: Timeout = ...
    ) -> TaskHandle[R]: ...
    @overload
    def first(
        self, *tasks: Handle[R], name: str = ..., timeout: Timeout = ...
    ) -> Handle[R]: ...
    def first(self, *tasks: Any, name: str = "first", timeout: Timeout = None) -> Any:
        """Wait until one of several tasks has finished, however; return its handle.

        `ctx.join(winner)` returns its output, or raises its failure. Which one it
        was is recorded: every replay sees the same. Of those that had finished already
        it is the one that did so first, and of those that did so at one moment the one
        given first. The others go on. Raises the builtin TimeoutError after `timeout`,
        which is recorded too.
        """
        if not tasks:
            raise InvalidArgument("the first of no tasks never comes")
        call = self._take("first", check_step_name(name))
        wait = self._waiting(call, tasks, timeout)
        wait.any_of = True
        return self._made(call, self._first(call, wait, tasks))

    def _first(self, call: Call, wait: Wait, tasks: Sequence[Any]) -> Any:
        return winner(self._run.wait(call, wait), tasks)

    def _waiting(self, call: Call, tasks: Sequence[Joinable], timeout: Timeout) -> Wait:
        """Return what waits for all of them. InvalidArgument for the task itself."""
        refuse_unless_tasks(tasks)
        limit = seconds(timeout, "timeout")
        wait = Wait(call.key, call.position, call.after)
        if any(task.task_id == self._run.claimed.task_id for task in tasks):
            raise InvalidArgument(
                f"task {self._run.claimed.task_id} would wait for itself"
            )
        wait.task_ids = [str(task.task_id) for task in tasks]
        queues = [None if task.queue == self.queue else task.queue for task in tasks]
        wait.queues = queues if any(queues) else None
        wait.due = None if limit is None else call.made + limit
        return wait
