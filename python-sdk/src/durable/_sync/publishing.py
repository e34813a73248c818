# Made from _async/publishing.py by tools/async_to_sync.py: edit that, not this.
"""Publishing: what a running task tells those who watch it."""

from __future__ import annotations

import logging
from typing import Any

from durable._names import check_step_name
from durable._sync.calling import Calling
from durable._values import codec

__all__ = ["Publishing"]


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

    def set_value(self, key: str, value: Any, *, as_type: Any = None) -> None:
        """Set a value of the task, for `handle.value(key)`: the last one counts.

        It is saved soon, with what else the task saves, or alone. From a step's
        function, and from its thread, it may be called as well, without `await`. A
        scope's name stands before the key.
        """
        text = codec(as_type or type(value)).dump(value)
        return self._publish("value", key, text)

    def write_stream(self, stream: str, value: Any, *, as_type: Any = None) -> None:
        """Append a value to a stream of the task, for `handle.stream(stream)`.

        It is saved soon, many at a time; awaited, this returns at once unless very much
        is on its way. The task's own code writes each entry once, whatever crashes. A
        step's function may write too, also from a thread and without `await`: as often
        as it runs. Raises RuntimeError once the stream is closed.
        """
        text = codec(as_type or type(value)).dump(value)
        return self._publish("stream", stream, text)

    def close_stream(self, stream: str) -> None:
        """Close a stream: those who follow it are through. Not from inside a step."""
        return self._publish("stream", stream, None)

    def _publish(self, kind: str, name: str, text: str | None) -> None:
        check_step_name(name, f"a {kind}'s name")
        self._run.publish(kind, self._prefix, name, text, None)
        self._run.make_room()
