-- When it is the turn of a lane again, after a claim has looked at it: at once, behind others,
-- when its next task is due, when its partition has room, or never, since it is empty. lanes.sql
-- has the invariants.

-- Takes the turn of lanes that were found without room, until they have some. It first takes the
-- locks that a free slot, or a change of the limits, would need, and then counts again. In strict
-- order, also those that a spawn would need: its task may come before all of its partition.
create or replace function durable._wait_for_room(
  queue text, lanes durable._lane[], resumes boolean, at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _policy durable.queues;
  _held text[];
  _blocked durable._lane[];
  _is_ordered boolean;
  _lane durable._lane;
begin
  if coalesce(lanes, '{}') = '{}' then
    return;
  end if;
  perform from durable.partitions
  where partitions.queue = _queue and partitions.partition_key = ''
  for key share skip locked;
  if not found then
    return; -- create_queue changes the limits
  end if;
  _held := array(
    select held.partition_key
    from (
      select distinct lane.partition_key collate "C" as key from unnest(lanes) as lane order by 1
    ) as own
    cross join lateral (
      select partitions.partition_key
      from durable.partitions
      where partitions.queue = _queue and partitions.partition_key = own.key
      offset 0
      for update skip locked
    ) as held
  );
  select * into _policy from durable.queues where queues.queue = _queue;
  _blocked := array(select lane from unnest(lanes) as lane where lane.partition_key = any (_held));
  _is_ordered := _policy.partition_order = 'strict' and not resumes;
  if _is_ordered then
    _blocked := durable._hold_blocked(_queue, _blocked);
  end if;
  _blocked := durable._with_room(_policy, _blocked, resumes, at);
  if _is_ordered then
    _blocked := durable._in_order(_queue, _blocked, at);
  end if;
  foreach _lane in array _blocked loop
    update durable.lanes
    set turn_at = _lane.opens_at
    where lanes.queue = _queue and lanes.lane_id = _lane.lane_id and _lane.free <= 0;
  end loop;
  if _is_ordered then
    perform durable._pass_turns(_queue, _blocked);
  end if;
end;
$$;

-- Deletes those of these lanes that have no tasks, or lets them wait for the first one, unless a
-- task is being added to them.
create or replace function durable._close_drained(
  queue text, lanes durable._lane[], resumes boolean, at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _drained durable._lane[];
begin
  _drained := array(
    select first.lane
    from durable._first_in_lanes(_queue, lanes, resumes) as first
    where (first.available_at <= at) is not true
  );
  if _drained <> '{}' then
    perform durable._close_lanes(_queue, _drained, resumes, at, durable._hold_lanes(
      _queue, array(select lane.lane_id from unnest(_drained) as lane)));
  end if;
end;
$$;

-- Puts those of these lanes behind the others that were served, are due, and that this claim has
-- not written yet: their rows are where it found them. Updates by ctid: see _lease_by_ctid.
create or replace function durable._put_behind(
  queue text, lanes durable._lane[], served uuid[], at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[] := array(
    select lane.place from unnest(lanes) as lane where lane.lane_id = any (served));
begin
  update durable.lanes
  set turn_at = at
  where (lanes.queue = _queue) is true and lanes.ctid = any (_places)
    and (lanes.turn_at <= at) is true;
end;
$$;

-- Returns the turn up to which this session's last claim has put the lanes of a priority behind.
-- As long as an old snapshot keeps their former rows, they are all before that turn, and a claim
-- that starts there need not read them. A lane that got an earlier turn since then is not found,
-- so a worker starts at the beginning now and then, as it does in queues without lanes. The
-- position is a setting of the session: a claim can lose it, or find another worker's, and is
-- only slower, or later, then.
create or replace function durable._reached_turn(queue text, priority smallint, resumes boolean)
returns timestamptz language sql stable as $$
  select (nullif(current_setting('durable.reached_turns', true), '')::jsonb
    ->> concat_ws(' ', queue, priority, resumes))::timestamptz;
$$;

create or replace function durable._set_reached_turn(
  queue text, lanes durable._lane[], resumes boolean, served uuid[]
) returns void language plpgsql as $$
declare
  _reached jsonb := nullif(current_setting('durable.reached_turns', true), '')::jsonb;
begin
  if length(_reached::text) > 4000 then
    _reached := null; -- of many priorities: the latest count
  end if;
  perform set_config('durable.reached_turns', (coalesce(_reached, '{}') || jsonb_build_object(
    concat_ws(' ', queue, lanes[1].priority, resumes),
    coalesce(min(lane.turn_at) filter (where lane.lane_id <> all (served)), max(lane.turn_at))
  ))::text, false)
  from unnest(lanes) as lane;
end;
$$;

-- Deletes those of these lanes that the caller has locked FOR UPDATE in an earlier statement and
-- that are empty. A lane whose first task is due later gets its turn then.
create or replace function durable._close_lanes(
  queue text, lanes durable._lane[], resumes boolean, at timestamptz, held uuid[]
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _lane_id uuid;
  _next_at timestamptz;
  _empty uuid[] := array[]::uuid[];
begin
  for _lane_id, _next_at in
    select (first.lane).lane_id, first.available_at
    from durable._first_in_lanes(_queue, lanes, resumes) as first
    where (first.lane).lane_id = any (held)
  loop
    if _next_at is null then
      _empty := _empty || _lane_id;
    elsif _next_at > at then
      update durable.lanes
      set turn_at = _next_at, waits_since = case when lanes.waits_since is not null then _next_at end
      where lanes.queue = _queue and lanes.lane_id = _lane_id;
    end if;
  end loop;
  perform durable._delete_lanes(_queue, _empty);
end;
$$;

-- Returns lanes with the time when the first task of each is, or was, due; null if it has none.
-- Tasks past their deadline count: they may be retried under the row that is there.
create or replace function durable._first_in_lanes(
  queue text, lanes durable._lane[], resumes boolean
) returns table (lane durable._lane, available_at timestamptz) language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return query
    select own, first.available_at
    from unnest(lanes) as own
    left join lateral (
      select tasks.available_at
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = own.name collate "C"
        and tasks.version = own.version collate "C"
        and tasks.partition_key = own.partition_key collate "C"
        and tasks.priority = own.priority
        and (tasks.started_at is not null and tasks.error is null) = _first_in_lanes.resumes
        and tasks.available_at is not null
        and tasks.partition_key is not null
      order by tasks.available_at, tasks.task_id
      limit 1
    ) as first on true;
end;
$$;

-- Returns the time from which a claim may find something in the lanes; null: not before a task
-- ends or becomes claimable.
create or replace function durable._next_turn(
  queue text, names text[], versions text[], at timestamptz
) returns timestamptz language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _policy durable.queues;
  _room record;
begin
  select * into _policy from durable.queues where queues.queue = _queue;
  select * into _room from durable._queue_room(_policy, at);
  if _room.slots <= 0 then
    return null;
  end if;
  return least(
    (
      select min(case when not level.resumes and _room.starts <= 0
        then greatest(first.turn_at, _room.opens_at) else first.turn_at end)
      from durable._levels(_queue, names, versions) as level
      cross join unnest(names) as known (name)
      cross join unnest(versions) as bound (version)
      cross join lateral (
        select lanes.turn_at
        from durable.lanes
        where lanes.queue = _queue
          and lanes.name = known.name collate "C"
          and lanes.version = bound.version collate "C"
          and lanes.priority = level.priority
          and lanes.resumes = level.resumes
          and lanes.turn_at is not null
        order by lanes.turn_at, lanes.lane_id
        limit 1
      ) as first
    ),
    ( -- what became claimable before the queue had lanes
      select min(head.available_at)
      from durable._heads(_queue, names, versions, at, 'infinity', null, null) as head
    )
  );
end;
$$;
