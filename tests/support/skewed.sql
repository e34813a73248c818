-- A queue in which all tasks have one name, one parent, one worker, and everything else is
-- of one task, one event, one topic: statistics of such columns suggest any plan but the
-- right one. In the queue `pinned`, all tasks are for one version too.

create function pg_temp.id(n integer) returns uuid language sql immutable as $$
  select ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid
$$;

select durable.create_queue('pinned', '{"versions": "pin"}'), durable.create_queue('other'),
  durable.create_queue('laned', '{"partition_concurrency": 2, "partition_rate": {"starts": 5, "period": 60}}'),
  durable.create_queue('ordered', '{"partition_order": "strict", "ageing": 60}');

insert into durable.tasks (
  queue, task_id, spawned_at, started_at, params, name, parent_task_id, state, attempt, claim, worker,
  available_at, lease_expires_at, finished_at, error, version, idempotency_key, partition_key, priority)
select
  one.queue, pg_temp.id(n), '2024-06-01',
  case when one.queue <> 'ordered' or its.state <> 'pending' then timestamptz '2024-06-01' end, '{}', 'one',
  case when n > 0 then pg_temp.id(0) end, its.state::durable.task_state, 2,
  case its.state when 'pending' then 0 when 'running' then 1 else 2 end, 'one',
  case when its.state = 'pending' then timestamptz '2024-06-02' end,
  case when its.state = 'running' then timestamptz '2024-06-02' end,
  case when its.state in ('completed', 'failed') then timestamptz '2024-06-02' end,
  case when its.state = 'failed' then '{"type": "One", "message": ""}'::jsonb end,
  case when one.queue = 'pinned' then 'one' else '' end, case when n > 0 then 'key-' || n end,
  case when one.queue in ('laned', 'ordered')
    then case when its.state = 'running' or one.queue = 'ordered' and its.state = 'sleeping'
      then 'key-' || n else 'one' end end,
  case when one.queue in ('laned', 'ordered') then 0 end
from (values ('default'), ('pinned'), ('laned'), ('ordered')) as one (queue)
cross join generate_series(0, 5000) as n
cross join lateral (
  select (array['running', 'pending', 'sleeping', 'completed', 'failed'])[n % 5 + 1] as state
) as its;

insert into durable.idempotency_keys (queue, key, task_id)
select tasks.queue, tasks.idempotency_key, tasks.task_id
from durable.tasks where tasks.idempotency_key is not null;

insert into durable.lanes (
  lane_id, turn_at, waits_since, priority, resumes, queue, name, version, partition_key)
select gen_random_uuid(), case when n = 0 then timestamptz '2024-06-02' end,
  case when one.queue = 'ordered' then timestamptz '2024-06-02' end, 0, one.queue = 'laned', one.queue,
  'one', '', case when n = 0 then 'one' else 'key-' || n end
from (values ('laned'), ('ordered')) as one (queue)
cross join generate_series(0, 5000) as n;
insert into durable.partitions (queue, partition_key)
select one.queue, 'key-' || n
from (values ('laned'), ('ordered')) as one (queue)
cross join generate_series(1, 5000) as n;
insert into durable.starts (start_id, started_at, tasks, queue, partition_key)
select gen_random_uuid(), '2024-06-02', 1, 'laned', 'one' from generate_series(1, 5000);
insert into durable.unique_keys (queue, kind, name, key, task_id)
select tasks.queue, kinds.kind, tasks.name, tasks.idempotency_key, tasks.task_id
from durable.tasks
cross join unnest(enum_range(null::durable.key_kind)) as kinds (kind)
where tasks.idempotency_key is not null;

insert into durable.runs (queue, task_id, attempt, outcome, worker, ended_at)
select 'default', pg_temp.id(n), 1, 'failed', 'one', '2024-06-02' from generate_series(1, 5000) as n;

insert into durable.checkpoints (
  task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value)
select pg_temp.id(case when n % 2 = 0 then n else 0 end), '2024-06-02', 1, 1, n, n, 0, 'done',
  'default', case when n % 2 = 0 then 'one' else 'one#' || n end, '1'
from generate_series(0, 5000) as n;

insert into durable.events (queue, name, emitted_at, payload)
select 'default', 'event-' || n, '2024-06-02', '1' from generate_series(1, 5000) as n;
insert into durable.events (queue, name) values ('default', 'one');

