"""Killing workers at the boundaries of a user's own task, one after the other.

A task is spawned once, in a database that is then copied for each life: so all lives
begin alike, to the task's id. In each a worker in a process of its own brings the task
to its end, but for the SIGKILL; then its leases are over, and another one takes over.
A task survives if what it returned and the effects that were counted are what they are
when nothing disturbs it.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from signal import SIGKILL
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import psycopg

from durable._requests import OMITTED, SpawnRequest
from durable._results import opened
from durable._sql import get_task_result
from durable._values import PLAIN
from durable._vault import unsealed_error
from durable.errors import InvalidArgument
from durable.registry import AnyTask
from durable.testing._applications import queues_of
from durable.testing._boundaries import is_named
from durable.testing._clock import EngineClock
from durable.testing._databases import (
    Copies,
    copied,
    create_queues,
    drop,
    require_test_database,
)
from durable.testing._driving import PATIENCE, App
from durable.testing._dsn import with_dbname
from durable.testing._inline import fetch, request_of, spawn_on
from durable.testing._living import LIVE
from durable.testing._nursery import zygote_for
from durable.testing._references import Reference, reference_to
from durable.testing._reports import (
    CrashReport,
    CrashUnsafe,
    Life,
    short,
    steps_that_ran,
)
from durable.testing._zygote import Child

__all__ = ["crash_at", "crash_everywhere"]

_DEAD: Final = -SIGKILL
_TRIES: Final = 3
_ATTEMPTS: Final = 5  # of a task that says nothing
_RAW: Final = re.compile(r"\w+#\d+:\w+")
_DISCONNECT: Final = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = %s
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
    params: Any = OMITTED,
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
    """Kill the worker of a task at every boundary; another one must make it good.

        report = await crash_everywhere(
            app, ProcessOrder, order, effects="select order_id from charges"
        )

    The task runs undisturbed first, which tells the boundaries: before, during and
    after each durable call, around what its steps say to a database through psycopg,
    and at its end. Each kill is a life of its own, in a copy of one database: `prepare`
    is called once with its URL, to make tables and rows. `effects` says what the task
    has done to the world, as a query in that database, or as a function of its URL.

    Raises CrashUnsafe, an AssertionError, unless the task ends in every life as it does
    undisturbed: with the same state, the same output as far as `compare` of it, and the
    same effects; and if `check` of a life raises an AssertionError. Raises
    InvalidArgument if it fails undisturbed, by all its attempts. `events` and
    `options` are as in `run_inline`, `only` chooses among the boundaries. Tasks,
    lifespan and codecs must be importable: not inside a function. The functions may be
    async.
    """
    asked = request_of(app, task, params, options)
    lives: list[Life] = []
    missed: list[str] = []
    faults: list[tuple[Life, str]] = []
    world = _World(prepare, effects, events, patience)
    async with _Stage(app, asked, world) as stage:
        undisturbed, points = await stage.undisturbed(check)
        _refuse_exhausted(asked, undisturbed)

        async def judge(life: Life) -> str:
            return await _fault(life, undisturbed, compare, check)

        for point in filter(only, points):
            life, fault = await stage.dies_at(point, judge)
            if fault:
                faults.append((life, fault))
            if life.died or fault:
                lives.append(life)
            else:
                missed.append(point)
    if faults:
        raise CrashUnsafe(asked.task, faults, len(lives))
    return CrashReport(asked.task, undisturbed, lives, missed)


def _refuse_exhausted(asked: SpawnRequest[Any], life: Life) -> None:
    """Refuse a task that fails by itself until no attempt is left: a kill takes one."""
    limit = json.loads(asked.options).get("max_attempts", _ATTEMPTS)
    if life.state == "failed" and 1 < life.attempts == limit:
        raise InvalidArgument(
            f"{asked.task} fails undisturbed, in all its {limit} attempts:"
            f" {life.error}",
            hint="Give it what it needs, with `prepare` for instance; where it is to"
            " fail, it says so at once with NonRetryable.",
        )


async def crash_at(
    point: str,
    app: App,
    task: AnyTask | str,
    params: Any = OMITTED,
    *,
    prepare: Callable[[str], Any] | None = None,
    effects: Effects | None = None,
    check: Callable[[Life], Any] | None = None,
    events: Mapping[str, Any] | None = None,
    patience: float = PATIENCE,
    **options: Any,
) -> Life:
    """Kill the worker of a task at one boundary, let another go on, return the life.

        life = await crash_at("during:charge", app, ProcessOrder, order)
        assert life.ran["charge"] == 2

    `before:charge` is before the step's function, `during:charge` after it and before
    anything is saved, `sent:charge` while that is on its way, `after:charge` behind it;
    `…:$end` the same of the task's completion. All else is as in `crash_everywhere`.
    Raises InvalidArgument if the task does not come there; that names where it comes.
    """
    asked = request_of(app, task, params, options)
    world = _World(prepare, effects, events, patience)
    async with _Stage(app, asked, world) as stage:
        life, _ = await stage.life(point, check)
        if not life.died:
            _, points = await stage.undisturbed()
            raise InvalidArgument(
                f'{asked.task} does not come to "{point}"',
                hint=f"It comes to {', '.join(points)}.",
            )
    return life


class _World(NamedTuple):
    """What there is around a task: its tables, what it does to them, what it hears."""

    prepare: Callable[[str], Any] | None
    effects: Effects | None
    events: Mapping[str, Any] | None
    patience: float


class _Stage:
    """Where all lives of one task begin, and the processes that live them."""

    def __init__(self, app: App, asked: SpawnRequest[Any], world: _World) -> None:
        application = app.application
        known = application.registry.by_name.values()
        self._application = application
        self._asked = asked
        self._world = world
        self._events = {
            name: json.loads(PLAIN.dump(payload))
            for name, payload in (world.events or {}).items()
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
            start = await asyncio.to_thread(copied, admin, template)
            self._exits.callback(drop, admin, start)
            found = admin.execute("select durable.list_queues()").fetchall()
            queues = queues_of(self._application) | {name for (name,) in found}
            await self._begin(with_dbname(conninfo, start), queues)
            admin.execute(_DISCONNECT, [start])  # so that it can be copied
        except BaseException:
            await self._exits.aclose()
            raise
        self._copies = Copies(admin, start)
        self._exits.push_async_callback(self._copies.close)
        homes = {one.home for one in (*self._tasks, *self._codecs)}
        if self._lifespan is not None:
            homes.add(self._lifespan.home)
        self._zygote = zygote_for(sorted(homes, key=str), sys.path, Path.cwd())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    async def _begin(self, database: str, queues: Iterable[str]) -> None:
        with psycopg.connect(database, autocommit=True) as session:
            create_queues(session, queues)
            if self._world.prepare is not None:
                await _called(self._world.prepare, database)
            EngineClock(database=database).close()
            self._task_id = spawn_on(session, self._asked)

    async def undisturbed(
        self, check: Callable[[Life], Any] | None = None
    ) -> tuple[Life, list[str]]:
        """Return the life without a crash, and the boundaries it passes."""
        passed: list[str] = []
        life, _ = await self.life(None, check, passed)
        named = dict.fromkeys(filter(is_named, passed))
        return life, [short(point, self._asked.task) for point in named]

    async def dies_at(
        self, point: str, judge: Callable[[Life], Awaitable[str]]
    ) -> tuple[Life, str]:
        """Die at a point, which may not come at once; return what is wrong then."""
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
        """Live once and die at this point. Returns the life, and what `check` says."""
        points = [] if passed is None else passed
        async with self._copies.one() as name:
            database = with_dbname(self._application.conninfo, name)
            died = await self._to_the_end(database, point, points)
            life = await self._lived(database, point, points, died=died)
            return life, None if check is None else await _called(check, life)

    async def _to_the_end(
        self, database: str, point: str | None, passed: list[str]
    ) -> bool:
        """Let one worker live, and another go on if it dies; return whether it did."""
        died = await self._one_worker(database, self._kills(point), passed) == _DEAD
        if died:
            with psycopg.connect(database, autocommit=True) as session:
                session.execute(_END_LEASES)
                session.execute(_EXPIRE)
            await self._one_worker(database, [], passed)
        return died

    async def _one_worker(
        self, database: str, kill_at: list[str], passed: list[str]
    ) -> int:
        child: Child = await asyncio.to_thread(
            self._zygote.fork,
            LIVE,
            database=database,
            environment={**os.environ, "DURABLE_DATABASE_URL": database},
            app_queue=self._application.queue,
            tasks=self._tasks,
            lifespan=self._lifespan,
            codecs=self._codecs,
            version=self._application.version,
            keep_logs=self._application.keep_logs,
            queue=self._asked.queue,
            task_id=str(self._task_id),
            events=self._events,
            patience=self._world.patience,
            kill_at=kill_at,
        )
        try:
            code = await asyncio.to_thread(
                child.wait, deadline=2 * self._world.patience
            )
        finally:
            child.kill()
        passed += child.passed()
        child.forget()
        if code not in ({0, _DEAD} if kill_at else {0}):
            raise AssertionError(f"a worker ended with {code}:\n{child.output()}")
        return code

    def _kills(self, point: str | None) -> list[str]:
        """Return how the boundary may be spelled: the task's own, and of any other."""
        if point is None:
            return []
        phase, _, rest = point.partition(":")
        if not is_named(point) and not _RAW.fullmatch(point):
            raise InvalidArgument(
                f"{point!r} is no boundary: those of a step are"
                f" before:{point}, during:{point}, sent:{point} and after:{point}"
            )
        return [point, f"{phase}:{self._asked.task}:{rest}"]

    async def _lived(
        self, database: str, point: str | None, passed: list[str], *, died: bool
    ) -> Life:
        with psycopg.connect(database, autocommit=True) as session:
            asked = get_task_result(self._asked.queue, self._task_id)
            (row,) = fetch(session, asked)
        _, state, attempt, result, error = opened(row, self._application.vault)
        completed = state == "completed"
        failure = unsealed_error(json.loads(error)) if error is not None else None
        return Life(
            point,
            died,
            state,
            self._asked.result_codec.load(result) if completed else None,
            None
            if failure is None
            else f"{failure.get('type')}: {failure.get('message')}",
            await _counted(self._world.effects, database),
            steps_that_ran(list(filter(is_named, passed)), self._asked.task),
            attempt,
            database,
        )


