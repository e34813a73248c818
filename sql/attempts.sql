-- Ends attempts: completed, failed or lost. The callers of private functions have locked the
-- task's row.

-- Saves checkpoints, completes and fails. One ascending pass locks all tasks that save or
-- fail; if tasks only complete, the update that completes them checks and locks in one.
-- Returns the claims whose writes were refused; a worker may pass a task under two claims.
create or replace function durable._write(
  queue text, checkpoints json, completions json, failures json
) returns table (task_id uuid, claim integer, outcome text) language plpgsql as $$
#variable_conflict use_column
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _now timestamptz := durable._now();
  _written boolean := true;
  _completed uuid[] := array[]::uuid[];
  _failures integer;
  _failed uuid[] := array[]::uuid[]; -- for good
begin
  if octet_length(checkpoints::text) > 16777216 then
    perform durable._check_sizes('value of a step', 'value', checkpoints);
  end if;
  if octet_length(completions::text) > 16777216 then
    perform durable._check_sizes('result', 'result', completions);
  end if;
  if checkpoints is not null and completions is not null or failures is not null then
    perform durable._lock_claims(_queue, array[checkpoints, completions, failures]);
  end if;
  if checkpoints is not null then
    _written := durable._save(_queue, checkpoints, _now) = json_array_length(checkpoints);
  end if;
  if completions is not null then
    _completed := durable._complete(_queue, completions, _now);
    _written := _written and cardinality(_completed) = json_array_length(completions);
  end if;
  if failures is not null then
    select * into _failures, _failed from durable._fail_attempts(_queue, failures);
    _written := _written and _failures = json_array_length(failures);
  end if;
  if not _written then
    return query select * from durable._refusals(_queue, checkpoints, completions, failures);
  end if;
  if _completed || _failed <> '{}' then
    perform durable._on_finished(_queue, _completed || _failed);
    perform durable._cascade_each(_queue, _failed, 1000);
  end if;
end;
$$;

-- Locks the tasks in these lists whose claims still hold, in one ascending pass; returns how many.
create or replace function durable._lock_claims(queue text, parts json[])
returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _locked integer;
begin
  perform from (
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
  get diagnostics _locked = row_count;
  return _locked;
end;
$$;

create or replace function durable.flush(
  queue text, checkpoints json, completions json, failures json
) returns setof durable.write_outcome language plpgsql as $$
begin
  return query
    select written.task_id, written.outcome
    from durable._write(queue, checkpoints, completions, failures) as written;
end;
$$;

comment on function durable.flush is
'Does save_checkpoints, complete_tasks and fail_tasks in one statement, for any number of
tasks; each part may be null. Returns rows only for the claims whose writes were refused:
cancelled or lost. Raises 23505 if the same call is running on another connection: retry each
task on its own. Locks: the task rows, in ascending order; raises 55P03 after waiting 200 ms
for one: retry each task on its own.';

create or replace function durable.complete_tasks(queue text, tasks json)
returns setof durable.write_outcome language sql as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._write(queue, null, tasks, null) as refused
  right join json_to_recordset(tasks) as held (task_id uuid, claim integer)
    on held.task_id = refused.task_id and held.claim is not distinct from refused.claim;
$$;

comment on function durable.complete_tasks is
'Completes tasks that a worker holds. tasks: [{"task_id", "claim", "result"}, ...]. Returns an
outcome for each: ok, also if the same claim has completed it before; cancelled; lost. A
refused element does not affect the others. Locks: the task rows, in ascending order; raises
55P03 after waiting 200 ms for one.';

create or replace function durable.fail_tasks(queue text, tasks json)
returns setof durable.write_outcome language sql as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._write(queue, null, null, tasks) as refused
  right join json_to_recordset(tasks) as held (task_id uuid, claim integer)
    on held.task_id = refused.task_id and held.claim is not distinct from refused.claim;
$$;

comment on function durable.fail_tasks is
'Fails the current attempt of tasks that a worker holds. tasks: [{"task_id", "claim",
"error": {"type", "message", "traceback"}, "retryable": true}, ...]. A task with attempts left
is retried by its retry strategy, unless retryable is false; else it fails for good and its
live descendants are cancelled. Returns an outcome for each: ok, cancelled, lost. Locks: the
task rows, in ascending order; raises 55P03 after waiting 200 ms for one.';

create or replace function durable._hold(queue text, task_id uuid, claim integer)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _hold.task_id and tasks.claim = _hold.claim
    and _hold.claim % 2 = 1
  for no key update;
  return found;
end;
$$;

