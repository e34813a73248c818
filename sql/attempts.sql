-- How an attempt ends: completed, failed, lost. The caller of the private ones holds
-- the task's row.

-- One ascending pass over all the tasks concerned locks what saves or fails. Where tasks
-- only complete, completing them is proof and lock in one. Returns whose writes were
-- refused: a worker may speak of one task under two claims.
create or replace function durable._write(queue text, checkpoints json, completions json, failures json)
returns table (task_id uuid, claim integer, outcome text)
language plpgsql
as $$
#variable_conflict use_column
declare
  _queue text collate "C" := durable._granted(queue);
  _now timestamptz := durable._now();
  _written boolean := true;
  _completed uuid[] := array[]::uuid[];
  _failed uuid[] := array[]::uuid[];
  _fallen uuid[] := array[]::uuid[];
begin
  if octet_length(checkpoints::text) > 16777216 then
    perform durable._check_sizes('value of a step', 'value', checkpoints);
  end if;
  if octet_length(completions::text) > 16777216 then
    perform durable._check_sizes('result', 'result', completions);
  end if;
  if checkpoints is not null and completions is not null or failures is not null then
    perform durable._lock_each(_queue, array[checkpoints, completions, failures]);
  end if;
  if checkpoints is not null then
    _written := durable._save(_queue, checkpoints, _now) = json_array_length(checkpoints);
  end if;
  if completions is not null then
    _completed := durable._complete(_queue, completions, _now);
    _written := _written and cardinality(_completed) = json_array_length(completions);
  end if;
  if failures is not null then
    _failed := durable._fail(_queue, failures);
    _written := _written and cardinality(_failed) = json_array_length(failures);
    _fallen := array(
      select failed.task_id
      from unnest(_failed) as failed (task_id)
      where not durable._is_live(_queue, failed.task_id)
    );
  end if;
  if not _written then
    return query select * from durable._refusals(_queue, checkpoints, completions, failures);
  end if;
  if _completed || _fallen <> '{}' then
    perform durable._finished(_queue, _completed || _fallen);
    perform durable._cascade(_queue, fallen.task_id) from unnest(_fallen) as fallen (task_id);
  end if;
end;
$$;


