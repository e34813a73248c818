-- The longest a queue may get: max_length in its policy.
--
-- What counts are tasks that are ready to be claimed, the backlog; tasks that wait for a time,
-- an event or another task do not. A count that all spawns update would make them wait for
-- each other, so they are counted instead, in a walk of the index that ends at max_length:
--
--   * Every spawn counts if max_length is at most 100, so that only spawns which run at the
--     same time exceed it. Above, a spawn counts with a probability of 100 / max_length: that
--     costs each spawn the same on average, and about one task in a hundred gets in beyond.
--   * Other spawns read queues.is_full, which counts write where it has changed. A spawn that
--     does so is let through even if the queue is full, since a refusal would roll it back.
--   * Maintenance counts too, once a second, or less often above 10,000, so that a queue which
--     workers have drained takes spawns again.
--
-- Only spawns by clients are refused. Children are not, nor are retries, wake-ups and forks:
-- what has begun would fail in the middle because of what has not.

-- Counts whether a queue is full, or will be with `adding` more tasks, and writes is_full if that
-- has changed. Returns whether the caller has to refuse its tasks.
create or replace function durable._is_full(queue text, max_length integer, adding integer default 0)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _ready integer;
begin
  select count(*) into _ready
  from (
    select
    from durable._waiting_versions(_queue) as waiting
    cross join lateral (
      (
        select
        from durable.tasks
        where not waiting.in_lanes
          and tasks.queue = _queue
          and tasks.name = waiting.name collate "C"
          and tasks.version = waiting.version collate "C"
          and tasks.available_at <= _now
          and tasks.partition_key is null
        order by tasks.available_at, tasks.task_id
        limit max_length
      )
      union all
      (
        select
        from durable.tasks
        where waiting.in_lanes
          and tasks.queue = _queue
          and tasks.name = waiting.name collate "C"
          and tasks.version = waiting.version collate "C"
          and tasks.available_at <= _now
          and tasks.partition_key is not null
        order by tasks.partition_key -- an order of their own index only
        limit max_length
      )
    ) as ready
    limit max_length
  ) as counted;
  if adding = 0 or max_length > 100 then -- else the next spawn counts itself
    perform from durable.queues
    where queues.queue = _queue
      and coalesce(queues.is_full, false) <> (_ready + adding >= _is_full.max_length)
    for no key update skip locked;
    if found then
      update durable.queues set is_full = nullif(_ready + adding >= _is_full.max_length, false)
      where queues.queue = _queue and queues.max_length is not null;
      return false;
    end if;
  end if;
  return _ready >= max_length;
end;
$$;

-- Returns true, or refuses a spawn into a queue that is full, does not exist, or that the
-- caller may not use. Outside READ COMMITTED it does not count: to write is_full could fail
-- there, and to read that many rows could make others fail.
create or replace function durable._require_room(queue text, adding integer default 1)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _max_length integer;
  _is_full boolean;
begin
  perform durable._require_queue(_queue);
  select queues.max_length, queues.is_full into _max_length, _is_full
  from durable.queues
  where queues.queue = _queue;
  if random() * _max_length < 100 * adding and durable._is_read_committed() then
    _is_full := durable._is_full(_queue, _max_length, adding);
  end if;
  if _is_full then
    raise exception using errcode = 'WFFUL',
      message = format('queue "%s" is full: %s tasks are ready to be claimed', queue, _max_length),
      hint = 'Try again once workers have caught up; max_length in the queue''s policy is the limit.';
  end if;
  return true;
end;
$$;

-- Refuses new tasks as _require_room does; those that exist already, and children, need no room.
create or replace function durable._require_room_for(queue text, new durable._new_task[])
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _adding integer;
begin
  perform from durable.queues where queues.queue = _queue and queues.max_length is not null;
  if not found then
    return; -- the usual case
  end if;
  select count(*) into _adding
  from unnest(new) as task
  where task.existing_id is null and (task.options).parent_task_id is null;
  if _adding > 0 then
    perform durable._require_room(_queue, _adding);
  end if;
end;
$$;

-- Maintenance: counts the ready tasks of a queue that has a max_length.
create or replace function durable._update_is_full(queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _max_length integer;
begin
  select queues.max_length into _max_length
  from durable.queues
  where queues.queue = _queue and queues.max_length is not null;
  if random() * _max_length < 10000 then
    perform durable._is_full(_queue, _max_length);
  end if;
end;
$$;
