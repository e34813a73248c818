-- How an attempt ends: completed, failed, lost. The caller of the private ones holds
-- the task's row.

-- One ascending pass over all the tasks concerned. An ending is proof and lock in
-- one; a task that only saves is held before its checkpoints are written.
create or replace function durable._flush(queue text, checkpoints json, completions json, failures json)
returns setof durable.write_outcome
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _own record;
  _written boolean;
  _held uuid[] := array[]::uuid[];
  _ended uuid[] := array[]::uuid[];
  _fallen uuid[] := array[]::uuid[];
begin
  for _own in
    select distinct on (own.task_id, own.claim) own.*
    from (
      select done.task_id, done.claim, 1 as ending, done.result, null::jsonb as error, null::boolean as retryable
      from json_to_recordset(completions) as done (task_id uuid, claim integer, result jsonb)
      union all
      select failed.task_id, failed.claim, 2, null, failed.error, failed.retryable
      from json_to_recordset(failures) as failed (task_id uuid, claim integer, error jsonb, retryable boolean)
      union all
      select saved.task_id, saved.claim, 3, null, null, null
      from json_to_recordset(checkpoints) as saved (task_id uuid, claim integer)
    ) as own
    order by own.task_id, own.claim, own.ending
  loop
    _written := case _own.ending
      when 1 then durable._complete(_queue, _own.task_id, _own.claim, _own.result, _now)
      when 2 then durable._fail(_queue, _own.task_id, _own.claim, _own.error, _own.retryable)
      else durable._hold(_queue, _own.task_id, _own.claim)
    end;
    if not _written then
      if not (_own.ending < 3 and durable._has_ended(_queue, _own.task_id, _own.claim, _own.ending)) then
        return next (_own.task_id, durable._refusal(_queue, _own.task_id, _own.claim))::durable.write_outcome;
      end if;
      continue;
    end if;
    _held := _held || _own.task_id;
    if _own.ending = 1 then
      _ended := _ended || _own.task_id;
    elsif _own.ending = 2 and not durable._is_live(_queue, _own.task_id) then
      _ended := _ended || _own.task_id;
      _fallen := _fallen || _own.task_id;
    end if;
  end loop;
  if checkpoints is not null then
    perform durable._save(_queue, checkpoints, _held, _now);
  end if;
  if _ended <> '{}' then
    perform durable._finished(_queue, _ended);
    perform durable._cascade(_queue, fallen.task_id) from unnest(_fallen) as fallen (task_id);
  end if;
end;
$$;


create or replace function durable.flush(queue text, checkpoints json, completions json, failures json)
returns setof durable.write_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set jit = off
as $$
begin
  return query select * from durable._flush(queue, checkpoints, completions, failures);
end;
$$;

comment on function durable.flush is
'save_checkpoints, complete_tasks and fail_tasks in one statement and one commit, for
any number of tasks; each part may be null. Returns a row only for those tasks whose
writes were refused: cancelled or lost. Raises 55P03 when somebody holds one of the
rows for longer than 200 ms: say it again, one by one.';


create or replace function durable.complete_tasks(queue text, tasks json)
returns setof durable.write_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set jit = off
as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._flush(queue, null, tasks, null) as refused
  right join json_to_recordset(tasks) as held (task_id uuid) on held.task_id = refused.task_id;
$$;

comment on function durable.complete_tasks is
'Completes tasks that a worker holds. tasks: [{"task_id", "claim", "result"}, ...].
Returns an outcome for each: ok (also when this very claim has said so before),
cancelled, lost. One refused element does not touch the others.';


create or replace function durable.fail_tasks(queue text, tasks json)
returns setof durable.write_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set jit = off
as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._flush(queue, null, null, tasks) as refused
  right join json_to_recordset(tasks) as held (task_id uuid) on held.task_id = refused.task_id;
$$;

comment on function durable.fail_tasks is
'Fails the current attempt of tasks that a worker holds. tasks: [{"task_id", "claim",
"error": {"type", "message", "traceback"}, "retryable": true}, ...]. A task is tried
again by its retry strategy while it has attempts left, unless retryable is false;
else it has failed, and all that lives below it is cancelled. Returns an outcome for
each: ok, cancelled, lost.';


