"""Start child processes as an unprivileged user, which end with this process.

Postgres refuses to run as root, and a server must not outlive the program that started
it. Both are set up between fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["User", "run", "start_child"]

PR_SET_PDEATHSIG: Final = 1
LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class User:
    """A user account of this machine."""

    name: str
    uid: int
    gid: int

    @classmethod
    def for_data(cls, data_dir: Path) -> Self:
        """Return the current user or, for root, the data's owner or `postgres`."""
        if uid := os.geteuid():
            return cls(f"#{uid}", uid, os.getegid())
        known = {user.pw_name: user for user in pwd.getpwall()}
        if data_dir.exists() and data_dir.stat().st_uid:
            user = pwd.getpwuid(data_dir.stat().st_uid)
        elif found := known.get("postgres") or known.get("nobody"):
            user = found
        else:
            raise LookupError("Postgres refuses root, and there is no user nobody")
        return cls(user.pw_name, user.pw_uid, user.pw_gid)

    def take(self, directory: Path) -> None:
        """Make this user the owner of a directory, and close it to all others."""
        directory.chmod(0o700)
        os.chown(directory, self.uid, self.gid)

    def closed_directory(self, path: Path) -> Path | None:
        """Return the outermost directory above `path` that this user may not enter."""
        parents = (parent for parent in reversed(path.parents) if parent.exists())
        return next((found for found in parents if not self._may_enter(found)), None)

    def _may_enter(self, directory: Path) -> bool:
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        return bool(status.st_mode & (0o010 if status.st_gid == self.gid else 0o001))

    @property
    def options(self) -> dict[str, Any]:
        """Options for `subprocess` to become this user; none if it is the current."""
        if os.geteuid() == self.uid:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def run(command: Sequence[str | Path], user: User | None = None) -> str:
    """Run a command to its end and return what it printed; raise if it failed."""
    done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 - our own commands only
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        cwd="/",
        **(user.options if user else {}),
    )
    if done.returncode:
        raise ChildProcessError(f"{command[0]} failed:\n{done.stdout.strip()}")
    return done.stdout


def start_child(
    command: Sequence[str], user: User, log: Path
) -> subprocess.Popen[bytes]:
    """Start a server that gets SIGINT when this process ends, even by SIGKILL.

    Linux sends the signal when the *thread* that started the child ends, so a dedicated
    thread starts it and waits for it.
    """
    started: list[subprocess.Popen[bytes] | OSError] = []
    known = threading.Event()

    def start_and_stay() -> None:
        try:
            with log.open("ab") as output:
                child = subprocess.Popen(  # noqa: S603 - our own commands only
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C must not reach the child
                    preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, loaded before the fork
                    **user.options,
                )
        except OSError as error:
            started.append(error)
            known.set()
            return
        started.append(child)
        known.set()
        child.wait()

    threading.Thread(target=start_and_stay, daemon=True).start()
    known.wait()
    if isinstance(started[0], OSError):
        raise started[0]
    return started[0]


def _end_with_parent() -> None:
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
