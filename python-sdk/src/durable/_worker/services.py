"""What all runs of a worker share: its connections, and the lanes in front of them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import psycopg

from durable import _sql
from durable._http import Clients
from durable._messages import Message
from durable._sql import Statement
from durable._worker.calls import WaitItem, WaitLane
from durable._worker.history import Call
from durable._worker.lane import AGAIN, Lane, Outcomes
from durable._worker.link import Link, is_busy
from durable._worker.pools import Pools
from durable._worker.run import Claimed, Run
from durable._worker.saving import Saving
from durable._worker.threads import Threads
from durable._worker.waits import Resolved
from durable.errors import DurableError

if TYPE_CHECKING:
    from durable._application import Application

__all__ = ["Child", "Services"]


_NOTES_SECONDS: Final = 0.02


class Child(NamedTuple):
    """A child to be spawned, as JSON, by a parent under its claim."""

    queue: str
    task_id: UUID
    claim: int
    child_queue: str
    child: str


class Services:
    """The links and lanes of one worker.

    Claims and loads go through one connection, flushes through another, and what may
    have to wait for other rows (waits, children, events) through a third, so that none
    of them holds up the others.
    """

    def __init__(
        self,
        application: Application,
        state: Any,
        *,
        lease: float,
        connect: Callable[[str], Link],
    ) -> None:
        self.application = application
        self.state = state
        self.lease = lease
        # kept, since to ask for it costs a system call before Python 3.12
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.threads = Threads()
        self.pools = Pools(application.conninfo, prepare=application.prepare)
        self.http = Clients()
        self.claiming = connect("claim")
        self.flushing = connect("flush")
        self.calling = connect("call")
        self.saving = Saving(self.flushing)
        self.suspending: WaitLane = Lane(self._suspend)
        self.polling: WaitLane = Lane(self._poll)
        self._noting: Lane[str, None] = Lane(self._apply_notes)
        self.spawning: Lane[Child, str] = Lane(
            self._spawn, size=lambda child: len(child.child)
        )

    async def close(self) -> None:
        """Give up what has not been sent, and close the connections."""
        for lane in (
            self.saving,
            self.suspending,
            self.polling,
            self.spawning,
            self._noting,
        ):
            await lane.close()
        for link in (self.claiming, self.flushing, self.calling):
            await link.close()
        await self.pools.close()
        await self.http.close()

    async def emit(self, claimed: Claimed, call: Call, event: str, payload: str) -> str:
        """Emit an event from a task. Returns whether it was the first, as JSON."""
        statement = _sql.emit_from_task(
            claimed.queue,
            claimed.task_id,
            claimed.claim,
            call.key,
            event,
            self.application.vault.sealed(payload),
            call.position,
            call.after,
        )
        ((first,),) = await self.calling.fetch(statement)
        return "true" if first else "false"

    async def send(self, claimed: Claimed, call: Call, message: Message) -> str:
        """Send a message from a task. Returns whether it is a new one, as JSON."""
        statement = _sql.send_from_task(
            claimed.queue,
            claimed.task_id,
            claimed.claim,
            call.key,
            message,
            call.position,
            call.after,
        )
        own = message.queue == claimed.queue
        ((is_new,),) = await self.calling.fetch(statement, own=own)
        return "true" if is_new else "false"

    def spawn(self, claimed: Claimed, queue: str, child: str) -> asyncio.Future[str]:
        """Spawn a child of a task in a queue. Gives what its checkpoint says."""
        return self.spawning.submit(
            Child(claimed.queue, claimed.task_id, claimed.claim, queue, child)
        )

    async def extend(self, run: Run) -> str:
        """Extend one lease. Returns the outcome."""
        claimed = run.claimed
        held = [{"task_id": str(claimed.task_id), "claim": claimed.claim}]
        ((_, outcome),) = await self.calling.fetch(
            _sql.extend_leases(claimed.queue, json.dumps(held), self.lease)
        )
        return str(outcome)

    async def put_back(self, claimed: Claimed, seconds: float) -> None:
        """Give a task back that nobody is to take for a while; no attempt is used."""
        now = claimed.claimed_at + timedelta(seconds=time.monotonic() - claimed.asked)
        held = {
            "task_id": str(claimed.task_id),
            "claim": claimed.claim,
            "available_at": (now + timedelta(seconds=seconds)).isoformat(),
        }
        await self.calling.fetch(_sql.release_tasks(claimed.queue, json.dumps([held])))

    async def _suspend(self, items: Sequence[WaitItem]) -> Outcomes:
        outcomes = await self._ask(_sql.suspend_tasks, items)
        for queue in {item.queue for item in items if '"task_ids"' in item.waits}:
            self._noting.submit(queue)
        return outcomes

    async def _apply_notes(self, queues: Sequence[str]) -> Outcomes:
        """Apply soon what joins left undone because their children were just finishing.

        Housekeeping would, within a second.
        """
        await asyncio.sleep(_NOTES_SECONDS)
        for queue in set(queues):
            await self.calling.fetch(_sql.apply_notes(queue))
        return [None] * len(queues)

    async def _poll(self, items: Sequence[WaitItem]) -> Outcomes:
        return await self._ask(_sql.poll_waits, items)

    async def _ask(
        self, statement: Callable[[str, str], Statement], items: Sequence[WaitItem]
    ) -> Outcomes:
        by_queue: defaultdict[str, list[WaitItem]] = defaultdict(list)
        for item in items:
            by_queue[item.queue].append(item)
        outcome: dict[UUID, str] = {}
        resolved: defaultdict[UUID, dict[str, Resolved]] = defaultdict(dict)
        refused: dict[UUID, object] = {}
        for queue, asked in by_queue.items():
            ask = partial(statement, queue)
            for task_id, what, key, state, value in await self._ask_of(
                ask, asked, refused
            ):
                outcome[task_id] = what
                if what == "resolved":
                    resolved[task_id][key] = Resolved(state, value)
        return [
            refused.get(item.task_id) or (outcome[item.task_id], resolved[item.task_id])
            for item in items
        ]

    async def _ask_of(
        self,
        ask: Callable[[str], Statement],
        items: Sequence[WaitItem],
        refused: dict[UUID, object],
    ) -> list[tuple[Any, ...]]:
        """Ask for some tasks; what is refused is refused alone."""
        tasks = ",".join(map(_item_json, items))
        try:
            return await self.calling.fetch(
                ask(f"[{tasks}]"), patient=False, own='"queues"' not in tasks
            )
        except (DurableError, psycopg.Error) as error:
            if is_busy(error) or len(items) == 1:
                answer = AGAIN if is_busy(error) else error
                refused.update((item.task_id, answer) for item in items)
                return []
            middle = len(items) // 2
            return [
                *await self._ask_of(ask, items[:middle], refused),
                *await self._ask_of(ask, items[middle:], refused),
            ]

    async def _spawn(self, children: Sequence[Child]) -> Outcomes:
        together: defaultdict[Child, list[int]] = defaultdict(list)
        for index, child in enumerate(children):
            together[child._replace(child="")].append(index)
        outcomes: list[Any] = [None] * len(children)
        for parent, indexes in together.items():
            texts = [children[index].child for index in indexes]
            for index, spawned in zip(
                indexes, await self._spawn_of(parent, texts), strict=True
            ):
                outcomes[index] = spawned
        return outcomes

    async def _spawn_of(self, parent: Child, children: Sequence[str]) -> Outcomes:
        """Spawn one task's children in one queue; what is refused is refused alone."""
        queue, task_id, claim, there, _ = parent
        texts = f"[{','.join(children)}]"
        own = there == queue
        statement = (
            _sql.spawn_children(queue, task_id, claim, texts)
            if own
            else _sql.spawn_children_in(queue, task_id, claim, there, texts)
        )
        try:
            rows = await self.calling.fetch(statement, patient=False, own=own)
        except (DurableError, psycopg.Error) as error:
            if is_busy(error):
                return [AGAIN] * len(children)
            if len(children) == 1:
                return [error]
            middle = len(children) // 2
            return [
                *await self._spawn_of(parent, children[:middle]),
                *await self._spawn_of(parent, children[middle:]),
            ]
        return [
            json.dumps(
                {
                    "task_id": str(task_id),
                    "run_id": str(run_id),
                    "attempt": attempt,
                    "created": created,
                    **({} if own else {"queue": there}),
                }
            )
            for _, task_id, run_id, attempt, created in rows
        ]


def _item_json(item: WaitItem) -> str:
    withdrawn = f',"withdrawn":{item.withdrawn}' if item.withdrawn else ""
    return (
        f'{{"task_id":"{item.task_id}","claim":{item.claim},'
        f'"waits":{item.waits}{withdrawn}}}'
    )
