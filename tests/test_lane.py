"""durable commits what is ready together, and lets nothing hold up its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from durable._worker.lane import AGAIN, Lane, Outcomes
from tests.support.wait import aeventually


class Sender:
    """Keeps the batches it is given, and answers when it may."""

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

    def _outcome(self, item: str) -> object:
        if item in self.busy:
            return AGAIN
        return ValueError(item) if item == "wrong" else item.upper()


async def test_sends_together_what_comes_while_a_batch_is_on_its_way() -> None:
    sender = Sender()
    lane: Lane[str, str] = Lane(sender.send)
    first = lane.submit("a")
    await asyncio.sleep(0)
    later = [lane.submit("b"), lane.submit("c")]
    sender.may_answer.set()
    assert [await answer for answer in (first, *later)] == ["A", "B", "C"]
    assert sender.batches == [["a"], ["b", "c"]]


async def test_ends_a_batch_at_its_size() -> None:
    sender = Sender()
    sender.may_answer.set()
    lane: Lane[str, str] = Lane(sender.send, size=len, most=3, most_bytes=4)
    items = ["aa", "bb", "c", "dddddd", "e", "f", "g", "h"]
    assert await asyncio.gather(*map(lane.submit, items)) == [
        item.upper() for item in items
    ]
    assert sender.batches == [["aa", "bb"], ["c"], ["dddddd"], ["e", "f", "g"], ["h"]]


async def test_tells_each_item_its_own_outcome() -> None:
    sender = Sender()
    sender.may_answer.set()
    lane: Lane[str, str] = Lane(sender.send)
    good, wrong = lane.submit("good"), lane.submit("wrong")
    assert await good == "GOOD"
    with pytest.raises(ValueError, match="wrong"):
        await wrong


async def test_sends_once_more_and_alone_what_somebody_else_held() -> None:
    sender = Sender()
    sender.may_answer.set()
    lane: Lane[str, str] = Lane(sender.send)
    busy, free = lane.submit("busy"), lane.submit("free")
    assert await free == "FREE"
    assert not busy.done()
    sender.may_answer.clear()
    neighbours = [lane.submit("a")]
    await asyncio.sleep(0)
    neighbours.append(lane.submit("b"))
    await aeventually(lambda: asyncio.sleep(0, lane._alone))
    sender.may_answer.set()
    assert await asyncio.gather(busy, *neighbours) == ["BUSY", "A", "B"]
    assert sender.batches == [["busy", "free"], ["a"], ["busy"], ["b"]]


async def test_lets_those_that_are_sent_alone_hold_up_nobody() -> None:
    """However many they are, and however long each of them takes."""
    sender = Sender()
    sender.may_answer.set()
    lane: Lane[str, str] = Lane(sender.send)
    sender.busy = {f"busy {number}" for number in range(5)}
    busy = [lane.submit(item) for item in sorted(sender.busy)]
    while sender.busy:  # noqa: ASYNC110 - at once, before one comes again
        await asyncio.sleep(0)
    sender.may_answer.clear()
    await aeventually(lambda: asyncio.sleep(0, len(lane._alone) == 4))
    neighbour = lane.submit("a")
    sender.may_answer.set()
    assert await neighbour == "A"
    assert sender.batches.index(["a"]) == 2
    assert len(await asyncio.gather(*busy)) == 5


async def test_gives_up_what_has_not_been_sent_when_it_closes() -> None:
    sender = Sender()
    lane: Lane[str, str] = Lane(sender.send)
    sent = lane.submit("sent")
    await asyncio.sleep(0)
    waiting = lane.submit("waiting")
    await lane.close()
    assert sent.cancelled()
    assert waiting.cancelled()
    assert lane.submit("late").cancelled()
