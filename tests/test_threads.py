"""Synchronous code gets a thread when it needs one, and idle threads end soon."""

from __future__ import annotations

import asyncio
import threading

import pytest

from durable._task import threads
from durable._task.threads import Threads
from tests.support.wait import aeventually


async def test_ends_a_thread_whose_job_another_one_has_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that has just finished a job takes the next before a new one does."""
    may_begin = threading.Event()
    begun: list[threading.Thread] = []

    class Late(threading.Thread):
        def run(self) -> None:
            begun.append(self)
            if len(begun) > 1:
                may_begin.wait()
            super().run()

    monkeypatch.setattr(threads, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(threading, "Thread", Late)
    pool = Threads()
    all_handed_in = threading.Event()
    jobs = [pool.run(all_handed_in.wait), *(pool.run(abs, -n) for n in (1, 2))]
    all_handed_in.set()
    assert await asyncio.gather(*jobs) == [True, 1, 2]
    assert len(begun) == 3
    may_begin.set()

    async def all_have_ended() -> bool:
        return not any(thread.is_alive() for thread in begun)

    await aeventually(all_have_ended)
    assert await pool.run(abs, -7) == 7  # by another thread
