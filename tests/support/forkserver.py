"""A fork server that has imported the tasks and clients of the crash tests."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from durable.testing._forkserver_process import Child, ForkServer
from durable.testing._forkserver_process import forkserver as started
from durable.testing._references import Home
from tests.support.processes import ROOT
from tests.support.wait import eventually

__all__ = ["Child", "ForkServer", "forkserver", "resume", "wait_for_a_stop"]

# what the fork server imports costs a child no time
IMPORTED: Final = [
    Home(f"tests.support.{name}", None)
    for name in ("crashing", "lingering", "ordering")
]


@contextlib.contextmanager
def forkserver(directory: Path, **environment: str) -> Iterator[ForkServer]:
    """Start a fork server, and remove it in the end."""
    path = [str(ROOT), *sys.path]
    with started(
        directory, IMPORTED, path=path, cwd=ROOT, environment=environment
    ) as forkserver:
        yield forkserver


def wait_for_a_stop(child: Child, *, deadline: float = 60) -> None:
    """Return when a child has stopped itself; fail if it ends instead."""

    def has_stopped() -> bool:
        assert not child.has_ended(), f"{child.exit_code}:\n{child.output()}"
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    eventually(has_stopped, deadline=deadline, what="the stop")


def resume(child: Child) -> None:
    """Continue a stopped process."""
    os.kill(child.pid, signal.SIGCONT)
