-- Trying again what ended badly: in place, with its checkpoints, or as a new task. What
-- sleeps until its next attempt starts it now.

create or replace function durable.retry_task(queue text, task_id uuid, options jsonb default '{}')
returns durable.spawned_task
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _task durable.tasks;
  _max_attempts integer;
  _params jsonb := durable._checked_size('params', options -> 'params');
  _deadline timestamptz;
begin
  perform durable._require_queue(_queue);
  perform durable._check_keys('options', options,
    array['max_attempts', 'params', 'fingerprint', 'spawn_new', 'deadline']);
  _max_attempts := durable._max_attempts(options);
  _deadline := durable._checked_moment('options', options, 'deadline');
  if jsonb_typeof(options -> 'spawn_new') <> 'boolean' then
    perform durable._refuse_argument('spawn_new in options must be true or false',
      'Pass true for a new task without the old one''s checkpoints.');
  end if;
  if options ? 'params' and not options @> '{"spawn_new": true}' then
    perform durable._change_fingerprint(_queue, task_id, options);
  end if;
  perform durable._hold_parent_of(_queue, task_id);
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = retry_task.task_id
  for no key update;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  elsif _task.state = 'sleeping' and _task.error is not null and not options @> '{"spawn_new": true}' then
    if options ? 'deadline' then
      perform durable._refuse_argument(format('task %s has not ended, so its deadline stands', task_id),
        'Leave deadline out, or cancel it first.');
    end if;
    return durable._skip_delay(_queue, _task, _max_attempts, _params, durable._caller());
  elsif _task.state not in ('failed', 'cancelled') then
    raise exception using errcode = 'WFFIN',
      message = format('task %s is %s', task_id, _task.state),
      hint = 'Only a failed or cancelled task can be tried again, or one that sleeps until its next attempt.';
  end if;
  if not options ? 'deadline' then
    _deadline := _task.complete_by;
  end if;
  if _deadline <= _now then
    perform durable._refuse_argument('the deadline of task ' || task_id || ' has passed',
      'Pass {"deadline": ...}: a later moment, or null for none.');
  end if;
  if coalesce((options ->> 'spawn_new')::boolean, false) then
    _task.params := coalesce(_params, _task.params);
    _task.complete_by := _deadline;
    return durable._spawn_like(_queue, _task, coalesce(_max_attempts, _task.max_attempts));
  end if;
  if _max_attempts <= _task.attempt then
    perform durable._refuse_argument(
      format('max_attempts is %s, but attempt %s is over', _max_attempts, _task.attempt),
      format('Pass %s or more, or leave it out for one more attempt.', _task.attempt + 1));
  end if;
  perform durable._change_params(_queue, task_id, _params);
  perform durable._revive(_queue, _task, _deadline, durable._caller(), _max_attempts);
  perform durable._revive_below(_queue, _task, _deadline);
  perform durable._knock(_queue, 'work');
  return (task_id, durable._run_id(task_id, _task.attempt + 1), _task.attempt + 1, false);
end;
$$;

comment on function durable.retry_task is
'Gives a failed or cancelled task one more attempt, at once, with its checkpoints, and
revives exactly the tasks below it that its own end had cancelled. options:
max_attempts (the new limit; must leave room for an attempt), params (from now on; its
idempotency key stands for these then), fingerprint (of those, as in spawn), deadline (a new one, or null for none, also for
those below that had inherited the old one), spawn_new (true: a new task with the same
name, params and options instead, without checkpoints, key and parent). A task that sleeps
until its next attempt starts that now, by the deadline it has. Refuses an unknown task WFNFD, any other state
WFFIN, bad options and a deadline that has passed 22023.';


-- The attempt that is due later is due now: the failure was counted when it happened.
create or replace function durable._skip_delay(
  queue text, task durable.tasks, max_attempts integer, params jsonb, by jsonb
)
returns durable.spawned_task
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _max_attempts integer := max_attempts;
begin
  if _max_attempts < task.attempt then
    perform durable._refuse_argument(
      format('max_attempts is %s, but attempt %s is next', _max_attempts, task.attempt),
      format('Pass %s or more, or leave it out.', task.attempt));
  end if;
  perform durable._change_params(_queue, task.task_id, params);
  update durable.tasks
  set max_attempts = _max_attempts
  where tasks.queue = _queue and tasks.task_id = task.task_id and _max_attempts is not null;
  perform durable._wake(_queue, task.task_id);
  perform durable._log_retry(_queue, task.task_id, task.attempt - 1, by);
  return (task.task_id, durable._run_id(task.task_id, task.attempt), task.attempt, false);
end;
$$;


-- That the attempt which follows this one was not left to the clock. The caller holds the
-- task.
create or replace function durable._log_retry(queue text, task_id uuid, attempt integer, by jsonb)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  update durable.runs
  set retried_at = _now, retried_by = by
  where runs.queue = _queue
    and runs.task_id = _log_retry.task_id
    and runs.attempt = _log_retry.attempt;
end;
$$;


