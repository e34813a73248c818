-- Resolves waits: turns those that have ended into checkpoints.
--
-- Only the holder of a task writes its history. So emitters, finished children and the clock
-- leave a wait as it is, and the next worker that holds the task resolves it. What the task
-- waited for takes precedence over the deadline.

-- Turns ended waits into checkpoints, where the claim holds; returns these, or null. The same
-- claim may be doing so on another connection that its worker believes lost: the first to commit
-- wins.
create or replace function durable._resolve_ended_waits(queue text, tasks json, at timestamptz)
returns durable.checkpoints[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _ended durable.checkpoints[];
  _receivers uuid[];
begin
  select
    array_agg(wait.ctid) filter (where wait.topic is null),
    array_agg(row(
      own.task_id, at, task.ordinal, task.attempt, wait.position, wait.after, 0,
      outcome.state, _queue, wait.name, outcome.value
    )::durable.checkpoints) filter (where wait.topic is null),
    array_agg(distinct own.task_id) filter (where wait.topic is not null)
  into _places, _ended, _receivers
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
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt
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
  left join lateral (
    select durable._join_result(_queue, wait.task_ids, wait.task_queues, wait.any_of) as value
    where wait.task_ids is not null
    offset 0
  ) as joined on true
  cross join lateral (
    select
      case
        when event.payload is not null or joined.value is not null then 'done'
        when (wait.expires_at > at) is not false then null
        when wait.event_name is null and wait.task_ids is null then 'done' -- a sleep
        else 'timed_out'
      end::durable.checkpoint_state as state,
      coalesce(event.payload, joined.value, case when wait.event_name is null
        and wait.task_ids is null then to_json(wait.expires_at) else 'null' end) as value
    offset 0
  ) as outcome
  where outcome.state is not null or wait.topic is not null;
  if _places is not null then
    insert into durable.checkpoints select * from unnest(_ended) on conflict do nothing;
    perform durable._delete_waits(_queue, _places);
  end if;
  if _receivers is not null then
    _ended := _ended || durable._receive_messages(_queue, _receivers, at);
  end if;
  return _ended;
end;
$$;

-- Deletes by ctid: see _lease_by_ctid.
create or replace function durable._delete_waits(
  queue text, places tid[], messages tid[] default null
) returns void language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.waits where waits.queue = _queue and waits.ctid = any (places);
  if messages is not null then
    delete from durable.messages as own
    where own.queue = _queue and own.ctid = any (_delete_waits.messages);
  end if;
end;
$$;

-- Returns the value of a wait for tasks, null while it has not ended. Results are read only once
-- no task is live; the second statement may see one that retry_task has just revived.
create or replace function durable._join_result(
  queue text, task_ids uuid[], task_queues text[], any_of boolean
) returns json language plpgsql as $$
begin
  if any_of then
    return durable._first(queue, task_ids, task_queues);
  end if;
  perform from unnest(task_ids, task_queues) as wanted (task_id, queue)
  cross join lateral (
    select
    from durable.tasks
    where tasks.queue = coalesce(wanted.queue, _join_result.queue) collate "C"
      and tasks.task_id = wanted.task_id and tasks.finished_at is null
    offset 0
  ) as live
  limit 1;
  if found then
    return null;
  end if;
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
      where tasks.queue = coalesce(wanted.queue, _join_result.queue) collate "C"
        and tasks.task_id = wanted.task_id
      offset 0
    ) as task on true
    having coalesce(bool_and(task.state is null or task.finished_at is not null), true)
  );
end;
$$;
