"""A primary and its synchronous standby, to be failed over.

    with Cluster() as cluster:
        psycopg.connect(cluster.conninfo())
        cluster.fail_over()

A commit is acknowledged once both have it. After a failover the former standby is alone
until `add_standby` gives it one of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg

from durable.embedded import Postgres
from durable.embedded._unprivileged import User, run
from tests.chaos.faults import kill_server
from tests.support.wait import eventually

__all__ = ["Cluster"]

SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "max_connections": "60",
    "wal_retrieve_retry_interval": "100ms",
}
STREAMS: Final = """
select from pg_stat_replication where state = 'streaming' and sync_state = %s
"""


class Cluster:
    """Two servers, one of which is primary; both at known addresses."""

    def __init__(self) -> None:
        self._binaries = os.environ.get("DURABLE_TEST_PG_BIN")
        self._running = contextlib.ExitStack()
        # a standby is created in a directory that its server may enter
        self._directory = Path(
            self._running.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
        )
        self._directory.chmod(0o755)
        self._ports = [_free_port(), _free_port()]
        self._servers: list[Postgres] = []
        self._made = 0

    def __enter__(self) -> Self:
        try:
            self.primary = self._start(self._new_directory(), self._ports[0])
            self.add_standby()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._running.close()

    @property
    def addresses(self) -> list[str]:
        """The URLs of the two, whichever is primary."""
        return [f"postgresql://postgres@127.0.0.1:{p}/postgres" for p in self._ports]

    def conninfo(self, ports: Sequence[int] = ()) -> str:
        """Return a URL that finds the primary, at these ports if any are given."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or self._ports)
        options = "target_session_attrs=read-write&connect_timeout=3"
        return f"postgresql://postgres@{hosts}/postgres?{options}"

    def logs(self) -> list[str]:
        """Return the log of each server so far, running or not."""
        logs = [server.home / "log" for server in self._servers]
        return [log.read_text(errors="replace") for log in logs]

    def add_standby(self) -> None:
        """Copy the primary, and have commits wait for the copy from now on."""
        (port,) = set(self._ports) - {int(self.primary.settings["port"])}
        directory = self._new_directory()
        copy = ["--pgdata", str(directory), "--write-recovery-conf", "--no-sync"]
        copy += ["--wal-method=stream", "--checkpoint=fast"]
        copy += ["--dbname", self.primary.conninfo()]
        user = User.for_data(directory)
        run([self.primary.binaries / "pg_basebackup", *copy], user)
        self.standby = self._start(directory, port)
        with psycopg.connect(self.primary.conninfo(), autocommit=True) as db:
            db.execute("alter system set synchronous_standby_names = '*'")
            db.execute("select pg_reload_conf()")
            eventually(
                lambda: db.execute(STREAMS, ["sync"]).rowcount == 1,
                deadline=60,
                what="the standby streams",
            )

    def fail_over(self) -> None:
        """Kill the primary and promote its standby, which then commits alone."""
        kill_server(self.primary)
        with psycopg.connect(self.standby.conninfo(), autocommit=True) as db:
            db.execute("select pg_promote()")
            eventually(
                lambda: db.execute("select pg_is_in_recovery()").fetchone() == (False,),
                deadline=60,
                what="the standby was promoted",
            )
            db.execute("alter system reset synchronous_standby_names")
            db.execute("select pg_reload_conf()")
        self.primary = self.standby

    def _new_directory(self) -> Path:
        directory = self._directory / f"server-{self._made}"
        self._made += 1
        directory.mkdir()
        User.for_data(directory).take(directory)
        return directory

    def _start(self, directory: Path, port: int) -> Postgres:
        settings = SETTINGS | {"listen_addresses": "127.0.0.1", "port": str(port)}
        server = Postgres.start(directory, settings=settings, binaries=self._binaries)
        self._servers.append(server)
        return self._running.enter_context(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