insert into durable.waits (queue, task_id, name, position, after, event_name)
select queue, task_id, '$event:one', 1, 0, 'one' from durable.tasks where state = 'sleeping';
insert into durable.waits (queue, task_id, name, position, after, target_task_id, task_ids, watched)
select queue, task_id, '$join', 2, 0, pg_temp.id(0), array[pg_temp.id(0)], 1
from durable.tasks where state = 'sleeping';
insert into durable.watches (queue, task_id, waiter_queue, waiter_task_id)
select queue, pg_temp.id(0), queue, task_id from durable.tasks where state = 'sleeping';

insert into durable.mailboxes (queue, task_id, topic, sent) values ('default', pg_temp.id(0), 'one', 5000);
insert into durable.messages (queue, task_id, topic, number, sent_at, payload)
select 'default', pg_temp.id(0), 'one', n, '2024-06-02', '1' from generate_series(1, 5000) as n;
insert into durable.message_keys (queue, task_id, key)
select 'default', pg_temp.id(0), 'key-' || n from generate_series(1, 5000) as n;

insert into durable.task_values (task_id, set_at, times, queue, key, value)
select pg_temp.id(0), '2024-06-02', 1, 'default', 'key-' || n, '1' from generate_series(1, 5000) as n;
insert into durable.stream_entries (
  task_id, written_at, number, claim, attempt, restarted, queue, stream, source, value)
select pg_temp.id(0), '2024-06-02', n, 1, 1, false, 'default', 'one', '$stream:one', '1'
from generate_series(0, 5000) as n;
insert into durable.log_lines (task_id, logged_at, number, claim, attempt, level, queue, logger, message)
select pg_temp.id(0), '2024-06-02', n, 1, 1, 20, 'default', 'one', '' from generate_series(0, 5000) as n;
insert into durable.claim_log (task_id, at, claim, attempt, queue, worker)
select pg_temp.id(0), '2024-06-02', n, 1, 'default', 'one' from generate_series(1, 5000) as n;

insert into durable.versions (queue, version, first_seen_at, promoted_at)
values ('pinned', 'one', '2024-06-01', '2024-06-01');
insert into durable.worker_sessions (started_at, seen_at, draining, queue, worker, version, names)
select '2024-06-01', now(), false, queue, 'worker-' || n, 'one', '{one}'
from generate_series(1, 100) as n
cross join (values ('default'), ('pinned')) as busy (queue);
insert into durable.audit (audit_id, at, queue, action, by)
select pg_temp.id(n), '2024-06-01', 'default', 'pause_queue', '{}' from generate_series(1, 5000) as n;
insert into durable.deferred_work (queue, work_id, kind, task_id)
select 'default', pg_temp.id(n), 'waiter', pg_temp.id(n) from generate_series(1, 5000) as n;

insert into durable.schedules (
  created_at, next_at, paused_at, last_task_id, every, catch_up, queue, schedule, task, time_zone, overlap,
  params, options)
select
  '2024-06-01', case when kind = 'schedule' then timestamptz '2024-06-02' end,
  case when kind = 'paused' then timestamptz '2024-06-02' end, pg_temp.id(0), 86400, 1,
  'default', kind || '-' || n, 'one', 'UTC', 'allow', '{}', '{}'
from generate_series(1, 5000) as n
cross join unnest(array['schedule', 'paused']) as kind;
insert into durable.idempotency_keys (queue, key, task_id)
select 'default', 'schedule/schedule-' || n || '/2024-06-01T00:00:00Z', pg_temp.id(0)
from generate_series(1, 5000) as n;

insert into durable.metrics (
  at, spawned, completed, failed, cancelled, retried, lost, queue, name, waits, runs)
select timestamptz '2024-06-02' + make_interval(mins => n), 1, 1, 0, 0, 0, 0, 'default', 'one',
  array_fill(1, array[12]), array_fill(1, array[12])
from generate_series(1, 5000) as n;
insert into durable.samples (at, pending, running, sleeping, ready, queue)
select timestamptz '2024-06-02' + make_interval(secs => n * 10), 1, 1, 1, 1, 'default'
from generate_series(1, 5000) as n;
insert into durable.tallies (at, tally_id, tasks, kind, queue, name)
select '2024-06-02', pg_temp.id(n), 1, 'spawned', 'default', 'one' from generate_series(1, 5000) as n;
insert into durable.totals (queue, name, live, completed, failed, cancelled)
select 'default', 'name-' || n, 1, 0, 0, 0 from generate_series(1, 100) as n;
update durable.cleanup_cursors set measured_at = '2024-06-03' where queue = 'default';
