# Made from _async/waiters.py by tools/async_to_sync.py: edit that, not this.
"""What a client and its handles share: database, configuration, and waits.

A call that waits registers as a waiter: for the end of a task, or for more of what a
task publishes. One loop serves all waiters: a task on the event loop, in a synchronous
client a thread. It lives as long as there are waiters, and a few seconds longer. It
polls for the results of all waiters of a queue in one statement; readers of published
values, streams and logs poll for themselves, and are woken. Notifications, on a
connection outside the pool, are an optimisation: polling finds everything.

Invariant: a query answers only the waiters that were registered before it was sent, for
its rows may be older than any other's question. So a queue is polled once more after
notifications for it were registered, and a reader once more after it has become a
waiter.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from uuid import UUID

from psycopg_pool import PoolClosed, PoolTimeout

from durable._core import sql
from durable._core.reports import FINAL, not_found
from durable._core.sql import Statement
from durable._db._sync.database import Database
from durable._db._sync.listener import (
    REGISTER_SECONDS,
    Listener,
    Registration,
    Registrations,
)
from durable._db.application import Application
from durable._db.forks import call_in_forks
from durable._db.reconnecting import backoff, is_transient
from durable._db.wakers import (
    Waker,
    acquired_within,
    set_within,
    start,
)
from durable.errors import DurableError

__all__ = ["Backend"]

logger = logging.getLogger("durable.client")

Row: TypeAlias = tuple[Any, ...]

_RESULTS: Final = "results"
_PUBLISHED: Final = "published"
_SHORTEST: Final = 0.005
_LONGEST: Final = 0.25
_LISTENING: Final = 1.0  # between two polls while notifications arrive
_LAST_POLL_SECONDS: Final = 1.0
_READ_TIMEOUT: Final = 5.0  # a poll takes milliseconds, so timeouts can be kept
_REGISTERED_SECONDS: Final = 0.5  # for notifications of a queue without waiters
_LINGER_SECONDS: Final = 5.0  # of a loop without waiters, and its connection
# A poll for many tasks is followed by a rest, to use a fraction of a processor only.
_REST_PER_TASK: Final = 20e-6


def pause_after(polls: int, *, is_listening: bool = False) -> float:
    """Return the seconds to wait after this many polls in vain, with jitter."""
    longest = min(_SHORTEST * 1.5 ** min(polls, 20), _LONGEST)
    jitter = random.uniform(0.8, 1)  # noqa: S311 - no secret
    return jitter * (_LISTENING if is_listening else longest)


@dataclass(eq=False, slots=True)
class Waiter:
    """One call that waits for a task; its event is set when it should look."""

    queue: str
    task_id: UUID
    timeout: float | None
    event: threading.Event = field(default_factory=threading.Event)
    since: float = field(default_factory=time.monotonic)
    answered: bool = False
    row: Row | None = None
    error: BaseException | None = None

    @property
    def remaining(self) -> float | None:
        """The seconds until its timeout; None: no limit."""
        if self.timeout is None:
            return None
        return max(self.since + self.timeout - time.monotonic(), 0)

    @property
    def patience(self) -> float | None:
        """The seconds that it waits for an answer: even at its timeout, for a while."""
        remaining = self.remaining
        return None if remaining is None else max(remaining, _LAST_POLL_SECONDS)

    @property
    def done(self) -> bool:
        """Whether the task has finished, or the wait has failed."""
        return self.error is not None or (self.row is not None and self.row[1] in FINAL)

    def update(self, row: Row | None) -> None:
        """Take the row that a poll has found; without a state, there is no task."""
        if row is None or row[1] is None:
            self.error = not_found(self.queue, self.task_id)
        self.row = row
        if self.done:
            self.event.set()

    def gives_up(self, error: Exception, pool_timeout: float) -> bool:
        """Whether an error of a query ends the wait: no later query may succeed.

        Before its first answer, it waits for a connection only as long as other calls.
        """
        if isinstance(error, PoolClosed) or not is_transient(error):
            return True
        waited = time.monotonic() - self.since
        is_late = self.remaining == 0 or waited >= pool_timeout
        return isinstance(error, PoolTimeout) and is_late and not self.answered

    def result(self) -> Row:
        """Return the row of the finished task, or raise the error of the wait."""
        if self.error is not None:
            raise self.error
        if self.row is None or not self.done:
            state = f"is still {self.row[1]}" if self.row else "has an unknown state"
            raise TimeoutError(f"task {self.task_id} {state}")
        return self.row


@dataclass(eq=False, slots=True)
class Reader(Waiter):
    """One call that reads what a task publishes, until the task has `ended`."""

    follows: bool = False
    polls: int = 0
    rows: list[Row] | None = None
    ended: bool = False

    def polled(self, rows: list[Row]) -> None:
        """Take the rows of its query; poll often while they change."""
        self.answered = True
        self.polls = self.polls + 1 if rows == self.rows else 0
        self.rows = rows
        is_last_page = len(rows) < sql.PUBLISHED_AT_ONCE
        self.ended = is_last_page and rows[-1][0] in FINAL  # from the same snapshot

    def check_time(self) -> None:
        """Raise TimeoutError if its timeout has passed."""
        if self.remaining == 0:
            raise TimeoutError(f"task {self.task_id} has published nothing in time")


class Group:
    """The waiters for one channel of one queue, and the time of the next poll."""

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self.waiters: dict[Waiter, None] = {}
        self.new: dict[Waiter, None] = {}  # those that want the state of a live task
        self.polls = 0
        self.due = math.inf
        self.rest_until = 0.0
        self.used_at = math.inf

    @property
    def next_poll(self) -> float:
        """The time of the next poll; never for readers, who poll for themselves."""
        return max(self.due, self.rest_until)

    def notify(self) -> None:
        """Make a poll due, even if one is in progress, or let the readers look."""
        if self._channel == _RESULTS:
            self.due = 0.0
            return
        for waiter in self.waiters:
            waiter.event.set()

    def schedule(self, polls: int, *, is_listening: bool) -> None:
        """Schedule the next poll, unless an earlier one is due."""
        self.polls = polls
        pause = pause_after(polls, is_listening=is_listening)
        self.due = min(self.due, time.monotonic() + pause)


class Backend:
    """The database and configuration of a client, and all calls that wait."""

    def __init__(
        self, database: Database, application: Application, listen_conninfo: str | None
    ) -> None:
        self.database = database
        self.application = application
        self._listen_conninfo = listen_conninfo
        self._closed = False
        self._reset()
        call_in_forks(self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # so waits use one connection of the pool
        self._groups: dict[Registration, Group] = {}
        self._registered: Registrations = frozenset()
        self._waker: Waker | None = None  # of the loop, while it runs
        self._ended = threading.Event()

    def reopen(self) -> None:
        """Open the pool, also after `close`."""
        self._closed = False
        self.database.reopen()

    def close(self) -> None:
        """Close the connections; calls that still wait notice at once."""
        self.database.close()
        with self._lock:
            self._closed = True
            ended = self._ended
            for group in self._groups.values():
                group.notify()
            if self._waker is None:
                return
            self._waker.wake()
        set_within(ended, 1)

    # -- results -------------------------------------------------------------------

    def result(self, queue: str, task_id: UUID, timeout: float | None) -> Row:
        """Return the row of a task once it has finished.

        Raises NotFound, or the builtin TimeoutError after `timeout` seconds and one
        last poll.
        """
        waiter = Waiter(queue, task_id, timeout)
        group = self._enter(waiter, _RESULTS)
        try:
            self._ask(group, waiter)
            if not waiter.done and waiter.remaining != 0:
                self._wake()
                set_within(waiter.event, waiter.remaining)
                if not waiter.done:
                    self._ask(group, waiter)
        finally:
            self._leave(waiter, _RESULTS)
        return waiter.result()

    def _ask(self, group: Group, waiter: Waiter) -> None:
        """Ask for the states of all that want them, unless another call does it."""
        group.new[waiter] = None
        if not acquired_within(self._turn, waiter.patience):
            return
        try:
            if waiter in group.new:
                new = list(group.new)
                self._query(new, waiter.patience, with_live=True)
                is_listening = (_RESULTS, waiter.queue) in self._registered
                with self._lock:
                    for one in new:
                        group.new.pop(one, None)
                    group.schedule(0, is_listening=is_listening)
        finally:
            self._turn.release()

    def _query(
        self, waiters: list[Waiter], within: float | None, *, with_live: bool
    ) -> bool:
        """Answer waiters of one queue with one statement; return whether it succeeded.

        Live tasks have a row only `with_live`. If it fails because of one of the tasks,
        it is divided.
        """
        query = sql.get_task_results if with_live else sql.poll_results
        task_ids = list(dict.fromkeys(waiter.task_id for waiter in waiters))
        statement = query(waiters[0].queue, task_ids)
        try:
            rows = self.database.fetch(
                statement, within=within, read_timeout=_READ_TIMEOUT
            )
        except Exception as error:  # noqa: BLE001 - it is passed to the waiters
            if len(waiters) > 1 and _is_about_one(error):
                middle = len(waiters) // 2
                parts = waiters[:middle], waiters[middle:]
                succeeded = [
                    self._query(part, within, with_live=with_live) for part in parts
                ]
                return all(succeeded)
            for waiter in waiters:
                if waiter.gives_up(error, self.database.pool_timeout):
                    waiter.error = error
                    waiter.event.set()
            return False
        found = {row[0]: row for row in rows}
        for waiter in waiters:
            waiter.answered = True
            if with_live or waiter.task_id in found:
                waiter.update(found.get(waiter.task_id))
        return True

    # -- published values ----------------------------------------------------------

    @contextlib.contextmanager
    def reading(
        self, queue: str, task_id: UUID, timeout: float | None = None
    ) -> Iterator[Reader]:
        """Return a reader of a task, to be passed to `read`."""
        reader = Reader(queue, task_id, timeout)
        try:
            yield reader
        finally:
            self._leave(reader, _PUBLISHED)

    def read(self, reader: Reader, statement: Statement) -> list[Row]:
        """Execute a reader's next query, when it is due; each row begins with a state.

        Reconnects after a lost connection. Raises NotFound if there are no rows, and
        the builtin TimeoutError after the reader's timeout.
        """
        if reader.rows and len(reader.rows) < sql.PUBLISHED_AT_ONCE:
            self._wait_to_read(reader)
        reader.event.clear()
        rows = self._fetch(reader, statement)
        if not rows:
            raise not_found(reader.queue, reader.task_id)
        reader.polled(rows)
        return rows

    def _wait_to_read(self, reader: Reader) -> None:
        reader.check_time()
        was_following, reader.follows = reader.follows, True
        if not was_following:
            self._enter(reader, _PUBLISHED)
            self._wake()
        is_listening = (_PUBLISHED, reader.queue) in self._registered
        if is_listening and not was_following:
            return  # something may have been published before
        pause = pause_after(reader.polls, is_listening=is_listening)
        remaining = reader.remaining
        pause = pause if remaining is None else min(pause, remaining)
        set_within(reader.event, pause)

    def _fetch(self, reader: Reader, statement: Statement) -> list[Row]:
        failures = 0
        while True:
            try:
                return self.database.fetch(statement)
            except Exception as error:
                if reader.gives_up(error, self.database.pool_timeout):
                    raise
            reader.check_time()
            time.sleep(backoff(failures))
            failures += 1

    # -- waiters -------------------------------------------------------------------

    def _enter(self, waiter: Waiter, channel: str) -> Group:
        place = (channel, waiter.queue)
        with self._lock:
            group = self._groups.get(place)
            if group is None:
                group = self._groups[place] = Group(channel)
            group.waiters[waiter] = None
            return group

    def _leave(self, waiter: Waiter, channel: str) -> None:
        with self._lock:
            group = self._groups.get((channel, waiter.queue))
            if group is not None:
                group.waiters.pop(waiter, None)
                group.new.pop(waiter, None)
                group.used_at = time.monotonic()
            if self._closed and self._waker is not None:
                self._waker.wake()

    def _wake(self) -> None:
        """Let the loop look at the waiters; start it if needed."""
        with self._lock:
            if self._waker is None:
                self._waker, self._ended = Waker(), threading.Event()
                self._loop = start(self._run, self._waker, self._ended)
            else:
                self._waker.wake()

    # -- the loop ------------------------------------------------------------------

    def _run(self, waker: Waker, ended: threading.Event) -> None:
        """Listen and poll until there has been no waiter for a while."""
        listener = Listener(self._listen_conninfo or "", "client", logger)
        idle_since = time.monotonic()
        try:
            while self._is_needed(idle_since):
                self._listen(listener)
                self._poll(listener)
                if self._groups:
                    idle_since = time.monotonic()
                waker.wait(listener.filenos, self._pause())
        finally:
            with self._lock:
                if self._waker is waker:  # it was cancelled
                    self._waker, self._registered = None, frozenset()
                waker.close()
            listener.close()
            ended.set()

    def _is_needed(self, idle_since: float) -> bool:
        """Whether to continue; otherwise the next waiter starts another loop."""
        now = time.monotonic()
        with self._lock:
            for place, group in list(self._groups.items()):
                unused = now - group.used_at
                if not group.waiters and (self._closed or unused > _REGISTERED_SECONDS):
                    del self._groups[place]
            lingers = not self._closed and now < idle_since + _LINGER_SECONDS
            if not self._groups and not lingers:
                self._waker, self._registered = None, frozenset()
            return self._waker is not None

    def _listen(self, listener: Listener) -> None:
        """Register for the queues of the waiters, and read the notifications."""
        new: Registrations = frozenset()
        if self._closed or self._listen_conninfo is None:
            listener.close()
        else:
            with self._lock:
                wanted = frozenset(self._groups)
            new = listener.register(wanted)
        self._registered = listener.registered
        self._notify(new | listener.notifications())
        self._registered = listener.registered

    def _notify(self, found: AbstractSet[tuple[str, str]]) -> None:
        """Notify the waiters for these queues, or for tasks with these ids."""
        if not found:
            return
        with self._lock:
            for (channel, queue), group in self._groups.items():
                if (channel, queue) in found:
                    group.notify()
                elif channel == _PUBLISHED:
                    for waiter in group.waiters:
                        if (channel, str(waiter.task_id)) in found:
                            waiter.event.set()

    def _poll(self, listener: Listener) -> None:
        """Poll for the results of the queues that are due."""
        now = time.monotonic()
        with self._lock:
            due = [group for group in self._groups.values() if group.next_poll <= now]
        for group in due:
            with self._turn:
                with self._lock:
                    was_notified, group.due = group.due == 0, math.inf
                    waiters = [waiter for waiter in group.waiters if not waiter.done]
                if not waiters:
                    continue
                succeeded = self._query(waiters, None, with_live=False)
            is_listening = (_RESULTS, waiters[0].queue) in listener.registered
            with self._lock:
                group.rest_until = time.monotonic() + len(waiters) * _REST_PER_TASK
                group.schedule(group.polls + 1, is_listening=succeeded and is_listening)
            if is_listening and not was_notified and any(map(_has_result, waiters)):
                listener.close()  # it has missed a notification

    def _pause(self) -> float:
        """Return the seconds until the loop has something to do."""
        with self._lock:
            polls = [group.next_poll for group in self._groups.values()]
        if not polls:
            return _LINGER_SECONDS
        return min(max(min(polls) - time.monotonic(), 0), REGISTER_SECONDS)


def _has_result(waiter: Waiter) -> bool:
    return waiter.done and waiter.error is None


def _is_about_one(error: Exception) -> bool:
    """Whether one of the tasks alone may have caused the error of a query."""
    return not isinstance(error, DurableError | PoolClosed) and not is_transient(error)
