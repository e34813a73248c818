"""Every call that touches a task, as a value, to be played against another.

Arguments name tasks of a scenario; all copies of it have the same ids and claims, so a
call differs between copies in its queue only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple
from uuid import UUID

__all__ = ["FAR", "WORKER", "Call", "Held"]

WORKER: Final = "w"
FAR: Final = "+far"  # behind a queue's name: the other queue of a scenario
KEYS: Final = (
    *("idempotency_key", "fingerprint"),
    *("unique", "throttle", "debounce"),
)
ERROR: Final = {"type": "Oops", "message": "no"}


class Held(NamedTuple):
    """A task, and the last claim on it."""

    nick: str
    task_id: UUID
    claim: int = 0

    def said(self, **more: Any) -> dict[str, Any]:
        return {"task_id": str(self.task_id), "claim": self.claim, **more}


@dataclass(frozen=True, eq=False)
class Call:
    """A call, with `%(queue)s` for the queue, and `%(far)s` for the other one.

    tries: it skips locked rows, and is repeated later.
    divisible: it handles several tasks, or cancels others too, one after the other.
    composite: it consists of several calls, all of which are played too.
    inserts: of two by the same claim at once, one gets 23505 and has to be repeated.
    cancels: the nicknames of the tasks that it cancels in one call, or "all".
    """

    name: str
    query: str
    args: Mapping[str, Any] = field(default_factory=dict)
    tries: bool = False
    divisible: bool = False
    composite: bool = False
    inserts: bool = False
    cancels: str = ""

    @property
    def sweeps(self) -> bool:
        """Whether it handles tasks that match a filter, each by itself."""
        return "wanted" in self.args

    def of(self, task_ids: Iterable[str]) -> Call:
        """Return a sweep of at most this many."""
        wanted = json.dumps({"task_ids": list(task_ids)})
        return replace(self, args={**self.args, "wanted": wanted})

    def on(self, queue: str) -> dict[str, Any]:
        """Return its arguments in a queue."""
        far = f"{queue}{FAR}"
        args = {
            key: arg.replace(f'"{FAR}"', f'"{far}"') if isinstance(arg, str) else arg
            for key, arg in self.args.items()
        }
        return {"queue": queue, "far": far, **args}


# Calls of clients.


def spawn(nick: str, *, parent: Held | None = None, **options: Any) -> Call:
    if parent is not None:
        options["parent_task_id"] = str(parent.task_id)
    return Call(
        " ".join(
            [
                "spawn",
                nick,
                *(str(options.get(o, "")) for o in KEYS),
            ]
        ).strip(),
        "select created from durable.spawn(%(queue)s, %(name)s, '{}', %(options)s)",
        {"name": nick, "options": json.dumps(options)},
    )


def spawn_many(nick: str, *options: dict[str, Any]) -> Call:
    tasks = [{"task": f"{nick}", "options": option} for option in options]
    return Call(
        " ".join(
            ["spawn_many", nick, *(str(o.get(k, "")) for o in options for k in KEYS)]
        ),
        "select created from durable.spawn_many(%(queue)s, %(tasks)s)",
        {"tasks": json.dumps(tasks)},
    )


def emit(event: str = "news") -> Call:
    return Call(
        f"emit {event}",
        "select durable.emit_event(%(queue)s, %(event)s, '7')",
        {"event": event},
    )


def send(task: Held, topic: str = "t", key: str | None = None) -> Call:
    return Call(
        " ".join(["send", task.nick, topic, *([key] if key else [])]),
        "select durable.send_message(%(queue)s, %(task_id)s, %(topic)s, '7', %(key)s)",
        {"task_id": task.task_id, "topic": topic, "key": key},
    )


def cancel(task: Held) -> Call:
    return Call(
        f"cancel {task.nick}",
        "select durable.cancel_task(%(queue)s, %(task_id)s)",
        {"task_id": task.task_id},
        divisible=True,
    )


def reschedule(task: Held, seconds: float) -> Call:
    """Move the start of a task to so many seconds from now."""
    return Call(
        f"reschedule {task.nick} {seconds:+g}",
        "select durable.reschedule_task(%(queue)s, %(task_id)s,"
        " durable._now() + make_interval(secs => %(seconds)s))",
        {"task_id": task.task_id, "seconds": seconds},
    )


def reprioritize(task: Held, priority: int) -> Call:
    return Call(
        f"reprioritize {task.nick} {priority}",
        "select durable.reprioritize_task(%(queue)s, %(task_id)s, %(priority)s)",
        {"task_id": task.task_id, "priority": priority},
    )


def retry(task: Held, **options: Any) -> Call:
    return Call(
        " ".join(["retry", task.nick, *options]),
        "select attempt, created"
        " from durable.retry_task(%(queue)s, %(task_id)s, %(options)s)",
        {"task_id": task.task_id, "options": json.dumps(options)},
    )


def fork(task: Held, **options: Any) -> Call:
    return Call(
        " ".join(["fork", task.nick, *options]),
        "select attempt, created"
        " from durable.fork_task(%(queue)s, %(task_id)s, %(options)s)",
        {"task_id": task.task_id, "options": json.dumps(options)},
    )


def _many(function: str, tasks: tuple[Held, ...]) -> Call:
    wanted = {"task_ids": [str(task.task_id) for task in tasks]}
    return Call(
        " ".join([function, *(task.nick for task in tasks)]),
        f"select tasks from durable.{function}(%(queue)s, %(wanted)s)",
        {"wanted": json.dumps(wanted if tasks else {"all": True})},
        tries=True,
        divisible=True,
    )


def cancel_many(*tasks: Held) -> Call:
    """Cancel these, or all."""
    nicks = " ".join(task.nick for task in tasks)
    return replace(_many("cancel_tasks", tasks), cancels=nicks or "all")


def retry_many(*tasks: Held) -> Call:
    """Try these again, or all."""
    return _many("retry_tasks", tasks)


def delete_many(*tasks: Held) -> Call:
    """Delete these, or all that have finished."""
    return _many("delete_tasks", tasks)


# Calls of workers.


def claim(batch_size: int = 100) -> Call:
    return Call(
        "claim",
        "select task_id, claim"
        " from durable.claim_tasks(%(queue)s, 'taker', null, %(batch_size)s, 60)",
        {"batch_size": batch_size},
        tries=True,
    )


def claim_as(version: str, batch_size: int = 100) -> Call:
    return Call(
        f"claim as {version}",
        "select task_id, claim from durable.claim_tasks("
        "%(queue)s, 'taker', null, %(batch_size)s, 60, version => %(version)s)",
        {"batch_size": batch_size, "version": version},
        tries=True,
    )


def announce(version: str, worker: str | None = None) -> Call:
    worker = worker or f"worker of {version}"
    return Call(
        f"announce {worker}",
        "select * from durable.announce_worker(%(queue)s, %(worker)s, %(about)s)",
        {"worker": worker, "about": json.dumps({"version": version})},
        tries=True,
    )


def remove_worker(version: str) -> Call:
    return Call(
        f"remove the worker of {version}",
        "select durable.remove_worker(%(queue)s, %(worker)s)",
        {"worker": f"worker of {version}"},
    )


def announce_definitions(version: str) -> Call:
    return Call(
        f"announce the tasks of {version}",
        "select durable.announce_definitions(%(queue)s, %(definitions)s, %(version)s)",
        {
            "version": version,
            "definitions": '[{"task": "step", "options": {"max_attempts": 3}}]',
        },
        tries=True,
    )


def _about(verb: str, function: str, helds: tuple[Held, ...], **more: Any) -> Call:
    said = [held.said(**more) for held in helds]
    return Call(
        " ".join([verb, *(held.nick for held in helds)]),
        f"select * from durable.{function}(%(queue)s, %(tasks)s::json)",
        {"tasks": json.dumps(said)},
        tries=function == "extend_leases",
        divisible=len(helds) > 1 or function == "fail_tasks",
        inserts=function == "save_checkpoints",
    )


def save(*helds: Held, name: str = "step") -> Call:
    return _about("save", "save_checkpoints", helds, name=name, value=1)


def complete(*helds: Held) -> Call:
    return _about("complete", "complete_tasks", helds, result=1)


def fail(*helds: Held, retryable: bool = False) -> Call:
    verb = "fail and retry" if retryable else "fail"
    return _about(verb, "fail_tasks", helds, error=ERROR, retryable=retryable)


def flush(saved: Held, completed: Held, failed: Held | None = None) -> Call:
    """Save, complete and fail in one statement."""
    failures = [failed.said(error=ERROR, retryable=False)] if failed else None
    return Call(
        " ".join(
            ["flush", saved.nick, completed.nick, *([failed.nick] if failed else [])]
        ),
        "select * from durable.flush(%(queue)s, %(saved)s, %(completed)s, %(failed)s)",
        {
            "saved": json.dumps([saved.said(name="flushed", value=2)]),
            "completed": json.dumps([completed.said(result=2)]),
            "failed": failures and json.dumps(failures),
        },
        divisible=True,
        inserts=True,
    )


def publish(published: Held, saved: Held, completed: Held | None = None) -> Call:
    """Publish, save and complete in one statement."""
    said = published.said(
        sets=[{"key": "progress", "value": 1, "times": 1}],
        entries=[{"stream": "news", "number": 0, "value": "first"}],
        lines=[
            {
                "number": 0,
                "at": "2030-01-01 00:00:00+00",
                "level": 20,
                "logger": "task",
                "message": "begins",
            }
        ],
    )
    return Call(
        " ".join(
            [
                "publish",
                published.nick,
                saved.nick,
                *([completed.nick] if completed else []),
            ]
        ),
        "select * from durable.publish(%(queue)s, %(said)s, %(saved)s, %(completed)s)",
        {
            "said": json.dumps([said]),
            "saved": json.dumps([saved.said(name="published", value=3)]),
            "completed": completed and json.dumps([completed.said(result=3)]),
        },
        divisible=True,
        inserts=True,
    )


def extend(*helds: Held) -> Call:
    return _about("extend", "extend_leases", helds)


def release(*helds: Held) -> Call:
    return _about("release", "release_tasks", helds)


def release_unknown() -> Call:
    return Call(
        "release unknown",
        "select durable.release_unknown(%(queue)s, %(worker)s, '{}')",
        {"worker": WORKER},
        tries=True,
    )


def load(*helds: Held) -> Call:
    return _about("load", "load_checkpoints", helds)


def hold(held: Held) -> Call:
    return Call(
        f"hold {held.nick}",
        "select name, state from durable.lock_task("
        "%(queue)s, %(task_id)s, %(claim)s, 'step')",
        {"task_id": held.task_id, "claim": held.claim},
    )


def suspend(*helds: Held, waits: list[dict[str, Any]]) -> Call:
    verb = f"suspend for {_names(waits)}"
    return _about(verb, "suspend_tasks", helds, waits=waits)


def poll(*helds: Held, waits: list[dict[str, Any]]) -> Call:
    return _about(f"poll {_names(waits)}", "poll_waits", helds, waits=waits)


def withdraw(
    held: Held, *given_up: dict[str, Any], waits: list[dict[str, Any]]
) -> Call:
    """Poll for new waits, cancelling the former ones."""
    verb = f"withdraw {_names([*given_up])} for {_names(waits)}"
    return _about(verb, "poll_waits", (held,), waits=waits, withdrawn=given_up)


def _names(waits: list[dict[str, Any]]) -> str:
    return ",".join(wait["name"] for wait in waits)


def sleep(seconds: float) -> dict[str, Any]:
    return {"name": "$sleep", "seconds": seconds}


def event(name: str = "news", **more: Any) -> dict[str, Any]:
    return {"name": f"$event:{name}", "event": name, **more}


def join(*tasks: Held) -> dict[str, Any]:
    return {"name": "$join", "task_ids": [str(task.task_id) for task in tasks]}


def first(*tasks: Held) -> dict[str, Any]:
    return join(*tasks) | {"name": "$first", "any_of": True}


def mixed(wait: dict[str, Any], *places: str | None) -> dict[str, Any]:
    """Return a wait for tasks with the queue of each: this one, or `FAR`."""
    return wait | {"queues": list(places)}


def far(call: Call) -> Call:
    """Make a call in the other queue."""
    query = call.query.replace("%(queue)s", "%(far)s")
    return replace(call, name=f"{call.name} far", query=query)


def await_event(held: Held, event: str = "news") -> Call:
    return Call(
        f"await_event {held.nick}",
        "select outcome, name, state, value::text from durable.await_event("
        "%(queue)s, %(task_id)s, %(claim)s, '$event:' || %(event)s, %(event)s)",
        {"task_id": held.task_id, "claim": held.claim, "event": event},
    )


def await_tasks(held: Held, *others: Held) -> Call:
    return Call(
        " ".join(["await_tasks", held.nick, *(other.nick for other in others)]),
        "select outcome, name, state, value::text from durable.await_tasks("
        "%(queue)s, %(task_id)s, %(claim)s, '$join', %(task_ids)s)",
        {
            "task_id": held.task_id,
            "claim": held.claim,
            "task_ids": [other.task_id for other in others],
        },
    )


def sleep_until(held: Held) -> Call:
    return Call(
        f"sleep_until {held.nick}",
        "select outcome, name, state, value::text from durable.sleep_until("
        "%(queue)s, %(task_id)s, %(claim)s, '$sleep', '2031-01-01 00:00:00+00')",
        {"task_id": held.task_id, "claim": held.claim},
    )


def spawn_children(held: Held, nick: str, **options: Any) -> Call:
    children = [
        {"name": f"${nick}#{number}", "task": nick, "options": options}
        for number in range(1 if options else 2)
    ]
    return Call(
        f"spawn_children {held.nick} {nick}",
        "select name, created from durable.spawn_children("
        "%(queue)s, %(task_id)s, %(claim)s, %(children)s)",
        {
            "task_id": held.task_id,
            "claim": held.claim,
            "children": json.dumps(children),
        },
    )


def spawn_far(held: Held, nick: str, **options: Any) -> Call:
    """Spawn a child in the other queue."""
    child = {"name": f"${nick}", "task": nick, "options": options}
    return Call(
        f"spawn_children_in {held.nick} {nick}",
        "select name, created from durable.spawn_children_in("
        "%(queue)s, %(task_id)s, %(claim)s, %(far)s, %(children)s)",
        {
            "task_id": held.task_id,
            "claim": held.claim,
            "children": json.dumps([child]),
        },
    )


def spawn_back(held: Held, nick: str) -> Call:
    """Have a task of the other queue spawn a child in this one."""
    call = spawn_far(held, nick)
    home = call.query.replace("%(queue)s", "%(home)s").replace("%(far)s", "%(queue)s")
    return replace(call, query=home.replace("%(home)s", "%(far)s"))


def emit_from(held: Held, event: str = "news") -> Call:
    return Call(
        f"emit_from_task {held.nick}",
        "select durable.emit_from_task("
        "%(queue)s, %(task_id)s, %(claim)s, '$emit', %(event)s, '8')",
        {"task_id": held.task_id, "claim": held.claim, "event": event},
    )


def message(topic: str = "t", name: str = "$recv", **more: Any) -> dict[str, Any]:
    return {"name": f"{name}:{topic}", "topic": topic, **more}


def recv(held: Held, topic: str = "t") -> Call:
    return Call(
        f"recv_message {held.nick}",
        "select outcome, name, state, value::text from durable.recv_message("
        "%(queue)s, %(task_id)s, %(claim)s, '$recv:' || %(topic)s, %(topic)s)",
        {"task_id": held.task_id, "claim": held.claim, "topic": topic},
    )


def send_from(held: Held, to: Held, topic: str = "t", key: str | None = None) -> Call:
    return Call(
        " ".join([f"send_from_task {held.nick} {to.nick}", *([key] if key else [])]),
        "select durable.send_from_task(%(queue)s, %(task_id)s, %(claim)s,"
        " %(name)s, %(queue)s, %(to)s, %(topic)s, '8', %(key)s)",
        {
            "task_id": held.task_id,
            "claim": held.claim,
            "name": f"$send:{to.nick}/{topic}",
            "to": to.task_id,
            "topic": topic,
            "key": key,
        },
    )


# Calls of maintenance and operators.


def promote(version: str) -> Call:
    return Call(
        f"promote {version}",
        "select durable.promote_version(%(queue)s, %(version)s)",
        {"version": version},
    )


def pause(name: str | None = None) -> Call:
    query = "select durable.pause_queue(%(queue)s, %(name)s)"
    return Call(f"pause {name}", query, {"name": name})


def resume(name: str | None = None) -> Call:
    query = "select durable.resume_queue(%(queue)s, %(name)s)"
    return Call(f"resume {name}", query, {"name": name})


def set_version(version: str, *tasks: Held) -> Call:
    return Call(
        " ".join(["set_version", version, *(task.nick for task in tasks)]),
        "select durable.set_version(%(queue)s, %(version)s, %(task_ids)s)",
        {"version": version, "task_ids": [task.task_id for task in tasks]},
        divisible=len(tasks) > 1,
    )


def move_version(version: str, from_version: str) -> Call:
    return Call(
        f"set_version {version} from {from_version}",
        "select durable.set_version("
        "%(queue)s, %(version)s, from_version => %(from_version)s)",
        {"version": version, "from_version": from_version},
        tries=True,
        divisible=True,
    )


def _house(function: str, *, tries: bool = True) -> Call:
    return Call(function, f"select * from durable.{function}(%(queue)s)", tries=tries)


expire_leases: Final = _house("expire_leases")
expire_tasks: Final = _house("expire_tasks")
apply_deferred_work: Final = _house("apply_deferred_work")
cleanup: Final = _house("cleanup")
prune_events: Final = _house("prune_events")
run_maintenance: Final = replace(_house("run_maintenance"), composite=True)
fire_schedules: Final = _house("fire_schedules")
drop_queue: Final = _house("drop_queue", tries=False)
measure: Final = Call(  # a part of run_maintenance, whose outcome is not compared
    "measure", "select durable._measure(%(queue)s, 1000)", tries=True
)
recount_totals: Final = _house("recount_totals", tries=False)
create_queue: Final = Call(
    "create_queue",
    "select durable.create_queue(%(queue)s, %(policy)s)",
    {"policy": '{"keep_tasks": 60}'},
)


def history(policy: str) -> Call:
    return Call(
        f"{policy} history",
        "select durable.create_queue(%(queue)s, %(policy)s)",
        {"policy": json.dumps({"history": policy})},
    )


def create_schedule(schedule: str, **definition: Any) -> Call:
    return Call(
        " ".join(["create_schedule", schedule, *definition]),
        "select durable.create_schedule(%(queue)s, %(schedule)s, %(definition)s)",
        {"schedule": schedule, "definition": json.dumps(definition)},
    )


def apply_schedules(*schedules: str) -> Call:
    return _schedules("apply_schedules(%(queue)s, %(schedules)s)", schedules)


def announce_schedules(*schedules: str) -> Call:
    call = "announce_schedules(%(queue)s, %(schedules)s, array['s', 't'])"
    return _schedules(call, schedules)


def _schedules(call: str, names: Iterable[str]) -> Call:
    schedules = [{"schedule": name, "task": name, "every": 3600} for name in names]
    return Call(
        " ".join([call.partition("(")[0], *names]),
        f"select durable.{call}",
        {"schedules": json.dumps(schedules)},
    )


def with_schedule(function: str, schedule: str) -> Call:
    return Call(
        f"{function} {schedule}",
        f"select durable.{function}(%(queue)s, %(schedule)s)",
        {"schedule": schedule},
    )


def trigger_schedule(schedule: str) -> Call:
    return Call(
        f"trigger_schedule {schedule}",
        "select created from durable.trigger_schedule(%(queue)s, %(schedule)s)",
        {"schedule": schedule},
    )


def backfill_schedule(schedule: str) -> Call:
    return Call(
        f"backfill_schedule {schedule}",
        "select created from durable.backfill_schedule("
        "%(queue)s, %(schedule)s, '2029-12-31 23:00Z', '2030-01-01 01:00Z')",
        {"schedule": schedule},
    )


def limits(**policy: Any) -> Call:
    return Call(
        f"limits {policy}",
        "select durable.create_queue(%(queue)s, %(policy)s)",
        {"policy": json.dumps(policy)},
    )


def limit_partition(key: str, **limits: Any) -> Call:
    return Call(
        f"limit {key} {limits}",
        "select durable.set_partition_limit(%(queue)s, %(key)s, %(limits)s)",
        {"key": key, "limits": json.dumps(limits)},
    )


def versions(policy: str | None) -> Call:
    return Call(
        f"versions {policy}",
        "select durable.create_queue(%(queue)s, %(policy)s)",
        {"policy": json.dumps({"versions": policy})},
    )
