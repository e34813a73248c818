"""Group commit: collects items while a statement runs, and sends them with the next.

There is no timer: a single item is sent at once, a hundred share one commit.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Outcomes = Sequence[object]


RETRY: Final = object()
"""The outcome of an item whose rows were locked by another session."""

_MAX_PAUSE: Final = 2.0


@dataclass(slots=True)
class _Entry(Generic[Item, Outcome]):
    item: Item
    future: asyncio.Future[Outcome]
    size: int
    failures: int = 0


class Batcher(Generic[Item, Outcome]):
    """Sends one statement at a time, with all items submitted since the last one.

    `send` gets a batch and returns for each item an outcome, an exception, or RETRY. An
    item with RETRY is sent again later, in a batch of its own, so that it delays no
    other item. If `send` raises, the batch is divided until the item at fault is alone,
    and only that item fails. A batch is limited to `max_items` items and to `max_bytes`
    bytes, as measured by `size`.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Outcomes]],
        *,
        size: Callable[[Item], int] = lambda _: 0,
        max_items: int = 1_000,
        max_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._size = size
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._waiting: deque[_Entry[Item, Outcome]] = deque()
        self._retries: deque[_Entry[Item, Outcome]] = deque()
        self._last_was_retry = False  # retries and new items take turns
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    def submit(self, item: Item) -> asyncio.Future[Outcome]:
        """Submit an item. The future is done once its statement has committed."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._enqueue(_Entry(item, future, self._size(item)), self._waiting)
        return future

    async def close(self) -> None:
        """Cancel all items whose statement has not committed."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait({self._sender})

    def _enqueue(
        self, entry: _Entry[Item, Outcome], queue: deque[_Entry[Item, Outcome]]
    ) -> None:
        if self._closed:
            entry.future.cancel()
            return
        queue.append(entry)
        if self._sender is None:
            # an empty context: the sender serves all callers, not just the first
            self._sender = self._loop.create_task(
                self._send_all(), context=contextvars.Context()
            )

    async def _send_all(self) -> None:
        try:
            while self._waiting or self._retries:
                await self._send_batch(self._next_batch())
        finally:
            self._sender = None
            for entry in (*self._waiting, *self._retries):
                entry.future.cancel()
            self._waiting.clear()
            self._retries.clear()

    async def _send_batch(self, batch: list[_Entry[Item, Outcome]]) -> None:
        parts = [batch]
        try:
            while parts:
                part = parts.pop()
                try:
                    outcomes = await self._send([entry.item for entry in part])
                except Exception as error:  # noqa: BLE001 - passed to the waiters
                    if len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                        continue
                    outcomes = [error]
                for entry, outcome in zip(part, outcomes, strict=True):
                    self._deliver(entry, outcome)
        except asyncio.CancelledError:
            for entry in batch:
                entry.future.cancel()
            raise

    def _deliver(self, entry: _Entry[Item, Outcome], outcome: object) -> None:
        if entry.future.done():
            return
        if outcome is RETRY:
            entry.failures += 1
            pause = min(0.05 * 2**entry.failures, _MAX_PAUSE)
            self._loop.call_later(pause, self._enqueue, entry, self._retries)
        elif isinstance(outcome, Exception):
            entry.future.set_exception(outcome)
        else:
            entry.future.set_result(outcome)  # type: ignore[arg-type]

    def _next_batch(self) -> list[_Entry[Item, Outcome]]:
        self._last_was_retry = bool(
            self._retries and not (self._last_was_retry and self._waiting)
        )
        if self._last_was_retry:
            return [self._retries.popleft()]
        batch: list[_Entry[Item, Outcome]] = []
        size = 0
        while self._waiting and len(batch) < self._max_items:
            size += self._waiting[0].size
            if batch and size > self._max_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch
