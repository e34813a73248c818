"""durable needs only Postgres, on any platform: here in a container."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.servers import Server


@pytest.fixture(autouse=True)
def in_a_container(server: Server) -> None:
    if server.kind != "container":
        pytest.skip(f"testcontainers NOT exercised: {server.why}; try make container")


def test_installs_and_spawns_in_a_container(db: psycopg.Connection) -> None:
    spawned = db.execute("select * from durable.spawn('default', 'x', '{}')").fetchone()
    assert spawned is not None
    task_id, run_id, attempt, created = spawned
    assert task_id
    assert run_id
    assert (attempt, created) == (1, True)


def test_a_rollback_leaves_nothing_in_a_container(dsn: str) -> None:
    with psycopg.connect(dsn) as session:
        session.execute("select durable.spawn('default', 'x', '{}')")
        session.rollback()
        assert session.execute("select count(*) from durable.tasks").fetchone() == (0,)


def test_connects_over_the_network_with_a_password(dsn: str) -> None:
    with psycopg.connect(dsn) as session:
        address = session.execute("select inet_server_addr() is not null").fetchone()
        assert address == (True,)
        assert session.info.password
