"""Hears what tasks publish, for all who follow one through a client.

One connection listens, in a thread that is there as long as somebody follows; whoever
follows a task is woken when it has published something, on whichever loop or thread.
Hearing is an optimisation: polling is the truth.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from uuid import UUID

from durable._readiness import Bell, readable
from durable._sync.listener import Listener

__all__ = ["Ear"]

logger = logging.getLogger("durable.client")

_DOOR_SECONDS: Final = 1.0  # between two tries at doors that others hold
_LINGER_SECONDS: Final = 1.0  # for the next who follows


class _Watch(NamedTuple):
    """One who follows a task."""

    queue: str
    task_id: str
    wake: Callable[[], object]


class Ear:
    """Who follows which tasks, and the thread that listens for them."""

    def __init__(self, conninfo: str, *, listen: bool) -> None:
        self._conninfo = conninfo
        self._listen = listen
        self._closed = False
        self._lock = threading.Lock()
        self._watches: dict[object, _Watch] = {}
        self._bell: Bell | None = None
        self._held: frozenset[str] = frozenset()
        self._pid = os.getpid()

    def hears(self, queue: str) -> bool:
        """Whether who follows a task of this queue is woken."""
        return queue in self._held

    @contextlib.contextmanager
    def watching(
        self, queue: str, task_id: UUID, wake: Callable[[], object]
    ) -> Iterator[None]:
        """Call `wake`, from another thread, when the task may have published more."""
        if not self._listen or self._closed or self._pid != os.getpid():
            yield
            return
        watch = object()
        with self._lock:
            self._watches[watch] = _Watch(queue, str(task_id), wake)
            self._ring()
        try:
            yield
        finally:
            with self._lock:
                del self._watches[watch]
                self._ring()

    def reopen(self) -> None:
        """Listen again."""
        self._closed = False

    def close(self) -> None:
        """Listen no longer."""
        with self._lock:
            self._closed = True
            if self._bell is not None:
                self._bell.ring()

    def _ring(self) -> None:
        """Have the thread look who follows; start it if there is none."""
        if self._bell is None:
            if self._watches:
                self._bell = Bell()
                threading.Thread(
                    target=self._work, name="durable news", daemon=True
                ).start()
        else:
            self._bell.ring()

    # -- in the thread -------------------------------------------------------------

    def _work(self) -> None:
        listener = Listener(self._conninfo, "news", logger)
        try:
            while (bell := self._bell_of_need()) is not None:
                self._hear(listener, bell)
        finally:
            self._held = frozenset()
            listener.close()

    def _bell_of_need(self) -> Bell | None:
        """Return the bell, as long as somebody follows; else end here."""
        bell = self._bell
        if bell is not None and not self._watches and not self._closed:
            readable([bell.fileno()], _LINGER_SECONDS)
        with self._lock:
            if bell is not None and (self._closed or not self._watches):
                bell.close()
                self._bell = bell = None
        return bell

    def _hear(self, listener: Listener, bell: Bell) -> None:
        """Take the doors that are wanted, and wake whom something concerns."""
        with self._lock:
            queues = {watch.queue for watch in self._watches.values()}
        listener.leave(listener.held - queues)
        newly = listener.take(queues)
        self._held = listener.held
        self._wake(newly)  # what came before the door was held
        readable([bell.fileno(), *listener.filenos], _DOOR_SECONDS)
        bell.hush()
        self._wake(listener.heard())
        self._held = listener.held

    def _wake(self, heard: set[str]) -> None:
        """Wake who follows these tasks, or any task of these queues."""
        if not heard:
            return
        with self._lock:
            watches = list(self._watches.values())
        for watch in watches:
            if watch.task_id in heard or watch.queue in heard:
                with contextlib.suppress(RuntimeError):  # its loop is closed
                    watch.wake()
