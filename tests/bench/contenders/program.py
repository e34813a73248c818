"""The commands of every contender, each run in a process of its own.

    python -m tests.bench.contenders.absurd prepare DSN
    python -m tests.bench.contenders.absurd spawn DSN noop 1000
    python -m tests.bench.contenders.absurd work DSN noop RECORD GATE 1000

A worker records when the code of its tasks ran, by the clock that all processes of a
machine share, and writes the record once so many tasks have ended. Nothing else is
measured inside a contender, and nothing is written while it works.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import psycopg

__all__ = [
    "STEPS",
    "WARM_UP",
    "Kind",
    "Program",
    "Record",
    "Send",
    "Work",
    "main",
    "run",
]

Kind: TypeAlias = Literal["noop", "step", "steps", "wake", "busy"]
Send: TypeAlias = Callable[[int], Awaitable[object]]

STEPS: Final = {"noop": 0, "step": 1, "steps": 10, "wake": 0, "busy": 0}
WARM_UP: Final = 5  # tasks that are woken outside the measurement
PAUSE: Final = (0.02, 0.06)  # seconds between two wake-ups: the worker is idle again
PEEK: Final = 0.002  # seconds between two checks of the gate


class Record:
    """When tasks started and ended here, written once so many have ended.

    Several quantities are sections, one after the other, each in a file of its own.
    """

    def __init__(self, path: Path, quantities: list[int]) -> None:
        self._path = path
        self._quantities = [*quantities, -1]
        self._section = 0
        self._begun: list[int] = []
        self._ended: list[int] = []
        self._delays: list[int] = []

    def begin(self, sent: int | None = None) -> None:
        """Record the start of a task, and when it was sent."""
        now = time.monotonic_ns()
        self._begun.append(now)
        if sent is not None:
            self._delays.append(now - sent)

    def end(self) -> None:
        """Record the end of a task."""
        self._ended.append(time.monotonic_ns())
        if len(self._ended) == self._quantities[self._section]:
            self._write()

    def _write(self) -> None:
        found = {
            "first": min(self._begun),
            "ended": self._ended,
            "delays": self._delays,
        }
        target = self._path.with_name(f"{self._path.name}.{self._section}")
        unfinished = target.with_suffix(".part")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(target)
        self._section += 1
        self._begun, self._ended, self._delays = [], [], []


@dataclass(frozen=True, slots=True)
class Work:
    """A worker's work: tasks of a kind, and how many there will be."""

    dsn: str
    kind: Kind
    record: Record
    batch_size: int


class Program(ABC):
    """A contender, set up as its own documents advise for speed."""

    @abstractmethod
    async def prepare(self, dsn: str) -> None:
        """Install its schema into an empty database."""

    @abstractmethod
    async def spawn(self, dsn: str, kind: Kind, batch_size: int) -> None:
        """Put tasks into its queue, as fast as it can."""

    @abstractmethod
    async def work(self, given: Work) -> None:
        """Run its worker, until it is killed."""

    def client(self, dsn: str) -> AbstractAsyncContextManager[Send]:
        """Open a client that spawns a task which knows when it was sent."""
        raise NotImplementedError(f"{dsn}: no client")

    async def wake(self, dsn: str, batch_size: int) -> None:
        """Wake an idle worker again and again.

        Print the duration of a round trip after the same pause, and of the spawn call.
        """
        round_trips, calls = [], []
        async with self.client(dsn) as send, await _connection(dsn) as connection:
            for _ in range(WARM_UP + batch_size):
                await asyncio.sleep(random.uniform(*PAUSE))
                begun = time.monotonic_ns()
                await connection.execute("select 1")
                round_trips.append(time.monotonic_ns() - begun)
                await asyncio.sleep(random.uniform(*PAUSE))
                begun = time.monotonic_ns()
                await send(begun)
                calls.append(time.monotonic_ns() - begun)
        print(json.dumps([round_trips, calls]))

    async def wake_here(self, dsn: str, record: Record, batch_size: int) -> None:
        """Measure the same with client and worker in one process."""
        given = Work(dsn, "wake", record, WARM_UP + batch_size)
        working = asyncio.create_task(self.work(given))
        await self.wake(dsn, batch_size)
        await working


async def _connection(dsn: str) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


def main(program: Program) -> None:
    """Run the command line, on uvloop if installed."""
    command, dsn, *rest = sys.argv[1:]
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    run(_command(program, command, dsn, rest))


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, on uvloop if installed."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - an extra
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


async def _command(program: Program, command: str, dsn: str, rest: list[str]) -> None:
    match command, *rest:
        case ["prepare"]:
            await program.prepare(dsn)
        case ["spawn", kind, batch_size]:
            await program.spawn(dsn, cast("Kind", kind), int(batch_size))
        case ["wake", batch_size]:
            await program.wake(dsn, int(batch_size))
        case ["wake-here", path, batch_size]:
            record = Record(Path(path), [WARM_UP + int(batch_size)])
            await program.wake_here(dsn, record, int(batch_size))
        case ["work", kind, path, gate, *quantities]:
            numbers = [int(batch_size) for batch_size in quantities]
            record = Record(Path(path), numbers)
            await asyncio.to_thread(_pass, Path(gate))
            given = Work(dsn, cast("Kind", kind), record, sum(numbers))
            await program.work(given)
        case _:
            raise SystemExit(f"unknown command: {command} {rest}")


def _pass(gate: Path) -> None:
    """Report that the interpreter is up, and wait until the gate is opened."""
    gate.with_name(f"{gate.name}.{os.getpid()}").touch()
    while not gate.exists():
        time.sleep(PEEK)


def _end_with(parent: int) -> None:
    """End this process when its parent ends, in any way."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
