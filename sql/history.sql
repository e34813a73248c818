-- What has happened to a task, told in order.
--
-- It follows from what is kept anyway: the task's row, its attempts, checkpoints and waits;
-- and, where a queue's history is full, from when its claims began and ended (claim_log).
-- Without that it does not say what leaves no trace: the moments at which a task was claimed
-- again, suspended, woken or released. What has no moment, because it is still going on,
-- comes last.

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
      select * from durable._told_beginning(_task)
      union all
      select * from durable._told_attempts(_queue, task_id)
      union all
      select * from durable._told_claims(_task)
      union all
      select * from durable._told_wakings(_task)
      union all
      select * from durable._told_calls(_task)
      union all
      select * from durable._told_state(_task)
      union all
      select * from durable._told_waits(_queue, task_id)
    ) as told
    order by told.at, coalesce(told.attempt, 0), told.claim, told.place, told.called, told.name collate "C";
end;
$$;

comment on function durable.task_history is
'What has happened to a task, in order: spawned, copied (what a fork began with), started,
step or step_failed, try_failed, slept, event, joined, first_finished, message_received or
timed_out, child_spawned, event_emitted, message_sent, patched, recorded (anything else
that is saved), attempt_failed, lease_lost and attempt_cancelled, retried, completed, failed
or cancelled; of a queue whose history is full also claimed, suspended, woken and released;
without a moment what goes on: running, waiting, retrying. by, in the detail, is who did
it: {"user": the role, "identity", "queue", "task_id": on whose behalf, as the setting
durable.caller said}, {"task_id", "queue": of a task above it}, or {"limit": max_delay,
max_duration or deadline}. Refuses an unknown queue WFQUE, an unknown task WFNFD.';


-- claim, place, called: among entries of the same moment and attempt; what is of no claim
-- comes last. Which attempt its first start began follows from when the others ended:
-- retry_task lets a task start anew.
create or replace function durable._told_beginning(task durable.tasks)
returns setof durable._told
language plpgsql
stable
as $$
declare
  _fork jsonb := task.headers -> 'durable:forked_from';
begin
  return query
    select task.spawned_at, 'spawned', task.name::text, null::integer, null::text, null::integer,
      jsonb_build_object('parent_task_id', task.parent_task_id, 'parent_queue', task.parent_queue,
        'idempotency_key', task.idempotency_key, 'forked_from', _fork - 'by',
        'deadline', task.complete_by, 'by', _fork -> 'by'), 0, -2, 0
    union all
    select task.started_at, 'started', null, coalesce(min(runs.attempt), task.attempt), null, null,
      jsonb_build_object('version', task.version), 0, -1, 0
    from durable.runs
    where task.started_at is not null
      and runs.queue = task.queue
      and runs.task_id = task.task_id
      and runs.ended_at >= task.started_at
    having task.started_at is not null;
end;
$$;


create or replace function durable._told_attempts(queue text, task_id uuid)
returns setof durable._told
language plpgsql
stable
as $$
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      runs.ended_at,
      case runs.outcome when 'failed' then 'attempt_failed' when 'cancelled' then 'attempt_cancelled'
        else 'lease_lost' end,
      null::text, runs.attempt, runs.worker::text, null::integer,
      durable._told_end(runs.error, runs.outcome = 'cancelled'),
      null::integer, 2, 0
    from durable.runs
    where runs.queue = _queue and runs.task_id = _told_attempts.task_id
    union all
    select runs.retried_at, 'retried', null, runs.attempt + 1, null, null,
      jsonb_build_object('by', runs.retried_by), 0, -2, 0
    from durable.runs
    where runs.queue = _queue and runs.task_id = _told_attempts.task_id
      and runs.retried_at is not null;
end;
$$;


-- With what it ended; who cancelled it stands beside it.
create or replace function durable._told_end(error jsonb, is_cancelled boolean)
returns jsonb
language plpgsql
immutable
as $$
begin
  if is_cancelled then
    return jsonb_build_object('error', error - array['traceback', 'by', 'by_queue', 'limit'],
      'by', durable._cancelled_by(error));
  end if;
  return jsonb_build_object('error', durable._told_error(error));
end;
$$;


-- A worker says it in an object, as a rule.
create or replace function durable._told_error(error jsonb)
returns jsonb
language sql
immutable
as $$
  select case when jsonb_typeof(error) = 'object' then error - 'traceback' else error end;
$$;


create or replace function durable._told_claims(task durable.tasks)
returns setof durable._told
language plpgsql
stable
as $$
begin
  return query
    select
      log.at,
      case when log.claim % 2 = 1 then 'claimed' when log.waits is null then 'released' else 'suspended' end,
      durable._the_one(log.waits), log.attempt, log.worker::text, null::integer,
      jsonb_build_object('waits', durable._the_several(log.waits),
        'until', case when log.waits is not null then log.due_at end),
      log.claim, case log.claim % 2 when 1 then 0 else 2 end, 0
    from durable.claim_log as log
    where log.queue = task.queue and log.task_id = task.task_id;
