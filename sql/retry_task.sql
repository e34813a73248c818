-- Retries failed and cancelled tasks: in place, with their checkpoints, or as a new task. A
-- task that sleeps until its next attempt starts it at once.

create or replace function durable.retry_task(queue text, task_id uuid, options jsonb default '{}')
returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _task durable.tasks;
  _max_attempts integer;
  _params jsonb := durable._checked_size('params', options -> 'params');
  _deadline timestamptz;
  _spawns_new boolean := coalesce(options @> '{"spawn_new": true}', false);
begin
  perform durable._require_queue(_queue);
  perform durable._checked_keys('options', options,
    array['max_attempts', 'params', 'fingerprint', 'spawn_new', 'deadline']);
  _max_attempts := durable._checked_count('options', options, 'max_attempts');
  _deadline := durable._checked_moment('options', options, 'deadline');
  if jsonb_typeof(options -> 'spawn_new') <> 'boolean' then
    perform durable._refuse_argument('spawn_new in options must be true or false',
      'Pass true for a new task without the old one''s checkpoints.');
  end if;
  if options ? 'params' and not _spawns_new then
    perform durable._change_fingerprint(_queue, task_id, options);
  end if;
  if not _spawns_new then
    perform durable._retake_unique_key(_queue, task_id);
  end if;
  perform durable._hold_parent_of(_queue, task_id);
  select * into _task from durable.tasks
  where tasks.queue = _queue and tasks.task_id = retry_task.task_id
  for no key update;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  perform durable._audit(_queue, 'retry_task', task_id, options - array['params', 'fingerprint']);
  if _task.state = 'sleeping' and _task.error is not null and not _spawns_new then
    if options ? 'deadline' then
      perform durable._refuse_argument(
        format('task %s has not ended, so its deadline stands', task_id),
        'Leave deadline out, or cancel it first.');
    end if;
    return durable._skip_delay(_queue, _task, durable._caller(), _max_attempts, _params);
  elsif _task.state not in ('failed', 'cancelled') then
    raise exception using errcode = 'WFFIN',
      message = format('task %s is %s', task_id, _task.state),
      hint = 'Only a failed or cancelled task can be tried again, or one that sleeps until its'
        ' next attempt.';
  end if;
  if not options ? 'deadline' then
    _deadline := _task.deadline;
  end if;
  if _deadline <= _now then
    perform durable._refuse_argument('the deadline of task ' || task_id || ' has passed',
      'Pass {"deadline": ...}: a later moment, or null for none.');
  end if;
  if _spawns_new then
    _task.params := coalesce(_params, _task.params);
    _task.deadline := _deadline;
    return durable._spawn_like(_queue, _task, coalesce(_max_attempts, _task.max_attempts));
  end if;
  if _max_attempts <= _task.attempt then
    perform durable._refuse_argument(
      format('max_attempts is %s, but attempt %s is over', _max_attempts, _task.attempt),
      format('Pass %s or more, or leave it out for one more attempt.', _task.attempt + 1));
  end if;
  perform durable._revive_task(
    _queue, _task, _deadline, durable._caller(), _max_attempts, _params);
  perform durable._propagate_state(
    _queue, 'revive', task_id, _queue, task_id, _task.deadline);
  perform durable._notify_listeners(_queue, 'work');
  return (task_id, durable._run_id(task_id, _task.attempt + 1), _task.attempt + 1, false);
end;
$$;

comment on function durable.retry_task is
'Gives a failed or cancelled task one more attempt at once, with its checkpoints, and revives
exactly the descendants that its own end had cancelled. Below a task that stays failed or
cancelled none is revived; those come back when that task is retried. A task that sleeps
until its next attempt starts it now, with the deadline it has. options:

- max_attempts: the new limit; it must leave room for an attempt.
- params: replace the old ones; the idempotency key stands for these from then on.
- fingerprint: of these params, as in spawn.
- deadline: a new one, or null for none, also for descendants that had inherited the old one.
- spawn_new: true spawns a new task with the same name, params and options instead, without
  checkpoints, key and parent.

A task that was spawned with unique gets its key back if a later task that has it is finished.

Returns the task, with the number of the new attempt. Refuses an unknown queue (WFQUE), an
unknown task (WFNFD), a task in any other state (WFFIN), one whose unique key a later,
unfinished task has (WFCON), bad options and a deadline that has passed (22023). Locks: with
params the idempotency key, or its unique key, then the parent''s row FOR SHARE, then
the task''s row, and waits for each; descendants are tried with SKIP LOCKED, and maintenance
revives those that are locked, or all of them outside READ COMMITTED.';