-- Locks what these lists speak of, in one ascending pass, where the claim holds.
create or replace function durable._lock_each(queue text, parts json[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform
  from (
    select distinct held.task_id, held.claim
    from unnest(parts) as part
    cross join lateral json_to_recordset(part) as held (task_id uuid, claim integer)
    order by held.task_id
    offset 0 -- sorted before the first is locked
  ) as own
  cross join lateral (
    select
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
      and own.claim % 2 = 1
    offset 0
    for no key update
  ) as task;
end;
$$;


create or replace function durable.flush(queue text, checkpoints json, completions json, failures json)
returns setof durable.write_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
    select written.task_id, written.outcome
    from durable._write(queue, checkpoints, completions, failures) as written;
end;
$$;

comment on function durable.flush is
'save_checkpoints, complete_tasks and fail_tasks in one statement and one commit, for
any number of tasks; each part may be null. Returns a row only for those claims whose
writes were refused: cancelled or lost. Raises 55P03 when somebody holds one of the
rows for longer than 200 ms, 23505 when the same call is just being made on another
connection: say it again, one by one.';


create or replace function durable.complete_tasks(queue text, tasks json)
returns setof durable.write_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._write(queue, null, tasks, null) as refused
  right join json_to_recordset(tasks) as held (task_id uuid, claim integer)
    on held.task_id = refused.task_id and held.claim is not distinct from refused.claim;
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
set plan_cache_mode = force_generic_plan
set jit = off
as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._write(queue, null, null, tasks) as refused
  right join json_to_recordset(tasks) as held (task_id uuid, claim integer)
    on held.task_id = refused.task_id and held.claim is not distinct from refused.claim;
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


create or replace function durable._hold_or_refuse(queue text, task_id uuid, claim integer)
returns void
language plpgsql
as $$
begin
  if not durable._hold(queue, task_id, claim) then
    perform durable._refuse_claim(queue, task_id, claim);
  end if;
end;
$$;


-- Completes what is still in the claim's hands; returns which. Looked for again when
-- somebody, a lease's extension say, has moved a row between the look and the write.
create or replace function durable._complete(queue text, completions json, at timestamptz)
returns uuid[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _task_ids uuid[];
  _claims integer[];
  _results jsonb[];
  _completed uuid[] := array[]::uuid[];
  _now_completed uuid[];
begin
  loop
    select
      array_agg(task.ctid), array_agg(done.task_id), array_agg(done.claim),
      array_agg(nullif(done.result, 'null'))
    into _places, _task_ids, _claims, _results
    from (
      select *
      from json_to_recordset(completions) as own (task_id uuid, claim integer, result jsonb)
      order by own.task_id
      offset 0
    ) as done
    cross join lateral (
      select tasks.ctid
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = done.task_id and tasks.claim = done.claim
        and done.claim % 2 = 1
      offset 0
    ) as task;
    exit when _places is null;
    _now_completed := durable._complete_at(_queue, _places, _task_ids, _claims, _results, at);
    _completed := _completed || _now_completed;
    exit when cardinality(_now_completed) = cardinality(_places);
  end loop;
  return _completed;
end;
$$;


-- Without an index to walk there is one way to find a row by its place, whatever the
-- statistics say. Nobody has locked these, so the key and the fence are looked at again.
create or replace function durable._complete_at(
  queue text, places tid[], task_ids uuid[], claims integer[], results jsonb[], at timestamptz
)
returns uuid[]
language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off
as $$
declare
  _queue text collate "C" := queue;
  _completed uuid[];
begin
  with completed as (
    update durable.tasks
    set
      claim = tasks.claim + 1,
      state = 'completed',
      lease_expires_at = null,
      deadline_at = null,
      finished_at = at,
      result = place.result
    from unnest(places, task_ids, claims, results) as place (ctid, task_id, claim, result)
    where tasks.queue = _queue and tasks.ctid = place.ctid
      and tasks.task_id = place.task_id and tasks.claim = place.claim
    returning tasks.task_id
  )
  select coalesce(array_agg(completed.task_id), '{}') into _completed
  from completed;
  return _completed;
end;
$$;


-- Fails the attempts of tasks, which the caller has locked; returns whose claim held.
create or replace function durable._fail(queue text, failures json)
returns uuid[]
language plpgsql
as $$
declare
  _own record;
  _failed uuid[] := array[]::uuid[];
begin
  for _own in
    select own.*
    from json_to_recordset(failures) as own (task_id uuid, claim integer, error jsonb, retryable boolean)
    order by own.task_id
  loop
    if durable._hold(queue, _own.task_id, _own.claim) then
      perform durable._end_attempt(queue, _own.task_id, 'failed',
        coalesce(durable._bounded_error(_own.error), '{"type": "Error", "message": ""}'), coalesce(_own.retryable, true));
      _failed := _failed || _own.task_id;
    end if;
  end loop;
  return _failed;
end;
$$;


-- Whose writes were refused; not those that this call, or an earlier equal one, has made.
create or replace function durable._refusals(queue text, checkpoints json, completions json, failures json)
returns table (task_id uuid, claim integer, outcome text)
language plpgsql
as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select own.task_id, own.claim, durable._refusal(_queue, own.task_id, own.claim)
    from (
      select distinct on (task_id, claim) kinds.*
      from (
        select done.task_id, done.claim, 1 as ending
        from json_to_recordset(completions) as done (task_id uuid, claim integer)
        union all
        select failed.task_id, failed.claim, 2
        from json_to_recordset(failures) as failed (task_id uuid, claim integer)
        union all
        select saved.task_id, saved.claim, 3
        from json_to_recordset(checkpoints) as saved (task_id uuid, claim integer)
      ) as kinds
      order by kinds.task_id, kinds.claim, kinds.ending
    ) as own
    where not case when own.ending = 3 then durable._hold(_queue, own.task_id, own.claim)
      else durable._has_ended(_queue, own.task_id, own.claim, own.ending) end;
end;
$$;


-- Whether an ending went through: just now, or in an equal call before, whose answer was
-- lost with a connection, say.
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
        and coalesce(tasks.error ->> 'type', '') not in ('$LeaseExpired', '$CrashLoop')
      or ending = 2 and tasks.state = 'cancelled' and tasks.error ->> 'type' = '$DeadlineExceeded'
        and tasks.error ? 'cause' and tasks.error -> 'cause' ->> 'type' is distinct from '$LeaseExpired');
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
  if outcome = 'lease_lost' and durable._is_crash_loop(_task) then
    perform durable._end_badly(_queue, task_id, 'failed', jsonb_build_object(
      'type', '$CrashLoop',
      'message', format('attempt %s: its worker is gone time after time, and nothing is saved', _task.attempt),
      'cause', error));
    return;
  elsif not (retryable and durable._may_retry(_task.retry, _task.attempt, _task.max_attempts)) then
    perform durable._end_badly(_queue, task_id, 'failed', error);
    return;
  end if;
  _next_at := _now + make_interval(secs =>
    case when outcome = 'lease_lost' then 0 else durable._retry_delay(_task.retry, _task.attempt) end);
  if _next_at >= _task.deadline_at then
    perform durable._end_badly(_queue, task_id, 'cancelled', jsonb_build_object(
      'type', '$DeadlineExceeded',
      'message', format('no time left for attempt %s %s', _task.attempt + 1,
        case when _task.complete_by <= _task.deadline_at then 'before its deadline'
          else 'within max_duration' end),
      'limit', durable._limit(_task),
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
