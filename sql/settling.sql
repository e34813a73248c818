-- Settling: what has happened becomes a checkpoint.
--
-- Only who holds a task writes its history. So an emitter, a finished child and the
-- clock leave a wait as it is; whoever holds the waiting task next looks what has
-- become of it. What happened wins over the deadline.

-- Turns those waits of tasks that are over into checkpoints, where the claim holds. The
-- same claim may be doing so on another connection, which it believes lost: who comes
-- first has settled it.
create or replace function durable._settle(queue text, tasks json, at timestamptz)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _settled durable.checkpoints[];
  _receivers uuid[];
begin
  select
    array_agg(wait.ctid) filter (where wait.topic is null),
    array_agg(row(
      own.task_id, at, own.claim, task.attempt, wait.position, wait.after, 0,
      resolution.state, _queue, wait.name, resolution.value
    )::durable.checkpoints) filter (where wait.topic is null),
    array_agg(own.task_id) filter (where wait.topic is not null)
  into _places, _settled, _receivers
  from (
    select held.*
    from json_to_recordset(tasks) as held (task_id uuid, claim integer)
    order by held.task_id
    offset 0 -- sorted before the first is locked
  ) as own
  cross join lateral (
    select waits.ctid, waits.*
    from durable.waits
    where waits.queue = _queue and waits.task_id = own.task_id
    offset 0
  ) as wait
  cross join lateral (
    select tasks.attempt
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
      and own.claim % 2 = 1
    offset 0
    for no key update
  ) as task
  left join lateral (
    select events.payload::json as payload
    from durable.events
    where events.queue = _queue and events.name = wait.event_name and events.emitted_at is not null
    offset 0
  ) as event on true
  cross join lateral (
    select * from durable._resolution(
      _queue, wait.task_ids, wait.task_queues, wait.any_of, wait.event_name, event.payload,
      wait.deadline_at, at)
    offset 0
  ) as resolution
  where resolution.state is not null or wait.topic is not null;
  if _places is not null then
    insert into durable.checkpoints select * from unnest(_settled) on conflict do nothing;
    perform durable._forget_waits(_queue, _places);
  end if;
  if _receivers is not null then
    perform durable._receive(_queue, _receivers, at);
  end if;
end;
$$;


-- How a wait has ended; no state: it has not.
create or replace function durable._resolution(
  queue text, task_ids uuid[], task_queues text[], any_of boolean, event text, payload json,
  deadline_at timestamptz, at timestamptz
)
returns durable._resolution
language plpgsql
as $$
declare
  _outcomes json := case
    when task_ids is null then null
    when any_of then durable._first(queue, task_ids, task_queues)
    when durable._all_finished(queue, task_ids, task_queues)
      then durable._outcomes(queue, task_ids, task_queues)
  end;
begin
  if payload is not null then
    return ('done', payload)::durable._resolution;
  elsif _outcomes is not null then
    return ('done', _outcomes)::durable._resolution;
  elsif (deadline_at > at) is not false then
    return (null, null)::durable._resolution;
  elsif event is null and task_ids is null then
    return ('done', to_json(deadline_at))::durable._resolution;
  end if;
  return ('timed_out', 'null')::durable._resolution;
end;
$$;


-- As in _take: without an index to walk, by place is the one way.
create or replace function durable._forget_waits(queue text, places tid[])
returns void
language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off
as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.waits where waits.queue = _queue and waits.ctid = any (places);
end;
$$;


create or replace function durable._all_finished(queue text, task_ids uuid[], task_queues text[])
returns boolean
language plpgsql
as $$
begin
  return not exists (
    select
    from unnest(task_ids, task_queues) as wanted (task_id, queue)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = coalesce(wanted.queue, _all_finished.queue) collate "C"
        and tasks.task_id = wanted.task_id
        and tasks.finished_at is null
      offset 0
    ) as live
  );
end;
$$;


-- Null when one of them is live after all: retry_task may have come between.
create or replace function durable._outcomes(queue text, task_ids uuid[], task_queues text[])
returns json
language plpgsql
as $$
begin
  return (
    select coalesce(
      json_agg(json_build_object(
        'task_id', wanted.task_id, 'state', coalesce(task.state::text, 'not_found'),
        'result', task.result, 'error', task.error) order by wanted.ordinal),
      '[]')
    from unnest(task_ids, task_queues) with ordinality as wanted (task_id, queue, ordinal)
    left join lateral (
      select tasks.state, tasks.result, tasks.error, tasks.finished_at
      from durable.tasks
      where tasks.queue = coalesce(wanted.queue, _outcomes.queue) collate "C"
        and tasks.task_id = wanted.task_id
      offset 0
    ) as task on true
    having coalesce(bool_and(task.state is null or task.finished_at is not null), true)
  );
end;
$$;
