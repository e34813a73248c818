"""All SQL statements that durable sends.

A statement is a value, so async and sync connections and those of the application can
execute the same one. Each calls one function of the engine, which makes all decisions.
JSON is sent and read as text, so the adapters of a connection do not matter.

`sql.spawn(queue, task, params, options)` is the statement `spawn` with its arguments,
in the order of the placeholders in its text.
"""

# ruff: noqa: S608 - only constants are inserted

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with `%s` for each argument."""

    text: str
    args: tuple[object, ...] = ()

    def __call__(self, *args: object) -> Statement:
        """Return the statement with these arguments."""
        return Statement(self.text, args)


MAINTENANCE_BATCH: Final = 100
PUBLISHED_AT_ONCE: Final = 1_000
LISTED_AT_ONCE: Final = 1_000
SCANNED_AT_ONCE: Final = 10_000
# A task may sleep beyond the last datetime of Python, in any time zone.
_LAST_MOMENT: Final = "'9999-12-30 00:00:00Z'::timestamptz"
_SPAWNED: Final = "task_id, run_id, attempt, created"
_RESULT: Final = "task_id, state, attempt, result::text, error::text"
_WAIT: Final = "task_id, outcome, name, state, value::text"
_PROGRESS: Final = "tasks, busy, next"


def _by_caller(function: str, *types: str, returns: str = "done") -> Statement:
    """Return a statement that calls an operator's function on behalf of a caller.

    Its arguments are those of the function, and last the setting that `caller` of
    `_client/_async/handle.py` returns. The function takes its arguments from the row
    that sets it, so it is called after that. For None, the session's own setting stays.
    """
    given = ", ".join(f"%s::{kind} as a{i}" for i, kind in enumerate(types))
    passed = ", ".join(f"a{i}" for i in range(len(types)))
    return Statement(
        f"select {returns} from (select {given}, set_config('durable.caller',"
        " coalesce(%s, current_setting('durable.caller', true)), true) offset 0)"
        f" as caller, durable.{function}({passed}) as done"
    )


# -- queues and versions ---------------------------------------------------------------

version = Statement("select durable.version()")
session = Statement(
    "select durable.version(), current_setting('transaction_isolation')"
)
create_queue = _by_caller("create_queue", "text", "text::jsonb")
set_partition_limit = _by_caller("set_partition_limit", "text", "text", "text::jsonb")
list_partitions = Statement(
    "select partition_key, ready, running, oldest_ready_at, concurrency, rate::text,"
    " blocked, blocked_by, blocked_until from durable.list_partitions(%s, %s, %s)"
)
drop_queue = _by_caller("drop_queue", "text")
list_queues = Statement("select * from durable.list_queues()")
queue_stats = Statement(
    "select queue, pending, running, sleeping, completed, failed, cancelled, ready,"
    " oldest_ready_at,"
    " extract(epoch from statement_timestamp() - oldest_ready_at)::double precision,"
    f" least(next_due_at, {_LAST_MOMENT}), ready_by_name::text,"
    " max_length, is_full, paused_at, paused_by::text, paused_names::text"
    " from durable.queue_stats(%s, %s)"
)
queue_throughput = Statement(
    "select at, name, spawned, completed, failed, cancelled, retried, lost, wait_p50,"
    " wait_p95, wait_p99, run_p50, run_p95, run_p99"
    " from durable.queue_throughput(%s, %s::timestamptz, %s::timestamptz, %s, %s)"
)
queue_depth = Statement(
    "select at, pending, running, sleeping, ready, oldest_ready"
    " from durable.queue_depth(%s, %s::timestamptz, %s::timestamptz, %s)"
)
task_totals = Statement(
    "select name, live, completed, failed, cancelled from durable.task_totals(%s)"
)
recount_totals = Statement("select durable.recount_totals(%s)")
pause_queue = _by_caller("pause_queue", "text", "text")
resume_queue = _by_caller("resume_queue", "text", "text")
list_audit = Statement(
    "select audit_id, at, queue, action, task_id, by::text, detail::text"
    " from durable.list_audit(%s, %s::text::jsonb, %s, %s)"
)
list_definitions = Statement("select * from durable.list_definitions(%s)")
announce_worker = Statement(
    "select * from durable.announce_worker(%s, %s, %s::text::jsonb)"
)
remove_worker = Statement("select durable.remove_worker(%s, %s)")
list_workers = Statement(
    "select queue, worker, version, host, pid, slots, running, first_lease_expires_at,"
    " started_at, seen_at, alive, draining from durable.list_workers(%s)"
)
promote_version = _by_caller("promote_version", "text", "text")
set_version = _by_caller("set_version", "text", "text", "uuid[]", "text")
list_versions = Statement(
    "select queue, version, latest, alive, first_seen_at, last_seen_at, live, running,"
    " ready, oldest_ready_at from durable.list_versions(%s)"
)
list_waiting_names = Statement("select * from durable.list_waiting_names(%s)")

create_schedule = _by_caller("create_schedule", "text", "text", "text::jsonb")
drop_schedule = _by_caller("drop_schedule", "text", "text")
apply_schedules = _by_caller("apply_schedules", "text", "text::jsonb")
pause_schedule = _by_caller("pause_schedule", "text", "text")
resume_schedule = _by_caller("resume_schedule", "text", "text")
trigger_schedule = _by_caller("trigger_schedule", "text", "text", returns=_SPAWNED)
backfill_schedule = _by_caller(
    "backfill_schedule",
    *("text", "text", "timestamptz", "timestamptz"),
    returns=_SPAWNED,
)
list_schedules = Statement(
    "select schedule, task, cron, every, time_zone, catch_up::text, overlap, jitter,"
    f" source, created_at, paused_at, least(next_at, {_LAST_MOMENT}), last_at,"
    " last_task_id, failed_at, error from durable.list_schedules(%s, %s, %s)"
)
list_schedule_runs = Statement(
    "select scheduled_at, triggered, task_id, state, attempt, started_at, finished_at"
    " from durable.list_schedule_runs(%s, %s, %s, %s)"
)
next_fires = Statement("select * from durable.next_fires(%s, %s, %s, %s)")


def announce_schedules(queue: str, schedules: str, tasks: Sequence[str]) -> Statement:
    text = "select durable.announce_schedules(%s, %s::text::jsonb, %s::text[])"
    return Statement(text, (queue, schedules, list(tasks)))


def announce_definitions(
    queue: str, definitions: str, version: str | None, *, starts: bool
) -> Statement:
    text = "select durable.announce_definitions(%s, %s, %s, %s)"
    return Statement(text, (queue, definitions, version, starts))


# -- tasks, events and messages, from outside a task -----------------------------------

spawn = Statement(
    f"select {_SPAWNED} from durable.spawn(%s, %s, %s::text::jsonb, %s::text::jsonb)"
)
spawn_many = Statement(
    f"select {_SPAWNED} from durable.spawn_many(%s, %s::text::jsonb)"
)
emit_event = Statement("select durable.emit_event(%s, %s, %s::text::jsonb)")
send_message = Statement("select durable.send_message(%s, %s, %s, %s::text::jsonb, %s)")
cancel_task = _by_caller("cancel_task", "text", "uuid", "text")
reschedule_task = _by_caller("reschedule_task", "text", "uuid", "timestamptz")
reprioritize_task = _by_caller("reprioritize_task", "text", "uuid", "integer")
retry_task = _by_caller("retry_task", "text", "uuid", "text::jsonb", returns=_SPAWNED)
fork_task = _by_caller("fork_task", "text", "uuid", "text::jsonb", returns=_SPAWNED)
list_tasks = Statement(
    "select task_id, parent_task_id, name, state, attempt, worker, spawned_at,"
    f" started_at, least(available_at, {_LAST_MOMENT}), finished_at, error::text"
    " from durable.list_tasks(%s, %s::text::jsonb, %s, %s, %s)"
)
count_tasks = Statement(
    "select tasks, next from durable.count_tasks(%s, %s::text::jsonb, %s, %s)"
)
create_index = {
    column: Statement(
        f"create index concurrently tasks_{column}_idx on durable.tasks"
        f" using gin ({column} jsonb_path_ops)"
    )
    for column in ("params", "headers")
}
drop_index = {
    column: Statement(f"drop index concurrently if exists durable.tasks_{column}_idx")
    for column in create_index
}
_list_children: Final = (
    "select (child).task_id, (child).parent_task_id, (child).name, (child).state,"
    " (child).attempt, (child).worker, (child).spawned_at, (child).started_at,"
    f" least((child).available_at, {_LAST_MOMENT}), (child).finished_at,"
    " (child).error::text, child_queue from durable.list_children(%s, %s, %s, %s)"
)
_PAGE: Final = ("text", "text::jsonb", "integer", "uuid")
cancel_tasks = _by_caller("cancel_tasks", *_PAGE, "text", returns=_PROGRESS)
retry_tasks = _by_caller("retry_tasks", *_PAGE, returns=_PROGRESS)
delete_tasks = _by_caller("delete_tasks", *_PAGE, returns=_PROGRESS)
task_history = Statement(
    "select at, kind, name, attempt, worker, duration_ms, detail::text"
    " from durable.task_history(%s, %s)"
)
explain_task = Statement(
    "select kind, message, detail::text from durable.explain_task(%s, %s)"
)
export_history = Statement("select durable.export_history(%s, %s)::text")
diagnose = Statement("select * from durable.diagnose()")
find_task = Statement("select durable.find_task(%s)")
list_events = Statement(
    "select name, emitted_at, payload::text, waiting"
    " from durable.list_events(%s, %s, %s, %s, %s)"
)
list_published = Statement(
    "select kind, name, entries, updated_at, closed from durable.list_published(%s, %s)"
)
get_task_name = Statement("select name from durable.get_task_result(%s, %s)")
get_task_result = Statement(f"select {_RESULT} from durable.get_task_result(%s, %s)")
get_value = Statement(
    "select state, value::text, set_at from durable.get_value(%s, %s, %s)"
)
get_stream = Statement(
    "select state, number, value::text, closes, step, attempt, restarted, written_at"
    f" from durable.get_stream(%s, %s, %s, %s, {PUBLISHED_AT_ONCE})"
)
get_log_lines = Statement(
    "select state, number, logged_at, level, logger, step, attempt, message"
    f" from durable.get_log_lines(%s, %s, %s, {PUBLISHED_AT_ONCE})"
)


def list_children(queue: str, task_id: UUID, after: UUID | None) -> Statement:
    return Statement(_list_children, (queue, task_id, LISTED_AT_ONCE, after))


def get_task_results(queue: str, task_ids: Sequence[UUID]) -> Statement:
    text = f"select {_RESULT} from durable.get_task_results(%s, %s)"
    return Statement(text, (queue, list(task_ids)))


def poll_results(queue: str, task_ids: Sequence[UUID]) -> Statement:
    text = f"select {_RESULT} from durable.poll_results(%s, %s)"
    return Statement(text, (queue, list(task_ids)))


# -- claims, leases and maintenance ----------------------------------------------------

# The columns are those that a worker reads of a claim, in this order.
_claim_tasks: Final = (
    "select task_id, claim, name, attempt, params::text, headers::text, parent_task_id,"
    " spawned_at, expires_at, available_at, claimed_at, run_id"
    " from durable.claim_tasks(%s, %s, %s, %s, %s, %s::timestamptz[], %s::uuid[], %s)"
)
load_checkpoints = Statement(
    "select task_id, name, position, after, state, value::text"
    " from durable.load_checkpoints(%s, %s::text::json)"
)
extend_leases = Statement(
    "select task_id, outcome from durable.extend_leases(%s, %s::text::json, %s)"
)
release_tasks = Statement(
    "select task_id, outcome from durable.release_tasks(%s, %s::text::json)"
)
run_maintenance = Statement(
    f"select * from durable.run_maintenance(%s, {MAINTENANCE_BATCH})"
)
apply_deferred_work = Statement("select durable.apply_deferred_work(%s)")


def claim_tasks(  # noqa: PLR0917 - the function's own
    queue: str,
    worker: str,
    names: Sequence[str],
    batch_size: int,
    lease: float,
    after: tuple[Sequence[datetime | None], Sequence[UUID | None]] | None = None,
    version: str | None = None,
) -> Statement:
    args = (queue, worker, list(names), batch_size, lease)
    return Statement(_claim_tasks, (*args, *(after or (None, None)), version))


def before_idle(queue: str, names: Sequence[str], version: str | None) -> Statement:
    text = (
        "select durable.apply_deferred_work(%s), durable.fire_schedules(%s),"
        " durable.get_next_due(%s, %s, %s)"
    )
    return Statement(text, (queue, queue, queue, list(names), version))


def release_unknown(queue: str, worker: str, known: Iterable[UUID]) -> Statement:
    text = "select durable.release_unknown(%s, %s, %s)"
    return Statement(text, (queue, worker, list(known)))


def change_listeners(
    ended: Iterable[tuple[str, str]],
    missing: Iterable[tuple[str, str]],
    wanted: Iterable[tuple[str, str]],
) -> Statement:
    """End some registrations of (channel, queue), and return those of `missing` made.

    Afterwards the session listens to the channels of `wanted`, and to no others.
    """
    channels = sorted({channel for channel, _ in wanted})
    listen = "".join(f" listen durable_{channel};" for channel in channels)
    pairs = "from unnest(%s::text[], %s::text[]) as pair (channel, queue)"
    arrays = [
        [pair[column] for pair in sorted(some)]
        for some in (ended, missing)
        for column in (0, 1)
    ]
    return Statement(
        f"unlisten *;{listen}"
        f" select durable.unregister_listener(queue, channel) {pairs};"
        f" select channel, queue {pairs}"
        " where durable.register_listener(queue, channel)",
        tuple(arrays),
    )


# -- calls of a running task -----------------------------------------------------------

flush = Statement(
    "select task_id, outcome"
    " from durable.flush(%s, %s::text::json, %s::text::json, %s::text::json)"
)
publish = Statement(
    "select task_id, outcome from durable.publish("
    "%s, %s::text::json, %s::text::json, %s::text::json, %s::text::json)"
)
load_published = Statement(
    "select kind, name, source, times, next from durable.load_published(%s, %s)"
)
suspend_tasks = Statement(
    f"select {_WAIT} from durable.suspend_tasks(%s, %s::text::json)"
)
poll_waits = Statement(f"select {_WAIT} from durable.poll_waits(%s, %s::text::json)")
spawn_children = Statement(
    f"select name, {_SPAWNED} from durable.spawn_children(%s, %s, %s, %s::text::jsonb)"
)
spawn_children_in = Statement(
    f"select name, {_SPAWNED}"
    " from durable.spawn_children_in(%s, %s, %s, %s, %s::text::jsonb)"
)
emit_from_task = Statement(
    "select durable.emit_from_task(%s, %s, %s, %s, %s, %s::text::jsonb, %s, %s)"
)
send_from_task = Statement(
    "select durable.send_from_task("
    "%s, %s, %s, %s, %s, %s, %s, %s::text::jsonb, %s, %s, %s)"
)
lock_task = Statement(
    "select state, value::text from durable.lock_task(%s, %s, %s, %s)"
)
save_checkpoint = Statement(
    "select outcome from durable.save_checkpoints(%s, json_build_array(%s::text::json))"
)
complete_task = Statement(
    "select outcome from durable.complete_tasks(%s, json_build_array(%s::text::json))"
)
