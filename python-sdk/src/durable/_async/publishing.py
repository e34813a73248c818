"""Publishing: what a running task tells those who watch it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Generator
from typing import Any

from durable._async.calling import Calling
from durable._names import check_step_name
from durable._values import codec
from durable._worker.blocking import AsyncRun

__all__ = ["Publishing"]


class Handed:  # async only
    """What was handed in: awaited, there is room for more. Need not be awaited."""

    __slots__ = ("_run",)

    def __init__(self, run: AsyncRun) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, Any, None]:
        return self._run.make_room().__await__()


class Publishing(Calling):
    """The values, streams and log of a task."""

    @property
    def logger(self) -> logging.Logger:
        """The logger whose lines are kept with the task, see `handle.logs()`.

        From INFO on, or what the application's `keep_logs` says. It says nothing while
        the run replays what is recorded. What it says goes on to the logger
        `durable.task`, with the ids of the task.
        """
        return self._run.logger

    def set_value(
        self, key: str, value: Any, *, as_type: Any = None
    ) -> Awaitable[None]:
        """Set a value of the task, for `handle.value(key)`: the last one counts.

        It is saved soon, with what else the task saves, or alone. From a step's
        function, and from its thread, it may be called as well, without `await`. A
        scope's name stands before the key.
        """
        text = codec(as_type or type(value)).dump(value)
        return self._publish("value", key, text)

    def write_stream(
        self, stream: str, value: Any, *, as_type: Any = None
    ) -> Awaitable[None]:
        """Append a value to a stream of the task, for `handle.stream(stream)`.

        It is saved soon, many at a time; awaited, this returns at once unless very much
        is on its way. The task's own code writes each entry once, whatever crashes. A
        step's function may write too, also from a thread and without `await`: as often
        as it runs. Raises RuntimeError once the stream is closed.
        """
        text = codec(as_type or type(value)).dump(value)
        return self._publish("stream", stream, text)

    def close_stream(self, stream: str) -> Awaitable[None]:
        """Close a stream: those who follow it are through. Not from inside a step."""
        return self._publish("stream", stream, None)

    def _publish(self, kind: str, name: str, text: str | None) -> Awaitable[None]:
        check_step_name(name, f"a {kind}'s name")
        self._run.publish(
            kind, self._prefix, name, text, self._run.branch()
        )  # sync: self._run.publish(kind, self._prefix, name, text, None)
        return Handed(self._run)  # sync: self._run.make_room()
