-- What time ends: leases and deadlines. Range scans, bounded, skipping what others
-- hold; each row in a sub-transaction of its own, so that one poisoned row cannot
-- stop the others: it is pushed a minute away, with a warning. A caller's snapshot that is
-- too old poisons nothing: that is the caller's to say again.

create or replace function durable.expire_leases(queue text, quantity integer default 100)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _now timestamptz := durable._now();
  _lost record;
  _expired integer := 0;
  _ended uuid[] := array[]::uuid[];
begin
  for _lost in
    select tasks.task_id, tasks.worker, tasks.lease_expires_at
    from durable.tasks
    where tasks.queue = _queue and tasks.lease_expires_at <= _now
    order by tasks.lease_expires_at
    limit quantity
    for no key update skip locked
  loop
    begin
      perform durable._end_attempt(_queue, _lost.task_id, 'lease_lost', jsonb_build_object(
        'type', '$LeaseExpired',
        'message', format('worker "%s" neither finished nor extended its lease in time', _lost.worker)),
        true);
      if not durable._is_live(_queue, _lost.task_id) then
        _ended := _ended || _lost.task_id;
      end if;
      _expired := _expired + 1;
    exception
    when serialization_failure then
      raise;
    when others then
      raise warning 'durable: the lost lease of task % cannot be handled: %', _lost.task_id, sqlerrm;
      update durable.tasks set lease_expires_at = _now + make_interval(secs => 60)
      where tasks.queue = _queue and tasks.task_id = _lost.task_id;
    end;
  end loop;
  perform durable._ended(_queue, _ended);
  return _expired;
end;
$$;

comment on function durable.expire_leases is
'Ends at most quantity attempts whose lease has run out, as $LeaseExpired: they count as
attempts, and are retried at once if any is left. A task that has lost as many in a row
as the queue''s max_lost_leases, and saved nothing meanwhile, has failed, as $CrashLoop.
Returns how many.';


create or replace function durable.expire_deadlines(queue text, quantity integer default 100)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _now timestamptz := durable._now();
  _late durable.tasks;
  _ended uuid[] := array[]::uuid[];
begin
  for _late in
    select *
    from durable.tasks
    where tasks.queue = _queue and tasks.deadline_at <= _now
    order by tasks.deadline_at
    limit quantity
    for no key update skip locked
  loop
    begin
      if durable._cancel_one(_queue, _late.task_id, jsonb_build_object(
        'type', '$DeadlineExceeded', 'message', durable._lateness(_late), 'limit', durable._limit(_late)))
      then
        _ended := _ended || _late.task_id;
      end if;
    exception
    when serialization_failure then
      raise;
    when others then
      raise warning 'durable: the deadline of task % cannot be handled: %', _late.task_id, sqlerrm;
      update durable.tasks set deadline_at = _now + make_interval(secs => 60)
      where tasks.queue = _queue and tasks.task_id = _late.task_id;
    end;
  end loop;
  perform durable._ended(_queue, _ended);
  return cardinality(_ended);
end;
$$;

comment on function durable.expire_deadlines is
'Cancels at most quantity tasks whose max_delay, max_duration or deadline has passed, and
what lives below them. Returns how many.';


-- Which of its limits a task that is out of time has met.
create or replace function durable._limit(task durable.tasks)
returns text
language sql
immutable
as $$
  select case
    when task.complete_by <= task.deadline_at then 'deadline'
    when task.started_at is null then 'max_delay'
    else 'max_duration'
  end;
$$;


create or replace function durable._lateness(task durable.tasks)
returns text
language sql
immutable
as $$
  select case durable._limit(task)
    when 'deadline' then 'not finished by its deadline'
    when 'max_delay' then 'not started within max_delay'
    else 'not finished within max_duration'
  end;
$$;


-- Whether a task that loses its lease has done nothing but that lately: as many attempts
-- in a row as its queue allows, none of which has saved anything, so that the next one
-- would come to the same place. What retry_task has revived begins anew: the attempt
-- before it is recorded as failed.
create or replace function durable._is_crash_loop(task durable.tasks)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := task.queue;
  _most integer;
begin
  select queues.max_lost_leases into _most from durable.queues where queues.queue = _queue;
  if _most is null or task.attempt < _most then
    return false;
  end if;
  return _most - 1 = (
      select count(*)
      from durable.runs
      where runs.queue = _queue
        and runs.task_id = task.task_id
        and runs.attempt > task.attempt - _most
        and runs.outcome = 'lease_lost')
    and not exists (
      select
      from durable.checkpoints
      where checkpoints.queue = _queue
        and checkpoints.task_id = task.task_id
        and checkpoints.attempt > task.attempt - _most);
end;
$$;


-- Tasks that have just ended badly, in this transaction. If what follows from that
-- cannot be done, their end still stands, and the rest is left to notes.
create or replace function durable._ended(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
begin
  if task_ids <> '{}' then
    perform durable._finished(queue, task_ids);
    perform durable._cascade(queue, ended.task_id) from unnest(task_ids) as ended (task_id);
  end if;
exception
when serialization_failure then
  raise;
when others then
  raise warning 'durable: what follows from the end of % cannot be done yet: %', task_ids, sqlerrm;
  perform
    durable._leave_note(queue, 'finished', ended.task_id),
    durable._leave_note(queue, 'cascade', ended.task_id)
  from unnest(task_ids) as ended (task_id);
end;
$$;
