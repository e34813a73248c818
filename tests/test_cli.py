"""The command line does what a client does, and never shows a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import psycopg
import pytest

from durable import DurableError
from durable._db import schema
from tests.support.processes import COMMAND_LINE, ROOT, Process, Processes

Run: TypeAlias = Callable[..., str]
Work: TypeAlias = Callable[..., Process]

UNREACHABLE = "postgresql://postgres@127.0.0.1:1/postgres"
NOBODY = "01a1fb65-86b6-7000-9188-49b6bfbacafb"
SHOP = """
from durable import AsyncDurable, task

@task(name="double")
async def double(number: int, ctx) -> list[int]:
    ctx.logger.info("doubling %d", number)
    return [2 * number]

@task(name="fail", non_retryable=(ValueError,))
async def fail(params: object, ctx) -> None:
    raise ValueError("no\\nway")

app = AsyncDurable(tasks=[double, fail])
"""


@pytest.fixture
def run(dsn: str) -> Run:
    """Run a command that exits with `code`; return stdout, or stderr if it is refused.

    `doctor` exits with 9 if it has found something, which it prints.
    """

    def run(
        *command: str, code: int = 0, dsn: str = dsn, program: str = COMMAND_LINE
    ) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *command],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"DURABLE_DATABASE_URL": dsn},
        )
        assert done.returncode == code, done.stderr
        is_refused = code not in {0, 9}
        assert (done.stdout == "") >= is_refused
        assert "Traceback" not in done.stderr
        if code == 1:
            assert done.stderr.startswith("durable: ")
            assert done.stderr.count("\n") == 1
        return (done.stderr if is_refused else done.stdout).rstrip("\n")

    return run


@pytest.fixture
def work(processes: Processes, tmp_path: Path) -> Work:
    """Start `durable worker` for SHOP."""
    (tmp_path / "shop.py").write_text(SHOP)
    environment = {"PYTHONPATH": str(tmp_path)}

    def work(*options: str) -> Process:
        return processes.durable("worker", "shop:app", *options, env=environment)

    return work


def test_prints_its_version(run: Run) -> None:
    assert run("--version") == f"durable {schema.VERSION}"


def test_doctor_says_what_is_wrong_and_what_helps(
    run: Run, db: psycopg.Connection
) -> None:
    assert run("doctor") == "all is well"
    db.execute("select durable.pause_queue('default')")
    assert run("doctor").startswith("info: default: it has been paused since")
    db.execute("update durable.queues set paused_at = null, paused_by = null")
    db.execute("select durable.spawn('default', 'x')")
    db.execute("update durable.tasks set available_at = now() - interval '1 hour'")
    (found,) = json.loads(run("doctor", "--json", code=9))
    assert (found["severity"], found["code"]) == ("error", "no_worker")


def test_migrates_an_empty_database(run: Run, db: psycopg.Connection) -> None:
    db.execute("drop schema durable cascade")
    assert "durable migrate" in run("queues", code=1)
    done = run("migrate", "--queue", "orders").splitlines()
    where = f"database '{db.info.dbname}': schema"
    version = schema.VERSION
    assert done[0] == f"{where} {version} installed"
    assert sorted(done[1:]) == ["queue 'default' exists", "queue 'orders' created"]
    again = [f"{where} {version} is up to date", "queue 'default' exists"]
    assert run("migrate").splitlines() == again
    assert run("queues").split() == ["default", "orders"]
    pretend = "create or replace function durable.version() returns text language sql"
    db.execute(f"{pretend} as $$ select '0.1.0' $$")
    upgraded = f"{where} upgraded from 0.1.0 to {version}"
    older = f"from durable._db import schema; schema.BASELINE = '0.1.0'; {COMMAND_LINE}"
    assert run("migrate", program=older).splitlines()[0] == upgraded
    db.execute(f"{pretend} as $$ select '0.2.99' $$")
    assert f"{where} 0.2.99 left as it is" in run("migrate").splitlines()


def test_prints_the_sql_that_it_installs(run: Run) -> None:
    assert run("sql") == schema.for_psql(schema.script(None)).rstrip("\n")


def test_spawns_a_task_and_prints_its_id(run: Run, db: psycopg.Connection) -> None:
    command = ["spawn", "default", "double", "--params", '{"a": [1, "ß"]}']
    command += ["--key", "once", "--max-attempts", "7"]
    task_id = run(*command)
    assert run(*command) == task_id
    stored = "select task_id::text, params, max_attempts from durable.tasks"
    assert db.execute(stored).fetchall() == [(task_id, {"a": [1, "ß"]}, 7)]


def test_delays_and_reschedules_a_task(run: Run, db: psycopg.Connection) -> None:
    task_id = run("spawn", "default", "double", "--run-at", "2999-01-01T00:00Z")
    run("spawn", "default", "double", "--delay", "60")
    at = "2998-12-31T23:00-01:00"
    assert run("reschedule", "default", task_id, at) == "rescheduled"
    due = "select available_at - spawned_at from durable.tasks order by task_id"
    (first,), (second,) = db.execute(due).fetchall()
    assert (first.days > 300_000, second) == (True, timedelta(minutes=1))


def test_changes_priorities_and_lists_partitions(
    run: Run, db: psycopg.Connection
) -> None:
    db.execute("select durable.create_queue('mail', '{\"partition_concurrency\": 1}')")
    limits = '{"concurrency": 2, "rate": {"starts": 1, "period": 60}}'
    db.execute("select durable.set_partition_limit('mail', 'b', %s)", (limits,))
    spawn = ["spawn", "mail", "double", "--partition-key"]
    _, _, task_id = [run(*spawn, key) for key in ("a", "a", "b")]
    assert run("reprioritize", "mail", task_id, "-3") == "reprioritized"
    db.execute("select durable.claim_tasks('mail', 'w', null, 10)")
    stored = "select priority from durable.tasks order by task_id"
    assert db.execute(stored).fetchall() == [(0,), (0,), (-3,)]
    header, a, b = (line.split() for line in run("partitions", "mail").splitlines())
    assert header[:3] == ["partition", "ready", "running"]
    assert (a[:3], a[-1]) == (["a", "1", "1"], "partition_concurrency")
    assert b[:8] == ["b", "0", "1", "2", "1", "in", "60", "s"]
    assert b[8] == "partition_rate"
    _, listed = json.loads(run("partitions", "mail", "--json"))
    assert (listed["rate"], listed["blocked_by"]) == ({"starts": 1, "per": 60}, None)
    db.execute("select durable.cancel_task('mail', %s)", (task_id,))
    assert "is cancelled" in run("reprioritize", "mail", task_id, "1", code=1)
    assert "no queue" in run("partitions", "nowhere", code=1)


def test_spawns_with_a_unique_key(run: Run, db: psycopg.Connection) -> None:
    spawn = ["spawn", "default", "double", "--params"]
    for keyed in (
        ["--unique", "k", "--on-conflict", "replace"],
        ["--throttle", "k", "--period", "60"],
        ["--debounce", "k", "--delay", "60", "--max-wait", "300"],
    ):
        assert run(*spawn, "1", *keyed) == run(*spawn, "2", *keyed)
    stored = "select unique_kind::text, params from durable.tasks order by 1"
    assert db.execute(stored).fetchall() == [
        ("debounce", 2),
        ("throttle", 1),
        ("unique", 2),
    ]
    assert "unfinished" in run(
        *spawn, "3", "--unique", "k", "--on-conflict", "reject", code=1
    )
    assert "unique key" in run(*spawn, "3", "--on-conflict", "reject", code=1)


@pytest.mark.parametrize("many", ["1", "2"])
def test_works_until_it_is_told_to_stop(run: Run, work: Work, many: str) -> None:
    worker = work("--processes", many, "--concurrency", "2", "--lease", "9.5")
    task_id = run("spawn", "default", "double", "--params", "21")
    assert json.loads(run("result", "default", task_id, "--timeout", "20")) == [42]
    assert run("logs", "default", task_id, "--follow").endswith("INFO doubling 21")
    worker.terminate()
    assert worker.wait() == 0, worker.output()


@pytest.mark.parametrize("many", ["1", "2"])
def test_logs_at_the_requested_level(
    run: Run, work: Work, db: psycopg.Connection, many: str
) -> None:
    def logged(worker: Process, level: str) -> list[str]:
        lines = [line.split(maxsplit=5) for line in worker.output().splitlines()]
        return [line[5] for line in lines if line[3:5] == [level, "durable.worker:"]]

    worker = work("--processes", many, "--concurrency", "7", "--log-level", "debug")
    task_id = run("spawn", "default", "double", "--params", "21")
    run("result", "default", task_id, "--timeout", "30")
    worker.terminate()
    assert worker.wait() == 0
    assert [line for line in logged(worker, "DEBUG") if task_id in line] == [
        f"task double {task_id}, attempt 1: started",
        f"task double {task_id}, attempt 1: completed",
    ]
    info = [line for line in logged(worker, "INFO") if line.startswith("worker ")]
    assert [line.split(maxsplit=2)[2].split(":")[0] for line in info] == [
        *["has started"] * int(many),
        *["is stopping"] * int(many),
        *["has stopped"] * int(many),
    ]
    assert f"database '{db.info.dbname}' of {db.info.user}" in info[0]
    assert f"engine {schema.VERSION}; queues: default; tasks: double, fail" in info[0]
    assert info[0].endswith("concurrency: 7")
    quiet = work("--processes", many, "--log-level", "WARNING")
    task_id = run("spawn", "default", "double", "--params", "21")
    run("result", "default", task_id, "--timeout", "30")
    quiet.terminate()
    assert quiet.wait() == 0
    assert quiet.output() == ""


def test_works_on_the_queues_it_is_given(
    run: Run, work: Work, db: psycopg.Connection
) -> None:
    db.execute("select durable.create_queue('orders')")
    work("--queue", "default", "--queue", "orders")
    for queue in ("default", "orders"):
        task_id = run("spawn", queue, "double", "--params", "4")
        assert run("result", queue, task_id, "--timeout", "20") == "[8]"


def test_reports_a_failure_and_retries_the_task(run: Run, work: Work) -> None:
    work()
    task_id = run("spawn", "default", "fail")
    failure = run("result", "default", task_id, "--timeout", "20", code=1)
    assert failure == "durable: ValueError: no way"
    assert run("retry", "default", task_id) == "attempt 2"


@pytest.mark.parametrize("command", ["retry", "fork"])
def test_distinguishes_null_from_omitted_params(
    run: Run, db: psycopg.Connection, command: str
) -> None:
    task_id = run("spawn", "default", "double", "--params", "7")
    run("cancel", "default", task_id)
    run(command, "default", task_id, "--params", "null")
    last = "select params from durable.tasks order by task_id desc limit 1"
    assert db.execute(last).fetchone() == (None,)


def test_lists_forks_and_shows_tasks(run: Run, work: Work) -> None:
    assert run("tasks", "default") == ""
    worker = work()
    failed = run("spawn", "default", "fail", "--params", "7")
    done = run("spawn", "default", "double", "--params", "3")
    assert run("result", "default", done, "--timeout", "20") == "[6]"
    run("result", "default", failed, "--timeout", "20", code=1)
    head, *lines = run("tasks", "default").splitlines()
    assert head.split() == ["task_id", "name", "state", "attempt", "spawned", "error"]
    assert [line.split()[:4] for line in lines] == [
        [done, "double", "completed", "1"],
        [failed, "fail", "failed", "1"],
    ]
    assert lines[1].endswith("  ValueError: no")
    one = run("tasks", "default", "--state", "failed", "--limit", "1", "--json")
    assert [task["task_id"] for task in json.loads(one)] == [failed]
    assert "no state" in run("tasks", "default", "--state", "fialed", code=1)
    head, *lines = run("history", "default", failed).splitlines()
    assert head.split() == ["at", "attempt", "what", "name", "worker", "detail"]
    told = [line[25:].split()[:2] for line in lines]
    assert told == [["spawned", "fail"], ["1", "started"], ["1", "failed"]]
    assert lines[2].endswith("  ValueError: no way")
    told = json.loads(run("history", "default", failed, "--json"))
    assert told[2]["detail"]["error"]["type"] == "ValueError"
    assert "no task" in run("history", "default", NOBODY, code=1)
    fork = run("fork", "default", done, "--params", "4")
    assert run("result", "default", fork, "--timeout", "20") == "[8]"
    assert "no checkpoint" in run("fork", "default", done, "--before", "x", code=1)
    assert run("retry", "default", failed, "--params", "8") == "attempt 2"
    worker.terminate()
    assert worker.wait() == 0


def test_cancels_a_task_once(run: Run) -> None:
    task_id = run("spawn", "default", "double")
    assert "still pending" in run("result", "default", task_id, code=1)
    assert run("cancel", "default", task_id, "--reason", "sold out") == "cancelled"
    assert run("cancel", "default", task_id) == "already finished"
    assert "sold out" in run("result", "default", task_id, code=1)


def test_emits_an_event_once(run: Run, db: psycopg.Connection) -> None:
    assert run("emit", "default", "packed", "--payload", "[1]") == "emitted"
    assert run("emit", "default", "packed", "--payload", "[2]") == "already emitted"
    stored = db.execute("select name, payload from durable.events").fetchall()
    assert stored == [("packed", [1])]


def test_sends_a_message_once(run: Run, db: psycopg.Connection) -> None:
    task_id = run("spawn", "default", "double")
    send = ["send", "default", task_id, "votes", "--payload", "[1]", "--key", "k"]
    assert run(*send) == "sent"
    assert run(*send) == "already sent"
    stored = db.execute("select topic, payload from durable.messages").fetchall()
    assert stored == [("votes", [1])]


def test_counts_the_tasks_of_queues(run: Run, db: psycopg.Connection) -> None:
    db.execute("select durable.create_queue('orders')")
    run("spawn", "orders", "double")
    header, *rows = (line.split() for line in run("stats").splitlines())
    assert header[:2] == ["queue", "pending"]
    assert [row[:2] for row in rows] == [["default", "0"], ["orders", "1"]]
    (counted,) = json.loads(run("stats", "orders", "--json"))
    assert (counted["queue"], counted["pending"]) == ("orders", 1)
    assert counted["ready_by_name"] == {"double": 1}
    (exact,) = json.loads(run("stats", "orders", "--exact", "--json"))
    assert exact.pop("oldest_ready_age") >= counted.pop("oldest_ready_age")
    assert exact == counted


def test_prints_a_throughput(run: Run, db: psycopg.Connection) -> None:
    db.execute("select durable.spawn('default', 'double')")
    db.execute("select durable.run_maintenance('default')")
    header, row = (
        line.split() for line in run("throughput", "default", "--by-name").splitlines()
    )
    assert header[:3] == ["at", "name", "spawned"]
    assert row[2:4] == ["double", "1"]  # the moment has a space
    (found,) = json.loads(run("throughput", "default", "--json"))
    assert (found["name"], found["spawned"]) == (None, 1)


def test_searches_by_an_index(run: Run, db: psycopg.Connection) -> None:
    spawn = "select durable.spawn('default', 'double', jsonb_build_object('n', n))"
    db.execute(f"{spawn} from generate_series(1, 9) as n")
    search = ["tasks", "default", "--params", '{"n": 2}', "--json"]
    search += ["--limit", "1", "--scan", "2"]
    assert json.loads(run(*search)) == []
    run("index", "create", "params")
    (found,) = json.loads(run(*search))
    assert found["name"] == "double"
    run("index", "drop", "params")
    assert json.loads(run(*search)) == []


def test_pauses_and_explains(run: Run, db: psycopg.Connection, dsn: str) -> None:
    task_id = run("spawn", "default", "double")
    assert run("pause", "default") == "paused"
    assert run("pause", "default") == "already paused"
    assert run("pause", "default", "--task", "double") == "paused"
    kinds = ["queue_paused", "name_paused", "no_worker", "unknown_name", "queued"]
    lines = run("explain", "default", task_id).splitlines()
    assert [line.partition(": ")[0] for line in lines] == kinds
    assert lines[0].endswith(f"UTC by role {db.info.user}")
    found = json.loads(run("explain", "default", task_id, "--json"))
    assert [reason["kind"] for reason in found] == kinds
    (counted,) = json.loads(run("stats", "default", "--json"))
    assert counted["paused"]["by"]["user"] == db.info.user
    stats = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, "stats", "--dsn", dsn],
        check=True,
        capture_output=True,
        text=True,
    )
    warnings = [line.partition(" since ")[0] for line in stats.stderr.splitlines()]
    assert warnings[:2] == [
        'durable: queue "default" paused',
        'durable: tasks "double" of queue "default" paused',
    ]
    assert run("resume", "default") == "resumed"
    assert run("resume", "default") == "not paused"
    assert run("resume", "default", "--task", "double") == "resumed"
    assert "no queue" in run("pause", "nowhere", code=1)
    assert "no task" in run("explain", "default", NOBODY, code=1)


FAIL_ALL = """
select durable.fail_tasks('default', json_agg(json_build_object(
  'task_id', task_id, 'claim', claim, 'retryable', false,
  'error', json_build_object('type', name, 'message', ''))))