end;
$$;


-- A task was woken if it could be claimed again before the clock would have let it. By
-- what, its waits say, as far as they were over by then.
create or replace function durable._told_wakings(task durable.tasks)
returns setof durable._told
language plpgsql
stable
as $$
begin
  return query
    select
      woken.at, 'woken', durable._the_one(over.waits), woken.attempt, null::text, null::integer,
      jsonb_build_object('waits', durable._the_several(over.waits)), woken.claim, 3, 0
    from (
      select
        log.claim, log.attempt, log.waits, log.due_at as until,
        case
          when lead(log.claim) over claims = log.claim + 1 and lead(log.attempt) over claims = log.attempt
            then lead(log.due_at) over claims
          when task.claim = log.claim and task.attempt = log.attempt and task.state = 'pending'
            then task.available_at
        end as at,
        lead(log.claim) over (partition by log.waits is null order by log.claim) as asleep_again
      from durable.claim_log as log
      where log.queue = task.queue and log.task_id = task.task_id
      window claims as (order by log.claim)
    ) as woken
    cross join lateral (
      select durable._waits_over(task.queue, task.task_id, woken.claim, woken.asleep_again, woken.waits) as waits
    ) as over
    where woken.waits is not null
      and woken.at < coalesce(woken.until, 'infinity');
end;
$$;


-- Which of what a task was suspended for was over before it was suspended again. Of one
-- wait there is no doubt.
create or replace function durable._waits_over(
  queue text, task_id uuid, claim integer, asleep_again integer, waits text[]
)
returns text[]
language plpgsql
stable
as $$
declare
  _queue text collate "C" := queue;
begin
  if cardinality(waits) = 1 then
    return waits;
  end if;
  return array(
    select wait.name
    from unnest(waits) with ordinality as wait (name, ordinal)
    cross join lateral (
      select
      from durable.checkpoints as saved
      where saved.queue = _queue
        and saved.task_id = _waits_over.task_id
        and saved.name = wait.name collate "C"
        and saved.state = 'done'
        and saved.claim > _waits_over.claim
        and saved.claim <= coalesce(asleep_again, saved.claim)
      offset 0
    ) as over
    where wait.name !~ '^\$(sleep|retry):'
    order by wait.ordinal -- that of their positions
  );
end;
$$;


create or replace function durable._the_one(names text[])
returns text
language sql
immutable
as $$
  select case cardinality(names) when 1 then names[1] end;
$$;


create or replace function durable._the_several(names text[])
returns text[]
language sql
immutable
as $$
  select case when cardinality(names) > 1 then names end;
$$;


-- The kind of a call is what stands behind the $ of its name.
create or replace function durable._told_calls(task durable.tasks)
returns setof durable._told
language plpgsql
stable
as $$
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
        when saved.state = 'failed' then jsonb_build_object('error', durable._told_error(saved.value::jsonb))
        when saved.state = 'done' and saved.name ~ '^\$(spawn|first):' then jsonb_build_object(
          'task_id', saved.value ->> 'task_id', 'queue', saved.value ->> 'queue')
        when saved.name like '$try:%' then jsonb_build_object('until', saved.value #>> '{}')
      end,
      saved.claim, case when saved.claim = 0 then -1 else 1 end, saved.position
    from durable.checkpoints as saved
    where saved.queue = task.queue and saved.task_id = task.task_id;
end;
$$;


create or replace function durable._told_state(task durable.tasks)
returns setof durable._told
language plpgsql
stable
as $$
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
      case
        when task.finished_at is not null then durable._told_end(task.error, task.state = 'cancelled')
        else jsonb_build_object('until', coalesce(task.lease_expires_at,
          case when task.state = 'sleeping' then task.available_at end))
      end,
      null::integer, 3, 0
    where task.finished_at is not null or task.state = 'running'
      or task.state = 'sleeping' and task.error is not null;
end;
$$;


create or replace function durable._told_waits(queue text, task_id uuid)
returns setof durable._told
language plpgsql
stable
as $$
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      null::timestamptz, 'waiting', waits.name::text, null::integer, null::text, null::integer,
      jsonb_build_object('event', waits.event_name, 'topic', waits.topic,
        'task_ids', to_jsonb(waits.task_ids), 'queues', to_jsonb(waits.task_queues),
        'any_of', waits.any_of, 'until', waits.deadline_at), null::integer, 4, waits.position
    from durable.waits
    where waits.queue = _queue and waits.task_id = _told_waits.task_id
      and durable._is_live(_queue, _told_waits.task_id);
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