-- Makes the next attempt due now, and records that a caller started it, not the clock. The failure
-- was counted when it happened. The caller has locked the task.
create or replace function durable._skip_delay(
  queue text, task durable.tasks, by jsonb, max_attempts integer default null,
  params jsonb default null
) returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  if max_attempts < task.attempt then
    perform durable._refuse_argument(
      format('max_attempts is %s, but attempt %s is next', max_attempts, task.attempt),
      format('Pass %s or more, or leave it out.', task.attempt));
  end if;
  update durable.tasks
  set
    state = 'pending',
    available_at = _now,
    max_attempts = coalesce(_skip_delay.max_attempts, tasks.max_attempts),
    params = coalesce(_skip_delay.params, tasks.params),
    omitted = case when _skip_delay.max_attempts is null then tasks.omitted
      else nullif(tasks.omitted & ~1, 0) end
  where tasks.queue = _queue and tasks.task_id = task.task_id;
  update durable.runs
  set retried_at = _now, retried_by = by
  where runs.queue = _queue and runs.task_id = task.task_id and runs.attempt = task.attempt - 1;
  if task.partition_key is not null then
    perform durable._enlist(_queue, array[task.task_id]);
  end if;
  perform durable._notify_listeners(_queue, 'work');
  return (task.task_id, durable._run_id(task.task_id, task.attempt), task.attempt, false);
end;
$$;

-- Stores the fingerprint of the new params. Call it before any task row is locked: keys come
-- first in the lock order.
create or replace function durable._change_fingerprint(queue text, task_id uuid, options jsonb)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _fingerprint text collate "C" := (durable._checked_fingerprint(
    jsonb_build_object('idempotency_key', '', 'fingerprint', options -> 'fingerprint')))[1];
  _key text collate "C";
begin
  select tasks.idempotency_key into _key from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _change_fingerprint.task_id;
  update durable.idempotency_keys
  set fingerprint = _fingerprint
  where idempotency_keys.queue = _queue and idempotency_keys.key = _key
    and idempotency_keys.task_id = _change_fingerprint.task_id
    and idempotency_keys.fingerprint is distinct from _fingerprint;
end;
$$;

-- Locks the parent, before the child since its id is lower: it must not fail or be cancelled,
-- and look for live children, while one of them is being revived.
create or replace function durable._hold_parent_of(queue text, task_id uuid)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _parent uuid;
  _parent_queue text collate "C";
begin
  select tasks.parent_task_id, coalesce(tasks.parent_queue, _queue) into _parent, _parent_queue
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _hold_parent_of.task_id;
  perform from durable.tasks
  where tasks.queue = _parent_queue and tasks.task_id = _parent
  for share;
end;
$$;

-- The caller has locked the row. The last attempt goes to runs, and execution_timeout counts from
-- the next start. Waits may be left if the task was ended under a snapshot that did not show
-- them; they are deleted, so that the next attempt does not inherit their deadlines.
create or replace function durable._revive_task(
  queue text, task durable.tasks, deadline timestamptz, by jsonb,
  max_attempts integer default null, params jsonb default null
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  insert into durable.runs (
    queue, task_id, attempt, outcome, worker, ended_at, error, retried_at, retried_by
  )
  values (_queue, task.task_id, task.attempt,
    case when task.state = 'failed' then 'failed' else 'cancelled' end::durable.run_outcome,
    task.worker, task.finished_at, task.error, _now, by);
  perform
    durable._tally(_queue, _now, task.name, task.state::text::durable.tally_kind, -1),
    durable._tally(_queue, _now, task.name, 'revived');
  delete from durable.waits where waits.queue = _queue and waits.task_id = task.task_id;
  update durable.tasks
  set
    params = coalesce(_revive_task.params, tasks.params),
    max_attempts = coalesce(_revive_task.max_attempts,
      case when tasks.max_attempts <= tasks.attempt then tasks.attempt + 1
        else tasks.max_attempts end),
    attempt = tasks.attempt + 1,
    state = 'pending',
    available_at = _now,
    expires_at = _revive_task.deadline,
    started_at = null,
    finished_at = null,
    error = null,
    deadline = _revive_task.deadline,
    omitted = nullif(
      tasks.omitted & case when _revive_task.max_attempts is null then ~8 else ~9 end, 0)
  where tasks.queue = _queue and tasks.task_id = task.task_id;
  if task.partition_key is not null then
    perform durable._enlist(_queue, array[task.task_id]);
  end if;
end;
$$;

create or replace function durable._spawn_like(queue text, task durable.tasks, max_attempts integer)
returns durable.spawned_task language plpgsql as $$
declare
  _now timestamptz := durable._now();
  _options durable._spawn_options;
  _new durable._new_task;
begin
  _options.max_attempts := max_attempts;
  _options.retry := task.retry;
  _options.headers := nullif(task.headers - 'durable:forked_from', '{}');
  _options.execution_timeout := task.execution_timeout;
  _options.deadline := task.deadline;
  _options.partition_key := nullif(task.partition_key, '');
  _options.priority := task.priority;
  _options.omitted := nullif(task.omitted
    & case when max_attempts is distinct from task.max_attempts then ~9 else ~8 end, 0);
  _new := (
    1, durable._uuid7(durable._id_microseconds(_now)), task.name, task.params, _options, null);
  perform durable._insert_tasks(queue, array[_new], _now, null);
  return (_new.task_id, durable._run_id(_new.task_id, 1), 1, true);
end;
$$;
