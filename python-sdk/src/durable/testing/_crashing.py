"""Crash tests: kill the worker of a task at each boundary in turn.

A task is spawned once, in a database that is then copied for each life. So all lives
begin in the same state, even with the same task id. In each life, a worker in a process
of its own runs the task until it is killed by SIGKILL. Then its leases are expired, and
another worker takes over. A task survives if its output and its effects are the same as
in an undisturbed life.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import psycopg

from durable._core.reports import task_result
from durable._core.spawn_requests import UNSET, SpawnRequest
from durable._core.sql import get_task_result
from durable._core.values import PLAIN
from durable._db.application import application_of
from durable._db.conninfo import ENVIRONMENT
from durable.errors import InvalidArgument
from durable.registry import AnyTask
from durable.testing._applications import queues_of
from durable.testing._boundaries import is_named
from durable.testing._clock import EngineClock
from durable.testing._databases import (
    Copies,
    copy_database,
    create_queues,
    drop,
    require_test_database,
)
from durable.testing._driving import PATIENCE, App
from durable.testing._dsn import with_dbname
from durable.testing._forkserver import forkserver_for
from durable.testing._forkserver_process import Child
from durable.testing._inline import fetch, request_of, spawn_on
from durable.testing._live_workers import LIVE
from durable.testing._references import Reference, reference_to
from durable.testing._reports import (
    CrashReport,
    CrashUnsafe,
    Life,
    short,
    steps_that_ran,
)

__all__ = ["crash_at", "crash_everywhere"]

_DEAD: Final = -SIGKILL
_TRIES: Final = 3
_ATTEMPTS: Final = 5  # the default max_attempts
_RAW: Final = re.compile(r"\w+#\d+:\w+")
_DISCONNECT: Final = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = %s
"""
_OTHERS: Final = """
select from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid()
  and backend_type = 'client backend'
"""
_END_LEASES: Final = """
update durable.tasks set lease_expires_at = durable._now()
where lease_expires_at is not null
"""
_EXPIRE: Final = (
    "select durable.expire_leases(queue) from durable.list_queues() as queue"
)

Effects: TypeAlias = str | Callable[[str], Any]


async def crash_everywhere(
    app: App,
    task: AnyTask | str,
    params: Any = UNSET,
    *,
    prepare: Callable[[str], Any] | None = None,
    effects: Effects | None = None,
    compare: Callable[[Any], Any] = lambda output: output,
    check: Callable[[Life], Any] | None = None,
    events: Mapping[str, Any] | None = None,
    only: Callable[[str], bool] = lambda _: True,
    patience: float = PATIENCE,
    **options: Any,
) -> CrashReport:
    """Kill the worker of a task at every boundary; another one must recover the task.

        report = await crash_everywhere(
            app, ProcessOrder, order, effects="select order_id from charges"
        )

    The task first runs undisturbed, to find the boundaries: before, during and after
    each durable call, around the statements that its steps send through psycopg, and at
    its end. Each kill is a life of its own, in a copy of one database. `prepare` is
    called once with the URL of that database, to make tables and rows. `effects`
    returns the side effects of the task: a query in that database, or a function of its
    URL.

    Raises CrashUnsafe, an AssertionError, unless the task ends in every life as it does
    undisturbed: with the same state, an output for which `compare` returns the same,
    and the same effects. It is also raised if `check`, called with each life, raises an
    AssertionError. Raises InvalidArgument if the task fails undisturbed in all its
    attempts. `events` and `options` are as in `run_inline`; `only` selects boundaries.
    Tasks, lifespan and codecs must be importable, so not defined inside a function. The
    functions may be async.
    """
    request = request_of(app, task, params, options)
    lives: list[Life] = []
    missed: list[str] = []
    faults: list[tuple[Life, str]] = []
    scenario = _Scenario(prepare, effects, events, patience)
    async with _CrashRunner(app, request, scenario) as runner:
        undisturbed, points = await runner.undisturbed(check)
        _check_attempts_left(request, undisturbed)

        async def judge(life: Life) -> str:
            return await _fault(life, undisturbed, compare, check)

        for point in filter(only, points):
            life, fault = await runner.killed_at(point, judge)
            if fault:
                faults.append((life, fault))
            if life.died or fault:
                lives.append(life)
            else:
                missed.append(point)
    if faults:
        raise CrashUnsafe(request.task, faults, len(lives))
    return CrashReport(request.task, undisturbed, lives, missed)


def _check_attempts_left(request: SpawnRequest[Any], life: Life) -> None:
    """Refuse a task that uses up all its attempts by itself: each kill needs one."""
    limit = json.loads(request.options).get("max_attempts", _ATTEMPTS)
    if life.state == "failed" and 1 < life.attempts == limit:
        raise InvalidArgument(
            f"{request.task} fails undisturbed, in all its {limit} attempts:"
            f" {life.error}",
            hint="Provide what it needs, with `prepare` for instance. If it is meant to"
            " fail, raise NonRetryable.",
        )


