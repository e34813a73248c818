"""The public API is complete, documented and typed, and nothing else is public."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from importlib.resources import files
from typing import Any

import pytest

import durable

PUBLIC = [
    ("AsyncDurable", "Durable"),
    ("TaskContext", "SyncTaskContext"),
    ("AsyncTaskHandle", "TaskHandle"),
    ("AsyncTaskStream", "TaskStream"),
    ("Worker", "ThreadedWorker"),
]
CLIENT = {
    *[
        "migrate",
        "check_schema",
        "create_queue",
        "set_partition_limit",
        "list_partitions",
        "drop_queue",
        "list_queues",
        "queue_stats",
        "queue_throughput",
        "queue_depth",
        "task_totals",
        "recount_totals",
        "pause_queue",
        "resume_queue",
    ],
    *[
        "register",
        "spawn",
        "spawn_many",
        "spawn_in_batches",
        "spawn_with",
        "emit_event",
    ],
    *["send", "send_with"],
    *["emit_event_with", "cancel", "retry", "get_result", "handle", "worker"],
    *["reschedule", "reprioritize"],
    *["run_worker", "close", "queue"],
    *["fork", "export_history", "explain"],
    *["list_tasks", "count_tasks", "cancel_many", "retry_many", "delete_many"],
    *["list_workers", "list_audit", "find_task", "list_events", "diagnose"],
    *["list_versions", "promote_version", "set_version", "list_definitions"],
    *["create_schedule", "drop_schedule", "apply_schedules", "pause_schedule"],
    *["resume_schedule", "trigger_schedule", "backfill_schedule", "list_schedules"],
    *["list_schedule_runs", "next_fires"],
}
CONTEXT = {
    *["task_id", "name", "run_id", "attempt", "queue", "headers", "state"],
    "exit_reason",
    *["identity", "http"],
    *["deadline", "version", "scheduled_at"],
    *["parent_task_id", "scope", "step", "transaction", "begin_step"],
    *["complete_step"],
    *["sleep_for", "sleep_until", "await_event", "emit_event", "spawn"],
    *["send", "recv"],
    *["spawn_many", "join", "heartbeat", "now", "random", "uuid7"],
    *["patched", "deprecate_patch"],
    *["set_value", "write_stream", "close_stream", "logger"],
    *["call", "gather", "first"],
}


def members(cls: type) -> dict[str, Any]:
    return {
        name: member
        for room in reversed(cls.__mro__)
        if room.__module__.startswith("durable")
        for name, member in vars(room).items()
        if not name.startswith("_")
        and (callable(member) or isinstance(member, property))
    }


def documented() -> dict[str, Any]:
    """Every public class and function, and every public method of those classes."""
    found: dict[str, Any] = {}
    for name in durable.__all__:
        thing = getattr(durable, name)
        found[name] = thing
        if isinstance(thing, type):
            found |= {f"{name}.{key}": one for key, one in members(thing).items()}
    return found


def test_lists_its_names_in_order() -> None:
    assert durable.__all__ == sorted(durable.__all__)
    assert len(durable.__all__) == len(set(durable.__all__))


def test_exports_exactly_the_names_it_lists() -> None:
    modules = {module.name for module in pkgutil.iter_modules(durable.__path__)}
    names = {name for name in vars(durable) if not name.startswith("_")}
    listed = set(durable.__all__)
    assert listed <= names
    assert names - listed - modules == {"annotations"}


@pytest.mark.parametrize(
    "module", ["errors", "retry", "schedules", "task", "children", "options"]
)
def test_has_public_modules_that_list_what_they_have(module: str) -> None:
    found = importlib.import_module(f"durable.{module}")
    assert found.__doc__
    assert set(found.__all__) <= set(vars(found))


@pytest.mark.parametrize("name", sorted(documented()))
def test_everything_public_has_a_docstring(name: str) -> None:
    thing = documented()[name]
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    first = text.partition("\n\n")[0]
    assert first.endswith((".", ":")), f"{name}: {first!r} is no sentence"


@pytest.mark.parametrize("name", sorted(documented()))
def test_annotates_everything_public(name: str) -> None:
    thing = documented()[name]
    function = thing.fget if isinstance(thing, property) else thing
    if inspect.isfunction(function):
        signature = inspect.signature(function)
        given = [p for p in signature.parameters.values() if p.name != "self"]
        assert all(p.annotation is not p.empty for p in given), signature
        assert signature.return_annotation is not signature.empty


@pytest.mark.parametrize(("asynchronous", "synchronous"), PUBLIC)
def test_has_the_same_methods_in_both_clients(
    asynchronous: str, synchronous: str
) -> None:
    one, other = getattr(durable, asynchronous), getattr(durable, synchronous)
    if asynchronous == "Worker":
        assert set(members(one)) == {"drain", "health"}
        assert set(members(other)) == {"drain", "health", "worker_id"}
        return
    assert set(members(one)) == set(members(other))
    for name, member in members(one).items():
        if inspect.isfunction(member):
            mine = list(inspect.signature(member).parameters)
            assert mine == list(inspect.signature(getattr(other, name)).parameters), (
                name
            )


def test_has_the_methods_that_its_docs_name() -> None:
    assert set(members(durable.Durable)) == CLIENT
    assert set(members(durable.TaskContext)) == CONTEXT


def test_takes_options_by_keyword_only() -> None:
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    for name, allowed in {
        "__init__": ["self", "database"],
        "cancel": ["self", "task"],
        "retry": ["self", "task"],
        "get_result": ["self", "task"],
        "handle": ["self", "task_id", "task"],
        "emit_event": ["self", "event", "payload"],
        "send": ["self", "task", "topic", "payload"],
        "send_with": ["self", "conn", "task", "topic", "payload"],
        "spawn": ["self", "task", "params"],
        "spawn_with": ["self", "conn", "task", "params"],
    }.items():
        parameters = inspect.signature(getattr(durable.Durable, name)).parameters
        given = [p.name for p in parameters.values() if p.kind is positional]
        assert given == allowed, name


def test_is_marked_as_typed() -> None:
    assert (files(durable) / "py.typed").is_file()
    hints = typing.get_type_hints(durable.SpawnOptions)
    assert hints.keys() >= {"max_attempts", "retry", "headers", "idempotency_key"}
