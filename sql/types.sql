-- The types that functions return. Each is named, so that no output column hides a table's
-- column and clients can rely on it.

create type durable.spawned_task as (task_id uuid, run_id uuid, attempt integer, created boolean);

comment on type durable.spawned_task is
'A task that was spawned, or that has the key of the spawn already (created is false).';

create type durable.task_result as (
  task_id uuid, name text, state text, attempt integer, result jsonb, error jsonb,
  spawned_at timestamptz, finished_at timestamptz
);

comment on type durable.task_result is
'The state of a task: result once it completed, error once it failed or was cancelled.';

create type durable.claimed_task as (
  task_id uuid, claim integer, name text, attempt integer, params jsonb, headers jsonb,
  parent_task_id uuid, spawned_at timestamptz, expires_at timestamptz, available_at timestamptz,
  claimed_at timestamptz, run_id uuid
);

comment on type durable.claimed_task is
'A task that a worker now holds. claim: a random odd number, above 1073741824 if this is the
task''s first claim, so that it has no checkpoints yet. (available_at, task_id) was its place
in the queue.';

create type durable.write_outcome as (task_id uuid, outcome text);

comment on type durable.write_outcome is
'The outcome of one element of a worker''s call: ok; busy (the row is locked, try again);
cancelled; lost (the task was claimed again, has ended otherwise, or was deleted).';

create type durable.loaded_checkpoint as (
  task_id uuid, name text, position integer, after integer, state text, value json
);

comment on type durable.loaded_checkpoint is
'A checkpoint, for replay.';

create type durable.wait_outcome as (task_id uuid, outcome text, name text, state text, value json);

comment on type durable.wait_outcome is
'The outcome of a wait: resolved (with its checkpoint; the task continues), suspended (the claim
has ended), waiting (registered, not ended), or cancelled or lost, as in write_outcome.';

create type durable.spawned_child as (
  name text, task_id uuid, run_id uuid, attempt integer, created boolean
);

comment on type durable.spawned_child is
'A child and the checkpoint that recorded it.';

create type durable.queue_statistics as (
  queue text, pending bigint, running bigint, sleeping bigint, completed bigint, failed bigint,
  cancelled bigint, ready bigint, oldest_ready_at timestamptz, next_due_at timestamptz,
  ready_by_name jsonb, max_length integer, is_full boolean, paused_at timestamptz,
  paused_by jsonb, paused_names jsonb
);

comment on type durable.queue_statistics is
'Counts of the tasks of a queue. ready: claimable now, also by task name. is_full: whether
spawns are refused because of max_length. paused_at, paused_by: since when the queue is paused,
and who paused it; paused_names: the same of task names, {name: {"at", "by"}}.';

create type durable.throughput as (
  at timestamptz, name text, spawned bigint, completed bigint, failed bigint, cancelled bigint,
  retried bigint, lost bigint, wait_p50 double precision, wait_p95 double precision,
  wait_p99 double precision, run_p50 double precision, run_p95 double precision,
  run_p99 double precision
);

comment on type durable.throughput is
'What happened to the tasks of a queue in the time that begins at `at`. name: null, all names.
retried: attempts that failed and were followed by another one; lost: leases that expired. The
rest are percentiles in seconds, null without tasks.';

create type durable.depth as (
  at timestamptz, pending integer, running integer, sleeping integer, ready integer,
  oldest_ready double precision
);

comment on type durable.depth is
'The most live tasks of a queue in the time that begins at `at`, and the longest that one of them
had been ready, in seconds; null if none was.';

create type durable.task_total as (
  name text, live bigint, completed bigint, failed bigint, cancelled bigint
);

comment on type durable.task_total is
'How many tasks of a name there are.';

create type durable.maintenance_counts as (
  leases integer, deadlines integer, deferred integer, ticks integer, tasks integer,
  events integer
);

comment on type durable.maintenance_counts is
'How many leases and deadlines expired, pieces of deferred work were done, ticks of schedules were
handled, and finished tasks and old events were deleted.';

create type durable.listed_task as (
  task_id uuid, parent_task_id uuid, name text, state text, attempt integer, worker text,
  spawned_at timestamptz, started_at timestamptz, available_at timestamptz,
  finished_at timestamptz, error jsonb
);

comment on type durable.listed_task is
'A task in a list: its state, without params and result.';

