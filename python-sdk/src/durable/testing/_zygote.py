"""A process that has imported everything and forks: a new one costs milliseconds.

    python -m durable.testing._zygote   reads what to import, then what to call,
                                        a line of JSON at a time

It forks before there is any loop, thread or connection, and tells what becomes of the
child: its id, and how it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from durable import _failpoints
from durable.testing._references import Home, imported

__all__ = ["Child", "Zygote", "zygote"]

LOG: Final = "zygote.log"


class Child:
    """A fork of the zygote's, and what it has passed."""

    def __init__(self, zygote: Zygote, pid: int, passed: Path) -> None:
        self._zygote = zygote
        self.pid = pid
        self._said_before = zygote.said()
        self._passed = passed
        self._read = 0
        self._points: list[str] = []
        self.exit_code: int | None = None

    def passed(self) -> list[str]:
        """Return the boundaries it has passed so far, in order."""
        with contextlib.suppress(FileNotFoundError), self._passed.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            self._points += whole.decode().splitlines()
        return self._points

    def has_ended(self, *, within: float = 0) -> bool:
        """Whether it has ended; waits so many seconds for that."""
        if self.exit_code is None:
            news = self._zygote.news(within)
            if news is not None:
                self.exit_code = int(news)
        return self.exit_code is not None

    def output(self) -> str:
        """Return what it has said."""
        return self._zygote.output(self._said_before)

    def wait(self, *, deadline: float = 30) -> int:
        """Wait for the end and return the exit code; -9 is a SIGKILL."""
        self.has_ended(within=deadline)
        if self.exit_code is None:
            raise AssertionError(f"still running:\n{self.output()}")
        return self.exit_code

    def forget(self) -> None:
        """Delete what it has passed."""
        self._passed.unlink(missing_ok=True)

    def terminate(self) -> None:
        """Ask it to end, as an init system does (SIGTERM)."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, unless it has ended."""
        while not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)  # its number is kept until it is told
            self.has_ended(within=1)


class Zygote:
    """Forks one child at a time."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self._process = process
        self._directory = directory
        self._lines = b""
        self._forks = 0
        self._child: Child | None = None

    def fork(self, call: str, *orders: str, **arguments: Any) -> Child:
        """Call `module:function` in a new process, with these orders of failpoints."""
        if self._child is not None:
            self._child.kill()
        self._forks += 1
        passed = self._directory / f"passed-{self._forks}"
        wanted = {
            "call": call,
            "arguments": arguments,
            "orders": ";".join([f"record={passed}", *orders]),
        }
        self.say(wanted)
        pid = self.news(30)
        if pid is None:
            raise AssertionError(f"nothing was forked:\n{self.output()}")
        self._child = Child(self, int(pid), passed)
        return self._child

    def say(self, what: object) -> None:
        """Tell it something, as a line of JSON."""
        line = json.dumps(what).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # then there will be no news
            _pipe(self._process.stdin).write(line)
            _pipe(self._process.stdin).flush()

    def news(self, within: float) -> str | None:
        """Return the next line it prints, or None if there is none in time."""
        fileno = _pipe(self._process.stdout).fileno()
        while b"\n" not in self._lines:
            if not select.select([fileno], [], [], within)[0]:
                return None
            more = os.read(fileno, 4096)
            if not more:
                raise AssertionError(f"the zygote has ended:\n{self.output()}")
            self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def said(self) -> int:
        """Return how much its children have said."""
        return self._log.stat().st_size

    def output(self, since: int = 0) -> str:
        """Return what its children have said, since they had said so much."""
        return self._log.read_bytes()[since:].decode(errors="replace")

    @property
    def _log(self) -> Path:
        return self._directory / LOG

    def is_alive(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it and its child at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _pipe(self._process.stdout).close()
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    if end is None:
        raise RuntimeError("a zygote is talked to through pipes")
    return end


@contextlib.contextmanager
def zygote(
    directory: Path,
    homes: Sequence[Home],
    *,
    path: Sequence[str],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Zygote]:
    """Start a zygote that imports these modules; in the end, nothing of it is left."""
    with (directory / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "durable.testing._zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=cwd,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
    started = Zygote(process, directory)
    started.say({"path": list(path), "homes": homes})
    try:
        yield started
    finally:
        started.close()


def main() -> None:
    """Be the zygote."""
    first = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = first["path"]
    for module, file in first["homes"]:
        imported(Home(module, file))
    gc.freeze()  # or each child would copy what it looks through for garbage
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            os._exit(_live(json.loads(line)))
        _tell(pid)
        _tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _tell(news: object) -> None:
    sys.stdout.write(f"{news}\n")
    sys.stdout.flush()


def _live(wanted: dict[str, Any]) -> int:
    """Be the child: do what it is for, and return its exit code."""
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module, _, function = wanted["call"].partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
        _failpoints.arm(wanted["orders"])
        result = call(**wanted["arguments"])
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except BaseException:  # noqa: BLE001 - it must not go on as the zygote
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
