-- Ends what has run out of time: leases and deadlines. These are bounded range scans that skip
-- locked rows. They take no lock that serializes them: another session could hold it, and
-- nothing would be recovered.
--
-- All rows of a call share one subtransaction: if a transaction has more than 64, all other
-- sessions have to look up the rest in pg_subtrans. Only if that one fails each row gets its
-- own, 50 at a time, so that one bad row cannot stop the others: its time is moved by a
-- minute, with a warning. A serialization failure is raised: the caller has to retry.

create or replace function durable.expire_leases(queue text, batch_size integer default 100)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _now timestamptz := durable._now();
begin
  return durable._expire_all(_queue, 'lost lease', array(
    select tasks.task_id
    from durable.tasks
    where tasks.queue = _queue and tasks.lease_expires_at <= _now
    order by tasks.lease_expires_at
    limit batch_size
    for no key update skip locked
  ));
end;
$$;

comment on function durable.expire_leases is
'Ends at most batch_size attempts whose lease has expired, with the error $LeaseExpired. They
count as attempts, and the task is retried at once if any is left. A task that has lost
max_lost_leases (of the queue) in a row, and saved nothing meanwhile, fails with $CrashLoop.
Returns how many. Locks: tries each task row with SKIP LOCKED; waits for none.';

create or replace function durable.expire_tasks(queue text, batch_size integer default 100)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _now timestamptz := durable._now();
begin
  return durable._expire_all(_queue, 'deadline', array(
    select tasks.task_id
    from durable.tasks
    where tasks.queue = _queue and tasks.expires_at <= _now
    order by tasks.expires_at
    limit batch_size
    for no key update skip locked
  ));
end;
$$;

comment on function durable.expire_tasks is
'Cancels at most batch_size tasks whose start_timeout, execution_timeout or deadline has passed, and
their live descendants. Returns how many, without the descendants. Locks: tries each task row
with SKIP LOCKED; waits for none.';

-- Handles tasks that the caller has locked; returns how many could be handled.
create or replace function durable._expire_all(queue text, what text, task_ids uuid[])
returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _in_a_minute timestamptz := durable._now() + make_interval(secs => 60);
  _id uuid;
  _expired integer := cardinality(task_ids);
  _ended uuid[] := array[]::uuid[];
begin
  begin
    _ended := array(
      select late.task_id
      from unnest(task_ids) as late (task_id)
      where durable._expire(_queue, what, late.task_id));
  exception
  when serialization_failure then
    raise;
  when others then
    _expired := 0;
    foreach _id in array task_ids[1:50] loop
      begin
        _ended := _ended || case when durable._expire(_queue, what, _id) then array[_id] end;
        _expired := _expired + 1;
      exception
      when serialization_failure then
        raise;
      when others then
        raise warning 'durable: the % of task % cannot be handled: %', what, _id, sqlerrm;
        update durable.tasks
        set
          lease_expires_at
            = case what when 'lost lease' then _in_a_minute else tasks.lease_expires_at end,
          expires_at = case what when 'deadline' then _in_a_minute else tasks.expires_at end
        where tasks.queue = _queue and tasks.task_id = _id;
      end;
    end loop;
  end;
  perform durable._ended(_queue, _ended);
  return _expired;
end;
$$;

-- Returns whether the task has ended.
create or replace function durable._expire(queue text, what text, task_id uuid)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
  _limit text;
begin
  select * into _task from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _expire.task_id;
  if what = 'lost lease' then
    return durable._fail_attempt(_queue, task_id, 'lease_lost', jsonb_build_object(
      'type', '$LeaseExpired', 'message',
      format('worker "%s" neither finished nor extended its lease in time', _task.worker)), true);
  end if;
  _limit := durable._limit(_task);
  return durable._end_task(_queue, task_id, 'cancelled', jsonb_build_object(
    'type', '$DeadlineExceeded', 'limit', _limit, 'message', case _limit
      when 'deadline' then 'not finished by its deadline'
      when 'start_timeout' then 'not started within start_timeout'
      else 'not finished within execution_timeout' end));
end;
$$;

-- Returns the limit that a task past its expires_at has exceeded.
create or replace function durable._limit(task durable.tasks)
returns text language sql immutable as $$
  select case
    when task.deadline <= task.expires_at then 'deadline'
    when task.started_at is null then 'start_timeout'
    else 'execution_timeout'
  end;
$$;

-- Whether a task that loses its lease is in a crash loop: it has lost as many leases in a row as
-- its queue allows, and none of these attempts has saved anything, so the next one would fail
-- at the same place. A task that retry_task has revived starts anew, since its previous attempt
-- is recorded as failed.
create or replace function durable._is_crash_loop(task durable.tasks)
returns boolean language plpgsql as $$
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
      where runs.queue = _queue and runs.task_id = task.task_id
        and runs.attempt > task.attempt - _most
        and runs.outcome = 'lease_lost')
    and not exists (
      select
      from durable.checkpoints
      where checkpoints.queue = _queue and checkpoints.task_id = task.task_id
        and checkpoints.attempt > task.attempt - _most);
end;
$$;

-- Handles tasks that have just failed or been cancelled in this transaction. If the consequences
-- cannot be handled, the tasks still end, and the rest is deferred.
create or replace function durable._ended(queue text, task_ids uuid[])
returns void language plpgsql as $$
begin
  if task_ids <> '{}' then
    perform durable._on_finished(queue, task_ids);
    perform durable._cascade_each(queue, task_ids, 1000);
  end if;
exception
when serialization_failure then
  raise;
when others then
  raise warning 'durable: what follows from the end of % cannot be done yet: %', task_ids, sqlerrm;
  perform
    durable._defer(queue, 'finished', ended.task_id),
    durable._defer(queue, 'cascade', ended.task_id)
  from unnest(task_ids) as ended (task_id);
end;
$$;
