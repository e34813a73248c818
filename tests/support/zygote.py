"""A zygote that has imported the tasks and clients of our own crash tests."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from durable.testing._references import Home
from durable.testing._zygote import Child, Zygote
from durable.testing._zygote import zygote as started
from tests.support.processes import ROOT
from tests.support.wait import eventually

__all__ = ["Child", "Zygote", "resume", "wait_for_a_stop", "zygote"]

# what is imported by the zygote costs no child time
IMPORTED: Final = [
    Home(f"tests.support.{name}", None)
    for name in ("crashing", "lingering", "ordering")
]


@contextlib.contextmanager
def zygote(directory: Path, **environment: str) -> Iterator[Zygote]:
    """Start a zygote; in the end, nothing of it is left."""
    path = [str(ROOT), *sys.path]
    with started(
        directory, IMPORTED, path=path, cwd=ROOT, environment=environment
    ) as zygote:
        yield zygote


def wait_for_a_stop(child: Child, *, deadline: float = 60) -> None:
    """Return when a child has stopped itself; fail if it ends instead."""

    def has_stopped() -> bool:
        assert not child.has_ended(), f"{child.exit_code}:\n{child.output()}"
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    eventually(has_stopped, deadline=deadline, what="the stop")


def resume(child: Child) -> None:
    """Let it go on."""
    os.kill(child.pid, signal.SIGCONT)