create or replace function durable._hold_or_refuse(queue text, task_id uuid, claim integer)
returns void language plpgsql as $$
begin
  if not durable._hold(queue, task_id, claim) then
    perform durable._refuse_claim(queue, task_id, claim);
  end if;
end;
$$;

-- Completes the tasks whose claims still hold; returns their ids. It looks again if another
-- transaction, such as one that extends a lease, moves a row between the look and the update.
create or replace function durable._complete(queue text, completions json, at timestamptz)
returns uuid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _task_ids uuid[];
  _claims integer[];
  _results jsonb[];
  _completed uuid[] := array[]::uuid[];
  _now_completed uuid[];
  _keys text[];
begin
  loop
    select array_agg(task.ctid), array_agg(done.task_id), array_agg(done.claim),
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
    select done.completed, done.partition_keys into _now_completed, _keys
    from durable._complete_by_ctid(_queue, _places, _task_ids, _claims, _results, at) as done;
    if _keys is not null then
      perform durable._free(_queue, _keys);
    end if;
    _completed := _completed || _now_completed;
    exit when cardinality(_now_completed) = cardinality(_places);
  end loop;
  return _completed;
end;
$$;

-- Updates by ctid: with index scans off, a TID scan is the only plan, whatever the statistics
-- say. Nobody has locked these rows, so the key and the fence are checked again.
-- partition_keys: of those in lanes; null: none.
create or replace function durable._complete_by_ctid(
  queue text, places tid[], task_ids uuid[], claims integer[], results jsonb[], at timestamptz,
  out completed uuid[], out partition_keys text[]
) language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off as $$
declare
  _queue text collate "C" := queue;
begin
  with ended as (
    update durable.tasks
    set
      claim = tasks.claim + 1,
      state = 'completed',
      lease_expires_at = null,
      expires_at = null,
      finished_at = at,
      result = place.result
    from unnest(places, task_ids, claims, results) as place (ctid, task_id, claim, result)
    where tasks.queue = _queue and tasks.ctid = place.ctid
      and tasks.task_id = place.task_id and tasks.claim = place.claim
    returning tasks.task_id, tasks.partition_key, tasks.name, tasks.attempt, tasks.spawned_at, tasks.started_at
  ),
  tallied as (
    insert into durable.tallies (at, tally_id, tasks, kind, queue, name, waits, runs)
    select
      at, gen_random_uuid(), count(*), 'completed', _queue, ended.name,
      array_agg(date_part('epoch', ended.started_at - ended.spawned_at)) filter (where ended.attempt = 1),
      array_agg(date_part('epoch', at - ended.started_at))
    from ended
    group by ended.name
  )
  select
    coalesce(array_agg(ended.task_id), '{}'),
    array_agg(ended.partition_key) filter (where ended.partition_key is not null)
  into completed, partition_keys
  from ended;
end;
$$;

-- Fails attempts of tasks that the caller has locked. Returns how many claims held, and the tasks
-- that have failed for good.
create or replace function durable._fail_attempts(
  queue text, failures json, out attempts integer, out ended uuid[]
) language plpgsql as $$
declare
  _own record;
begin
  attempts := 0;
  ended := '{}';
  for _own in
    select *
    from json_to_recordset(failures) as own (
      task_id uuid, claim integer, error jsonb, retryable boolean
    )
    order by own.task_id
  loop
    continue when not durable._hold(queue, _own.task_id, _own.claim);
    attempts := attempts + 1;
    if durable._fail_attempt(queue, _own.task_id, 'failed',
      coalesce(durable._bounded_error(_own.error), '{"type": "Error", "message": ""}'),
      coalesce(_own.retryable, true))
    then
      ended := ended || _own.task_id;
    end if;
  end loop;
end;
$$;

-- Returns the refused claims, without those whose writes this call, or an earlier equal one,
-- has made.
create or replace function durable._refusals(
  queue text, checkpoints json, completions json, failures json
) returns table (task_id uuid, claim integer, outcome text) language plpgsql as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select own.task_id, own.claim, durable._refusal(_queue, own.task_id, own.claim)
    from (
      select distinct on (held.task_id, held.claim) held.*, part.ending
      from (values (1, completions), (2, failures), (3, checkpoints)) as part (ending, claims)
      cross join lateral json_to_recordset(part.claims) as held (task_id uuid, claim integer)
      order by held.task_id, held.claim, part.ending
    ) as own
    where not case when own.ending = 3 then durable._hold(_queue, own.task_id, own.claim)
      else durable._has_ended(_queue, own.task_id, own.claim, own.ending) end;
end;
$$;