from durable.claim_tasks('default', 'w', null, 10)
"""


def test_retries_dead_letters_by_filter(run: Run, db: psycopg.Connection) -> None:
    first, second = [run("spawn", "default", "double") for _ in range(2)]
    other = run("spawn", "default", "other")
    db.execute(FAIL_ALL)

    def failed(*options: str) -> list[str]:
        listed = run("tasks", "default", "--state", "failed", "--json", *options)
        return [task["task_id"] for task in json.loads(listed)]

    retry = ["retry-many", "default", "--state", "failed"]
    assert failed() == [other, second, first]
    assert failed("--error-type", "other") == [other]
    assert run(*retry, "--error-type", "none") == "retried 0"
    assert run(*retry, "--task-id", first) == "retried 1"
    assert failed() == [other, second]
    assert run(*retry, "--name", "double") == "retried 1"
    assert run("retry-many", "default", "--all") == "retried 1"
    assert failed() == []
    assert "a filter is required" in run("retry-many", "default", code=1)


def test_lists_the_errors(run: Run) -> None:
    codes = [line.split()[0] for line in run("errors").splitlines()]
    assert codes == sorted(DurableError.by_code)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["spawn", "nowhere", "double"], 'no queue "nowhere"'),
        (["spawn", "default", ""], "name"),
        (["spawn", "default", "double", "--params", "NaN"], "nan"),
        (["result", "default", NOBODY], NOBODY),
        (["stats", "nowhere"], "nowhere"),
        (["queues", "--dsn", UNREACHABLE], "refused"),
        (["worker", "no_such_module:app"], "no_such_module"),
        (["worker", "json:dumps"], "not an AsyncDurable or a Durable"),
    ],
)
def test_reports_errors_in_one_line(run: Run, command: list[str], words: str) -> None:
    assert words in run(*command, code=1)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["spawn", "default"], "Missing argument 'task'"),
        (["spawn", "default", "double", "--params", "{'a': 1}"], "is not JSON"),
        (["result", "default", "42"], "UUID"),
        (["worker", "shop:app", "--processes", "0"], "'--processes'"),
        (
            ["worker", "shop:app", "--log-level", "loud"],
            "'loud' is not a logging level",
        ),
    ],
)
def test_explains_the_usage_of_a_command(
    run: Run, command: list[str], words: str
) -> None:
    said = run(*command, code=2)
    assert said.startswith("Usage: durable ")
    assert words in said


def test_asks_for_a_database(run: Run) -> None:
    assert "DURABLE_DATABASE_URL" in run("queues", code=2, dsn="")
