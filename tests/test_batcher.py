"""A batcher sends together what is ready, and one failing item delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg
import pytest

from durable._db.batcher import RETRY, Batcher, Outcomes
from tests.support.wait import aeventually


class Sender:
    """Records the batches it is given, and answers when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_answer = asyncio.Event()
        self.busy = {"busy"}

    async def send(self, items: Sequence[str]) -> Outcomes:
        self.batches.append(list(items))
        await self.may_answer.wait()
        outcomes = [self._outcome(item) for item in items]
        self.busy.clear()
        return outcomes

    def fail_with(self, error: Exception, item: str) -> None:
        """Fail any batch that contains this item."""
        send = self.send

        async def failing(items: Sequence[str]) -> Outcomes:
            outcomes = await send(items)
            if item in items:
                raise error
            return outcomes

        self.send = failing  # type: ignore[method-assign]

    def _outcome(self, item: str) -> object:
        if item in self.busy:
            return RETRY
        return ValueError(item) if item == "wrong" else item.upper()


async def test_batches_items_that_arrive_while_a_batch_is_in_flight() -> None:
    sender = Sender()
    lane: Batcher[str, str] = Batcher(sender.send)
    first = lane.submit("a")
    await asyncio.sleep(0)
    later = [lane.submit("b"), lane.submit("c")]
    sender.may_answer.set()
    assert [await answer for answer in (first, *later)] == ["A", "B", "C"]
    assert sender.batches == [["a"], ["b", "c"]]


async def test_limits_the_size_of_a_batch() -> None:
    sender = Sender()
    sender.may_answer.set()
    lane: Batcher[str, str] = Batcher(sender.send, size=len, max_items=3, max_bytes=4)
    items = ["aa", "bb", "c", "dddddd", "e", "f", "g", "h"]
    assert await asyncio.gather(*map(lane.submit, items)) == [
        item.upper() for item in items
    ]
    assert sender.batches == [["aa", "bb"], ["c"], ["dddddd"], ["e", "f", "g"], ["h"]]


async def test_reports_to_each_item_its_own_outcome() -> None:
    sender = Sender()
    sender.may_answer.set()
    lane: Batcher[str, str] = Batcher(sender.send)
    good, wrong = lane.submit("good"), lane.submit("wrong")
    assert await good == "GOOD"
    with pytest.raises(ValueError, match="wrong"):
        await wrong


@pytest.mark.parametrize(
    "error",
    [
        UnicodeEncodeError("latin-1", "x", 0, 1, "ordinal not in range"),
        TypeError("cannot use a string pattern on a bytes-like object"),
        psycopg.DataError("invalid input"),
        RuntimeError("whatever else"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_splits_a_failing_batch_until_the_faulty_item_is_alone(
    error: Exception,
) -> None:
    sender = Sender()
    sender.may_answer.set()
    sender.fail_with(error, "bad")
    lane: Batcher[str, str] = Batcher(sender.send)
    items = ["a", "b", "bad", "c", "d", "e"]
    outcomes = await asyncio.gather(*map(lane.submit, items), return_exceptions=True)
    assert outcomes == ["A", "B", error, "C", "D", "E"]


async def test_resends_alone_an_item_locked_by_another_session() -> None:
    sender = Sender()
    sender.may_answer.set()
    lane: Batcher[str, str] = Batcher(sender.send)
    busy, free = lane.submit("busy"), lane.submit("free")
    assert await free == "FREE"
    assert not busy.done()
    sender.may_answer.clear()
    neighbours = [lane.submit("a")]
    await asyncio.sleep(0)
    neighbours.append(lane.submit("b"))
    await aeventually(lambda: asyncio.sleep(0, lane._retries))
    sender.may_answer.set()
    assert await asyncio.gather(busy, *neighbours) == ["BUSY", "A", "B"]
    assert sender.batches == [["busy", "free"], ["a"], ["busy"], ["b"]]


async def test_items_sent_alone_delay_no_others() -> None:
    """However many they are, and however long each of them takes."""
    sender = Sender()
    sender.may_answer.set()
    lane: Batcher[str, str] = Batcher(sender.send)
    sender.busy = {f"busy {number}" for number in range(5)}
    busy = [lane.submit(item) for item in sorted(sender.busy)]
    while sender.busy:  # noqa: ASYNC110 - at once, before one comes again
        await asyncio.sleep(0)
    sender.may_answer.clear()
    await aeventually(lambda: asyncio.sleep(0, len(lane._retries) == 4))
    neighbour = lane.submit("a")
    sender.may_answer.set()
    assert await neighbour == "A"
    assert sender.batches.index(["a"]) == 2
    assert len(await asyncio.gather(*busy)) == 5


async def test_fails_unsent_items_when_it_closes() -> None:
    sender = Sender()
    lane: Batcher[str, str] = Batcher(sender.send)
    sent = lane.submit("sent")
    await asyncio.sleep(0)
    waiting = lane.submit("waiting")
    await lane.close()
    assert sent.cancelled()
    assert waiting.cancelled()
    assert lane.submit("late").cancelled()
