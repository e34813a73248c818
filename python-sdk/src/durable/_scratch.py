"""Directories in memory, for the data of servers that are thrown away.

A database is hundreds of files. To make and delete them, again and again, costs a file
system on a disk several times what it costs memory.

The invariant: whoever made a directory here holds its lock as long as he lives, so one
that nobody has locked was left by a kill, and the next who makes one deletes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final, Self

if sys.platform != "win32":
    import fcntl

__all__ = ["Scratch"]

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps it
LIMIT: Final = Path("/sys/fs/cgroup/memory.max")  # of the container we are in
PREFIX: Final = "durable-"
PLENTY: Final = 4 * 2**30  # bytes


class Scratch:
    """A directory in memory, and the lock that says whose it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise

    @classmethod
    def make(cls) -> Self | None:
        """Make one if there is plenty of memory, after those that were left behind.

        It gets its name once it has its lock, so that nobody takes it for one of those.
        """
        if _room() < PLENTY:
            return None
        _sweep()
        made = cls(Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=MEMORY)))
        made.path = made.path.rename(MEMORY / made.path.name.removeprefix("."))
        return made

    def delete(self) -> None:
        """Delete it, with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _room() -> int:
    """Return how many bytes there are to be had: on the machine, and for us."""
    with contextlib.suppress(OSError):
        place = os.statvfs(MEMORY)
        available = re.search(r"MemAvailable: +(\d+)", _read("/proc/meminfo"))
        limit = _read(LIMIT).strip() if LIMIT.exists() else "max"
        return min(
            place.f_bavail * place.f_frsize,
            int(available[1]) * 1024 if available else 0,
            int(limit) // 2 if limit.isdecimal() else sys.maxsize,
        )
    return 0


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="ascii")


def _sweep() -> None:
    """Delete what nobody holds any more."""
    for path in MEMORY.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is somebody else's, or just gone
            Scratch(path).delete()
