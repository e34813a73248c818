"""Metrics for Prometheus: the text, the endpoints, the dashboard and the alerts."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final, TypeAlias

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from durable import Durable, InvalidArgument
from durable.embedded import Postgres
from durable.telemetry.instruments import MEASURED, READ, SLOTS, Instrument
from durable.telemetry.measuring import OTHER
from durable.telemetry.prometheus import Registry
from durable.telemetry.queues import QueueReader
from durable.telemetry.serving import address_of
from tests.support.processes import COMMAND_LINE, ROOT, Process, Processes
from tests.support.wait import eventually

Samples: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]

SERVED: Final = re.compile(r"http://(127\.0\.0\.1:\d+)")
APP: Final = """
import asyncio
from durable import AsyncDurable, task

@task(max_attempts=1)
async def work(ctx, *, fails: bool = False):
    await ctx.step("think", int)
    if fails:
        raise LookupError("none")

@task
async def blocks(ctx):
    await asyncio.sleep(3600)

app = AsyncDurable(tasks=[work, blocks])
"""


def parsed(text: str) -> Samples:
    """Return the samples of a text, as Prometheus' own client reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    """Return the sum of all samples of a name that have these labels."""
    wanted = set(labels.items())
    found = [v for (one, has), v in samples.items() if one == metric and wanted <= has]
    assert found, f"no {metric} with {labels} in {samples}"
    return sum(found)


def run(*command: str, dsn: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *command],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"DURABLE_DATABASE_URL": dsn},
    )
    return done.stdout


def get(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def served(process: Process) -> str:
    """Return the address at which a process serves, once it does."""
    process.wait_for("http://127.0.0.1:")
    match = SERVED.search(process.output())
    assert match is not None
    return match[1]


def test_writes_text_that_prometheus_reads() -> None:
    registry = Registry()
    histogram = Instrument("a.b", "histogram", "s", "Some.", (0.1, 1.0))
    odd = 'a "b"\\n\nß'
    for seconds in (0.1, 0.2, 7.0):
        registry.add(histogram, seconds, {"x.y": odd})
    counter = Instrument("c", "counter", "{thing}", "Some.")
    gauge = Instrument("g", "gauge", "{thing}", "Some.")
    for number in (3, 2):
        registry.add(counter, number, {})
        registry.add(gauge, number, {"a": "1"})
    samples = parsed(registry.text())
    limits = {"0.1": 1, "1.0": 2, "+Inf": 3}
    for limit, count in limits.items():
        assert value(samples, "a_b_seconds_bucket", x_y=odd, le=limit) == count
    assert value(samples, "a_b_seconds_sum", x_y=odd) == pytest.approx(7.3)
    assert value(samples, "a_b_seconds_count", x_y=odd) == 3
    assert value(samples, "c_total") == 5
    assert value(samples, "g", a="1") == 2


def test_prints_the_metrics_of_queues(dsn: str, db: psycopg.Connection) -> None:
    with Durable(dsn) as app:
        app.spawn_many("a", [{}, {}])
        app.spawn("b", delay=3600)
        app.create_queue("other", max_length=1)
    db.execute("update durable.tasks set available_at = available_at - interval '60 s'")
    samples = parsed(run("metrics", dsn=dsn))
    of = {"queue": "default"}
    assert value(samples, "durable_queue_tasks", **of, state="pending") == 3
    assert value(samples, "durable_queue_ready", **of, name="a") == 2
    assert value(samples, "durable_queue_oldest_ready_age_seconds", **of) >= 60
    assert value(samples, "durable_queue_stranded", **of) == 0
    assert {dict(has).get("queue") for _, has in samples} == {None, "default", "other"}
    with Durable(dsn) as app:
        one = parsed(QueueReader(app, ["other"]).text())
    assert {dict(has).get("queue") for _, has in one} == {None, "other"}
    assert value(one, "durable_queue_paused") == value(one, "durable_queue_full") == 0


def test_counts_further_names_as_other(dsn: str) -> None:
    with Durable(dsn) as app:
        app.spawn_many([(f"task-{number}", {}) for number in range(250)])
        samples = parsed(QueueReader(app).text())
    names = [dict(has)["name"] for one, has in samples if one == "durable_queue_ready"]
    assert len(names) == 201
    assert value(samples, "durable_queue_ready", name=OTHER) == 50
    assert value(samples, "durable_queue_ready") == 250


def test_serves_the_metrics_of_queues(dsn: str, processes: Processes) -> None:
    with Durable(dsn) as app:
        app.spawn("a")
    address = served(processes.durable("metrics", "--listen", "127.0.0.1:0"))
    status, text = get(address, "/metrics")
    assert (status, value(parsed(text), "durable_queue_ready", name="a")) == (200, 1)
    assert get(address, "/other")[0] == 404
    assert get(address, "/metrics", "POST")[0] == 405
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as noise:
        noise.sendall(b"x" * 100_000)
        with contextlib.suppress(ConnectionError):
            assert noise.recv(1) == b""
    assert get(address, "/metrics")[0] == 200


@pytest.mark.parametrize("address", ["80", ":80", "a:b", "a:70000", "[::1]"])
def test_refuses_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidArgument, match="HOST:PORT"):
        address_of(address)
    assert address_of("[::1]:80") == ("::1", 80)


