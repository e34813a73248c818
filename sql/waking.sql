-- Who goes on when a task finishes.
--
-- A task that waits for many watches one of them that is still live; only that
-- one's end looks at it, and moves the watch on. So a fan-in of 10,000 wakes its
-- parent once and never queues up behind it. No wake-up is lost: the watch is set
-- under a share lock on the watched row, so whoever ends it waits for that commit
-- and reads the waits after it; and a waiter that cannot be had leaves a note.
--
-- A task of another queue is watched the same way, but for a row in `watches`, beside
-- the watched task: its end looks there too. Who waits for the first of several has
-- such a row beside each of them (first.sql). A watch stays with its task, so it is
-- there whatever becomes of the wait; one too many only looks up for nothing.

-- Tasks that have just reached their final state, in this transaction.
create or replace function durable._finished(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _waiter record;
begin
  if durable._sees_the_latest() then
    for _waiter in
      select distinct waiter.queue, waiter.task_id
      from unnest(task_ids) as finished (task_id)
      cross join lateral (
        select waits.queue, waits.task_id
        from durable.waits
        where waits.queue = _queue
          and waits.target_task_id = finished.task_id
        union all
        select watches.waiter_queue, watches.waiter_task_id
        from durable.watches
        where watches.queue = _queue
          and watches.task_id = finished.task_id
        offset 0 -- keeps the lookup a lookup: it cannot become a join
      ) as waiter
      order by waiter.task_id
    loop
      perform durable._reconsider(_waiter.queue, _waiter.task_id);
    end loop;
  else
    perform durable._leave_note(_queue, 'finished', finished.task_id)
    from unnest(task_ids) as finished (task_id);
  end if;
  perform durable._knock(_queue, 'results');
end;
$$;


-- Wakes a sleeping task if one of the things it waits for has happened.
create or replace function durable._reconsider(queue text, waiter uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _wait durable.waits;
  _watch text;
begin
  if not durable._try_sleeper(_queue, waiter) then
    return;
  end if;
  for _wait in
    select *
    from durable.waits
    where waits.queue = _queue and waits.task_id = waiter
  loop
    _watch := case
      when _wait.task_ids is not null then durable._watch(_wait)
      when _wait.topic is not null then
        case when durable._has_message(_queue, waiter, _wait.topic) then 'over' end
      when durable._is_emitted(_queue, _wait.event_name) then 'over'
    end;
    if _watch = 'over' then
      perform durable._wake(_queue, waiter);
      return;
    elsif _watch = 'unsure' then
      perform durable._leave_note(_queue, 'waiter', waiter);
    end if;
  end loop;
end;
$$;


-- Tries to hold a task that sleeps because it waits (one between two attempts has an
-- error, and is not woken early). Held: true. In other hands: a note.
create or replace function durable._try_sleeper(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _try_sleeper.task_id
    and tasks.state = 'sleeping'
    and tasks.error is null
  for no key update skip locked;
  if found then
    return true;
  end if;
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _try_sleeper.task_id
    and tasks.state = 'sleeping'
    and tasks.error is null;
  if found then
    perform durable._leave_note(_queue, 'waiter', task_id);
  end if;
  return false;
end;
$$;


-- The caller holds the sleeping task.
create or replace function durable._wake(queue text, task_id uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  update durable.tasks
  set state = 'pending', available_at = _now
  where tasks.queue = _queue
    and tasks.task_id = _wake.task_id;
  perform durable._knock(_queue, 'work');
end;
$$;


-- Wakes those of many that sleep because they wait; what is in other hands gets a note.
create or replace function durable._wake_all(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _woken uuid[];
  _places tid[];
begin
  select coalesce(array_agg(sleeper.task_id), '{}'), array_agg(task.ctid) into _woken, _places
  from unnest(task_ids) as sleeper (task_id)
  cross join lateral (
    select tasks.ctid
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id = sleeper.task_id
      and tasks.state = 'sleeping'
      and tasks.error is null
    offset 0
    for no key update skip locked
  ) as task;
  if _woken <> '{}' then
    perform durable._wake_at(_queue, _places);
    perform durable._knock(_queue, 'work');
  end if;
  if cardinality(_woken) < cardinality(task_ids) then
    perform durable._leave_note(_queue, 'waiter', sleeper.task_id)
    from unnest(task_ids) as sleeper (task_id)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _queue
        and tasks.task_id = sleeper.task_id
        and tasks.state = 'sleeping'
        and tasks.error is null
      offset 0
    ) as task
    where sleeper.task_id <> all (_woken);
  end if;
end;
$$;


-- As in _take: without an index to walk, by place is the one way.
create or replace function durable._wake_at(queue text, places tid[])
returns void
language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  update durable.tasks
  set state = 'pending', available_at = _now
  where tasks.queue = _queue and tasks.ctid = any (places);
end;
$$;


-- Sets the watch of a wait on a task that is still live, from the end of the list,
-- never beyond one that was passed over. The caller holds the waiter.
-- watched: done. over: all have finished. unsure: some live one was in other hands.
create or replace function durable._watch(wait durable.waits)
returns text
language plpgsql
as $$
declare
  _queue text collate "C" := wait.queue;
  _ids uuid[] := wait.task_ids;
  _queues text[] := wait.task_queues;
  _i integer;
  _passed_over integer;
begin
  if wait.any_of then
    return durable._watch_each(wait, false);
  elsif durable._is_live(
    coalesce(_queues[array_position(_ids, wait.target_task_id)], _queue), wait.target_task_id)
  then
    return 'watched';
  end if;
  for _i in
    select place.i
    from generate_series(coalesce(wait.watched, cardinality(_ids)), 1, -1) as place (i)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = coalesce(_queues[place.i], _queue)
        and tasks.task_id = _ids[place.i]
        and tasks.finished_at is null
      offset 0
    ) as live
  loop
    perform
    from durable.tasks
    where tasks.queue = coalesce(_queues[_i], _queue)
      and tasks.task_id = _ids[_i]
      and tasks.finished_at is null
    for share skip locked;
    if found then
      update durable.waits
      set target_task_id = _ids[_i], watched = coalesce(_passed_over, _i)
      where waits.queue = wait.queue and waits.task_id = wait.task_id and waits.name = wait.name;
      if _queues[_i] <> _queue then
        insert into durable.watches (queue, task_id, waiter_queue, waiter_task_id)
        values (_queues[_i], _ids[_i], _queue, wait.task_id)
        on conflict do nothing;
      end if;
      return 'watched';
    end if;
    _passed_over := coalesce(_passed_over, _i);
  end loop;
  if _passed_over is null then
    return 'over';
  end if;
  update durable.waits
  set target_task_id = null, watched = _passed_over
  where waits.queue = wait.queue and waits.task_id = wait.task_id and waits.name = wait.name;
  return 'unsure';
end;
$$;


create or replace function durable._is_live(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _is_live.task_id
    and tasks.finished_at is null;
  return found;
end;
$$;