async def crash_at(
    point: str,
    app: App,
    task: AnyTask | str,
    params: Any = UNSET,
    *,
    prepare: Callable[[str], Any] | None = None,
    effects: Effects | None = None,
    check: Callable[[Life], Any] | None = None,
    events: Mapping[str, Any] | None = None,
    patience: float = PATIENCE,
    **options: Any,
) -> Life:
    """Kill the worker of a task at one boundary, let another continue, return the life.

        life = await crash_at("during:charge", app, ProcessOrder, order)
        assert life.ran["charge"] == 2

    `before:charge` is before the step's function, `during:charge` after it and before
    its checkpoint is sent, `sent:charge` before the reply is read, `after:charge` after
    that. `…:$end` are the same points of the task's completion. All else is as in
    `crash_everywhere`. Raises InvalidArgument, which lists the boundaries that the task
    reaches, if it does not reach `point`.
    """
    request = request_of(app, task, params, options)
    scenario = _Scenario(prepare, effects, events, patience)
    async with _CrashRunner(app, request, scenario) as runner:
        life, _ = await runner.life(point, check)
        if not life.died:
            _, points = await runner.undisturbed()
            raise InvalidArgument(
                f'{request.task} does not reach "{point}"',
                hint=f"It reaches {', '.join(points)}.",
            )
    return life


class _Scenario(NamedTuple):
    """The environment of a task: its tables, its side effects, events for it."""

    prepare: Callable[[str], Any] | None
    effects: Effects | None
    events: Mapping[str, Any] | None
    patience: float


class _CrashRunner:
    """Runs the lives of one task, each in a copy of the same database."""

    def __init__(
        self, app: App, request: SpawnRequest[Any], scenario: _Scenario
    ) -> None:
        application = application_of(app)
        known = application.registry.by_name.values()
        self._application = application
        self._request = request
        self._scenario = scenario
        self._events = {
            name: json.loads(PLAIN.dump(payload))
            for name, payload in (scenario.events or {}).items()
        }
        self._tasks = [reference_to(one.source, "the task") for one in known]
        self._lifespan: Reference | None = None
        if application.lifespan is not None:
            self._lifespan = reference_to(application.lifespan, "the lifespan")
        self._codecs = [reference_to(one, "the codec") for one in application.codecs]
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        conninfo = self._application.conninfo
        admin: psycopg.Connection[Any] = self._exits.enter_context(
            psycopg.connect(conninfo, autocommit=True)
        )
        try:
            template = require_test_database(admin, "a crash test")
            start = await asyncio.to_thread(copy_database, admin, template)
            self._exits.callback(drop, admin, start)
            found = admin.execute("select durable.list_queues()").fetchall()
            queues = queues_of(self._application) | {name for (name,) in found}
            await self._set_up(with_dbname(conninfo, start), queues)
            admin.execute(_DISCONNECT, [start])  # so that it can be copied
        except BaseException:
            await self._exits.aclose()
            raise
        self._copies = Copies(admin, start)
        self._exits.push_async_callback(self._copies.close)
        homes = {one.home for one in (*self._tasks, *self._codecs)}
        if self._lifespan is not None:
            homes.add(self._lifespan.home)
        self._forkserver = forkserver_for(sorted(homes, key=str), sys.path, Path.cwd())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    async def _set_up(self, database: str, queues: Iterable[str]) -> None:
        with psycopg.connect(database, autocommit=True) as session:
            create_queues(session, queues)
            if self._scenario.prepare is not None:
                with _default_database(database):
                    await _call(self._scenario.prepare, database)
            EngineClock(database=database).close()
            self._task_id = spawn_on(session, self._request)

    async def undisturbed(
        self, check: Callable[[Life], Any] | None = None
    ) -> tuple[Life, list[str]]:
        """Return the life without a crash, and the boundaries that it passes."""
        passed: list[str] = []
        life, _ = await self.life(None, check, passed)
        named = dict.fromkeys(filter(is_named, passed))
        return life, [short(point, self._request.task) for point in named]

    async def killed_at(
        self, point: str, judge: Callable[[Life], Awaitable[str]]
    ) -> tuple[Life, str]:
        """Kill at a point; repeat the life a few times if it does not reach it."""
        for tries in range(1, _TRIES + 1):
            life, fault = await self.life(point, judge)
            if life.died or fault or tries == _TRIES:
                return life, fault
        raise AssertionError(point)

    async def life(
        self,
        point: str | None,
        check: Callable[[Life], Any] | None = None,
        passed: list[str] | None = None,
    ) -> tuple[Life, Any]:
        """Run one life, killed at `point`. Returns it, and the result of `check`."""
        points = [] if passed is None else passed
        async with self._copies.copy() as name:
            database = with_dbname(self._application.conninfo, name)
            died = await self._run_to_end(database, point, points)
            with _default_database(database):
                life = await self._life_of(database, point, points, died=died)
                return life, None if check is None else await _call(check, life)

    async def _run_to_end(
        self, database: str, point: str | None, passed: list[str]
    ) -> bool:
        """Run a worker, and another one if it was killed. Returns whether it was."""
        died = (
            await self._run_worker(database, self._kill_points(point), passed) == _DEAD
        )
        if died:
            with psycopg.connect(database, autocommit=True) as session:
                await self._wait_for_disconnects(session)
                session.execute(_END_LEASES)
                session.execute(_EXPIRE)
            await self._run_worker(database, [], passed)
        return died

    async def _wait_for_disconnects(self, session: psycopg.Connection) -> None:
        """Wait for the sessions of a killed worker: a claim may still be executed."""
        end = time.monotonic() + self._scenario.patience
        while session.execute(_OTHERS).rowcount:
            if time.monotonic() > end:
                return
            await asyncio.sleep(0.002)

    async def _run_worker(
        self, database: str, kill_at: list[str], passed: list[str]
    ) -> int:
        child: Child = await asyncio.to_thread(
            self._forkserver.fork,
            LIVE,
            database=database,
            environment={**os.environ, ENVIRONMENT: database},
            app_queue=self._application.queue,
            tasks=self._tasks,
            lifespan=self._lifespan,
            codecs=self._codecs,
            version=self._application.version,
            keep_logs=self._application.keep_logs,
            queue=self._request.queue,
            task_id=str(self._task_id),
            events=self._events,
            patience=self._scenario.patience,
            kill_at=kill_at,
        )
        try:
            code = await asyncio.to_thread(
                child.wait, deadline=2 * self._scenario.patience
            )
        finally:
            child.kill()
        passed += child.passed()
        child.delete_record()
        if code not in ({0, _DEAD} if kill_at else {0}):
            raise AssertionError(f"a worker ended with {code}:\n{child.output()}")
        return code

    def _kill_points(self, point: str | None) -> list[str]:
        """Return the full names that a boundary may have."""
        if point is None:
            return []
        phase, _, rest = point.partition(":")
        if not is_named(point) and not _RAW.fullmatch(point):
            raise InvalidArgument(
                f"{point!r} is no boundary: those of a step are"
                f" before:{point}, during:{point}, sent:{point} and after:{point}"
            )
        return [point, f"{phase}:{self._request.task}:{rest}"]

    async def _life_of(
        self, database: str, point: str | None, passed: list[str], *, died: bool
    ) -> Life:
        with psycopg.connect(database, autocommit=True) as session:
            request = get_task_result(self._request.queue, self._task_id)
            (row,) = fetch(session, request)
        codec, error = self._request.result_codec, None
        found = task_result(row, self._application.payloads, codec)
        if found.error is not None:
            error = f"{found.error.type}: {found.error.message}"
        return Life(
            point,
            died,
            found.state,
            found.result,
            error,
            await _effects_in(self._scenario.effects, database),
            steps_that_ran(list(filter(is_named, passed)), self._request.task),
            found.attempt,
            database,
        )


