"""Tracks the branches of a run, and suspends the run when all of them wait.

A branch is an asyncio task that makes durable calls. A wait parks its branch on a
future. The run exits when at least one branch is parked and no durable call is busy:
immediately if only the task's own coroutine (the root) has made calls, otherwise once
no call was made for 10 ms and for 30 turns of the loop (with only one of the two, runs
exited too early). One statement registers all waits and ends the claim. If one of the
waits is already resolved, the claim is kept and the branches continue.

While another branch is busy, the parked waits are polled when a sleep is due, and at
least once a second. Polling registers them too, so their deadlines count from then on.

If the branch of a wait is cancelled, the next statement withdraws the wait before it
looks for results. So the wait neither wakes the task nor takes a message that a later
wait should get.

Normally, asyncio tasks that were given a call to await start it while something else is
being saved. During a replay nothing is saved, so the run yields for a few turns of the
loop instead. It does the same when the code has ended, before it reports a call as
never awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import json
import logging
import time
from collections.abc import (
    Callable,
    Container,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from functools import partial
from types import CoroutineType, FrameType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from durable._core import sql
from durable._core.outcomes import Resolved
from durable._core.sql import Statement
from durable._db.batcher import RETRY, Batcher, Outcomes
from durable._db.reconnecting import ReconnectingConnection, is_busy
from durable._task.checkpoints import Call
from durable.errors import Suspended, UnreadablePayload

if TYPE_CHECKING:
    from durable._task.run import Run

__all__ = ["Branch", "Branches", "Wait", "WaitFlusher", "WaitItem"]

logger = logging.getLogger("durable.task")

_SETTLE_SECONDS: Final = 0.010
_SETTLE_TURNS: Final = 30
_START_TURNS: Final = 3  # one for a task, one for a task it creates, one to spare
_POLL_SECONDS: Final = 1.0
_SHORTEST_POLL: Final = 0.02
_DEFERRED_SECONDS: Final = 0.02
_WARNED_AT_MOST: Final = 10_000
_warned: set[tuple[str, str, int]] = set()  # places of asyncio timeouts

Branch: TypeAlias = "asyncio.Task[Any]"


@dataclass(slots=True)
class Wait:
    """A wait of one branch."""

    call: Call
    event: str | None = None
    task_ids: Sequence[str] | None = None
    queues: Sequence[str | None] | None = None  # of those tasks; None: the task's own
    any_of: bool | None = None  # True: resolved by the first of those tasks
    due: float | None = None  # end of the sleep or timeout, by time.monotonic()
    until: str | None = None  # the same by the database's clock
    topic: str | None = None
    branch: Branch | None = None  # set while it is parked
    future: asyncio.Future[Resolved] = field(init=False)

    def as_json(self, now: float) -> dict[str, Any]:
        """Return the wait as `durable.suspend_tasks` takes it."""
        spec: dict[str, Any] = {
            "name": self.call.key,
            "position": self.call.position,
            "after": self.call.after,
        }
        for name in ("event", "task_ids", "queues", "any_of", "topic", "until"):
            if (value := getattr(self, name)) is not None:
                spec[name] = value
        if self.until is None and self.due is not None:
            spec["seconds"] = max(self.due - now, 0.0)
        return spec

    def as_withdrawn(self) -> dict[str, Any]:
        """Return the wait as `durable.suspend_tasks` takes one to withdraw."""
        spec: dict[str, Any] = {"name": self.call.key, "position": self.call.position}
        if self.topic is not None:
            spec["topic"] = self.topic
        return spec


class Branches:
    """The branches of one run: which are busy, and which are parked."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.loop = run.loop
        self.open_steps: dict[str, Branch] = {}
        self.unawaited: dict[int, tuple[str, Coroutine[Any, Any, Any]]] = {}
        self.starting: asyncio.Task[None] | None = None  # lets other calls start
        self._started_up_to = 0  # calls up to this position had time to start
        self._threads: set[asyncio.Future[Any]] = set()
        self._parked: dict[str, Wait] = {}
        self._withdrawn: dict[str, Wait] = {}  # by key, for the next statement
        self._in_flight = 0  # statements about waits
        self._busy: dict[Branch, int] = {}
        self._busy_count = 0
        self._calls = 0
        self.only_root = True  # no other branch has made a call
        self._code_done = False
        self.gate: asyncio.Future[None] | None = None  # set while the run exits
        self._idle: asyncio.Future[None] | None = None
        self._exiting: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None

    def forget(self) -> None:
        """Drop references that form cycles, once the run has ended."""
        self.unawaited.clear()
        del self._run

    # -- calls that have not started -----------------------------------------------

    async def let_others_start(self) -> None:
        """Yield to the loop so that calls already made can start."""
        if self.starting is None:
            latest = next(reversed(self.unawaited))
            if latest <= self._started_up_to:
                return
            self._started_up_to = latest
            self.starting = self._create_task(self._yield_turns())
        await asyncio.shield(self.starting)

    async def _yield_turns(self) -> None:
        try:
            for _ in range(_START_TURNS):
                await asyncio.sleep(0)
        finally:
            self.starting = None

    async def raise_if_unawaited(self, saved: Container[str]) -> None:
        """Raise RuntimeError for calls that the code has made and not awaited.

        Calls that are saved were done, and calls that were cancelled before they
        started are not reported. While such a cancellation is in progress, the call may
        belong to the task that is being cancelled: then nothing is reported.
        """
        is_sure = not any(map(_is_cancelled_before_start, asyncio.all_tasks(self.loop)))
        await self.let_others_start()
        forgotten = []
        for key, coroutine in self.unawaited.values():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()  # avoid Python's own warning
                if key not in saved:
                    forgotten.append(repr(key))
        if forgotten and is_sure:
            raise RuntimeError(
                f"{', '.join(forgotten)}: called and never awaited, so it was not done;"
                " write await before the call"
            )

    # -- busy calls ----------------------------------------------------------------

    def try_enter(self, root: Branch | None) -> Branch | None:
        """Begin a durable call and return its branch; None while the run is exiting.

        `root` is the task's own coroutine, None for a synchronous task.
        """
        branch = asyncio.current_task(self.loop)
        if branch is None:
            raise RuntimeError("a durable call is awaited outside any asyncio task")
        self._calls += 1
        if self.only_root:
            self.only_root = root is None or root is branch
        return None if self.gate is not None else self._enter(branch)

    async def enter_later(self) -> Branch:
        """Begin a durable call that `try_enter` has counted once the gate is open."""
        await self.wait_for_gate()
        branch: Any = asyncio.current_task(self.loop)
        return self._enter(branch)

    async def wait_for_gate(self) -> None:
        """Wait while the run is trying to exit."""
        while self.gate is not None:
            await asyncio.shield(self.gate)

    def _enter(self, branch: Branch) -> Branch:
        self._busy_count += 1
        self._busy[branch] = self._busy.get(branch, 0) + 1
        return branch

    def exit(self, branch: Branch) -> None:
        """End a durable call."""
        calls = self._busy.pop(branch)
        if calls > 1:
            self._busy[branch] = calls - 1
        self._call_ended()

    async def wait_until_idle(self) -> None:
        """Wait until no call is busy, except for open steps and parked branches."""
        while self.open_steps:
            _, branch = self.open_steps.popitem()
            self.exit(branch)
        while self._busy_count:
            if self._idle is None:
                self._idle = self.loop.create_future()
            await asyncio.shield(self._idle)

    def cancel_busy(self, *spared: Branch | None) -> None:
        """Cancel the branches that are in a durable call, except those `spared`."""
        for branch in list(self._busy):
            if branch not in spared:
                branch.cancel()

    def track_thread(self, thread: asyncio.Future[Any]) -> None:
        """Count a thread as busy although no branch awaits it any more."""
        self._busy_count += 1
        self._threads.add(thread)
        thread.add_done_callback(self._on_thread_done)

    async def wait_for_threads(self) -> None:
        """Wait for all tracked threads, since a thread cannot be cancelled."""
        while self._threads:
            await asyncio.wait(self._threads)

    def _on_thread_done(self, thread: asyncio.Future[Any]) -> None:
        self._threads.discard(thread)
        self._call_ended()
        if not thread.cancelled():
            thread.exception()  # mark as retrieved: the outcome is discarded

    def _call_ended(self) -> None:
        self._busy_count -= 1
        if self._busy_count == 0 and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None
        if self._parked:
            self._exit_or_poll()

    # -- parked branches -----------------------------------------------------------

    async def park(self, branch: Branch, wait: Wait) -> Resolved:
        """Park a branch, which has entered, until its wait is resolved."""
        key = wait.call.key
        wait.branch = branch
        wait.future = self.loop.create_future()
        self._parked[key] = wait
        self.exit(branch)
        try:
            return await wait.future
        except asyncio.CancelledError:
            if wait.future.cancelled() or wait.future.exception() is None:
                self.withdraw(wait)  # else the run has exited
            raise
        finally:
            self._parked.pop(key, None)
            self._enter(branch)

    def withdraw(self, wait: Wait) -> None:
        """Withdraw a wait with the next statement, because its branch is cancelled."""
        self._withdrawn[wait.call.key] = wait

    def parked(self) -> set[asyncio.Future[Any]]:
        """Return the futures on which branches are parked."""
        return {wait.future for wait in self._parked.values()}

    def _pending(self) -> list[Wait]:
        return [wait for wait in self._parked.values() if not wait.future.done()]

    async def end(self) -> None:
        """End all waits because the code has ended, so that the run no longer exits.

        If the run is already exiting, wait until it has exited or failed to.
        """
        self._code_done = True
        leaving = self._exiting
        if leaving is not None and self.gate is not None:
            await asyncio.wait({leaving})
        self.close()

    def close(self, reason: Suspended | None = None) -> None:
        """End all waits with this exception, and stop exiting and polling."""
        if self._parked:
            self._fail(reason or Suspended("ended"))
        if self.gate is not None:
            self._open_gate()
        for task in (self._exiting, self._polling):
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    # -- suspending and polling ----------------------------------------------------

    def _exit_or_poll(self) -> None:
        if self._code_done or not self._pending():
            return
        if self._busy_count:
            if self._polling is None:
                self._polling = self._create_task(self._poll_parked())
        elif self._exiting is None:
            self._exiting = self._create_task(self._exit_when_settled())

    def _create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Create a task outside of the context of the task's code."""
        return self.loop.create_task(work, context=contextvars.Context())

    async def _exit_when_settled(self) -> None:
        try:
            while self._can_exit():
                if self.only_root or await self._is_settled():
                    await self._try_exit()
                await asyncio.sleep(0)  # resolved branches continue first
        finally:
            self._exiting = None
        self._exit_or_poll()  # a branch may have become busy: then poll

    async def _is_settled(self) -> bool:
        calls = self._calls
        await asyncio.sleep(_SETTLE_SECONDS)
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
        return calls == self._calls and self._can_exit()

    def _can_exit(self) -> bool:
        return bool(not self._code_done and not self._busy_count and self._pending())

    async def _try_exit(self) -> None:
        self.gate = self.loop.create_future()
        try:
            resolved = await self.suspend()
        except Exception as error:  # noqa: BLE001 - passed to the waiters
            self._fail(error)
        except BaseException:
            self._open_gate()
            raise
        else:
            if resolved is None:
                return
            self._resolve(resolved)
        self._open_gate()

    async def _poll_parked(self) -> None:
        try:
            while (pending := self._pending()) and self._busy_count:
                now = time.monotonic()
                due = [wait.due - now for wait in pending if wait.due]
                await asyncio.sleep(max(min([_POLL_SECONDS, *due]), _SHORTEST_POLL))
                if self._pending() and self.gate is None:
                    self._resolve(await self.poll() or {})
        except Exception as error:  # noqa: BLE001 - passed to the waiters
            self._fail(error)
        finally:
            self._polling = None

    async def suspend(self) -> dict[str, Resolved] | None:
        """Register all waits and end the claim, unless one of them is resolved.

        Returns those that are, by key; None if the claim has ended.
        """
        waits = self._as_json()
        await self._run.save_failures()
        return await self._register(sql.suspend_tasks, waits)

    async def poll(self) -> dict[str, Resolved] | None:
        """Register all waits and keep the claim. Returns the resolved ones by key."""
        return await self._register(sql.poll_waits, self._as_json())

    def _as_json(self) -> str:
        now = time.monotonic()
        return json.dumps([wait.as_json(now) for wait in self._pending()])

    async def _register(
        self, statement: WaitStatement, waits: str
    ) -> dict[str, Resolved] | None:
        run, claimed = self._run, self._run.claimed
        sent = list(self._withdrawn.values())
        text = json.dumps([wait.as_withdrawn() for wait in sent]) if sent else ""
        item = WaitItem(claimed.queue, claimed.task_id, claimed.claim, waits, text)
        self._in_flight += 1
        try:
            send = run.services.waits.submit
            outcome, resolved = await run.write("wait", send, statement, item)
        finally:
            self._in_flight -= 1
        if outcome == "suspended" and run.definition.is_async:
            parked = [
                (wait.call.key, wait.due, wait.branch)
                for wait in self._pending()
                if wait.branch is not None
            ]
            _warn_of_timeouts(claimed.name, parked, run.root, run.ids)
        if outcome in ("suspended", "cancelled", "lost"):
            run.exit(outcome)
        if not self._in_flight:  # another statement may include one of these
            for wait in sent:
                del self._withdrawn[wait.call.key]
        # the next statement returns the messages of withdrawn waits, and a wait may
        # have been registered only by an earlier attempt
        resolved = {
            key: found
            for key, found in resolved.items()
            if key in self._parked and key not in self._withdrawn
        }
        try:
            resolved = run.checkpoints.decoded(resolved)
        except UnreadablePayload as error:
            run.unreadable = error
            run.exit("unreadable")
        return None if run.exit_reason is not None else resolved

    def _resolve(self, resolved: dict[str, Resolved]) -> None:
        for wait in self._pending():
            if wait.call.key in resolved:
                wait.future.set_result(resolved[wait.call.key])

    def _fail(self, error: BaseException) -> None:
        for wait in self._pending():
            wait.future.set_exception(error)

    def _open_gate(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None and not gate.done():
            gate.set_result(None)


def _is_cancelled_before_start(task: asyncio.Task[Any]) -> bool:
    """Whether a task that has not started is being cancelled."""
    code = task.get_coro()
    return (
        task.cancelling() > 0
        and inspect.iscoroutine(code)
        and inspect.getcoroutinestate(code) == inspect.CORO_CREATED
    )


# -- the waits of all runs ------------------------------------------------------------


class WaitItem(NamedTuple):
    """The waits of one run, and those to withdraw, as JSON."""

    queue: str
    task_id: UUID
    claim: int
    waits: str
    withdrawn: str = ""

    def as_json(self) -> str:
        """Return the item as `durable.suspend_tasks` takes it."""
        withdrawn = f',"withdrawn":{self.withdrawn}' if self.withdrawn else ""
        return (
            f'{{"task_id":"{self.task_id}","claim":{self.claim},'
            f'"waits":{self.waits}{withdrawn}}}'
        )


WaitBatcher: TypeAlias = Batcher[WaitItem, tuple[str, dict[str, Resolved]]]
WaitStatement: TypeAlias = Callable[[str, str], Statement]


class WaitFlusher:
    """Registers the waits of all runs: those of one queue in one statement.

    Each outcome is that of the run, with its resolved waits by key.
    """

    def __init__(self, connection: ReconnectingConnection) -> None:
        self._connection = connection
        self._batchers: dict[tuple[str, WaitStatement], WaitBatcher] = {}
        self._deferred: Batcher[str, None] = Batcher(self._apply_deferred_work)

    def submit(
        self, statement: WaitStatement, item: WaitItem
    ) -> asyncio.Future[tuple[str, dict[str, Resolved]]]:
        """Send waits by `sql.suspend_tasks` or `sql.poll_waits`."""
        batcher = self._batchers.get((item.queue, statement))
        if batcher is None:
            batcher = Batcher(partial(self._send, statement, item.queue))
            self._batchers[item.queue, statement] = batcher
        return batcher.submit(item)

    async def close(self) -> None:
        """Cancel what is not committed."""
        for batcher in self._batchers.values():
            await batcher.close()
        await self._deferred.close()

    async def _send(
        self, statement: WaitStatement, queue: str, items: Sequence[WaitItem]
    ) -> Outcomes:
        # an earlier run of a task may still send waits at the same time as the current
        # one, and the answer does not say which claim it is about
        sent = {item.task_id: item for item in reversed(items)}
        waits = ",".join(map(WaitItem.as_json, sent.values()))
        try:
            rows = await self._connection.fetch(
                statement(queue, f"[{waits}]"),
                retry_busy=False,
                own_queue='"queues"' not in waits,
            )
        except Exception as error:
            if is_busy(error):  # dividing the batch would wait again for each part
                return [RETRY] * len(items)
            raise
        if statement is sql.suspend_tasks and '"task_ids"' in waits:
            self._deferred.submit(queue)
        outcomes: dict[UUID, tuple[str, dict[str, Resolved]]] = {}
        for task_id, outcome, key, state, value in rows:
            _, resolved = outcomes.setdefault(task_id, (outcome, {}))
            if outcome == "resolved":
                resolved[key] = Resolved(state, value)
        return [
            outcomes[item.task_id] if sent[item.task_id] is item else RETRY
            for item in items
        ]

    async def _apply_deferred_work(self, queues: Sequence[str]) -> Outcomes:
        """Apply deferred wake-ups of joins whose children were just finishing.

        Maintenance would apply them within a second; this is sooner.
        """
        await asyncio.sleep(_DEFERRED_SECONDS)
        for queue in set(queues):
            await self._connection.fetch(sql.apply_deferred_work(queue))
        return [None] * len(queues)


# -- asyncio timeouts around waits, which never fire ----------------------------------


def _warn_of_timeouts(
    name: str,
    waits: Sequence[tuple[str, float | None, asyncio.Task[Any]]],
    root: asyncio.Task[Any] | None,
    extra: dict[str, Any],
) -> None:
    """Warn of timeouts around waits, once per location in the code.

    When a task suspends, the timer is lost, and the next run starts a new one. So the
    coroutines that await the waits are inspected for `asyncio.timeout`,
    `asyncio.wait_for`, and the timeouts of anyio and async_timeout. Each of `waits` is
    a key, the time at which it is due, and the asyncio task that waits. `root` is the
    task's own coroutine, which no other task awaits.
    """
    awaiting: dict[Any, list[asyncio.Task[Any]]] = {}
    if any(task is not root for _, _, task in waits):
        for task in asyncio.all_tasks():
            for awaited in _awaited_by(task):
                awaiting.setdefault(awaited, []).append(task)
    found: dict[asyncio.Task[Any], list[tuple[float, FrameType]]] = {}
    for key, due, task in waits:
        for one in _with_awaiting(task, awaiting):
            if one not in found:
                found[one] = list(_timeouts(one))
            for when, frame in found[one]:
                if due is None or due > when:
                    _warn(name, key, frame, extra)


def _warn(name: str, key: str, frame: FrameType, extra: dict[str, Any]) -> None:
    place = (name, frame.f_code.co_filename, frame.f_lineno)
    if place in _warned:
        return
    if len(_warned) >= _WARNED_AT_MOST:
        _warned.clear()
    _warned.add(place)
    logger.warning(
        "task %r waits for %r inside an asyncio timeout, at %s:%d, which never fires:"
        " the task leaves its worker while it waits. Pass timeout= to the wait instead,"
        ' as in `await ctx.await_event("packed", timeout=60)`',
        name,
        key,
        frame.f_code.co_filename,
        frame.f_lineno,
        extra=extra,
    )


def _with_awaiting(
    task: asyncio.Task[Any], awaiting: Mapping[Any, Sequence[asyncio.Task[Any]]]
) -> Iterator[asyncio.Task[Any]]:
    """Yield an asyncio task and all tasks that await it, directly or indirectly."""
    found = [task]
    for one in found:
        yield one
        found += [other for other in awaiting.get(one, ()) if other not in found]


def _awaited_by(task: asyncio.Task[Any]) -> Iterable[Any]:
    """Return what a task awaits, also by gather, wait, wait_for or a TaskGroup."""
    waiter: Any = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        return [waiter]
    if hasattr(waiter, "_children"):
        return list(waiter._children)  # noqa: SLF001 - gather has no other
    innermost = list(_coroutines(task))[-1:]
    for coroutine in innermost:
        known = coroutine.cr_frame.f_locals if coroutine.cr_frame else {}
        group = known.get("self")
        if isinstance(group, asyncio.TaskGroup):
            return list(group._tasks)  # noqa: SLF001 - a TaskGroup has no other
        if coroutine.cr_code.co_filename == asyncio.wait_for.__code__.co_filename:
            return [*(known.get("fs") or ()), known.get("fut")]
    return []


def _coroutines(task: asyncio.Task[Any]) -> Iterator[Any]:
    """Yield the coroutines of a task, from the outermost to the innermost."""
    awaited: Any = task.get_coro()
    while isinstance(awaited, CoroutineType):
        yield awaited
        awaited = awaited.cr_await


def _timeouts(task: asyncio.Task[Any]) -> Iterator[tuple[float, FrameType]]:
    """Yield the deadline of each timeout that a task is inside of, and its frame."""
    place: FrameType | None = None  # the user's frame, not one of asyncio
    for coroutine in _coroutines(task):
        frame = coroutine.cr_frame
        if frame is None:
            continue
        if coroutine.cr_code is asyncio.wait_for.__code__:
            timer = frame.f_locals.get("timeout_handle")  # Python 3.11
            if timer is not None and place is not None:
                yield timer.when(), place
        else:
            place = frame
        for when in _entered(coroutine):
            yield when, place or frame


def _entered(code: Any) -> Iterator[float]:
    """Yield the deadlines of the timeouts whose `with` blocks a coroutine is in."""
    for found in gc.get_referents(code):
        owner = found.__self__ if isinstance(found, MethodType) else found
        if isinstance(owner, asyncio.Timeout):
            if "[active]" in repr(owner) and (when := owner.when()) is not None:
                yield when
        elif owner is not found and found.__name__ in {"__exit__", "__aexit__"}:
            if isinstance(owner, contextlib._GeneratorContextManager):  # noqa: SLF001
                yield from _entered(owner.gen)
            elif type(owner).__module__.startswith(("anyio.", "async_timeout")):
                when = getattr(owner, "deadline", None)
                if isinstance(when, float) and when != float("inf"):
                    yield when
