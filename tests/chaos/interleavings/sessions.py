"""A session that stops at a chosen point, where a test can inspect it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel, sql

from tests.chaos.interleavings.calls import Call
from tests.chaos.interleavings.stage import HOUR

__all__ = ["Session"]

# The snapshot is taken at once: before anything that the other session commits.
BEGIN: Final = {
    None: "begin",
    IsolationLevel.REPEATABLE_READ: (
        "begin isolation level repeatable read; select from durable.queues limit 0"
    ),
    IsolationLevel.SERIALIZABLE: (
        "begin isolation level serializable; select from durable.queues limit 0"
    ),
}
START: Final = """
select set_config('test.now', %s, false), set_config('test.stop', '0', false),
  set_config('test.passed', '0', false), set_config('deadlock_timeout', '20ms', false),
  set_config('synchronous_commit', 'off', false)
"""
STOP_AT: Final = sql.SQL("set test.stop = {}; set test.passed = 0; {}")
BLOCKED: Final = "select %s = any (pg_blocking_pids(%s))"
GLANCE: Final = 0.001
DEADLINE: Final = 60


class Session:
    """Makes one call at a time, in a thread; `rest` reports its progress."""

    def __init__(self, dsn: str, watch: psycopg.Connection) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.connection.execute(START, [str(HOUR)])
        self.connection.add_notice_handler(self._notice)
        self.pid = self.connection.info.backend_pid
        self.result = ""
        self.refusal: str | None = None
        self.warnings: list[str] = []
        self.state = "over"
        self.where = ""
        self._passed = 0
        self._watch = watch
        self._thread = ThreadPoolExecutor(1)
        self._moments: Queue[str] = Queue()
        self._close_gate()

    def close(self) -> None:
        """Close the session, even in the middle of a call."""
        self.connection.cancel()
        self._open_gate()
        self._thread.shutdown()
        self.connection.close()

    def begin(self, level: IsolationLevel | None, stop: int) -> None:
        """Begin a transaction whose call will stop at this point, counted from 1."""
        if self._opened:
            self._close_gate()
        self.where = ""
        self.connection.execute(STOP_AT.format(stop, sql.SQL(BEGIN[level])))
        self.state = "begun"

    def start(self, call: Call, queue: str) -> None:
        """Start a call."""
        self.state = "running"
        self._thread.submit(self._make, call, queue)

    def make(self, call: Call, queue: str, level: IsolationLevel | None = None) -> str:
        """Make a call in a transaction of its own, and return its answer."""
        if level is not None:
            self.begin(level, 0)
        self._make(call, queue)
        self._moments.get()
        if level is not None:
            self.end(commit=True)
        return self.result

    def points(self, call: Call, queue: str) -> int:
        """Make a call, and return how many points it passes, refused or not."""
        self._passed = 0
        self.begin(None, -1)
        self._make(call, queue)
        self._moments.get()
        self.end(commit=True)
        self.connection.execute("set test.stop = 0")
        return self._passed

    def _make(self, call: Call, queue: str) -> str:
        self.refusal = None
        try:
            rows = self.connection.execute(call.query, call.on(queue)).fetchall()
            self.result = "\n".join(sorted(map(_text, rows)))
        except psycopg.Error as refusal:
            self.result = self.refusal = refusal.sqlstate or repr(refusal)
        self._moments.put("done")
        return self.result

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        message = str(notice.message_primary)
        if message.startswith("stopped before "):
            self.where = message
            self._moments.put("stopped")
        elif message == "passed":
            self._passed += 1
        elif notice.severity == "WARNING":
            self.warnings.append(message)

    def rest(self, other: Session) -> str:
        """Wait until the call has returned, stopped, or is blocked by the other."""
        end = time.monotonic() + DEADLINE
        while self.state in {"running", "blocked"}:
            try:
                self.state = self._moments.get(timeout=GLANCE)
            except Empty:
                if self._is_blocked_by(other):
                    self.state = "blocked"
                    break
                if time.monotonic() > end:
                    raise AssertionError(
                        f"neither done nor blocked in {DEADLINE} s"
                    ) from None
        return self.state

    def _is_blocked_by(self, other: Session) -> bool:
        row = self._watch.execute(BLOCKED, [other.pid, self.pid]).fetchone()
        assert row is not None
        return bool(row[0]) and self._moments.empty()

    def go_on(self) -> None:
        """Continue from the point at which it has stopped."""
        if self.state == "stopped":
            self._open_gate()
            self.state = "running"

    def end(self, *, commit: bool) -> None:
        """Commit or roll back."""
        try:
            self.connection.execute("commit" if commit else "rollback")
        except psycopg.Error as refusal:
            self.result = self.refusal = refusal.sqlstate or repr(refusal)
        self.state = "over"

    def _close_gate(self) -> None:
        self._watch.execute("select pg_advisory_lock(0, %s)", [self.pid])
        self._opened = False

    def _open_gate(self) -> None:
        self._watch.execute("select pg_advisory_unlock(0, %s)", [self.pid])
        self._opened = True


def _text(row: tuple[Any, ...]) -> str:
    return " ".join(map(str, row))
