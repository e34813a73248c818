-- Waits for the first of several tasks.
--
-- Each of them is watched, because any end ends the wait. As in waking.sql a watch is set
-- under a share lock on the watched row. That only holds while the waiter sleeps: a task
-- that is awake is not woken. So when it suspends again each row is locked again, even if
-- its watch exists. The first end wakes the waiter; later ones find it awake. So n tasks cost
-- n rows and n lookups in any case.

-- Watches all of them, and returns what _watch returns; over: one has finished.
create or replace function durable._watch_all(wait durable.waits, anew boolean)
returns text language plpgsql as $$
declare
  _queue text collate "C" := wait.queue;
  _unwatched bigint;
  _held uuid[];
  _there text[];
begin
  if durable._first(_queue, wait.task_ids, wait.task_queues) is not null then
    return 'over';
  end if;
  select count(*), array_agg(task.task_id) filter (where task.held),
    array_agg(task.queue) filter (where task.held)
  into _unwatched, _held, _there
  from unnest(wait.task_ids, wait.task_queues) as wanted (task_id, queue)
  cross join lateral (
    select count(*) as times
    from durable.watches
    where watches.queue = coalesce(wanted.queue, _queue) collate "C"
      and watches.task_id = wanted.task_id and watches.waiter_queue = _queue
      and watches.waiter_task_id = wait.task_id
    offset 0
  ) as watched
  left join lateral (
    select tasks.task_id, tasks.queue, true as held
    from durable.tasks
    where tasks.queue = coalesce(wanted.queue, _queue) collate "C"
      and tasks.task_id = wanted.task_id and tasks.finished_at is null
      and (anew or watched.times = 0)
    offset 0
    for share skip locked
  ) as task on true
  where anew or watched.times = 0;
  insert into durable.watches (queue, task_id, waiter_queue, waiter_task_id)
  select held.queue, held.task_id, _queue, wait.task_id
  from unnest(_there, _held) as held (queue, task_id)
  on conflict do nothing;
  return case when coalesce(cardinality(_held), 0) = _unwatched then 'watched' else 'unsure' end;
end;
$$;

-- Returns which of them finished first; in a tie the one that was given first. A task that
-- does not exist counts only if no other has finished. Null: all of them are live.
create or replace function durable._first(queue text, task_ids uuid[], task_queues text[])
returns json language plpgsql as $$
begin
  return (
    select json_build_object(
      'task_id', wanted.task_id, 'state', coalesce(task.state::text, 'not_found'))
    from unnest(task_ids, task_queues) with ordinality as wanted (task_id, queue, ordinal)
    left join lateral (
      select tasks.state, tasks.finished_at
      from durable.tasks
      where tasks.queue = coalesce(wanted.queue, _first.queue) collate "C"
        and tasks.task_id = wanted.task_id
      offset 0
    ) as task on true
    where task.state is null or task.finished_at is not null
    order by task.finished_at nulls last, wanted.ordinal
    limit 1
  );
end;
$$;
