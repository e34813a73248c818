-- What has happened to a task, told in order.
--
-- Nothing is stored for it: it follows from the task's row, its attempts, checkpoints and
-- waits. So it does not say what leaves no trace: the moments at which a task was claimed
-- again, woken, released, or tried again by retry_task, and who did that. What has no
-- moment, because it is still going on, comes last.

create or replace function durable.task_history(queue text, task_id uuid)
returns setof durable.history_entry
language plpgsql
stable
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
begin
  perform durable._require_queue(_queue);
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = task_history.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  return query
    select told.at, told.kind, told.name, told.attempt, told.worker, told.duration_ms,
      nullif(jsonb_strip_nulls(told.detail), '{}')
    from (
      select * from durable._spawned_and_started(_task)
      union all
      select * from durable._attempts_over(_queue, task_id)
      union all
      select * from durable._calls_done(_task)
      union all
      select * from durable._where_it_stands(_task)
      union all
      select * from durable._waits_left(_queue, task_id)
    ) as told
    order by told.at, coalesce(told.attempt, 0), told.place, told.called, told.name collate "C";
end;
$$;

comment on function durable.task_history is
'What has happened to a task, in order: spawned, copied (what a fork began with), started,
step or step_failed, try_failed, slept, event, joined, first_finished, message_received or
timed_out, child_spawned, event_emitted, message_sent, patched, recorded (anything else
that is saved), attempt_failed, lease_lost and attempt_cancelled, completed, failed or cancelled; without a moment what goes on: running,
waiting, retrying. Refuses an unknown queue WFQUE, an unknown task WFNFD.';


-- place: among entries of the same moment and attempt. Which attempt its first start began
-- follows from when the others ended: retry_task lets a task start anew.
create or replace function durable._spawned_and_started(task durable.tasks)
returns table (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer, detail jsonb,
  place integer, called integer
)
language plpgsql
stable
as $$
#variable_conflict use_column
begin
  return query
    select task.spawned_at, 'spawned', task.name::text, null::integer, null, null::integer,
      jsonb_build_object('parent_task_id', task.parent_task_id, 'parent_queue', task.parent_queue,
        'idempotency_key', task.idempotency_key, 'forked_from', task.headers -> 'durable:forked_from',
        'deadline', task.complete_by), -2, 0
    union all
    select task.started_at, 'started', null, coalesce(min(runs.attempt), task.attempt), null, null,
      jsonb_build_object('version', task.version), -1, 0
    from durable.runs
    where task.started_at is not null
      and runs.queue = task.queue
      and runs.task_id = task.task_id
      and runs.ended_at >= task.started_at
    having task.started_at is not null;
end;
$$;


create or replace function durable._attempts_over(queue text, task_id uuid)
returns table (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer, detail jsonb,
  place integer, called integer
)
language plpgsql
stable
as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      runs.ended_at,
      case runs.outcome when 'failed' then 'attempt_failed' when 'cancelled' then 'attempt_cancelled'
        else 'lease_lost' end,
      null::text, runs.attempt, runs.worker::text, null::integer,
      jsonb_build_object('error', runs.error - 'traceback'), 2, 0
    from durable.runs
    where runs.queue = _queue and runs.task_id = _attempts_over.task_id;
end;
$$;