-- Whether an attempt has ended like this already: just now, or in an earlier equal call whose
-- answer was lost with its connection.
create or replace function durable._has_ended(
  queue text, task_id uuid, claim integer, ending integer
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _has_ended.task_id
    and tasks.claim = _has_ended.claim + 1
    and (ending = 1 and tasks.state = 'completed'
      or ending = 2
        and (tasks.state = 'failed' or tasks.error is not null and tasks.finished_at is null)
        and coalesce(tasks.error ->> 'type', '') not in ('$LeaseExpired', '$CrashLoop')
      or ending = 2 and tasks.state = 'cancelled' and tasks.error ->> 'type' = '$DeadlineExceeded'
        and tasks.error ? 'cause'
        and tasks.error -> 'cause' ->> 'type' is distinct from '$LeaseExpired');
  return found;
end;
$$;

-- Ends an attempt that did not complete; returns whether the task has ended too. Another attempt
-- follows if the task may be retried and if that would start before the deadline. After a lost
-- lease it starts without a delay: waiting for the lease to expire was the delay.
create or replace function durable._fail_attempt(
  queue text, task_id uuid, outcome durable.run_outcome, error jsonb, retryable boolean
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _task durable.tasks;
  _next_at timestamptz;
begin
  select * into _task from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _fail_attempt.task_id;
  if outcome = 'lease_lost' then
    perform durable._tally(_queue, _now, _task.name, 'lost');
  end if;
  if outcome = 'lease_lost' and durable._is_crash_loop(_task) then
    return durable._end_task(_queue, task_id, 'failed', jsonb_build_object(
      'type', '$CrashLoop',
      'message', format('attempt %s: its worker is gone time after time, and nothing is saved',
        _task.attempt),
      'cause', error));
  elsif not (retryable and durable._may_retry(_task.retry, _task.attempt, _task.max_attempts)) then
    return durable._end_task(_queue, task_id, 'failed', error);
  end if;
  _next_at := _now + make_interval(secs => case when outcome = 'lease_lost' then 0
    else durable._retry_delay(_task.retry, _task.attempt) end);
  if _next_at >= _task.expires_at then
    return durable._end_task(_queue, task_id, 'cancelled', jsonb_build_object(
      'type', '$DeadlineExceeded',
      'message', format('no time left for attempt %s %s', _task.attempt + 1,
        case when _task.deadline <= _task.expires_at then 'before its deadline'
          else 'within execution_timeout' end),
      'limit', durable._limit(_task),
      'cause', error));
  end if;
  insert into durable.runs (queue, task_id, attempt, outcome, worker, ended_at, error)
  values (_queue, task_id, _task.attempt, outcome, _task.worker, _now, error);
  if outcome = 'failed' then
    perform durable._tally(_queue, _now, _task.name, 'retried');
  end if;
  update durable.tasks
  set
    claim = tasks.claim + 1,
    attempt = tasks.attempt + 1,
    state = case when _next_at > _now then 'sleeping' else 'pending' end::durable.task_state,
    available_at = _next_at,
    lease_expires_at = null,
    error = _fail_attempt.error
  where tasks.queue = _queue and tasks.task_id = _fail_attempt.task_id;
  if _task.partition_key is not null then
    perform durable._free(_queue, array[_task.partition_key]);
    perform durable._enlist(_queue, array[_fail_attempt.task_id]);
  end if;
  perform durable._notify_listeners(_queue, 'work');
  return false;
end;
$$;

-- Fails or cancels a task. Returns whether it was live.
create or replace function durable._end_task(
  queue text, task_id uuid, state durable.task_state, error jsonb
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _task durable.tasks;
begin
  update durable.tasks
  set
    claim = tasks.claim + tasks.claim % 2,
    state = _end_task.state,
    available_at = null,
    lease_expires_at = null,
    expires_at = null,
    finished_at = _now,
    error = _end_task.error
  where tasks.queue = _queue and tasks.task_id = _end_task.task_id and tasks.finished_at is null
  returning * into _task;
  if not found then
    return false;
  elsif _task.partition_key is not null then
    perform durable._free(_queue, array[_task.partition_key]);
  end if;
  perform durable._tally(_queue, _now, _task.name, state::text::durable.tally_kind,
    waits => case when state = 'failed' and _task.attempt = 1
      then array[date_part('epoch', _task.started_at - _task.spawned_at)] end,
    runs => case when state = 'failed' then array[date_part('epoch', _now - _task.started_at)] end);
  delete from durable.waits where waits.queue = _queue and waits.task_id = _end_task.task_id;
  return true;
end;
$$;