async def _effects_in(effects: Effects | None, database: str) -> Any:
    """Return the effects in a database, in a form that can be compared."""
    if effects is None:
        return None
    if not isinstance(effects, str):
        return await _call(effects, database)
    with psycopg.connect(database, autocommit=True) as session:
        return sorted(session.execute(effects.encode()).fetchall(), key=repr)


async def _fault(
    life: Life,
    undisturbed: Life,
    compare: Callable[[Any], Any],
    check: Callable[[Life], Any] | None,
) -> str:
    """Describe how a life differs from the undisturbed one; "" if it does not."""
    was, here = (_outcome_of(one, compare) for one in (undisturbed, life))
    faults = [
        f"{what}: {here[what]!r}, undisturbed: {was[what]!r}"
        for what in was
        if here[what] != was[what]
    ]
    if check is not None:
        try:
            await _call(check, life)
        except AssertionError as error:
            faults.append(f"check: {error}")
    if faults and not life.died:
        faults.insert(0, "though nothing was killed (compare=… allows differences):")
    if faults:
        faults.append("steps that ran: " + (_steps_text(life) or "none"))
    return "\n".join(faults)


def _outcome_of(life: Life, compare: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "state": life.state,
        "output": compare(life.output) if life.state == "completed" else None,
        "error": life.error,
        "effects": life.effects,
    }


def _steps_text(life: Life) -> str:
    return ", ".join(
        f"{step} {times} times" if times > 1 else step
        for step, times in life.ran.items()
    )


@contextlib.contextmanager
def _default_database(database: str) -> Iterator[None]:
    """Set DURABLE_DATABASE_URL to this database."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = database
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


async def _call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that may be async."""
    result = function(*args)
    return await result if inspect.isawaitable(result) else result
