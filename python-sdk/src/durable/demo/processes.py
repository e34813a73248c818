"""The processes of the demo: workers, and the plain count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

from durable._db.conninfo import ENVIRONMENT

__all__ = ["Direct", "WorkerProcess"]


class WorkerProcess:
    """A worker in a process of its own; killed on exit, if it still runs."""

    def __init__(self, dsn: str, queue: str, ledger: Path, log: Path) -> None:
        self.log = log
        command = ["-m", "durable.demo.worker", queue, str(ledger)]
        with log.open("ab") as output:
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | {ENVIRONMENT: dsn},
                start_new_session=True,  # Ctrl-C goes to the demo only
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code (-9: by SIGKILL), or None while it runs."""
        return self._child.poll()

    def kill(self) -> None:
        """Send it SIGKILL, as `kill -9` does."""
        os.kill(self.pid, signal.SIGKILL)
        self._child.wait()

    def stop(self) -> None:
        """Send it SIGTERM, as an init system does."""
        self._child.terminate()
        self._child.wait(timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        with self._child:  # wait, and close the pipe
            pass


class Direct:
    """The census without durable, in a process of its own."""

    def __init__(self, library: Path) -> None:
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "durable.demo.direct", str(library)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def result(self) -> dict[str, int]:
        """Wait for it to finish and return its counts."""
        counted, _ = self._child.communicate()
        found: dict[str, int] = json.loads(counted)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        with self._child:
            pass