create type durable.bulk_progress as (tasks integer, busy uuid[], next uuid);

comment on type durable.bulk_progress is
'The progress of a bulk operation: how many tasks it changed; busy, those that were locked, to
try again; next, where to continue, null at the end.';

create type durable.task_count as (tasks integer, next uuid);

comment on type durable.task_count is
'How many tasks match, of those that were looked at, and where to continue; null at the end.';

create type durable.history_entry as (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer,
  detail jsonb
);

comment on type durable.history_entry is
'An entry of a task''s history; without a time (at) it has not ended.';

create type durable.timeline_entry as (
  queue text, task_id uuid, depth integer, parent_task_id uuid, task text, at timestamptz,
  kind text, name text, attempt integer, worker text, duration_ms integer, detail jsonb
);

comment on type durable.timeline_entry is
'An entry of the history of a task, or of a descendant of it: depth is 0 for the task itself, and
task the name; the rest as in history_entry.';

create type durable.explanation as (kind text, message text, detail jsonb);

comment on type durable.explanation is
'A reason why a task is where it is: kind, of the closed set in explain_task; message, a
sentence in English with times in UTC; detail, its facts, or null.';

create type durable.finding as (
  severity text, code text, subject text, message text, remedy text
);

comment on type durable.finding is
'Something that needs an operator: severity is error, warning or info; code, of the closed set in
diagnose; subject, the queue, session, table or setting; remedy, what to do or the SQL for it.';

create type durable.version_statistics as (
  queue text, version text, latest boolean, alive boolean, first_seen_at timestamptz,
  last_seen_at timestamptz, live bigint, running bigint, ready bigint,
  oldest_ready_at timestamptz
);

comment on type durable.version_statistics is
'A version in a queue: whether it is the latest, whether a worker announced it within the last
minute (alive), how many live tasks are bound to it, and how many of these are claimable now.';

create type durable.task_record as (
  queue text, task_id uuid, name text, state text, attempt integer, max_attempts integer,
  worker text, version text, parent_task_id uuid, parent_queue text, idempotency_key text,
  unique_kind text, unique_key text, partition_key text, priority smallint, params jsonb,
  headers jsonb, result jsonb, error jsonb, retry jsonb, spawned_at timestamptz,
  available_at timestamptz, started_at timestamptz, lease_expires_at timestamptz,
  expires_at timestamptz, deadline timestamptz, finished_at timestamptz
);

comment on type durable.task_record is
'A task. worker: the one that holds it, or held it last; unique_kind: for which option of its spawn
it has unique_key; error: of its end or, while it sleeps until the next attempt, of the last one;
available_at: from when it may be claimed, null if the clock alone does not make it claimable;
expires_at: when its start_timeout, execution_timeout or deadline ends.';

create type durable.listed_event as (
  name text, emitted_at timestamptz, payload jsonb, waiting bigint
);

comment on type durable.listed_event is
'An event: when it was emitted, null if it was not, its payload, and how many tasks wait for it, at
most 1,000.';

create type durable.listed_publication as (
  kind text, name text, entries integer, updated_at timestamptz, closed boolean
);

comment on type durable.listed_publication is
'What a task has published: kind is value, with its key as name, or stream, with the number of its
entries and whether it was closed.';

create type durable.listed_worker as (
  queue text, worker text, version text, host text, pid integer, slots integer, running bigint,
  first_lease_expires_at timestamptz, started_at timestamptz, seen_at timestamptz, alive boolean,
  draining boolean
);

comment on type durable.listed_worker is
'A worker in a queue: what it has announced, if anything; how many of its slots, which all its
queues share, are running tasks of this queue, and when the first of their leases expires; whether it
was seen within the last minute (alive); and whether it is stopping (draining).';

create type durable.audit_entry as (
  audit_id uuid, at timestamptz, queue text, action text, task_id uuid, by jsonb, detail jsonb
);

comment on type durable.audit_entry is
'A call of an operator''s function, which is action, that changed something. by: {"user": the
role, "identity", "queue", "task_id": as set in durable.caller}; detail: its arguments without
params and, of a call for many tasks, how many it changed.';

create type durable.task_definition as (
  name text, version text, latest boolean, announced_at timestamptz, options jsonb,
  params_schema json
);

comment on type durable.task_definition is
'A task that workers have announced: the options that it has unless a spawn gives others, and
the JSON Schema of its params. version: of the application, or null; latest: whether spawns
use this definition.';

