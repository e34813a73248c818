"""A PgBouncer in transaction mode, in front of the test server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from durable.embedded._unprivileged import User, start_child
from tests.support.wait import eventually

__all__ = ["PGBOUNCER", "pgbouncer"]

PGBOUNCER: Final = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
CONFIG: Final = """
[databases]
* = {server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
"""


@contextlib.contextmanager
def pgbouncer(dsn: str, *, size: int) -> Iterator[str]:
    """Return the database's address behind a pool of so many sessions."""
    assert PGBOUNCER is not None
    known = {"host": "127.0.0.1", "user": "postgres", **conninfo_to_dict(dsn)}
    database = str(known.pop("dbname"))
    server = {
        key: known[key]
        for key in ("host", "port", "user", "password")
        if known.get(key)
    }
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer") as made:
        home = Path(made)
        user = User.for_data(home / "none")
        config = home / "pgbouncer.ini"
        config.write_text(
            CONFIG.format(server=make_conninfo("", **server), port=port, size=size)
        )
        user.take(home)
        process = start_child([PGBOUNCER, str(config)], user, home / "log")
        try:
            address = make_conninfo(
                "", host="127.0.0.1", port=port, dbname=database, user="any"
            )
            eventually(lambda: _answers(address, process, home / "log"))
            yield address
        finally:
            process.kill()
            process.wait()


def _answers(address: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        psycopg.connect(address, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
