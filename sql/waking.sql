-- Wakes sleeping tasks: those that wait for a task which has just finished and, called by
-- events.sql and messages.sql, those whose event or message has come.
--
-- A task that waits for many watches one of them that is still live. Only the end of that
-- one looks at the wait, and moves the watch to another. So a fan-in of 10,000 wakes its
-- parent once, and the children never queue for its row. No wake-up is lost: the watch is
-- set under a share lock on the watched row, so the transaction that ends that task waits
-- for this commit and reads the waits afterwards. If the waiter is locked, a check is deferred.
--
-- A task of another queue is watched in the same way, but by a row in `watches` beside the
-- watched task, which its end reads too. A task that waits for the first of several has such
-- a row beside each of them (wait_any.sql). Watches are deleted with the watched task, so a
-- watch may outlive its wait; then looking at it does nothing.

-- Handles tasks that have just reached their final state in this transaction.
create or replace function durable._on_finished(queue text, task_ids uuid[])
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  if durable._is_read_committed() then
    perform durable._try_wake(waiter.queue, waiter.task_id)
    from (
      select distinct waiter.queue, waiter.task_id
      from unnest(task_ids) as finished (task_id)
      cross join lateral (
        select waits.queue, waits.task_id
        from durable.waits
        where waits.queue = _queue and waits.target_task_id = finished.task_id
        union all
        select watches.waiter_queue, watches.waiter_task_id
        from durable.watches
        where watches.queue = _queue and watches.task_id = finished.task_id
        offset 0 -- keeps Postgres from turning the lookup into a join
      ) as waiter
      order by waiter.task_id
    ) as waiter;
  else
    perform durable._defer(_queue, 'finished', finished.task_id)
    from unnest(task_ids) as finished (task_id);
  end if;
  perform durable._notify_listeners(_queue, 'results');
end;
$$;

-- Wakes a sleeping task if one of its waits has ended.
create or replace function durable._try_wake(queue text, waiter uuid)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[] := durable._hold_sleepers(queue, array[waiter]);
  _wait durable.waits;
  _outcome text;
begin
  if _places is null then
    return;
  end if;
  for _wait in
    select *
    from durable.waits
    where waits.queue = _queue and waits.task_id = waiter
  loop
    _outcome := case
      when _wait.task_ids is not null then durable._watch(_wait, false)
      when _wait.topic is not null then (
        select 'over'
        from durable.messages
        where messages.queue = _queue and messages.task_id = waiter and messages.topic = _wait.topic
        limit 1)
      else (
        select 'over'
        from durable.events
        where events.queue = _queue and events.name = _wait.event_name
          and events.emitted_at is not null)
    end;
    if _outcome = 'over' then
      perform durable._wake(_queue, _places);
      return;
    elsif _outcome = 'unsure' then
      perform durable._defer(_queue, 'waiter', waiter);
    end if;
  end loop;
end;
$$;

-- Wakes those of these tasks that sleep because they wait; defers the check of locked ones.
create or replace function durable._wake_all(queue text, task_ids uuid[])
returns void language plpgsql as $$
declare
  _places tid[] := durable._hold_sleepers(queue, task_ids);
begin
  if _places is not null then
    perform durable._wake(queue, _places);
  end if;
end;
$$;

-- Locks those of these tasks that sleep because they wait, and defers the check of locked ones.
-- A task that sleeps between two attempts has an error and is not woken early.
create or replace function durable._hold_sleepers(queue text, task_ids uuid[])
returns tid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _held uuid[];
  _places tid[];
begin
  select coalesce(array_agg(sleeper.task_id), '{}'), array_agg(task.ctid) into _held, _places
  from unnest(task_ids) as sleeper (task_id)
  cross join lateral (
    select tasks.ctid
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = sleeper.task_id
      and tasks.state = 'sleeping' and tasks.error is null
    offset 0
    for no key update skip locked
  ) as task;
  if cardinality(_held) < cardinality(task_ids) then
    perform durable._defer(_queue, 'waiter', sleeper.task_id)
    from unnest(task_ids) as sleeper (task_id)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = sleeper.task_id
        and tasks.state = 'sleeping' and tasks.error is null
      offset 0
    ) as task
    where sleeper.task_id <> all (_held);
  end if;
  return _places;
end;
$$;

-- Updates by ctid: see _lease_by_ctid.
-- Returns the tasks that are in lanes; null: none.
create or replace function durable._wake_by_ctid(queue text, places tid[])
returns uuid[] language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _in_lanes uuid[];
begin
  with woken as (
    update durable.tasks
    set state = 'pending', available_at = _now
    where tasks.queue = _queue and tasks.ctid = any (places)
    returning tasks.task_id, tasks.partition_key
  )
  select array_agg(woken.task_id) into _in_lanes
  from woken
  where woken.partition_key is not null;
  perform durable._notify_listeners(_queue, 'work');
  return _in_lanes;
end;
$$;

-- Wakes tasks that the caller has locked.
create or replace function durable._wake(queue text, places tid[])
returns void language plpgsql as $$
declare
  _in_lanes uuid[] := durable._wake_by_ctid(queue, places);
begin
  if _in_lanes is not null then
    perform durable._enlist(queue, _in_lanes);
  end if;
end;
$$;

-- Sets the watch of a wait on a task that is still live, from the end of the list, never
-- beyond one that was skipped. The caller has locked the waiter. anew: the waiter ran in
-- between, so the watch it has may be missing a lock. Returns watched; over: all have finished;
-- or unsure: a live one was locked by another session.
create or replace function durable._watch(wait durable.waits, anew boolean)
returns text language plpgsql as $$
declare
  _queue text collate "C" := wait.queue;
  _ids uuid[] := wait.task_ids;
  _queues text[] := wait.task_queues;
  _target uuid := case when not anew then wait.target_task_id end;
  _from integer := coalesce(case when not anew then wait.watched end, cardinality(_ids));
  _i integer;
  _passed_over integer;
begin
  if wait.any_of then
    return durable._watch_all(wait, anew);
  elsif durable._is_live(coalesce(_queues[array_position(_ids, _target)], _queue), _target) then
    return 'watched';
  end if;
  _target := null;
  for _i in
    select place.i
    from generate_series(_from, 1, -1) as place (i)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = coalesce(_queues[place.i], _queue) and tasks.task_id = _ids[place.i]
        and tasks.finished_at is null
      offset 0
    ) as live
  loop
    select tasks.task_id into _target from durable.tasks
    where tasks.queue = coalesce(_queues[_i], _queue) and tasks.task_id = _ids[_i]
      and tasks.finished_at is null
    for share skip locked;
    exit when found;
    _passed_over := coalesce(_passed_over, _i);
  end loop;
  if _target is null and _passed_over is null then
    return 'over';
  end if;
  update durable.waits
  set target_task_id = _target, watched = coalesce(_passed_over, _i)
  where waits.queue = wait.queue and waits.task_id = wait.task_id and waits.name = wait.name;
  if _target is null then
    return 'unsure';
  elsif _queues[_i] <> _queue then
    insert into durable.watches (queue, task_id, waiter_queue, waiter_task_id)
    values (_queues[_i], _target, _queue, wait.task_id)
    on conflict do nothing;
  end if;
  return 'watched';
end;
$$;

create or replace function durable._is_live(queue text, task_id uuid)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return exists (
    select from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _is_live.task_id
      and tasks.finished_at is null);
end;
$$;
