"""Directories in memory, for the data of temporary servers.

A database is hundreds of files. Creating and deleting them repeatedly takes several
times as long on disk as in memory.

The invariant: the process that created a directory here keeps it locked until it ends.
So an unlocked directory was left behind by a kill, and the next process deletes it.
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

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - tmpfs on Linux
LIMIT: Final = Path("/sys/fs/cgroup/memory.max")  # of the container, if any
PREFIX: Final = "durable-"
PLENTY: Final = 4 * 2**30  # bytes


class Scratch:
    """A directory in memory, locked by the process that created it."""

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
        """Create a directory if there is enough memory; delete those left behind.

        It gets its final name once it is locked, so no other process deletes it.
        """
        if _available_bytes() < PLENTY:
            return None
        _delete_unlocked()
        made = cls(Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=MEMORY)))
        made.path = made.path.rename(MEMORY / made.path.name.removeprefix("."))
        return made

    def delete(self) -> None:
        """Delete the directory and its contents."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _available_bytes() -> int:
    """Return the bytes available in tmpfs, on the machine and in the container."""
    with contextlib.suppress(OSError):
        tmpfs = os.statvfs(MEMORY)
        available = re.search(r"MemAvailable: +(\d+)", _read("/proc/meminfo"))
        limit = _read(LIMIT).strip() if LIMIT.exists() else "max"
        return min(
            tmpfs.f_bavail * tmpfs.f_frsize,
            int(available[1]) * 1024 if available else 0,
            int(limit) // 2 if limit.isdecimal() else sys.maxsize,
        )
    return 0


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="ascii")


def _delete_unlocked() -> None:
    for path in MEMORY.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked, or just deleted
            Scratch(path).delete()
