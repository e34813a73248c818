"""Runs tasks until no task can run. Used by the test clock and by runners.

A driver has one worker per application, in the test's own loop. It has settled when a
whole round has ended no run, and no live process holds a task: then no known task is
claimable, and only tasks of dead processes count as running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from uuid import UUID

import psycopg

from durable._client._async.client import AsyncDurable
from durable._client._sync.client import Durable
from durable._core import sql
from durable._db.application import application_of
from durable._worker.options import WorkerOptions, worker_of

__all__ = ["PATIENCE", "App", "Driver", "Ran", "run_until_idle"]

App: TypeAlias = AsyncDurable | Durable

PATIENCE: Final = 30.0  # seconds
_PAUSE: Final = 0.005
_POLL: Final = 60.0  # rarely: `drain` polls
_QUEUES: Final = "select * from durable.list_queues()"
_STANDINGS: Final = """
select queue, task_id, name, attempt, state::text, claim
from durable.tasks order by task_id
"""
_HELD: Final = """
select name, task_id, worker from durable.tasks where lease_expires_at is not null
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of running a task at one time.

    `at` is when it was due, `task` its name. `state` is sleeping if it waits or will be
    retried, else its final state, which a deadline may have caused.
    """

    at: datetime
    task: str
    state: str
    attempt: int
    queue: str
    task_id: UUID


class Driver:
    """Workers for these applications, on all queues of their database."""

    def __init__(
        self,
        apps: Iterable[App],
        session: psycopg.Connection[Any],
        *,
        patience: float = PATIENCE,
    ) -> None:
        self._applications = [application_of(app) for app in apps]
        self.session = session
        self._patience = patience
        self._exits = contextlib.AsyncExitStack()
        self._seen: dict[UUID, tuple[Any, ...]] = {}

    async def __aenter__(self) -> Self:
        found = self.session.execute(_QUEUES).fetchall()
        self.queues = [name for (name,) in found]
        try:
            self._workers = [
                await self._exits.enter_async_context(
                    worker_of(application, self._options())
                )
                for application in self._applications
            ]
        except BaseException:
            await self._exits.aclose()
            raise
        self._seen = {row[1]: row for row in self._task_states()}
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exits.__aexit__(exc_type, exc, traceback)

    async def settle(self, at: datetime) -> list[Ran]:
        """Run until no task can run. Returns the tasks that changed, oldest first.

        Raises TimeoutError after `patience` seconds, which names the running tasks.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._settle()
        except TimeoutError:
            running = ", ".join(f"{name} {task_id}" for name, task_id in self.running())
            raise TimeoutError(
                f"not idle after {self._patience:g} s; still running: {running or '-'}"
            ) from None
        return self._changes(at)

    def _options(self) -> WorkerOptions:
        return {
            "queues": self.queues,
            "listen": False,
            "poll": _POLL,
            "shutdown_timeout": 0,
        }

    async def _settle(self) -> None:
        while True:
            self._run_maintenance()
            ended = [await worker.drain() for worker in self._workers]
            if not any(ended):
                if not self.running():
                    return
                await asyncio.sleep(_PAUSE)  # another process runs them

    def _run_maintenance(self) -> None:
        """Run maintenance until nothing is due; other sessions may do so, too."""
        for queue in self.queues:
            statement = sql.run_maintenance(queue)
            text = statement.text.encode()
            end = time.monotonic() + self._patience
            while time.monotonic() < end:
                ((*urgent, _, _),) = self.session.execute(text, statement.args)
                if None not in urgent and not any(urgent):
                    break

    def running(self) -> list[tuple[str, UUID]]:
        """Return the name and id of each task that a live process holds."""
        held = self.session.execute(_HELD).fetchall()
        return [(name, task_id) for name, task_id, worker in held if is_alive(worker)]

    def _task_states(self) -> list[tuple[Any, ...]]:
        return self.session.execute(_STANDINGS).fetchall()

    def _changes(self, at: datetime) -> list[Ran]:
        rows = self._task_states()
        changes = [
            row for row in rows if row != self._seen.get(row[1], _never_ran(row))
        ]
        self._seen = {row[1]: row for row in rows}
        return [
            Ran(at, name, state, attempt, queue, task_id)
            for queue, task_id, name, attempt, state, _ in changes
        ]


def _never_ran(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the row of a task that was only spawned."""
    return (*row[:3], 1, "pending", 0)


def is_alive(worker: str) -> bool:
    """Whether a worker's process may be alive; False for an id that has no pid."""
    host, _, pid = worker.rpartition(":")[0].rpartition(":")
    if not pid.isdecimal():
        return False
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def run_until_idle(*apps: App, patience: float = PATIENCE) -> list[Ran]:
    """Run tasks in the test's own loop until none can run before time passes.

    Sleeping tasks keep sleeping. Returns the tasks that changed, oldest first. Raises
    TimeoutError after `patience` seconds, which names the running tasks.
    """
    database = application_of(apps[0]).conninfo
    with psycopg.connect(database, autocommit=True) as session:
        async with Driver(apps, session, patience=patience) as driver:
            ((now,),) = session.execute("select durable._now()")
            return await driver.settle(now)
