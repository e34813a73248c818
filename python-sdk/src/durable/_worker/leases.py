"""Keeps leases alive, from a thread with a connection of its own.

So code that blocks the loop costs latency, not leases; after a minute of it the thread
lets go. It says so, with the stack of what blocks. It also keeps house, about once a
second, also when every slot is full, and notices an upgrade to a schema that the worker
cannot go on with.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any, Final

import psycopg

from durable import _sql
from durable._connections import KEEPALIVE, SILENCE
from durable._schema import check_version
from durable._silence import Impatient
from durable._sql import Statement
from durable._worker.link import backoff
from durable._worker.run import Run
from durable.errors import SchemaVersion

__all__ = ["Leases"]

logger = logging.getLogger("durable.worker")

_TICK: Final = 1.0
_BLOCKED_SECONDS: Final = 1.0
_LET_GO_SECONDS: Final = 60.0
_ASK_FOR_NAMES: Final = 10.0
_SHORTEST_PATIENCE: Final = 5.0
_LEISURE: Final = 4  # times as long as it took, between two rounds of deleting


class Leases:
    """One thread per worker. `runs` is asked for what the worker holds now.

    `hopeless` is called with an error that no time heals.
    """

    def __init__(
        self,
        conninfo: str,
        queues: Collection[str],
        known_names: Collection[str],
        lease: float,
        runs: Callable[[], list[Run]],
        *,
        version: str | None,
        hopeless: Callable[[Exception], None],
    ) -> None:
        self._conninfo = conninfo
        self._queues = queues
        self._known = set(known_names)
        self._version = version
        self._stranded: set[tuple[str, str]] = set()
        self._lease = lease
        self._runs = runs
        self._hopeless = hopeless
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._ended = asyncio.Event()
        self._connection: Impatient[Any] | None = None
        self._asked: float | None = None  # since when the loop has not answered
        self._warned = False
        self._extend_at = time.monotonic() + lease / 3
        self._ask_at = time.monotonic() + _ASK_FOR_NAMES / 10
        self._thread = threading.Thread(
            target=self._work, name="durable leases", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    async def stop(self) -> None:
        """End, without blocking the loop."""
        self._stopping.set()
        await self._ended.wait()

    def _work(self) -> None:
        failures = 0
        pause = min(_TICK, self._lease / 3)
        while not self._stopping.wait(backoff(failures) if failures else pause):
            begun = time.monotonic()
            self._watch_the_loop()
            try:
                self._tick()
                failures = 0
            except (psycopg.Error, OSError) as error:
                if failures == 0:
                    logger.warning("leases: %s; trying again", error)
                failures += 1
                self._close()
            self._drop_expired(begun)
        self._close()
        self._tell(self._ended.set)

    def _tick(self) -> None:
        self._open()  # takes a while: what is due is asked after it
        now = time.monotonic()
        if now >= self._extend_at and not self._has_let_go():
            self._extend()
            self._extend_at = now + self._lease / 3
        for queue in self._queues:
            self._keep_house(queue)
        if now >= self._ask_at:
            self._ask_at = now + _ASK_FOR_NAMES
            self._check_version()
            self._report_unknown_names()
            if self._version is not None:
                self._announce(self._version)

    def _has_let_go(self) -> bool:
        """Whether the loop has been blocked for so long that leases may end."""
        return self._silent() >= _LET_GO_SECONDS

    def _keep_house(self, queue: str) -> None:
        """Do what is due; it is done a little at a time.

        Leases, deadlines and notes at once; deleting what is old a fifth of the time,
        so that it keeps up with a busy worker and leaves it its speed.

        Not while its own leases are to be extended: a process that was stopped and
        goes on right here would end them itself.
        """
        while not self._stopping.is_set() and (
            time.monotonic() < self._extend_at or self._has_let_go()
        ):
            begun = time.monotonic()
            ((*urgent, tasks, events),) = self._fetch(_sql.keep_house(queue))
            if max(done or 0 for done in urgent) == _sql.HOUSE_AT_ONCE:
                continue
            if max(tasks or 0, events or 0) < _sql.HOUSE_AT_ONCE * 10:
                return
            self._stopping.wait(_LEISURE * (time.monotonic() - begun))

    def _extend(self) -> None:
        held: defaultdict[str, dict[Any, Run]] = defaultdict(dict)
        for run in self._runs():
            if not run.resting:
                held[run.claimed.queue][run.claimed.task_id] = run
        for queue, runs in held.items():
            asked = time.monotonic()
            tasks = [
                {"task_id": str(task_id), "claim": run.claimed.claim}
                for task_id, run in runs.items()
            ]
            statement = _sql.extend_leases(queue, json.dumps(tasks), self._lease)
            for task_id, outcome in self._fetch(statement):
                if outcome == "ok":
                    runs[task_id].lease_until = asked + self._lease
                elif outcome != "busy":
                    reason = "cancelled" if outcome == "cancelled" else "lease lost"
                    self._tell(runs[task_id].leave, reason)

    def _drop_expired(self, begun: float) -> None:
        """Somebody else may have what could not be extended in time.

        What ran out since the round has begun is tried once more: the process may
        have been stopped just now, and nobody may have taken over.
        """
        for run in self._runs():
            if begun >= run.lease_until:
                self._tell(run.leave, "lease lost")

    def _watch_the_loop(self) -> None:
        silent = self._silent()
        if silent < _BLOCKED_SECONDS:
            self._warned = False
        elif not self._warned:
            self._warned = True
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way
            logger.warning(
                "the worker's loop has been blocked for %.1f s, running %s; "
                "blocking code belongs in a sync step or a sync task\n%s",
                silent,
                sorted({run.claimed.name for run in self._runs()}),
                "".join(traceback.format_stack(frame)),
            )
        if self._asked is None:
            self._asked = time.monotonic()
            self._tell(self._heard)

    def _heard(self) -> None:
        self._asked = None

    def _silent(self) -> float:
        """Return for how long the loop has not answered; this thread may be late."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def _check_version(self) -> None:
        ((found,),) = self._fetch(_sql.version())
        try:
            check_version(found)
        except SchemaVersion as error:
            self._tell(self._hopeless, error)

    def _report_unknown_names(self) -> None:
        for queue in self._queues:
            for (name,) in self._fetch(_sql.list_waiting_names(queue)):
                if name not in self._known:
                    self._known.add(name)
                    logger.warning(
                        "tasks named %r wait in queue %r, and this worker does not "
                        "know them",
                        name,
                        queue,
                    )

    def _announce(self, version: str) -> None:
        """Say which version works here; log what tasks wait for and nobody runs."""
        for queue in self._queues:
            for (other,) in self._fetch(_sql.announce_version(queue, version)):
                if (queue, other) not in self._stranded:
                    self._stranded.add((queue, other))
                    logger.warning(
                        "tasks wait in queue %r for version %r, which nobody runs; "
                        "set_version moves them",
                        queue,
                        other,
                    )

    def _fetch(self, statement: Statement) -> list[tuple[Any, ...]]:
        connection = self._open()
        cursor = connection.execute(statement.text.encode(), statement.args)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows

    def _open(self) -> Impatient[Any]:
        if self._connection is None:
            self._connection = Impatient.connect(
                self._conninfo,
                autocommit=True,
                prepare_threshold=None,
                application_name="durable leases",
                **KEEPALIVE,
            )
            # whoever waits for an answer for ever drops nothing when leases end
            patience = max(self._lease / 3, _SHORTEST_PATIENCE)
            self._connection.patience = min(patience, SILENCE)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            self._stopping.set()  # the loop is closed