create or replace function durable._hold(queue text, task_id uuid, claim integer)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _hold.task_id and tasks.claim = _hold.claim
    and _hold.claim % 2 = 1
  for no key update;
  return found;
end;
$$;


create or replace function durable._complete(queue text, task_id uuid, claim integer, result jsonb, at timestamptz)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  update durable.tasks
  set
    claim = tasks.claim + 1,
    state = 'completed',
    lease_expires_at = null,
    deadline_at = null,
    finished_at = at,
    result = coalesce(_complete.result, 'null')
  where tasks.queue = _queue and tasks.task_id = _complete.task_id and tasks.claim = _complete.claim
    and _complete.claim % 2 = 1;
  return found;
end;
$$;


create or replace function durable._fail(queue text, task_id uuid, claim integer, error jsonb, retryable boolean)
returns boolean
language plpgsql
as $$
begin
  if not durable._hold(queue, task_id, claim) then
    return false;
  end if;
  perform durable._end_attempt(queue, task_id, 'failed',
    coalesce(error, '{"type": "Error", "message": ""}'), coalesce(retryable, true));
  return true;
end;
$$;


-- Whether a refused ending is the repetition of one that went through: the answer
-- was lost with a connection, say.
create or replace function durable._has_ended(queue text, task_id uuid, claim integer, ending integer)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _has_ended.task_id
    and tasks.claim = _has_ended.claim + 1
    and (ending = 1 and tasks.state = 'completed'
      or ending = 2 and (tasks.state = 'failed' or tasks.error is not null and tasks.finished_at is null)
        and tasks.error ->> 'type' is distinct from '$LeaseExpired');
  return found;
end;
$$;


-- Ends an attempt that did not complete. There is another one if the task may still
-- be retried, and if it would start before the deadline. A lost lease is not delayed
-- again: the lease was the delay.
create or replace function durable._end_attempt(
  queue text,
  task_id uuid,
  outcome durable.run_outcome,
  error jsonb,
  retryable boolean
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _task durable.tasks;
  _next_at timestamptz;
begin
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _end_attempt.task_id;
  if not (retryable and durable._may_retry(_task.retry, _task.attempt, _task.max_attempts)) then
    perform durable._end_badly(_queue, task_id, 'failed', error);
    return;
  end if;
  _next_at := _now + make_interval(secs =>
    case when outcome = 'lease_lost' then 0 else durable._retry_delay(_task.retry, _task.attempt) end);
  if _next_at >= _task.deadline_at then
    perform durable._end_badly(_queue, task_id, 'cancelled', jsonb_build_object(
      'type', '$DeadlineExceeded',
      'message', format('no time left for attempt %s', _task.attempt + 1),
      'cause', error));
    return;
  end if;
  insert into durable.runs (queue, task_id, attempt, outcome, worker, ended_at, error)
  values (_queue, task_id, _task.attempt, outcome, _task.worker, _now, error);
  update durable.tasks
  set
    claim = tasks.claim + 1,
    attempt = tasks.attempt + 1,
    state = case when _next_at > _now then 'sleeping' else 'pending' end::durable.task_state,
    available_at = _next_at,
    lease_expires_at = null,
    error = _end_attempt.error
  where tasks.queue = _queue and tasks.task_id = _end_attempt.task_id;
  perform durable._knock(_queue, 'work');
end;
$$;


create or replace function durable._end_badly(queue text, task_id uuid, state durable.task_state, error jsonb)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  update durable.tasks
  set
    claim = tasks.claim + tasks.claim % 2,
    state = _end_badly.state,
    available_at = null,
    lease_expires_at = null,
    deadline_at = null,
    finished_at = _now,
    error = coalesce(_end_badly.error, '{"type": "Error", "message": ""}')
  where tasks.queue = _queue
    and tasks.task_id = _end_badly.task_id
    and tasks.finished_at is null;
  delete from durable.waits where waits.queue = _queue and waits.task_id = _end_badly.task_id;
end;
$$;
