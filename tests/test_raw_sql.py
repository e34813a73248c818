"""durable works from SQL alone: spawn from psql, run by any client of Postgres."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from durable import (
    AsyncDurable,
    Conflict,
    InvalidArgument,
    NotFound,
    UnknownQueue,
    task,
)
from durable._db import schema
from durable.errors import DurableError, from_database
from tests.support.clock import Clock

NOBODY = "01a1fb65-86b6-7000-9188-49b6bfbacafb"
ERROR = {"type": "ValueError", "message": "no", "traceback": "line 1"}


def is_json(items: list[Any]) -> bool:
    return all(isinstance(item, dict) for item in items)


class Engine:
    """A worker in a dozen lines, independent of the language."""

    def __init__(self, db: psycopg.Connection) -> None:
        self.db = db

    def call(self, function: str, *args: Any) -> list[dict[str, Any]]:
        given = [
            json.dumps(arg, default=str)
            if isinstance(arg, dict) or (isinstance(arg, list) and is_json(arg))
            else arg
            for arg in args
        ]
        query = f"select * from durable.{function}({', '.join(['%s'] * len(args))})"
        with self.db.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, given).fetchall()

    def one(self, function: str, *args: Any) -> dict[str, Any]:
        (row,) = self.call(function, *args)
        return row

    def spawn(self, name: str, params: Any = None, **options: Any) -> UUID:
        row = self.one("spawn", "default", name, json.dumps(params), options)
        found: UUID = row["task_id"]
        return found

    def claim(self, batch_size: int = 1) -> list[dict[str, Any]]:
        return self.call("claim_tasks", "default", "by hand", None, batch_size)

    def held(self) -> dict[str, Any]:
        (task,) = self.claim()
        return {"task_id": task["task_id"], "claim": task["claim"]}

    def state(self, task_id: UUID) -> str:
        return str(self.one("get_task_result", "default", task_id)["state"])


@pytest.fixture
def sql(db: psycopg.Connection) -> Engine:
    return Engine(db)


@contextlib.contextmanager
def role(dsn: str, db: psycopg.Connection, grant: str) -> Iterator[psycopg.Connection]:
    """Return a session of a role that was granted only this."""
    name = f"role_of_{db.info.dbname}"
    db.execute(f"create role {name} nologin")
    db.execute(grant.format(role=name))
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(f"set role {name}")
        yield session
    db.execute(f"drop owned by {name}")
    db.execute(f"drop role {name}")


@pytest.fixture
def client(dsn: str, db: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """Return a session of a role that was granted only durable_client."""
    with role(dsn, db, "grant durable_client to {role}") as session:
        yield session


def test_spawns_from_psql_in_a_freshly_installed_database(
    db: psycopg.Connection,
) -> None:
    with db.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            "select * from durable.spawn('default','x','{}')"
        ).fetchone()
    assert row is not None
    assert list(row) == ["task_id", "run_id", "attempt", "created"]
    assert isinstance(row["task_id"], UUID)
    assert isinstance(row["run_id"], UUID)
    assert (row["attempt"], row["created"]) == (1, True)


def test_installs_with_psql_alone(dsn: str, tmp_path: Path) -> None:
    """`durable sql | psql`: one flat file."""
    if shutil.which("psql") is None:
        pytest.skip("no psql on this machine")
    (tmp_path / "durable.sql").write_text(schema.flatten())
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("drop schema durable cascade")
    psql = ["psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", dsn]
    install = [*psql, "-1", "-f", str(tmp_path / "durable.sql")]
    subprocess.run(install, check=True, capture_output=True)
    spawn = ["-At", "-c", "select created from durable.spawn('default', 'x', '{}')"]
    said = subprocess.run([*psql, *spawn], check=True, capture_output=True, text=True)
    assert said.stdout == "t\n"


def test_a_rollback_leaves_nothing(
    db: psycopg.Connection,
) -> None:
    with db.transaction(force_rollback=True):
        for call in (
            "durable.spawn('default', 'x', '{}', '{\"idempotency_key\": \"k\"}')",
            'durable.spawn_many(\'default\', \'[{"task": "x"}, {"task": "y"}]\')',
            "durable.emit_event('default', 'packed', '{}')",
            "durable.create_queue('second')",
        ):
            db.execute(f"select {call}")
        assert count(db, "tasks") == 3
    assert [count(db, table) for table in ("tasks", "events", "idempotency_keys")] == [
        0
    ] * 3
    assert count(db, "queues") == 1


def count(db: psycopg.Connection, table: str) -> int:
    row = db.execute(f"select count(*) from durable.{table}").fetchone()
    assert row is not None
    return int(row[0])


def test_spawns_from_a_trigger(db: psycopg.Connection, sql: Engine) -> None:
    db.execute("""
        create table orders (id int);
        create function welcome() returns trigger language plpgsql as $$
        begin
          perform durable.spawn('default', 'welcome', to_jsonb(new));
          return new;
        end $$;
        create trigger welcome after insert on orders
          for each row execute function welcome();
    """)
    db.execute("insert into orders values (7), (8)")
    params = [task["params"] for task in sql.claim(9)]
    assert params == [{"id": 7}, {"id": 8}]


def test_serves_a_role_that_has_only_the_client_functions(
    client: psycopg.Connection,
) -> None:
    sql = Engine(client)
    task_id = sql.spawn("x", {"a": 1}, idempotency_key="once")
    sql.call("spawn_many", "default", [{"task": "y"}])
    assert sql.one("emit_event", "default", "packed", "7") == {"emit_event": True}
    assert sql.state(task_id) == "pending"
    assert sql.one("cancel_task", "default", task_id) == {"cancel_task": True}
    assert len(sql.call("errors")) == 11
    for refused in (
        "select * from durable.tasks",
        "select * from durable.task_list",
        "select durable.claim_tasks('default', 'me')",
        "select durable.retry_task('default', gen_random_uuid())",
        "select durable.drop_queue('default')",
        "select durable._now()",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.execute(refused)


def test_serves_a_role_that_has_a_single_function(
    dsn: str, db: psycopg.Connection
) -> None:
    grant = """
        grant usage on schema durable to {role};
        grant execute on function durable.spawn to {role};
    """
    with role(dsn, db, grant) as session:
        assert Engine(session).spawn("x")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("select durable.emit_event('default', 'packed')")


def test_works_under_any_session_settings(db: psycopg.Connection) -> None:
    for setting in (
        "set search_path = pg_temp",
        "set timezone = 'Pacific/Chatham'",
        "set datestyle = 'German'",
        "set standard_conforming_strings = off",
        "set default_transaction_isolation = 'serializable'",
    ):
        db.execute(setting)
    sql = Engine(db)
    assert sql.spawn("x", start_timeout=3600)
    row = db.execute(
        "select available_at::text from durable.claim_tasks('default', 'me')"
    )
    assert row.fetchone()


NONSENSE: list[tuple[str, type[DurableError]]] = [
    ("spawn('nowhere', 'x')", UnknownQueue),
    ("spawn('', 'x')", UnknownQueue),
    ("spawn('default', '')", InvalidArgument),
    ("spawn('default', '  ')", InvalidArgument),
    ("spawn('default', null)", InvalidArgument),
    ("spawn('default', repeat('x', 101))", InvalidArgument),
    ("spawn('default', E'a\\nb')", InvalidArgument),
    ("spawn('default', 'x', to_jsonb(repeat('x', 17000000)))", InvalidArgument),
    ("spawn('default', 'x', '{}', '[]')", InvalidArgument),
    ("spawn('default', 'x', '{}', null)", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"max_attemps\": 3}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"max_attempts\": 0}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"max_attempts\": 1.5}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"max_attempts\": \"3\"}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"max_attempts\": 1e99}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"retry\": {}}')", InvalidArgument),
    (
        "spawn('default', 'x', '{}', '{\"retry\": {\"kind\": \"no\"}}')",
        InvalidArgument,
    ),
    ("spawn('default', 'x', '{}', '{\"retry\": 5}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"headers\": []}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"start_timeout\": -1}')", InvalidArgument),
    (
        "spawn('default', 'x', '{}', '{\"execution_timeout\": \"1 h\"}')",
        InvalidArgument,
    ),
    ("spawn('default', 'x', '{}', '{\"idempotency_key\": \"\"}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"idempotency_key\": 7}')", InvalidArgument),
    ("spawn('default', 'x', '{}', '{\"parent_task_id\": \"7\"}')", InvalidArgument),
    (
        f"spawn('default', 'x', '{{}}', '{{\"parent_task_id\": \"{NOBODY}\"}}')",
        NotFound,
    ),
    ("spawn_many('default', '{}')", InvalidArgument),
    (
        'spawn_many(\'default\', \'[{"task": "x"}, {"name": "x"}]\')',
        InvalidArgument,
    ),
    ("spawn_many('default', '[{\"task\": \"x\"}, 7]')", InvalidArgument),
    ("emit_event('nowhere', 'packed')", UnknownQueue),
    ("emit_event('default', '')", InvalidArgument),
    ("cancel_task('nowhere', gen_random_uuid())", UnknownQueue),
    ("cancel_task('default', gen_random_uuid())", NotFound),
    ("retry_task('default', gen_random_uuid())", NotFound),
    ("retry_task('default', gen_random_uuid(), '{\"x\": 1}')", InvalidArgument),
    ("create_queue('')", InvalidArgument),
    ("create_queue('x', '{\"keep\": 1}')", InvalidArgument),
    ("claim_tasks('nowhere', 'me')", UnknownQueue),
    ("claim_tasks('default', '')", InvalidArgument),
    ("claim_tasks('default', 'me', null, -1)", InvalidArgument),
    ("claim_tasks('default', 'me', null, 1, 0)", InvalidArgument),
]


def test_refuses_invalid_arguments_and_writes_nothing(db: psycopg.Connection) -> None:
    for call, error in NONSENSE:
        with pytest.raises(psycopg.Error) as refusal:
            db.execute(f"select * from durable.{call}")
        found = from_database(refusal.value)
        assert type(found) is error, call
        assert found.hint, call
        assert count(db, "tasks") == count(db, "events") == 0, call
        assert count(db, "queues") == 1, call


def test_refuses_a_key_that_belongs_to_another_task(sql: Engine) -> None:
    sql.spawn("x", {"a": 1}, idempotency_key="once")
    with pytest.raises(psycopg.Error) as refusal:
        sql.spawn("x", {"a": 2}, idempotency_key="once")
    assert refusal.value.sqlstate == Conflict.code


# -- a worker in SQL -----------------------------------------------------------------


def test_runs_a_task_from_its_claim_to_its_result(sql: Engine) -> None:
    task_id = sql.spawn("add", [1, 2], headers={"trace": "t"})
    (task,) = sql.claim()
    assert (task["task_id"], task["name"], task["params"]) == (task_id, "add", [1, 2])
    assert (task["headers"], task["attempt"]) == ({"trace": "t"}, 1)
    assert sql.state(task_id) == "running"
    assert sql.claim() == []
    own = {"task_id": task_id, "claim": task["claim"]}
    step = {"name": "sum", "value": {"b": 1, "a": 1e22}, "position": 1, "after": 0}
    done = [own | {"result": {"sum": 3}}]
    assert sql.call("flush", "default", [own | step], done, None) == []
    assert sql.call("flush", "default", [own | step], done, None) == []  # repeated
    result = sql.one("get_task_result", "default", task_id)
    assert (result["state"], result["result"]) == ("completed", {"sum": 3})
    (saved,) = sql.call("load_checkpoints", "default", [own])
    assert (saved["name"], saved["state"], saved["value"]) == (
        "sum",
        "done",
        step["value"],
    )


def test_claims_the_oldest_task_first_and_only_known_names(sql: Engine) -> None:
    spawned = [sql.spawn(name) for name in "abcab"]
    claim = "claim_tasks('default', 'me', array['a', 'b'], 3)"
    rows = sql.db.execute(f"select task_id from durable.{claim}").fetchall()
    assert [task_id for (task_id,) in rows] == [spawned[0], spawned[3], spawned[1]]
    assert sql.state(spawned[2]) == "pending"


def test_reports_the_outcome_of_each_element(sql: Engine) -> None:
    ids = [sql.spawn("x") for _ in range(3)]
    first, second, third = sql.claim(3)
    stale = {"task_id": second["task_id"], "claim": second["claim"] - 1}
    said = sql.call(
        "complete_tasks",
        "default",
        [
            {"task_id": first["task_id"], "claim": first["claim"], "result": 1},
            stale | {"result": 2},
            {"task_id": NOBODY, "claim": 1, "result": 3},
        ],
    )
    outcomes = {str(row["task_id"]): row["outcome"] for row in said}
    assert outcomes == {str(ids[0]): "ok", str(ids[1]): "lost", NOBODY: "lost"}
    assert sql.state(third["task_id"]) == "running"


def test_fails_and_retries(sql: Engine, clock: Clock) -> None:
    retry = {"kind": "fixed", "base_seconds": 60}
    task_id = sql.spawn("x", max_attempts=2, retry=retry)
    own = sql.held()
    sql.call("fail_tasks", "default", [own | {"error": ERROR}])
    assert sql.state(task_id) == "sleeping"
    assert sql.claim() == []
    clock.advance(60)
    (again,) = sql.claim()
    assert again["attempt"] == 2
    assert again["claim"] != own["claim"]
    own["claim"] = again["claim"]
    sql.call("fail_tasks", "default", [own | {"error": ERROR}])
    result = sql.one("get_task_result", "default", task_id)
    assert (result["state"], result["error"]) == ("failed", ERROR)
    revived = sql.one("retry_task", "default", task_id)
    assert (revived["task_id"], revived["attempt"]) == (task_id, 3)


def test_fails_at_once_if_the_error_is_not_retryable(sql: Engine) -> None:
    task_id = sql.spawn("x")
    failure = {"error": ERROR, "retryable": False}
    sql.call("fail_tasks", "default", [sql.held() | failure])
    assert sql.state(task_id) == "failed"


def test_sleeps_and_wakes(sql: Engine, clock: Clock) -> None:
    sql.spawn("x")
    own = sql.held()
    until = clock.now() + timedelta(days=90)
    args = ("default", own["task_id"], own["claim"], "$sleep:long", until)
    assert sql.one("sleep_until", *args)["outcome"] == "suspended"
    assert sql.claim() == []
    clock.advance(timedelta(days=90))
    own = sql.held()
    (saved,) = sql.call("load_checkpoints", "default", [own])
    assert (saved["name"], saved["state"]) == ("$sleep:long", "done")


def test_waits_for_an_event(sql: Engine, clock: Clock) -> None:
    task_id = sql.spawn("x")
    own = sql.held()
    wait = ("default", own["task_id"], own["claim"])
    said = sql.one("await_event", *wait, "$event:packed", "packed", 60.0)
    assert said["outcome"] == "suspended"
    assert sql.one("emit_event", "default", "packed", '{"by": 7}') == {
        "emit_event": True
    }
    assert sql.one("emit_event", "default", "packed", "8") == {"emit_event": False}
    assert sql.state(task_id) == "pending"
    own = sql.held()
    (saved,) = sql.call("load_checkpoints", "default", [own])
    assert (saved["state"], saved["value"]) == ("done", {"by": 7})
    wait = ("default", own["task_id"], own["claim"])
    again = sql.one("await_event", *wait, "$event:packed#2", "packed")
    assert (again["outcome"], again["value"]) == ("resolved", {"by": 7})
    late = sql.one("await_event", *wait, "$event:late", "late", 60.0)
    assert late["outcome"] == "suspended"
    clock.advance(60)
    loaded = sql.call("load_checkpoints", "default", [sql.held()])
    states = {saved["name"]: saved["state"] for saved in loaded}
    assert states == {
        "$event:packed": "done",
        "$event:packed#2": "done",
        "$event:late": "timed_out",
    }


def test_spawns_children_and_waits_for_them(sql: Engine) -> None:
    parent = sql.spawn("parent")
    own = sql.held()
    claim = ("default", own["task_id"], own["claim"])
    children = [
        {"name": f"$spawn:{name}", "task": name, "params": {"n": name}} for name in "ab"
    ]
    spawned = sql.call("spawn_children", *claim, children)
    ids = [child["task_id"] for child in spawned]
    assert ids == [
        child["task_id"] for child in sql.call("spawn_children", *claim, children)
    ]
    said = sql.one("await_tasks", *claim, "$join:all", ids)
    assert said["outcome"] == "suspended"
    for child in sql.claim(2):
        own = {"task_id": child["task_id"], "claim": child["claim"]}
        done = own | {"result": child["params"]["n"]}
        sql.call("complete_tasks", "default", [done])
    assert sql.state(parent) == "pending"
    loaded = sql.call("load_checkpoints", "default", [sql.held()])
    joined = next(row["value"] for row in loaded if row["name"] == "$join:all")
    assert [(child["state"], child["result"]) for child in joined] == [
        ("completed", "a"),
        ("completed", "b"),
    ]


def test_takes_over_from_a_dead_worker(sql: Engine, clock: Clock) -> None:
    task_id = sql.spawn("x")
    lost = sql.held()
    sql.call("save_checkpoints", "default", [lost | {"name": "one", "value": 1}])
    sql.call("extend_leases", "default", [lost], 60.0)
    clock.advance(59)
    assert sql.one("expire_leases", "default") == {"expire_leases": 0}
    clock.advance(1)
    assert sql.one("run_maintenance", "default")["leases"] == 1
    own = sql.held()
    (saved,) = sql.call("load_checkpoints", "default", [own])
    assert saved["name"] == "one"
    done = {"result": 1}
    assert sql.one("complete_tasks", "default", [lost | done])["outcome"] == "lost"
    assert sql.one("complete_tasks", "default", [own | done])["outcome"] == "ok"
    rows = sql.db.execute(
        "select outcome, error ->> 'type' from durable.attempts"
        " where task_id = %s order by attempt",
        [task_id],
    )
    assert rows.fetchall() == [("lease_lost", "$LeaseExpired"), ("completed", None)]


def test_releases_tasks_it_does_not_know(sql: Engine) -> None:
    task_id = sql.spawn("x", max_attempts=1)
    own = sql.held()
    assert sql.one("release_tasks", "default", [own])["outcome"] == "ok"
    assert sql.state(task_id) == "pending"
    (again,) = sql.claim()
    assert again["attempt"] == 1  # the attempt was not used up


def test_shows_an_operator_the_current_state(sql: Engine) -> None:
    sql.spawn("x")
    sql.spawn("y")
    own = sql.held()
    sql.one("await_event", "default", own["task_id"], own["claim"], "$event:e", "e")
    sql.held()
    stats = sql.one("queue_stats", "default")
    assert (stats["pending"], stats["running"], stats["sleeping"]) == (0, 1, 1)
    for view in ("attempts", "waiting", "workers", "task_list", "history"):
        sql.db.execute(f"select * from durable.{view}")
    assert sql.db.execute("select event_name from durable.waiting").fetchall() == [
        ("e",)
    ]
    assert sql.db.execute("select worker from durable.workers").fetchall() == [
        ("by hand",)
    ]


async def test_shares_its_queues_with_python(sql: Engine, dsn: str) -> None:
    @task
    async def double(number: int, ctx: Any) -> int:
        return 2 * number

    task_id = sql.spawn("double", 21)
    async with AsyncDurable(dsn, tasks=[double]) as app, app.worker():
        handle = app.handle(task_id, double)
        assert await handle.result(timeout=10) == 42
    assert sql.one("get_task_result", "default", task_id)["result"] == 42


def test_isolates_queues(sql: Engine) -> None:
    sql.one("create_queue", "second")
    task_id = sql.spawn("x")
    assert sql.call("get_task_result", "second", task_id) == []
    assert sql.call("claim_tasks", "second", "me") == []
    with pytest.raises(psycopg.Error) as refusal:
        sql.one("cancel_task", "second", task_id)
    assert refusal.value.sqlstate == NotFound.code