@pytest.fixture
def work(processes: Processes, tmp_path: Path) -> Callable[..., Process]:
    """Start a worker of APP with a health endpoint on a free port."""
    (tmp_path / "measured_app.py").write_text(APP)
    path = f"{tmp_path}:{ROOT / 'python-sdk' / 'src'}"

    def work(*options: str, **env: str) -> Process:
        command = ["worker", "measured_app:app", "--health", "127.0.0.1:0", *options]
        return processes.durable(*command, env={"PYTHONPATH": path, **env})

    return work


def test_a_worker_serves_its_own_metrics(
    dsn: str, work: Callable[..., Process]
) -> None:
    worker = work("--concurrency", "7")
    address = served(worker)
    with Durable(dsn) as app:
        handles = [app.spawn("work", {"fails": fails}) for fails in (False, True)]
        blocked = app.spawn("blocks")
        eventually(lambda: all(one.snapshot().finished for one in handles))
        eventually(lambda: blocked.state() == "running")
        samples = parsed(get(address, "/metrics")[1])
        runs = "messaging_process_duration_seconds_count"
        failed = {"durable_run_outcome": "failed", "error_type": "LookupError"}
        assert value(samples, runs, durable_task_name="work", **failed) == 1
        assert value(samples, runs, durable_run_outcome="completed") == 1
        assert value(samples, "durable_step_duration_seconds_count", step="think") == 2
        assert value(samples, "durable_worker_running", queue="default") == 1
        assert value(samples, "durable_worker_slots") == 7
        status, text = get(address, "/readyz")
        health = json.loads(text)
        assert (status, health["state"], health["running"]) == (200, "working", 1)
        worker.terminate()
        eventually(lambda: get(address, "/readyz")[0] == 503)
        assert json.loads(get(address, "/healthz")[1])["state"] == "draining"
        assert get(address, "/healthz")[0] == 200


def test_a_worker_without_a_database_is_alive_but_not_ready(
    own_server: Postgres, work: Callable[..., Process]
) -> None:
    own_server.stop()
    dsn = own_server.conninfo()
    address = served(work(DURABLE_DATABASE_URL=dsn))
    assert json.loads(get(address, "/healthz")[1])["state"] == "starting"
    assert get(address, "/readyz")[0] == 503
    own_server.restart()
    eventually(lambda: get(address, "/readyz")[0] == 200)
    own_server.stop()
    eventually(lambda: get(address, "/readyz")[0] == 503)
    status, text = get(address, "/healthz")
    assert (status, json.loads(text)["state"]) == (200, "no database")


NAMES: Final = {one.prometheus_name: one for one in (*MEASURED, *READ, SLOTS)}
NAMED: Final = re.compile(r"\b(?:durable|messaging)(?:_[a-z]+){2,}")


def shipped(file: str) -> str:
    return resources.files("durable.telemetry").joinpath(file).read_text()


def exported() -> set[str]:
    """Return the names of all samples that durable exports."""
    names = {name for name, one in NAMES.items() if one.kind != "histogram"}
    histograms = NAMES.keys() - names
    return names | {f"{n}_{part}" for n in histograms for part in ("bucket", "count")}


def named(queries: str) -> set[str]:
    """Return the metrics that queries name, without the labels."""
    labels = {"durable_run_outcome", "durable_task_name"}
    labels |= {"messaging_operation_name", "messaging_destination_name"}
    return set(NAMED.findall(queries)) - labels


def test_the_dashboard_names_only_metrics_that_are_exported() -> None:
    dashboard = json.loads(run("metrics", "--grafana"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    found = named("\n".join(queries))
    assert found <= exported()
    # and every metric is on it, but for those about the reading itself
    shown = {re.sub("_(bucket|count)$", "", name) for name in found}
    unshown = {"messaging_client_consumed_messages_total"}
    unshown.add("durable_queue_read_duration_seconds")
    assert NAMES.keys() - shown == unshown
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_alerts_name_only_metrics_that_are_exported() -> None:
    alerts = shipped("alerts.yml")
    assert len(named(alerts)) == 5
    assert named(alerts) <= exported()
    titles = set(re.findall(r"alert: (\w+)", alerts))
    assert titles == set(re.findall(r"Alert: (\w+)", shipped("grafana.json")))
