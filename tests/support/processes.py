"""Real processes for tests: started, watched by their output, and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.wait import eventually

__all__ = ["ROOT", "Process", "Processes"]

ROOT = Path(__file__).parents[2]
COMMAND_LINE = "from durable.cli import main; main()"


class Process:
    """A child in a process group of its own; its output goes to a file."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        self._output = log.open("wb")
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(env),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code (-9: by SIGKILL), or None while it runs."""
        return self._child.poll()

    def output(self) -> str:
        """Return everything printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, *, deadline: float = 20) -> str:
        """Return all output once it contains `text`; fail if it ends before."""

        def printed() -> bool:
            ended = self.exit_code is not None
            found = text in self.output()
            assert found or not ended, f"ended without {text!r}:\n{self.output()}"
            return found

        eventually(printed, deadline=deadline, what=f"{text!r} in {self.log}")
        return self.output()

    def wait(self, *, deadline: float = 20) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self._child.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.output()}") from None

    def terminate(self) -> None:
        """Ask it to end, as an init system does (SIGTERM)."""
        self._child.terminate()

    def kill(self) -> None:
        """End it and its children at once, as `kill -9` does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        self._output.close()


class Processes:
    """Starts the processes of one test, and kills all of them in the end."""

    def __init__(self, directory: Path, env: Mapping[str, str]) -> None:
        self._directory = directory
        self._env = dict(env)
        self._started: list[Process] = []

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start this Python: `python("-m", "tests.support.tasks")`, `python("-c", …)`.

        The test's database is in DURABLE_DATABASE_URL.
        """
        log = self._directory / f"process-{len(self._started)}.log"
        command = [sys.executable, *arguments]
        process = Process(command, log, self._env | dict(env or {}))
        self._started.append(process)
        return process

    def durable(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Start the command line: `durable("worker", "tests.support.tasks:app")`."""
        return self.python("-c", COMMAND_LINE, *arguments, env=env)

    def kill_all(self) -> None:
        """Kill all that still run."""
        for process in self._started:
            process.kill()
