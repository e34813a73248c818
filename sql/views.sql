-- Views for operators.

-- run_id repeats durable._run_id: a view calls functions with its reader's rights.
create or replace view durable.attempts as
select
  ended.queue, ended.task_id, ended.attempt,
  (left(ended.task_id::text, 24) || right(md5(ended.task_id::text || '/' || ended.attempt::text), 12))::uuid
    as run_id,
  ended.outcome, ended.worker, ended.ended_at, ended.error
from (
  select
    runs.queue, runs.task_id, runs.attempt, runs.outcome::text as outcome, runs.worker,
    runs.ended_at, runs.error
  from durable.runs
  union all
  select
    tasks.queue, tasks.task_id, tasks.attempt, tasks.state::text, tasks.worker,
    tasks.finished_at, case when tasks.finished_at is not null then tasks.error end
  from durable.tasks
) as ended;

comment on view durable.attempts is
'All attempts of all tasks: those that were followed by another with their outcome, and the
last one of each task with the task''s state.';

create or replace view durable.waiting as
select
  tasks.queue, tasks.task_id, tasks.name as task, waits.name as wait, waits.event_name,
  waits.task_ids, waits.expires_at, waits.topic, waits.task_queues, waits.any_of
from durable.waits
join durable.tasks using (queue, task_id)
where tasks.finished_at is null;

comment on view durable.waiting is
'What live tasks wait for: a time (only expires_at), an event, a message of a topic, or all
of task_ids or the first of them (any_of), each in the queue of task_queues.';

create or replace view durable.workers as
select
  queue, worker, coalesce(held.running, 0) as running, held.first_lease_expires_at,
  held.last_lease_expires_at, nullif(session.version, '') as version, session.host, session.pid,
  session.slots, session.draining, session.started_at, session.seen_at
from durable.worker_sessions as session
full join (
  select
    tasks.queue, tasks.worker, count(*) as running,
    min(tasks.lease_expires_at) as first_lease_expires_at,
    max(tasks.lease_expires_at) as last_lease_expires_at
  from durable.tasks
  where tasks.lease_expires_at is not null
  group by tasks.queue, tasks.worker
) as held using (queue, worker);

comment on view durable.workers is
'Workers that have announced themselves or hold tasks: how many, and when their first and last
lease expires. seen_at is the last sign of life of a worker that has not stopped.';

create or replace view durable.task_list as
select
  tasks.queue, tasks.task_id, tasks.parent_task_id, tasks.name, tasks.state::text as state,
  tasks.attempt, tasks.max_attempts, tasks.worker, tasks.params, tasks.headers, tasks.result,
  tasks.error, tasks.idempotency_key, tasks.spawned_at, tasks.available_at, tasks.started_at,
  tasks.lease_expires_at, tasks.expires_at, tasks.finished_at, tasks.parent_queue,
  tasks.deadline, nullif(tasks.version, '') as version,
  nullif(tasks.partition_key, '') as partition_key, tasks.priority
from durable.tasks;

comment on view durable.task_list is
'Every task, live or finished.';

create or replace view durable.history as
select
  checkpoints.queue, checkpoints.task_id, checkpoints.position, checkpoints.name,
  checkpoints.state::text as state, checkpoints.value, checkpoints.attempt,
  checkpoints.duration_ms, checkpoints.saved_at
from durable.checkpoints;

comment on view durable.history is
'The checkpoints of tasks. Order by saved_at, position.';
