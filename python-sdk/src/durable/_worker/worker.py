"""The worker: what the application starts, drains and stops."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from psycopg import AsyncConnection

from durable import _sql
from durable._application import Application
from durable._worker.calls import Calls
from durable._worker.claims import Claims, load_checkpoints
from durable._worker.code import begun
from durable._worker.doors import Doors
from durable._worker.executing import current_run
from durable._worker.failures import mark_recorded
from durable._worker.held import Held
from durable._worker.leases import Leases
from durable._worker.link import Link
from durable._worker.logs import kept_logs
from durable._worker.run import Claimed, Run
from durable._worker.services import Services
from durable.errors import UnreadablePayload

__all__ = ["Worker"]

logger = logging.getLogger("durable.worker")

_LEAVING_SECONDS: Final = 10.0


class Worker:
    """Claims tasks and runs them, as long as its `async with` block lasts.

        async with app.worker(concurrency=50) as worker:
            await worker.drain()

    Leaving the block stops claiming, lets what runs finish for `shutdown_timeout`
    seconds, and gives the rest back without using up an attempt. An error that no time
    heals (schema, queue or right missing) cancels the block and comes out of it.
    """

    def __init__(
        self,
        application: Application,
        *,
        queues: Sequence[str],
        concurrency: int,
        lease: float,
        poll: float,
        shutdown_timeout: float,
        listen: bool,
    ) -> None:
        self._application = application
        self._queues = list(queues)
        self._lease = lease
        self._poll = poll
        self._shutdown_timeout = shutdown_timeout
        self._listen = listen
        self.worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        self._runs: dict[UUID, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()  # may be set though something has begun since
        self._held = Held(concurrency)
        self._heard = asyncio.Event()
        self._left: list[Run] = []
        self._ended = 0
        self._stopping = False
        self._exits = contextlib.AsyncExitStack()
        self._host: asyncio.Task[Any] | None = None
        self._fatal: Exception | None = None
        self._pid = os.getpid()

    async def __aenter__(self) -> Self:
        if self._pid != os.getpid():
            raise RuntimeError("a worker does not survive a fork: make a new one")
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        self._host = asyncio.current_task()  # from here on it may be cancelled
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        host, self._host = self._host, None  # what fails from here on ends nothing
        if self._fatal is not None and host is not None:
            if not isinstance(exc, asyncio.CancelledError):  # it may be on its way
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            host.uncancel()
        await self._stop()
        if self._fatal is not None and (
            exc is None or isinstance(exc, asyncio.CancelledError)
        ):
            raise self._fatal

    async def drain(self) -> int:
        """Work until nothing is claimable and nothing runs here; sleepers don't count.

        Returns the number of runs that have ended meanwhile.
        """
        if self._host is None:
            raise self._fatal or RuntimeError("the worker does not run")
        before = self._ended
        while True:
            seen = self._ended
            for queue in self._queues:
                await self._services.calling.fetch(_sql.apply_notes(queue))
            await self._claims.quiet()
            await self._until_idle()
            if self._ended == seen and not self._tasks:
                return self._ended - before

    # -- starting and stopping -----------------------------------------------------

    async def _start(self) -> None:
        self._context = contextvars.copy_context()
        self._exits.enter_context(kept_logs(self._application.keep_logs))
        lifespan = self._application.lifespan
        state = None
        if lifespan is not None:
            state = await self._exits.enter_async_context(lifespan())
        self._services = Services(
            self._application, state, lease=self._lease, connect=self._link
        )
        self._exits.push_async_callback(self._services.close)
        for queue in self._queues:  # refuses schema, queue or right that is missing
            await self._services.claiming.fetch(
                _sql.claim_tasks(queue, self.worker_id, [], 0, self._lease)
            )
            if self._application.version is not None:
                await self._services.claiming.fetch(
                    _sql.announce_version(queue, self._application.version)
                )
        self._start_leases()
        self._start_claims()

    def _link(self, name: str) -> Link:
        return Link(
            self._application.conninfo,
            name,
            prepare=self._application.prepare,
            reconnected=self._give_back_unknown if name == "claim" else None,
            hopeless=self._give_up,
        )

    def _start_leases(self) -> None:
        self._leases = Leases(
            self._application.conninfo,
            self._queues,
            list(self._application.registry.by_name),
            self._lease,
            lambda: list(self._runs.values()),
            version=self._application.version,
            hopeless=self._give_up,
        )
        self._leases.start()
        self._exits.push_async_callback(self._leases.stop)

    def _start_claims(self) -> None:
        doors = None
        if self._listen:
            doors = Doors(
                self._application.listen_conninfo,
                self._queues,
                self._heard.set,
            )
            self._exits.push_async_callback(doors.close)
        self._claims = Claims(
            self._services.claiming,
            doors,
            self._held,
            self._heard,
            worker_id=self.worker_id,
            queues=self._queues,
            names=list(self._application.registry.by_name),
            version=self._application.version,
            lease=self._lease,
            poll=self._poll,
            start=self._start_runs,
        )
        self._claiming = asyncio.create_task(self._claims.run(), name="durable claims")
        self._claiming.add_done_callback(self._claims_ended)

    async def _stop(self) -> None:
        try:
            self._claiming.cancel()
            await asyncio.wait({self._claiming})
            if self._fatal is None:
                await self._all_have_ended(self._shutdown_timeout)
            self._stopping = True
            for run in list(self._runs.values()):
                run.leave("shutdown")
            await self._all_have_ended(_LEAVING_SECONDS)
            if self._fatal is None:
                await self._release([*self._left, *self._runs.values()])
        finally:
            for task in self._tasks:
                task.cancel()
            await self._exits.aclose()

    async def _all_have_ended(self, timeout: float) -> None:
        """Return when nothing runs here, or after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._until_idle()

    async def _until_idle(self) -> None:
        while self._tasks:
            self._idle.clear()
            await self._idle.wait()

    async def _release(self, left: Sequence[Run]) -> None:
        """Give back what has not ended, in its place in line."""
        held: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in left:
            if run.left is not None and run.left.reason == "shutdown":
                claimed = run.claimed
                held[claimed.queue].append(
                    {
                        "task_id": str(claimed.task_id),
                        "claim": claimed.claim,
                        "available_at": claimed.available_at.isoformat(),
                    }
                )
        fetch = self._services.calling.fetch
        try:
            async with asyncio.timeout(_LEAVING_SECONDS):
                for queue in self._queues:
                    if queue in held:
                        await fetch(_sql.release_tasks(queue, json.dumps(held[queue])))
                    # a claim's answer may have been cut off
                    await fetch(_sql.release_unknown(queue, self.worker_id, ()))
        except TimeoutError:
            logger.warning("the database is away: tasks go on when leases expire")

    # -- what cannot go on ---------------------------------------------------------

    def _give_up(self, error: Exception) -> None:
        if self._fatal is None:
            self._fatal = error
            if self._host is not None:
                self._host.cancel()

    def _claims_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(
                error if isinstance(error, Exception) else RuntimeError(error)
            )

    async def _give_back_unknown(self, connection: AsyncConnection[Any]) -> None:
        """After a lost connection: a claim's answer may have been lost with it."""
        for queue in self._queues:
            statement = _sql.release_unknown(queue, self.worker_id, self._held.task_ids)
            await connection.execute(statement.text.encode(), statement.args)
        self._heard.set()

    # -- running -------------------------------------------------------------------

    def _start_runs(self, claimed: list[Claimed]) -> None:
        known: list[Claimed] = []
        for task in claimed:
            self._held.add(task)
            if task.claim == 1:
                self._begin(task, {})
            else:
                known.append(task)
        if known:
            loading = self._create_task(self._run_known(known), "durable load")
            loading.add_done_callback(self._forget)

    async def _run_known(self, claimed: list[Claimed]) -> None:
        """Load what tasks have done so far, and start them."""
        try:
            loaded = await load_checkpoints(self._services.calling, claimed)
        except BaseException:
            self._held.difference_update(claimed)
            raise
        for task in claimed:
            self._begin(task, loaded[task.task_id])

    def _begin(self, claimed: Claimed, checkpoints: dict[str, Any]) -> None:
        run = Run(
            claimed,
            self._application.registry.by_name[claimed.name],
            checkpoints,
            self._services,
            code_ended=partial(self._held.code_ended, claimed),
            ended=self._run_ended,
        )
        former = self._runs.get(claimed.task_id)
        if former is not None:  # whoever extends leases knows one run of a task
            former.leave("lease lost")
        self._runs[claimed.task_id] = run
        if self._stopping:
            run.leave("shutdown")
            self._run_ended(run)
        else:
            run.task = self._create_task(self._run(run), f"durable {claimed.name}")

    def _create_task(
        self, work: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        task = self._services.loop.create_task(
            work, name=name, context=self._context.copy()
        )
        self._tasks.add(task)
        return task

    async def _run(self, run: Run) -> None:
        try:
            await self._execute(run)
        except Exception:
            logger.exception("task %s could not be run", run.claimed.task_id)

    async def _execute(self, run: Run) -> None:
        definition = run.definition
        if self._application.keep_logs is not None:
            current_run.set(run)
        try:
            params = definition.load_params(run.open_params())
            body = definition.bind()
        except UnreadablePayload as error:
            await run.put_aside(error)
            return
        except Exception as error:  # noqa: BLE001 - models and constructors are the user's
            await run.fail(mark_recorded(error))
            return
        calls = Calls(run)
        try:
            await run.execute(lambda: begun(run, calls, body, params))
        finally:
            calls.end()

    def _run_ended(self, run: Run) -> None:
        claimed = run.claimed
        if self._runs.get(claimed.task_id) is run:
            del self._runs[claimed.task_id]
        self._held.discard(claimed)
        if self._stopping:
            self._left.append(run)
        self._ended += 1
        if run.left is not None and run.left.reason == "waiting":
            self._heard.set()  # it may be due before the next look for work
        if run.task is not None:
            self._forget(run.task)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()
