# Made from _async/family.py by tools/async_to_sync.py: edit that, not this.
"""Children: tasks that a task spawns, and waits for if it wants.

A child lives in the queue that its spawn names, else its class, else in its parent's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, Unpack, overload

from durable._inheritance import inherited
from durable._names import check_step_name
from durable._requests import OMITTED, spawn_request, task_json
from durable._sync.joining import Joining, Timeout
from durable._time import seconds
from durable._values import Codec
from durable._worker.history import Call
from durable._worker.outcomes import child_of
from durable.children import ChildHandle
from durable.options import SpawnOptions
from durable.registry import AnyTask
from durable.task import Task

__all__ = ["Family"]

P = TypeVar("P")
R = TypeVar("R")


class _Child(NamedTuple):
    """A child that is being spawned: its call and name, where, and as JSON."""

    call: Call
    name: str
    queue: str
    text: str
    codec: Codec[Any]


class Family(Joining):
    """The children of a task."""

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

        With `queue` it lives there, and that queue's workers run it. If this task fails
        or is cancelled the child is cancelled; if it completes the child goes on.
        Options are those of `spawn`; this task's headers and identity are also the
        child's. Raises as `spawn` does, UnknownQueue and Forbidden too.
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
    ) -> _Child:
        check_step_name(name)
        application = self._run.application
        given = application.stamped(options)
        request = spawn_request(application.registry, self.queue, task, params, given)
        if self._run.claimed.headers:
            request = inherited(request, self._run.all_headers, options)
        request = request.sealed(application.vault)
        call = self._take("spawn", name)
        extra = (
            f'"name":{json.dumps(call.key)},'
            f'"position":{call.position},"after":{call.after},'
        )
        text = task_json(request, extra)
        return _Child(call, name, request.queue, text, request.result_codec)

    def _spawn(self, child: _Child) -> ChildHandle[Any]:
        saved = self._run.spawn(child.call, child.queue, child.text)
        return child_of(saved, child.name, self.queue, child.codec)

    def _spawn_many(self, children: Sequence[_Child]) -> list[ChildHandle[Any]]:
        asked = [(child.call, child.queue, child.text) for child in children]
        saved = self._run.spawn_all(asked)
        return [
            child_of(one, child.name, self.queue, child.codec)
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
        params: Any = OMITTED,
        *,
        timeout: Timeout = None,
        **options: Any,
    ) -> Any:
        """Spawn a child and wait for its output: `spawn` and `join` under one name.

        Each leaves its checkpoint. Options are those of `spawn`; `timeout` is that of
        `join`, counts from now, and leaves the child alone. Raises as both do.
        """
        child = self._child(name, task, params, options)
        limit = seconds(timeout, "timeout")
        joining = self._call(child, self._take("join", name), limit)
        return self._made(child.call, joining)

    def _call(self, child: _Child, call: Call, limit: float | None) -> Any:
        handle = self._spawn(child)
        return self._join(call, self._waiting(call, [handle], limit), handle)