async def _counted(effects: Effects | None, database: str) -> Any:
    """Return the effects in a database, so that they compare."""
    if effects is None:
        return None
    if not isinstance(effects, str):
        return await _called(effects, database)
    with psycopg.connect(database, autocommit=True) as session:
        return sorted(session.execute(effects.encode()).fetchall(), key=repr)


async def _fault(
    life: Life,
    undisturbed: Life,
    compare: Callable[[Any], Any],
    check: Callable[[Life], Any] | None,
) -> str:
    """Return what is wrong with a life; nothing, if it is as the undisturbed one."""
    was, here = (_ending(one, compare) for one in (undisturbed, life))
    faults = [
        f"{what}: {here[what]!r}, undisturbed: {was[what]!r}"
        for what in was
        if here[what] != was[what]
    ]
    if check is not None:
        try:
            await _called(check, life)
        except AssertionError as error:
            faults.append(f"check: {error}")
    if faults and not life.died:
        faults.insert(0, "though nothing was killed (compare=… says what may vary):")
    if faults:
        faults.append("steps that ran: " + (_listed(life) or "none"))
    return "\n".join(faults)


def _ending(life: Life, compare: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "state": life.state,
        "output": compare(life.output) if life.state == "completed" else None,
        "error": life.error,
        "effects": life.effects,
    }


def _listed(life: Life) -> str:
    return ", ".join(
        f"{step} {times} times" if times > 1 else step
        for step, times in life.ran.items()
    )


async def _called(function: Callable[..., Any], *args: Any) -> Any:
    """Call what may be async."""
    result = function(*args)
    return await result if inspect.isawaitable(result) else result
