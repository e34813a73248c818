"""A process that has imported everything and forks: a new one costs milliseconds.

    python -m tests.support.zygote      reads what to call, a line of JSON at a time

It forks before there is any loop, thread or connection, and tells what becomes of the
child: its id, each time it stops, and how it ends.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import tests.support.crashing
import tests.support.lingering
import tests.support.ordering  # noqa: F401 - what is imported here costs no child time
from durable import _failpoints
from tests.support.processes import ROOT

__all__ = ["Child", "Zygote", "zygote"]

STOPPED: Final = "stopped"


class Child:
    """A fork of the zygote's, and what it has passed."""

    def __init__(self, zygote: Zygote, pid: int, passed: Path) -> None:
        self._zygote = zygote
        self.pid = pid
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
            if news is not None and news != STOPPED:
                self.exit_code = int(news)
        return self.exit_code is not None

    def wait(self, *, deadline: float = 30) -> int:
        """Wait for the end and return the exit code; -9 is a SIGKILL."""
        ended = self.has_ended(within=deadline)
        assert ended, f"still running:\n{self._zygote.output()}"
        assert self.exit_code is not None
        return self.exit_code

    def wait_for_a_stop(self, *, deadline: float = 30) -> None:
        """Return when it has stopped itself."""
        news = self._zygote.news(deadline)
        assert news == STOPPED, f"{news}, not stopped:\n{self._zygote.output()}"

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

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
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._process.stdin.flush()
        pid = self.news(30)
        assert pid is not None, self.output()
        self._child = Child(self, int(pid), passed)
        return self._child

    def news(self, within: float) -> str | None:
        """Return the next line it prints, or None if there is none in time."""
        assert self._process.stdout is not None
        fileno = self._process.stdout.fileno()
        while b"\n" not in self._lines:
            if not select.select([fileno], [], [], within)[0]:
                return None
            more = os.read(fileno, 4096)
            assert more, f"the zygote has ended:\n{self.output()}"
            self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def output(self) -> str:
        """Return what its children have said."""
        return (self._directory / "zygote.log").read_text(errors="replace")

    def close(self) -> None:
        """End it and its child at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


@contextlib.contextmanager
def zygote(directory: Path, **environment: str) -> Iterator[Zygote]:
    """Start a zygote; in the end, nothing of it is left."""
    with (directory / "zygote.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=os.environ | environment,
            start_new_session=True,
        )
    started = Zygote(process, directory)
    try:
        yield started
    finally:
        started.close()


def main() -> None:
    gc.freeze()  # or each child would copy what it looks through for garbage
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            os._exit(_live(json.loads(line)))
        print(pid, flush=True)
        while True:
            _, status = os.waitpid(pid, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                print(STOPPED, flush=True)
                continue
            print(os.waitstatus_to_exitcode(status), flush=True)
            break


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
