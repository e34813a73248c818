"""A fork server (forkserver): a process that imports modules once, then forks quickly.

    python -m durable.testing._forkserver_process

It reads lines of JSON: first the modules to import, then the functions to call, each in
a forked process. It has no loop, thread or connection when it forks. For each child it
prints the process id, and later the exit code.
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

from durable.testing import _failpoints
from durable.testing._references import Home, imported

__all__ = ["Child", "ForkServer", "forkserver"]

LOG: Final = "forkserver.log"


class Child:
    """A process forked by the forkserver, and the boundaries it has passed."""

    def __init__(self, forkserver: ForkServer, pid: int, passed: Path) -> None:
        self._forkserver = forkserver
        self.pid = pid
        self._output_start = forkserver.output_size()
        self._passed = passed
        self._read = 0
        self._points: list[str] = []
        self.exit_code: int | None = None

    def passed(self) -> list[str]:
        """Return the boundaries passed so far, in order."""
        with contextlib.suppress(FileNotFoundError), self._passed.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            self._points += whole.decode().splitlines()
        return self._points

    def has_ended(self, *, within: float = 0) -> bool:
        """Whether it has ended; wait `within` seconds for that."""
        if self.exit_code is None:
            line = self._forkserver.read_line(within)
            if line is not None:
                self.exit_code = int(line)
        return self.exit_code is not None

    def output(self) -> str:
        """Return its output."""
        return self._forkserver.output(self._output_start)

    def wait(self, *, deadline: float = 30) -> int:
        """Wait for its end and return the exit code; -9 means SIGKILL."""
        self.has_ended(within=deadline)
        if self.exit_code is None:
            raise AssertionError(f"still running:\n{self.output()}")
        return self.exit_code

    def delete_record(self) -> None:
        """Delete the record of passed boundaries."""
        self._passed.unlink(missing_ok=True)

    def terminate(self) -> None:
        """Send SIGTERM, as an init system does."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        while not self.has_ended():
            # the pid is not reused before the forkserver reports the end
            os.kill(self.pid, signal.SIGKILL)
            self.has_ended(within=1)


class ForkServer:
    """Forks one child at a time."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        self._process = process
        self._directory = directory
        self._lines = b""
        self._forks = 0
        self._child: Child | None = None

    def fork(self, call: str, *orders: str, **arguments: Any) -> Child:
        """Call `module:function` in a new process, with these failpoint orders."""
        if self._child is not None:
            self._child.kill()
        self._forks += 1
        passed = self._directory / f"passed-{self._forks}"
        wanted = {
            "call": call,
            "arguments": arguments,
            "orders": ";".join([f"record={passed}", *orders]),
        }
        self.send(wanted)
        pid = self.read_line(30)
        if pid is None:
            raise AssertionError(f"nothing was forked:\n{self.output()}")
        self._child = Child(self, int(pid), passed)
        return self._child

    def send(self, what: object) -> None:
        """Send a line of JSON to the forkserver."""
        line = json.dumps(what).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # `read_line` will raise
            _pipe(self._process.stdin).write(line)
            _pipe(self._process.stdin).flush()

    def read_line(self, within: float) -> str | None:
        """Return the next line it prints, or None if there is none in time."""
        fileno = _pipe(self._process.stdout).fileno()
        while b"\n" not in self._lines:
            if not select.select([fileno], [], [], within)[0]:
                return None
            more = os.read(fileno, 4096)
            if not more:
                raise AssertionError(f"the forkserver has ended:\n{self.output()}")
            self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        return line.decode()

    def output_size(self) -> int:
        """Return the size of the children's output."""
        return self._log.stat().st_size

    def output(self, since: int = 0) -> str:
        """Return the children's output after the first `since` bytes."""
        return self._log.read_bytes()[since:].decode(errors="replace")

    @property
    def _log(self) -> Path:
        return self._directory / LOG

    def is_alive(self) -> bool:
        """Whether its process is running."""
        return self._process.poll() is None

    def close(self) -> None:
        """Kill it and its child."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _pipe(self._process.stdout).close()
        with contextlib.suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    if end is None:
        raise RuntimeError("a forkserver is used through pipes")
    return end


@contextlib.contextmanager
def forkserver(
    directory: Path,
    homes: Sequence[Home],
    *,
    path: Sequence[str],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[ForkServer]:
    """Start a forkserver that imports these modules, and kill it in the end."""
    with (directory / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "durable.testing._forkserver_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=cwd,
            env=os.environ | dict(environment or {}),
            start_new_session=True,
        )
    started = ForkServer(process, directory)
    started.send({"path": list(path), "homes": homes})
    try:
        yield started
    finally:
        started.close()


def main() -> None:
    """Run the forkserver."""
    first = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = first["path"]
    for module, file in first["homes"]:
        imported(Home(module, file))
    gc.freeze()  # else garbage collection in a child would copy the memory pages
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            os._exit(_run_child(json.loads(line)))
        _print(pid)
        _print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _print(line: object) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run_child(wanted: dict[str, Any]) -> int:
    """Run the requested call in the child, and return its exit code."""
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module, _, function = wanted["call"].partition(":")
    try:
        call = getattr(importlib.import_module(module), function)
        _failpoints.arm(wanted["orders"])
        result = call(**wanted["arguments"])
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except BaseException:  # noqa: BLE001 - the child must not continue as the forkserver
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
