"""Children: tasks that a task spawns, and waits for if it wants."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, Unpack, overload

from durable._async.calling import Calling
from durable._inheritance import inherited
from durable._names import check_step_name
from durable._requests import OMITTED, spawn_request, task_json
from durable._time import seconds
from durable._values import Codec
from durable._worker.history import Call
from durable._worker.outcomes import child_of, joined
from durable._worker.waits import Wait
from durable.children import ChildHandle
from durable.errors import InvalidArgument
from durable.options import SpawnOptions
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["Family"]

P = TypeVar("P")
R = TypeVar("R")


class Family(Calling):
    """The children of a task."""

    @overload
    async def spawn(
        self,
        name: str,
        task: type[Task[P, R]] | Task[P, R],
        params: P = ...,
        **options: Unpack[SpawnOptions],
    ) -> ChildHandle[R]: ...
    @overload
    async def spawn(
        self, name: str, task: str, params: Any = ..., **options: Unpack[SpawnOptions]
    ) -> ChildHandle[Any]: ...
    def spawn(
        self, name: str, task: AnyTask | str, params: Any = OMITTED, **options: Any
    ) -> Any:
        """Spawn a child, once, together with the checkpoint that says so.

        If this task fails or is cancelled the child is cancelled; if it completes the
        child goes on. Options are those of `spawn`; this task's headers and identity
        are also the child's. Raises as `spawn` does.
        """
        return self._spawn(*self._child(name, task, params, options))

    @overload
    async def spawn_many(
        self,
        name: str,
        task: type[Task[P, R]] | Task[P, R],
        params: Iterable[P],
        **options: Unpack[SpawnOptions],
    ) -> list[ChildHandle[R]]: ...
    @overload
    async def spawn_many(
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
        application = self._run.application
        given = application.stamped(options)
        request = spawn_request(application.registry, self.queue, task, params, given)
        if request.queue != self.queue:
            raise InvalidArgument(
                f"a child lives in its parent's queue {self.queue!r},"
                f" not in {request.queue!r}"
            )
        if self._run.claimed.headers:
            request = inherited(request, self._run.all_headers, options)
        request = request.sealed(self._run.application.vault)
        call = self._take("spawn", name)
        extra = (
            f'"name":{json.dumps(call.key)},'
            f'"position":{call.position},"after":{call.after},'
        )
        return call, name, task_json(request, extra), request.result_codec

    async def _spawn(
        self, call: Call, name: str, child: str, kind: Codec[Any]
    ) -> ChildHandle[Any]:
        return child_of(await self._run.spawn(call, child), name, self.queue, kind)

    async def _spawn_many(
        self, children: Sequence[tuple[Call, str, str, Codec[Any]]]
    ) -> list[ChildHandle[Any]]:
        asked = [(call, child) for call, _, child, _ in children]
        saved = await self._run.spawn_all(asked)
        return [
            child_of(one, name, self.queue, kind)
            for one, (_, name, _, kind) in zip(saved, children, strict=True)
        ]

    def join(
        self, child: ChildHandle[R], *, timeout: timedelta | float | None = None
    ) -> Coroutine[Any, Any, R]:
        """Wait for a child to finish and return its output.

        Raises TaskFailed with its error, TaskCancelled, or the builtin TimeoutError
        after `timeout`; each is recorded, so every replay sees the same.
        """
        call, wait = self._joining(child.name, [child], timeout)
        return self._join(call, wait, child)

    async def _join(self, call: Call, wait: Wait, child: ChildHandle[R]) -> R:
        (output,) = joined(await self._run.wait(call, wait), [child])
        found: R = output
        return found

    def join_all(
        self,
        children: Iterable[ChildHandle[R]],
        *,
        timeout: timedelta | float | None = None,
        name: str = "all",
    ) -> Coroutine[Any, Any, list[R]]:
        """Wait for all children to finish; return their outputs in the order given.

        It is one wait, however many they are. Raises as `join` does, for the first of
        them that did not complete.
        """
        awaited = list(children)
        call, wait = self._joining(check_step_name(name), awaited, timeout)
        return self._join_all(call, wait, awaited)

    async def _join_all(
        self, call: Call, wait: Wait, children: list[ChildHandle[R]]
    ) -> list[R]:
        return joined(await self._run.wait(call, wait), children)

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
