"""The gateway: every statement durable sends, and nothing else.

A statement is a value, so that an async worker, a sync client and somebody else's
connection execute the same one. Each calls one function of the engine; what is decided
is decided there. JSON travels as text, whatever codecs a connection has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from durable._messages import Message

__all__ = ["Statement"]


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with `%s` for each argument."""

    text: str
    args: tuple[object, ...] = ()


HOUSE_AT_ONCE: Final = 100
PUBLISHED_AT_ONCE: Final = 1_000
LISTED_AT_ONCE: Final = 1_000
# A task may sleep for longer than a datetime reaches, in whichever time zone.
LAST_MOMENT: Final = "9999-12-30 00:00:00Z"
# What the claim of a worker brings, in this order.
CLAIMED: Final = (
    "task_id, claim, name, attempt, params::text, headers::text, parent_task_id,"
    " spawned_at, deadline_at, available_at, claimed_at, run_id"
)


def version() -> Statement:
    return Statement("select durable.version()")


def create_queue(queue: str, policy: Mapping[str, Any]) -> Statement:
    return Statement(
        "select durable.create_queue(%s, %s::text::jsonb)", (queue, json.dumps(policy))
    )


def drop_queue(queue: str) -> Statement:
    return Statement("select durable.drop_queue(%s)", (queue,))


def list_queues() -> Statement:
    return Statement("select * from durable.list_queues()")


def queue_stats(queue: str | None) -> Statement:
    return Statement(
        "select queue, pending, running, sleeping, completed, failed, cancelled, ready,"
        " oldest_ready_at, least(next_due_at, %s::timestamptz), ready_by_name"
        " from durable.queue_stats(%s)",
        (LAST_MOMENT, queue),
    )


def spawn(queue: str, task: str, params: str, options: str) -> Statement:
    return Statement(
        "select task_id, run_id, attempt, created"
        " from durable.spawn(%s, %s, %s::text::jsonb, %s::text::jsonb)",
        (queue, task, params, options),
    )


def spawn_many(queue: str, tasks: str) -> Statement:
    return Statement(
        "select task_id, run_id, attempt, created"
        " from durable.spawn_many(%s, %s::text::jsonb)",
        (queue, tasks),
    )


def emit_event(queue: str, event: str, payload: str) -> Statement:
    return Statement(
        "select durable.emit_event(%s, %s, %s::text::jsonb)", (queue, event, payload)
    )


def send_message(message: Message) -> Statement:
    return Statement(
        "select durable.send_message(%s, %s, %s, %s::text::jsonb, %s)", message
    )


# `caller` is what `durable._callers` makes of whoever asks. It is set until the
# statement ends; the function gets its queue from the same row, so it is called later.
# Without one, what the session has set stands.
_CALLER: Final = (
    " from (select %s::text as queue, set_config('durable.caller',"
    " coalesce(%s, current_setting('durable.caller', true)), true) offset 0) as caller,"
)


def cancel_task(
    queue: str, task_id: UUID, reason: str | None, caller: str | None
) -> Statement:
    return Statement(
        f"select done{_CALLER} durable.cancel_task(caller.queue, %s, %s) as done",
        (queue, caller, task_id, reason),
    )


def retry_task(
    queue: str, task_id: UUID, options: Mapping[str, Any], caller: str | None
) -> Statement:
    return Statement(
        f"select task_id, run_id, attempt, created{_CALLER}"
        " durable.retry_task(caller.queue, %s, %s::text::jsonb)",
        (queue, caller, task_id, json.dumps(options)),
    )


def fork_task(
    queue: str, task_id: UUID, options: Mapping[str, Any], caller: str | None
) -> Statement:
    return Statement(
        f"select task_id, run_id, attempt, created{_CALLER}"
        " durable.fork_task(caller.queue, %s, %s::text::jsonb)",
        (queue, caller, task_id, json.dumps(options)),
    )


def list_tasks(queue: str, wanted: str, quantity: int, after: UUID | None) -> Statement:
    return Statement(
        "select task_id, parent_task_id, name, state, attempt, worker, spawned_at,"
        " started_at, least(available_at, %s::timestamptz), finished_at, error::text"
        " from durable.list_tasks(%s, %s::text::jsonb, %s, %s)",
        (LAST_MOMENT, queue, wanted, quantity, after),
    )


def list_children(queue: str, task_id: UUID, after: UUID | None) -> Statement:
    return Statement(
        "select (child).task_id, (child).parent_task_id, (child).name, (child).state,"
        " (child).attempt, (child).worker, (child).spawned_at, (child).started_at,"
        " least((child).available_at, %s::timestamptz), (child).finished_at,"
        " (child).error::text, child_queue"
        " from durable.list_children(%s, %s, %s, %s)",
        (LAST_MOMENT, queue, task_id, LISTED_AT_ONCE, after),
    )


def cancel_tasks(
    queue: str,
    wanted: str,
    quantity: int,
    after: UUID | None,
    *,
    reason: str | None,
    caller: str | None,
) -> Statement:
    return Statement(
        f"select tasks, busy, next{_CALLER}"
        " durable.cancel_tasks(caller.queue, %s::text::jsonb, %s, %s, %s)",
        (queue, caller, wanted, quantity, after, reason),
    )