-- The kind of a call is what stands behind the $ of its name.
create or replace function durable._calls_done(task durable.tasks)
returns table (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer, detail jsonb,
  place integer, called integer
)
language plpgsql
stable
as $$
#variable_conflict use_column
begin
  return query
    select
      case when saved.claim = 0 then task.spawned_at else saved.saved_at end,
      case
        when saved.claim = 0 then 'copied'
        when saved.state = 'timed_out' then 'timed_out'
        when saved.name !~ '^\$' then case saved.state when 'failed' then 'step_failed' else 'step' end
        else coalesce((
          select known.kind
          from (values
            ('$sleep', 'slept'), ('$event', 'event'), ('$join', 'joined'), ('$spawn', 'child_spawned'),
            ('$emit', 'event_emitted'), ('$try', 'try_failed'), ('$retry', 'slept'),
            ('$send', 'message_sent'), ('$recv', 'message_received'), ('$first', 'first_finished'),
            ('$patch', 'patched')
          ) as known (prefix, kind)
          where known.prefix = split_part(saved.name, ':', 1)
        ), 'recorded')
      end,
      saved.name::text, nullif(saved.attempt, 0), null::text,
      case when saved.name !~ '^\$' and saved.claim > 0 then saved.duration_ms end,
      case
        when saved.claim = 0 then jsonb_build_object('saved_at', saved.saved_at)
        when saved.state = 'failed' then jsonb_build_object('error', saved.value::jsonb - 'traceback')
        when saved.state = 'done' and saved.name ~ '^\$(spawn|first):' then jsonb_build_object(
          'task_id', saved.value ->> 'task_id', 'queue', saved.value ->> 'queue')
        when saved.name like '$try:%' then jsonb_build_object('until', saved.value #>> '{}')
      end,
      case when saved.claim = 0 then -1 else 1 end, saved.position
    from durable.checkpoints as saved
    where saved.queue = task.queue and saved.task_id = task.task_id;
end;
$$;


create or replace function durable._where_it_stands(task durable.tasks)
returns table (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer, detail jsonb,
  place integer, called integer
)
language plpgsql
stable
as $$
#variable_conflict use_column
begin
  return query
    select
      task.finished_at,
      case
        when task.state = 'sleeping' and task.error is not null then 'retrying'
        else task.state::text
      end,
      null::text, task.attempt,
      case when task.state not in ('sleeping', 'pending') then task.worker::text end,
      null::integer,
      jsonb_build_object(
        'error', case when task.finished_at is not null then task.error - 'traceback' end,
        'until', coalesce(task.lease_expires_at, case when task.state = 'sleeping' then task.available_at end)),
      3, 0
    where task.finished_at is not null or task.state = 'running'
      or task.state = 'sleeping' and task.error is not null;
end;
$$;


create or replace function durable._waits_left(queue text, task_id uuid)
returns table (
  at timestamptz, kind text, name text, attempt integer, worker text, duration_ms integer, detail jsonb,
  place integer, called integer
)
language plpgsql
stable
as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      null::timestamptz, 'waiting', waits.name::text, null::integer, null::text, null::integer,
      jsonb_build_object('event', waits.event_name, 'topic', waits.topic,
        'task_ids', to_jsonb(waits.task_ids), 'queues', to_jsonb(waits.task_queues),
        'any_of', waits.any_of, 'until', waits.deadline_at), 4, waits.position
    from durable.waits
    where waits.queue = _queue and waits.task_id = _waits_left.task_id
      and durable._is_live(_queue, _waits_left.task_id);
end;
$$;


create or replace function durable.export_history(queue text, task_id uuid)
returns json
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
begin
  perform durable._require_queue(_queue);
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = export_history.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  return json_build_object(
    'version', 1, 'queue', queue, 'task_id', task_id, 'name', _task.name,
    'params', _task.params, 'headers', coalesce(_task.headers, '{}'), 'attempt', _task.attempt,
    'checkpoints', (
      select coalesce(json_agg(json_build_object(
        'name', saved.name, 'position', saved.position, 'after', saved.after, 'state', saved.state,
        'value', saved.value, 'attempt', saved.attempt
      ) order by saved.position, saved.after, saved.name), '[]')
      from durable.checkpoints as saved
      where saved.queue = _queue and saved.task_id = export_history.task_id
    ));
end;
$$;

comment on function durable.export_history is
'A task with its checkpoints, for a replay elsewhere: {"version": 1, "queue", "task_id",
"name", "params", "headers", "attempt", "checkpoints": [{"name", "position", "after",
"state", "value", "attempt"}, ...] in order of position}, the values exactly as they were
written. Refuses an unknown queue WFQUE, an unknown task WFNFD.';