-- What tells the new params again. Before any task row is locked: keys come first.
create or replace function durable._change_fingerprint(queue text, task_id uuid, options jsonb)
returns void
language plpgsql
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
  _fingerprint text collate "C" := (durable._checked_fingerprint(
    jsonb_build_object('idempotency_key', '', 'fingerprint', options -> 'fingerprint')))[1];
  _key text collate "C";
begin
  select tasks.idempotency_key into _key
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _change_fingerprint.task_id;
  update durable.idempotency_keys
  set fingerprint = _fingerprint
  where idempotency_keys.queue = _queue
    and idempotency_keys.key = _key
    and idempotency_keys.task_id = _change_fingerprint.task_id
    and idempotency_keys.fingerprint is distinct from _fingerprint;
end;
$$;


-- Null: none were given. The caller holds the row.
create or replace function durable._change_params(queue text, task_id uuid, params jsonb)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  update durable.tasks
  set params = _change_params.params
  where tasks.queue = _queue
    and tasks.task_id = _change_params.task_id
    and _change_params.params is not null;
end;
$$;


-- The parent first, since its id is lower: it must not end badly, and look for live
-- children, while one is being revived.
create or replace function durable._hold_parent_of(queue text, task_id uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _parent uuid;
  _parent_queue text collate "C";
begin
  select tasks.parent_task_id, coalesce(tasks.parent_queue, _queue) into _parent, _parent_queue
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _hold_parent_of.task_id;
  perform
  from durable.tasks
  where tasks.queue = _parent_queue and tasks.task_id = _parent
  for share;
end;
$$;


-- The caller holds the row. The attempt that is over goes to runs, and max_duration
-- counts from the next start. A wait is left when its task was ended by a snapshot that
-- did not show it; the next attempt's waits are not to take over its deadline.
create or replace function durable._revive(
  queue text, task durable.tasks, deadline timestamptz, by jsonb, max_attempts integer default null
)
returns void
language plpgsql
as $$
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
  delete from durable.waits where waits.queue = _queue and waits.task_id = task.task_id;
  update durable.tasks
  set
    max_attempts = coalesce(_revive.max_attempts,
      case when tasks.max_attempts <= tasks.attempt then tasks.attempt + 1 else tasks.max_attempts end),
    attempt = tasks.attempt + 1,
    state = 'pending',
    available_at = _now,
    deadline_at = deadline,
    started_at = null,
    finished_at = null,
    error = null,
    complete_by = deadline
  where tasks.queue = _queue and tasks.task_id = task.task_id;
end;
$$;


-- Exactly those that this task's end cancelled, or its deadline, which they had inherited:
-- they get the new one. A child that cannot be had is being looked at by nobody else who
-- could end it: waiting for it is safe, since ids ascend.
-- Those in other queues are tried.
create or replace function durable._revive_below(queue text, root durable.tasks, deadline timestamptz)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _id uuid;
  _below durable.tasks;
  _ends text[] := array[root.task_id::text];
begin
  for _id in
    select tree.task_id from durable._tree(_queue, root.task_id) as tree
    where tree.task_id <> root.task_id
    order by tree.task_id
  loop
    select * into _below
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id = _id
      and durable._fell_with(tasks, _ends, root.complete_by)
    for no key update;
    if found then
      if not _below.error ? 'by' then
        _ends := _ends || _id::text; -- so what this one's end cancelled comes back too
      end if;
      perform durable._revive(_queue, _below,
        durable._new_deadline(_below.complete_by, root.complete_by, deadline),
        jsonb_build_object('task_id', root.task_id));
    end if;
  end loop;
  perform
    durable._revive_unseen(_queue, ended.id::uuid, root.complete_by),
    durable._reach_below(_queue,
      array(select tree.task_id from durable._tree(_queue, ended.id::uuid) as tree),
      'revived_above', _queue, ended.id::uuid, root.complete_by)
  from unnest(_ends) as ended (id);
end;
$$;


-- A snapshot may be older than the end of those below, which a note can have brought late:
-- they are left to a note again.
create or replace function durable._revive_unseen(queue text, root uuid, deadline timestamptz)
returns void
language plpgsql
as $$
begin
  if not durable._sees_the_latest() then
    perform durable._leave_again(
      (queue, null, 'revived_above', root, null, queue, root, deadline)::durable.notes);
  end if;
end;
$$;


create or replace function durable._spawn_like(queue text, task durable.tasks, max_attempts integer)
returns durable.spawned_task
language plpgsql
as $$
declare
  _now timestamptz := durable._now();
  _options durable._spawn_options;
  _new durable._new_task;
begin
  _options.max_attempts := max_attempts;
  _options.retry := task.retry;
  _options.headers := nullif(task.headers - 'durable:forked_from', '{}');
  _options.max_duration := task.max_duration;
  _options.deadline := task.complete_by;
  _new := (1, durable._uuid7(durable._id_milliseconds(_now)), task.name, task.params, _options, null);
  perform durable._insert_tasks(queue, array[_new], _now, null);
  return (_new.task_id, durable._run_id(_new.task_id, 1), 1, true);
end;
$$;