def retry_tasks(
    queue: str, wanted: str, quantity: int, after: UUID | None, *, caller: str | None
) -> Statement:
    return Statement(
        f"select tasks, busy, next{_CALLER}"
        " durable.retry_tasks(caller.queue, %s::text::jsonb, %s, %s)",
        (queue, caller, wanted, quantity, after),
    )


def delete_tasks(
    queue: str, wanted: str, quantity: int, after: UUID | None
) -> Statement:
    return Statement(
        "select tasks, busy, next"
        " from durable.delete_tasks(%s, %s::text::jsonb, %s, %s)",
        (queue, wanted, quantity, after),
    )


def task_history(queue: str, task_id: UUID) -> Statement:
    return Statement(
        "select at, kind, name, attempt, worker, duration_ms, detail::text"
        " from durable.task_history(%s, %s)",
        (queue, task_id),
    )


def export_history(queue: str, task_id: UUID) -> Statement:
    return Statement("select durable.export_history(%s, %s)::text", (queue, task_id))


def get_task_name(queue: str, task_id: UUID) -> Statement:
    return Statement(
        "select name from durable.get_task_result(%s, %s)", (queue, task_id)
    )


def get_task_result(queue: str, task_id: UUID) -> Statement:
    return get_task_results(queue, [task_id])


def get_task_results(queue: str, task_ids: Sequence[UUID]) -> Statement:
    return Statement(
        "select task_id, state, attempt, result::text, error::text"
        " from durable.get_task_results(%s, %s)",
        (queue, list(task_ids)),
    )


def get_endings(queue: str, task_ids: Sequence[UUID]) -> Statement:
    return Statement(
        "select task_id, state, attempt, result::text, error::text"
        " from durable.get_endings(%s, %s)",
        (queue, list(task_ids)),
    )


def claim_tasks(  # noqa: PLR0917 - the function's own
    queue: str,
    worker: str,
    names: Sequence[str],
    quantity: int,
    lease: float,
    after: tuple[Sequence[datetime | None], Sequence[UUID | None]] | None = None,
    version: str | None = None,
) -> Statement:
    after_at, after_ids = after or (None, None)
    return Statement(
        f"select {CLAIMED} from durable.claim_tasks("  # noqa: S608 - a constant
        "%s, %s, %s, %s, %s, %s::timestamptz[], %s::uuid[], %s)",
        (queue, worker, list(names), quantity, lease, after_at, after_ids, version),
    )


def before_rest(queue: str, names: Sequence[str], version: str | None) -> Statement:
    return Statement(
        "select durable.apply_notes(%s), durable.get_next_due(%s, %s, %s)",
        (queue, queue, list(names), version),
    )


def announce_version(queue: str, version: str) -> Statement:
    return Statement("select * from durable.announce_version(%s, %s)", (queue, version))


def promote_version(queue: str, version: str) -> Statement:
    return Statement("select durable.promote_version(%s, %s)", (queue, version))


def set_version(
    queue: str,
    version: str | None,
    task_ids: Sequence[UUID] | None,
    from_version: str | None,
) -> Statement:
    return Statement(
        "select durable.set_version(%s, %s, %s::uuid[], %s)",
        (queue, version, task_ids, from_version),
    )


def list_versions(queue: str | None) -> Statement:
    return Statement(
        "select queue, version, latest, alive, first_seen_at, last_seen_at, live,"
        " running, ready, oldest_ready_at from durable.list_versions(%s)",
        (queue,),
    )


def list_waiting_names(queue: str) -> Statement:
    return Statement("select * from durable.list_waiting_names(%s)", (queue,))


def load_checkpoints(queue: str, tasks: str) -> Statement:
    return Statement(
        "select task_id, name, position, after, state, value::text"
        " from durable.load_checkpoints(%s, %s::text::json)",
        (queue, tasks),
    )


def hold_task(queue: str, task_id: UUID, claim: int, name: str) -> Statement:
    return Statement(
        "select state, value::text from durable.hold_task(%s, %s, %s, %s)",
        (queue, task_id, claim, name),
    )


def save_checkpoint(queue: str, checkpoint: str) -> Statement:
    return Statement(
        "select outcome from durable.save_checkpoints(%s, %s::text::json)",
        (queue, f"[{checkpoint}]"),
    )


def complete_task(queue: str, completion: str) -> Statement:
    return Statement(
        "select outcome from durable.complete_tasks(%s, %s::text::json)",
        (queue, f"[{completion}]"),
    )


def flush(
    queue: str, checkpoints: str | None, completions: str | None, failures: str | None
) -> Statement:
    return Statement(
        "select task_id, outcome from durable.flush("
        "%s, %s::text::json, %s::text::json, %s::text::json)",
        (queue, checkpoints, completions, failures),
    )


