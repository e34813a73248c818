-- Trying again what ended badly: in place, with its checkpoints, or as a new task.

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
  _task durable.tasks;
  _max_attempts integer;
begin
  perform durable._require_queue(_queue);
  perform durable._check_keys('options', options, array['max_attempts', 'spawn_new']);
  _max_attempts := durable._max_attempts(options);
  if jsonb_typeof(options -> 'spawn_new') <> 'boolean' then
    perform durable._refuse_argument('spawn_new in options must be true or false',
      'Pass true for a new task without the old one''s checkpoints.');
  end if;
  perform durable._hold_parent_of(_queue, task_id);
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = retry_task.task_id
  for no key update;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  elsif _task.state not in ('failed', 'cancelled') then
    raise exception using errcode = 'WFFIN',
      message = format('task %s is %s', task_id, _task.state),
      hint = 'Only a failed or cancelled task can be tried again.';
  end if;
  if coalesce((options ->> 'spawn_new')::boolean, false) then
    return durable._spawn_like(_queue, _task, coalesce(_max_attempts, _task.max_attempts));
  end if;
  if _max_attempts <= _task.attempt then
    perform durable._refuse_argument(
      format('max_attempts is %s, but attempt %s is over', _max_attempts, _task.attempt),
      format('Pass %s or more, or leave it out for one more attempt.', _task.attempt + 1));
  end if;
  perform durable._revive(_queue, _task.task_id, _max_attempts);
  perform durable._revive_below(_queue, _task.task_id);
  perform durable._knock(_queue, 'work');
  return (task_id, durable._run_id(task_id, _task.attempt + 1), _task.attempt + 1, false);
end;
$$;

comment on function durable.retry_task is
'Gives a failed or cancelled task one more attempt, at once, with its checkpoints, and
revives exactly the tasks below it that its own end had cancelled. options:
max_attempts (the new limit; must leave room for an attempt), spawn_new (true: a new
task with the same name, params and options instead, without checkpoints, key and
parent). Refuses an unknown task WFNFD, any other state WFFIN, bad options 22023.';


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
create or replace function durable._revive(queue text, task_id uuid, max_attempts integer default null)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  insert into durable.runs (queue, task_id, attempt, outcome, worker, ended_at, error)
  select tasks.queue, tasks.task_id, tasks.attempt,
    case when tasks.state = 'failed' then 'failed' else 'cancelled' end::durable.run_outcome,
    tasks.worker, tasks.finished_at, tasks.error
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _revive.task_id;
  delete from durable.waits where waits.queue = _queue and waits.task_id = _revive.task_id;
  update durable.tasks
  set
    max_attempts = coalesce(_revive.max_attempts,
      case when tasks.max_attempts <= tasks.attempt then tasks.attempt + 1 else tasks.max_attempts end),
    attempt = tasks.attempt + 1,
    state = 'pending',
    available_at = _now,
    started_at = null,
    finished_at = null,
    error = null
  where tasks.queue = _queue and tasks.task_id = _revive.task_id;
end;
$$;


-- Exactly those that this task's end cancelled. A child that cannot be had is being
-- looked at by nobody else who could end it: waiting for it is safe, since ids ascend.
-- Those in other queues are tried.
create or replace function durable._revive_below(queue text, root uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _id uuid;
begin
  for _id in
    select tree.task_id from durable._tree(_queue, root) as tree
    where tree.task_id <> root
    order by tree.task_id
  loop
    perform
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id = _id
      and tasks.state = 'cancelled'
      and tasks.error ->> 'by' = root::text
    for no key update;
    if found then
      perform durable._revive(_queue, _id);
    end if;
  end loop;
  perform durable._reach_below(_queue,
    array(select tree.task_id from durable._tree(_queue, root) as tree),
    'revived_above', _queue, root);
end;
$$;


create or replace function durable._spawn_like(queue text, task durable.tasks, max_attempts integer)
returns durable.spawned_task
language plpgsql
as $$
declare
  _now timestamptz := durable._now();
  _new durable._new_task;
begin
  _new := (1, durable._uuid7(durable._id_milliseconds(_now)), task.name, task.params,
    (max_attempts, task.retry, task.headers, null, null, task.max_duration, null)::durable._spawn_options,
    null);
  perform durable._insert_tasks(queue, array[_new], _now, null);
  return (_new.task_id, durable._run_id(_new.task_id, 1), 1, true);
end;
$$;