create type durable.publication as (kind text, name text, source text, times integer, next integer);

comment on type durable.publication is
'How much a task has published: kind is stream, value or log; times is how often, for a stream
from one source; next is the next number.';

create type durable.published_value as (state text, value json, set_at timestamptz);

comment on type durable.published_value is
'The state of a task, and a value that it has set; without one, nulls.';

create type durable.stream_entry as (
  state text, number integer, value json, closes boolean, step text, attempt integer,
  restarted boolean, written_at timestamptz
);

comment on type durable.stream_entry is
'The state of a task, and an entry of one of its streams; without one, nulls.';

create type durable.log_line as (
  state text, number integer, logged_at timestamptz, level integer, logger text, step text,
  attempt integer, message text
);

comment on type durable.log_line is
'The state of a task, and a line that it has logged; without one, nulls.';

create type durable.listed_partition as (
  partition_key text, ready bigint, running bigint, oldest_ready_at timestamptz,
  concurrency integer, rate jsonb, blocked text, blocked_by uuid, blocked_until timestamptz
);

comment on type durable.listed_partition is
'A partition of a queue. ready: how many of its tasks could be claimed now if nothing limited them,
at most 1,000, the oldest since oldest_ready_at; running: how many are held, at most 1,000.
concurrency, rate: its own limits; null: the queue''s. blocked: why no attempt of it may begin now, a
kind of explain_task: partition_concurrency, partition_order or partition_rate; null: one may.
blocked_by: for partition_order, the task that has to end; blocked_until: for partition_rate.';

create type durable.listed_schedule as (
  schedule text, task text, params jsonb, options jsonb, cron text, every integer,
  time_zone text, catch_up jsonb, overlap text, jitter double precision, source text,
  created_at timestamptz, paused_at timestamptz, next_at timestamptz, last_at timestamptz,
  last_task_id uuid, failed_at timestamptz, error text
);

comment on type durable.listed_schedule is
'A schedule: its definition, as create_schedule takes it; source, the function that defined it:
applied (apply_schedules), declared (announce_schedules, which workers call), else null; its next
tick, null while it is paused; the tick of its last task, and that task; and if a due tick could
not be handled, why, and when it failed, null if it only waits for room in the queue.';

create type durable.schedule_run as (
  scheduled_at timestamptz, triggered boolean, task_id uuid, state text, attempt integer,
  started_at timestamptz, finished_at timestamptz
);

comment on type durable.schedule_run is
'A task that a schedule has spawned: for which tick, or, if it was triggered, when.';

-- Private types.

create type durable._spawn_options as (
  max_attempts integer, retry jsonb, headers jsonb, idempotency_key text,
  start_timeout double precision, execution_timeout double precision, parent_task_id uuid,
  deadline timestamptz, version text, fingerprint text[], omitted smallint, run_at timestamptz,
  delay double precision, partition_key text, priority smallint, unique_kind durable.key_kind,
  unique_key text, on_conflict text, period double precision, max_wait double precision
);

create type durable._new_task as (
  ordinal integer, task_id uuid, name text, params jsonb, options durable._spawn_options,
  existing_id uuid
);

create type durable._due as (places tid[], waited_since timestamptz[], known durable.definitions);

create type durable._lane as (
  lane_id uuid, name text, version text, partition_key text, priority smallint, free integer,
  opens_at timestamptz, next_at timestamptz, next_id uuid, turn_at timestamptz,
  place tid
);

create type durable._lane_head as (
  place tid, waited_since timestamptz, lane_id uuid, name text, partition_key text,
  is_incomplete boolean
);

create type durable._task_filter as (
  name text, states text[], task_ids uuid[], parent_task_id uuid, worker text, error_type text,
  headers jsonb, params jsonb, spawned_after timestamptz, spawned_before timestamptz,
  finished_after timestamptz, finished_before timestamptz
);

create type durable._history_row as (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer,
  detail jsonb, claim integer, place integer, called integer
);

-- The values that each field of a cron expression allows. either_day: a date matches if its day
-- of the month or its day of the week does, else both have to. by_wall_clock: see cron.sql.
create type durable._cron as (
  seconds integer[], minutes integer[], hours integer[], days integer[], months integer[],
  weekdays integer[], either_day boolean, by_wall_clock boolean
);
