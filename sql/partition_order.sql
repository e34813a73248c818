-- The strict order of partitions: a task starts when those before it have ended.
--
-- In a queue whose policy has this order, the tasks of a partition start in order of
-- (available_at, task_id), whatever their names, versions and priorities. A task holds its
-- partition from its first start to its end, also while it sleeps or waits. Nothing is stored:
--
-- 1. A started, unfinished task is in tasks_started_idx. If there is one, no other task of the
--    partition starts. It continues by itself, and its next attempt may begin.
-- 2. Otherwise the next task is the first among the first tasks of the partition's lanes. A claim
--    whose worker does not know the name or version of that lane starts none of the partition.
-- 3. A lane that does not have the next task loses its turn, as that of a full partition does, and
--    gets it back when a task ends (_free). Whatever else changes which task is next calls _free
--    too. A claim that takes such a turn gives one to the lane of the next task, and does not take
--    it while a spawn, which it cannot see yet, holds the lane.
--
-- Lanes whose tasks continue an attempt are not looked at here.

-- Returns lanes with the task of each that may start (next_at, next_id); free is 0 if there is
-- none, or if it starts later (opens_at). The caller has locked the partitions in an earlier
-- statement, so that nothing of them starts meanwhile.
create or replace function durable._in_order(
  queue text, lanes durable._lane[], at timestamptz
) returns durable._lane[] language plpgsql as $$
declare
  _lane durable._lane;
  _next record;
begin
  for _place in 1 .. cardinality(lanes) loop
    _lane := lanes[_place];
    continue when _lane.partition_key = '';
    select * into _next from durable._next_in_partition(queue, _lane, at);
    _lane.next_id := _next.task_id;
    if _next.is_in_lane and _next.available_at <= at then
      _lane.next_at := _next.available_at;
      _lane.free := least(_lane.free, 1);
    else
      _lane.opens_at := case
        when not _next.is_in_lane or _lane.free <= 0 and _lane.opens_at is null then null
        else greatest(_next.available_at, case when _lane.free <= 0 then _lane.opens_at end) end;
      _lane.free := 0;
    end if;
    lanes[_place] := _lane;
  end loop;
  return lanes;
end;
$$;

-- Returns the task that begins its next attempt in a partition, or that has to end first, and
-- whether it is the next of this lane. Nulls, and false, if there is none.
create or replace function durable._next_in_partition(
  queue text, lane durable._lane, at timestamptz,
  out task_id uuid, out available_at timestamptz, out is_in_lane boolean
) language plpgsql as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
  _name text collate "C" := lane.name;
  _version text collate "C" := lane.version;
  _key text collate "C" := lane.partition_key;
  _resumes boolean := false;
begin
  task_id := durable._holder_of_partition(_queue, _key);
  if task_id is not null then
    select held.task_id, held.available_at into task_id, available_at
    from (
      select tasks.task_id, tasks.available_at
      from durable.tasks
      where tasks.queue = _queue
        and tasks.state = any (array['sleeping', 'pending']::durable.task_state[])
        and tasks.partition_key = _key
        and tasks.partition_key is not null
        and tasks.started_at is not null
        and tasks.finished_at is null
        and tasks.name = _name
        and tasks.version = _version
        and tasks.priority = lane.priority
        and tasks.error is not null -- it waits for its next attempt
      offset 0
    ) as held
    where held.available_at is not null -- not inside: that would suit another index
    order by held.available_at, held.task_id
    limit 1;
    is_in_lane := found;
    return;
  end if;
  select
    first.task_id, first.available_at,
    (known.name, known.version, known.priority) = (_name, _version, lane.priority)
  into task_id, available_at, is_in_lane
  from (
    select distinct lanes.name, lanes.version, lanes.priority
    from durable.lanes
    where lanes.queue = _queue
      and (lanes.partition_key, lanes.name) >= (_key, '') and lanes.partition_key <= _key
      and not lanes.resumes
  ) as known
  cross join lateral (
    select tasks.task_id, tasks.available_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.name = known.name
      and tasks.version = known.version
      and tasks.partition_key = _key
      and tasks.priority = known.priority
      and (tasks.started_at is not null and tasks.error is null) = _resumes
      and tasks.available_at is not null
      and tasks.partition_key is not null
      and (tasks.expires_at > at) is not false
    order by tasks.available_at, tasks.task_id
    limit 1
  ) as first
  order by first.available_at, first.task_id
  limit 1;
  is_in_lane := coalesce(is_in_lane, false);
end;
$$;

-- Returns a task of a partition that has started and not ended; null: there is none.
create or replace function durable._holder_of_partition(queue text, partition_key text)
returns uuid language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := partition_key;
begin
  return (
    select tasks.task_id
    from durable.tasks
    where tasks.queue = _queue
      and tasks.state = any (array['running', 'sleeping', 'pending']::durable.task_state[])
      and tasks.partition_key = _key
      and tasks.partition_key is not null
      and tasks.started_at is not null
      and tasks.finished_at is null
    limit 1
  );
end;
$$;

-- Returns those of these lanes to which no task is being added.
create or replace function durable._hold_blocked(queue text, lanes durable._lane[])
returns durable._lane[] language plpgsql as $$
declare
  _held uuid[] := durable._hold_lanes(queue, array(
    select lane.lane_id from unnest(lanes) as lane));
begin
  return array(select lane from unnest(lanes) as lane where lane.lane_id = any (_held));
end;
$$;

-- Gives a turn to the lanes of the tasks for which these lanes wait.
create or replace function durable._pass_turns(queue text, lanes durable._lane[])
returns void language plpgsql as $$
begin
  perform durable._enlist(queue, array(
    select distinct lane.next_id from unnest(lanes) as lane where lane.next_at is null
  ), true);
end;
$$;

create or replace function durable._lane_of(task durable.tasks)
returns durable._lane language sql immutable as $$
  select row(null, task.name, task.version, task.partition_key, task.priority, null, null, null,
    null, null, null)::durable._lane;
$$;