def publish(
    queue: str,
    published: str,
    checkpoints: str | None,
    completions: str | None,
    failures: str | None,
) -> Statement:
    return Statement(
        "select task_id, outcome from durable.publish("
        "%s, %s::text::json, %s::text::json, %s::text::json, %s::text::json)",
        (queue, published, checkpoints, completions, failures),
    )


def load_published(queue: str, task_id: UUID) -> Statement:
    return Statement(
        "select kind, name, source, times, next from durable.load_published(%s, %s)",
        (queue, task_id),
    )


def get_value(queue: str, task_id: UUID, key: str) -> Statement:
    return Statement(
        "select state, value::text, set_at from durable.get_value(%s, %s, %s)",
        (queue, task_id, key),
    )


def get_stream(queue: str, task_id: UUID, stream: str, start: int) -> Statement:
    return Statement(
        "select state, number, value::text, closes, step, attempt, restarted,"
        " written_at from durable.get_stream(%s, %s, %s, %s, %s)",
        (queue, task_id, stream, start, PUBLISHED_AT_ONCE),
    )


def get_log_lines(queue: str, task_id: UUID, start: int) -> Statement:
    return Statement(
        "select state, number, logged_at, level, logger, step, attempt, message"
        " from durable.get_log_lines(%s, %s, %s, %s)",
        (queue, task_id, start, PUBLISHED_AT_ONCE),
    )


def suspend_tasks(queue: str, tasks: str) -> Statement:
    return Statement(
        "select task_id, outcome, name, state, value::text"
        " from durable.suspend_tasks(%s, %s::text::json)",
        (queue, tasks),
    )


def poll_waits(queue: str, tasks: str) -> Statement:
    return Statement(
        "select task_id, outcome, name, state, value::text"
        " from durable.poll_waits(%s, %s::text::json)",
        (queue, tasks),
    )


def spawn_children(queue: str, task_id: UUID, claim: int, children: str) -> Statement:
    return Statement(
        "select name, task_id, run_id, attempt, created"
        " from durable.spawn_children(%s, %s, %s, %s::text::jsonb)",
        (queue, task_id, claim, children),
    )


def spawn_children_in(
    queue: str, task_id: UUID, claim: int, child_queue: str, children: str
) -> Statement:
    return Statement(
        "select name, task_id, run_id, attempt, created"
        " from durable.spawn_children_in(%s, %s, %s, %s, %s::text::jsonb)",
        (queue, task_id, claim, child_queue, children),
    )


def emit_from_task(  # noqa: PLR0917 - the function's own
    queue: str,
    task_id: UUID,
    claim: int,
    name: str,
    event: str,
    payload: str,
    position: int,
    after: int,
) -> Statement:
    return Statement(
        "select durable.emit_from_task(%s, %s, %s, %s, %s, %s::text::jsonb, %s, %s)",
        (queue, task_id, claim, name, event, payload, position, after),
    )


def send_from_task(  # noqa: PLR0917 - the function's own, a message as one
    queue: str,
    task_id: UUID,
    claim: int,
    name: str,
    message: Message,
    position: int,
    after: int,
) -> Statement:
    return Statement(
        "select durable.send_from_task("
        "%s, %s, %s, %s, %s, %s, %s, %s::text::jsonb, %s, %s, %s)",
        (queue, task_id, claim, name, *message, position, after),
    )


def extend_leases(queue: str, tasks: str, lease: float) -> Statement:
    return Statement(
        "select task_id, outcome from durable.extend_leases(%s, %s::text::json, %s)",
        (queue, tasks, lease),
    )


def release_tasks(queue: str, tasks: str) -> Statement:
    return Statement(
        "select task_id, outcome from durable.release_tasks(%s, %s::text::json)",
        (queue, tasks),
    )


def release_unknown(queue: str, worker: str, known: Iterable[UUID]) -> Statement:
    return Statement(
        "select durable.release_unknown(%s, %s, %s)", (queue, worker, list(known))
    )


def take_door(queue: str, door: str) -> Statement:
    return Statement("select durable.take_door(%s, %s)", (queue, door))


def leave_door(queue: str, door: str) -> Statement:
    return Statement("select durable.leave_door(%s, %s)", (queue, door))


def take_doors(queues: Sequence[str], door: str) -> Statement:
    return Statement(
        f"listen durable_{door};"  # noqa: S608 - a constant
        " select queue from unnest(%s::text[]) as queue"
        " where durable.take_door(queue, %s)",
        (list(queues), door),
    )


def leave_doors(queues: Sequence[str], door: str) -> Statement:
    return Statement(
        "select durable.leave_door(queue, %s) from unnest(%s::text[]) as queue",
        (door, list(queues)),
    )


def fall_silent(queues: Sequence[str], door: str) -> Statement:
    leave = leave_doors(queues, door)
    return Statement(f"unlisten durable_{door}; {leave.text}", leave.args)


def keep_house(queue: str) -> Statement:
    return Statement("select * from durable.keep_house(%s, %s)", (queue, HOUSE_AT_ONCE))


def apply_notes(queue: str) -> Statement:
    return Statement("select durable.apply_notes(%s)", (queue,))
