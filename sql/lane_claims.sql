-- Claims of queues with lanes: which lanes are served, and how many tasks of each may start.
--
-- A claim holds the rows of the lanes and partitions that it serves, counts what runs and what
-- has begun in a statement after those locks, and starts no more than the limits leave room for.
-- It waits for no lock. See lanes.sql for the invariants.

-- Claims tasks of a queue with lanes, as claim_tasks does: of the highest priority first, those
-- that continue an attempt before those that begin one, and then lane by lane. It looks at no
-- more than 200 lanes, so that any number of full partitions costs a claim little. continues:
-- start where this session's last claim ended.
create or replace function durable._claim_lanes(
  queue text, names text[], versions text[], claimer text, worker text, batch_size integer,
  at timestamptz, lease double precision, is_logged boolean, continues boolean
) returns setof durable.claimed_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _policy durable.queues;
  _slots integer;
  _starts integer;
  _left integer := batch_size;
  _room integer;
  _most integer := 0;
  _seen uuid[] := array[]::uuid[];
  _priority smallint;
  _resumes boolean;
  _aged uuid;
  _lanes durable._lane[];
  _claimed integer;
begin
  perform durable._require_read_committed('claim_tasks');
  perform durable._enter_lanes(_queue, names, versions, at, batch_size);
  select * into _policy from durable.queues where queues.queue = _queue;
  if num_nonnulls(_policy.concurrency, _policy.rate_starts) > 0 then
    perform from durable.partitions
    where partitions.queue = _queue and partitions.partition_key = ''
    for no key update skip locked;
    if not found then
      return; -- another claim counts: try again soon
    end if;
    select * into _policy from durable.queues where queues.queue = _queue; -- as of the lock
  end if;
  select room.slots, room.starts into _slots, _starts from durable._queue_room(_policy, at) as room;
  for _priority, _resumes, _aged in
    select level.priority, level.resumes, null::uuid
    from durable._levels(_queue, names, versions) as level
    where _policy.ageing is null
    union all
    select level.priority, level.resumes, level.aged
    from durable._aged_levels(_policy, names, versions, at) as level
    where _policy.ageing is not null
  loop
    loop
      _room := least(_left, _slots, case when not _resumes then _starts end);
      _most := least(greatest(_room, 2 * _most), 200 - cardinality(_seen));
      exit when _room <= 0 or _most <= 0;
      if _aged is null then
        _lanes := durable._pick_lanes(
          _queue, names, versions, _priority, _resumes, at, _most, _seen,
          case when continues then durable._reached_turn(_queue, _priority, _resumes) end);
        _seen := _seen || array(select lane.lane_id from unnest(_lanes) as lane);
      else
        _lanes := durable._pick_aged_lane(_queue, _aged);
        _room := 1;
      end if;
      exit when _lanes = '{}';
      return query
        select * from durable._serve_lanes(_policy, _lanes, _resumes, _room,
          _aged is not null or cardinality(_lanes) >= _most, claimer, worker, at, lease, is_logged);
      get diagnostics _claimed = row_count;
      _left := _left - _claimed;
      _slots := _slots - _claimed;
      _starts := _starts - case when _resumes then 0 else _claimed end;
      exit when _aged is not null or cardinality(_lanes) < _most;
    end loop;
  end loop;
end;
$$;

-- Claims at most `room` tasks from lanes of one priority, which the caller has locked, and decides
-- when it is the turn of these again. others_wait: more lanes may wait than these.
create or replace function durable._serve_lanes(
  policy durable.queues, lanes durable._lane[], resumes boolean, room integer,
  others_wait boolean, claimer text, worker text, at timestamptz, lease double precision,
  is_logged boolean
) returns setof durable.claimed_task language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
  _busy text[];
  _made text[];
  _open durable._lane[];
  _full durable._lane[];
  _heads durable._lane_head[];
  _waiting uuid[] := array[]::uuid[]; -- lanes that are not drained
  _share integer;
  _started_at timestamptz;
  _served uuid[] := array[]::uuid[];
  _behind uuid[];
begin
  select held.busy, held.made into _busy, _made
  from durable._hold_partitions(policy, lanes) as held;
  _open := lanes;
  if _busy <> '{}' then
    _open := array(select lane from unnest(lanes) as lane where lane.partition_key <> all (_busy));
  end if;
  loop
    _open := durable._with_room(policy, _open, resumes, at);
    if policy.partition_order = 'strict' and not resumes then
      _open := durable._in_order(_queue, _open, at);
    end if;
    _full := coalesce(_full, array(
      select lane from unnest(_open) as lane where lane.free <= 0));
    _open := array(select lane from unnest(_open) as lane where (lane.free <= 0) is not true);
    exit when _open = '{}' or room <= 0;
    _share := ceil(room::double precision / cardinality(_open));
    select locked.heads, locked.waiting into _heads, _waiting
    from durable._lock_heads(_queue, _open, resumes, _share, room, at) as locked;
    exit when _heads = '{}';
    _started_at := greatest(at, durable._now()); -- later than all that was counted
    return query
      select * from durable._lease_heads(
        _queue, _heads, claimer, worker, _started_at, lease, is_logged);
    if not resumes then
      perform durable._record_starts(policy, _heads, _started_at);
    end if;
    room := room - cardinality(_heads);
    _served := _served || array(select head.lane_id from unnest(_heads) as head);
    exit when _waiting = '{}' or room <= 0;
    _open := array(select lane from unnest(_open) as lane where lane.lane_id = any (_waiting));
  end loop;
  if _full <> '{}' then
    perform durable._wait_for_room(_queue, array(
      select lane from unnest(_full) as lane where lane.partition_key <> all (_made)), resumes, at);
  end if;
  perform durable._close_drained(_queue, array(
      select lane from unnest(lanes) as lane
      where lane.partition_key <> all (_busy)
        and lane.lane_id <> all (_waiting)
        and (policy.partition_order = 'strict' -- of which it is not known whether they have tasks
          or lane.lane_id <> all (array(select without.lane_id from unnest(_full) as without)))),
    resumes, at);
  if others_wait then
    _behind := case when room > 0
      then array(select lane.lane_id from unnest(lanes) as lane) else _served end;
    perform durable._put_behind(_queue, lanes, _behind, at);
    perform durable._set_reached_turn(_queue, lanes, resumes, _behind);
  end if;
  if policy.ageing is not null then
    perform durable._reset_age(policy, _served, at);
  end if;
end;
$$;

-- Returns how many more tasks of the queue may run, and how many more attempts may begin, and from
-- when another one may; null: no limit. The caller has locked the queue's own partition.
create or replace function durable._queue_room(
  policy durable.queues, at timestamptz,
  out slots integer, out starts integer, out opens_at timestamptz
) language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
  _period interval := make_interval(secs => policy.rate_period);
begin
  if policy.concurrency is not null then
    select policy.concurrency - count(*) into slots
    from durable.tasks
    where tasks.queue = _queue
      and tasks.state = 'running'
      and tasks.partition_key is not null
      and tasks.started_at is not null
      and tasks.finished_at is null;
  end if;
  if policy.rate_starts is not null then
    select policy.rate_starts - coalesce(sum(counted.tasks), 0), min(counted.started_at) + _period
    into starts, opens_at
    from durable.starts as counted
    where counted.queue = _queue
      and counted.partition_key = ''
      and counted.started_at > at - _period;
  end if;
end;
$$;

-- Returns the priorities of lanes, from the highest: one index entry each. Of each priority,
-- lanes whose tasks continue come first.
create or replace function durable._levels(queue text, names text[], versions text[])
returns table (priority smallint, resumes boolean) language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _priority integer := 32768;
  _resumes boolean := true;
begin
  loop
    select next.priority, next.resumes into _priority, _resumes
    from unnest(names) as known (name)
    cross join unnest(versions) as bound (version)
    cross join lateral (
      select lanes.priority, lanes.resumes
      from durable.lanes
      where lanes.queue = _queue
        and lanes.name = known.name collate "C"
        and lanes.version = bound.version collate "C"
        and lanes.turn_at is not null
        and (lanes.priority, lanes.resumes) < (_priority, _resumes)
      order by lanes.priority desc, lanes.resumes desc
      limit 1
    ) as next
    order by next.priority desc, next.resumes desc
    limit 1;
    exit when not found;
    priority := _priority;
    resumes := _resumes;
    return next;
  end loop;
end;
$$;

-- Locks the lanes of a priority whose turn it is, for each name at most `most`, except those that
-- were `seen` or whose turn is before from_turn, and returns them. If several rows are for one lane, all but one are deleted, if
-- nobody holds them.
create or replace function durable._pick_lanes(
  queue text, names text[], versions text[], priority smallint, resumes boolean,
  at timestamptz, most integer, seen uuid[], from_turn timestamptz
) returns durable._lane[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _lanes durable._lane[];
  _repeated uuid[];
begin
  select
    array_agg(
      row(picked.lane_id, picked.name, picked.version, picked.partition_key, _pick_lanes.priority,
        null, null, null, null, picked.turn_at, picked.place)::durable._lane
      order by picked.turn_at, picked.lane_id) filter (where picked.number = 1),
    array_agg(picked.lane_id) filter (where picked.number > 1)
  into _lanes, _repeated
  from (
    select
      turn.*,
      row_number() over (partition by turn.name, turn.version, turn.partition_key
        order by turn.turn_at, turn.lane_id) as number
    from unnest(names) as known (name)
    cross join unnest(versions) as bound (version)
    cross join lateral (
      select
        lanes.lane_id, lanes.name, lanes.version, lanes.partition_key, lanes.turn_at,
        lanes.ctid as place
      from durable.lanes
      where lanes.queue = _queue
        and lanes.name = known.name collate "C"
        and lanes.version = bound.version collate "C"
        and lanes.priority = _pick_lanes.priority
        and lanes.resumes = _pick_lanes.resumes
        and lanes.turn_at <= at
        and lanes.turn_at >= coalesce(from_turn, '-infinity')
        and lanes.lane_id <> all (seen)
      order by lanes.turn_at, lanes.lane_id
      limit most
      for no key update skip locked
    ) as turn
  ) as picked;
  if _repeated is not null then
    perform durable._delete_lanes(_queue, durable._hold_lanes(_queue, _repeated));
  end if;
  return coalesce(_lanes, '{}');
end;
$$;

-- Returns those of these lanes that could be locked FOR UPDATE: no task is being added to them.
create or replace function durable._hold_lanes(queue text, lane_ids uuid[])
returns uuid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select held.lane_id
    from unnest(lane_ids) as own (lane_id)
    cross join lateral (
      select lanes.lane_id
      from durable.lanes
      where lanes.queue = _queue and lanes.lane_id = own.lane_id
      offset 0
      for update skip locked
    ) as held
  );
end;
$$;

-- Deletes lanes that the caller has locked. Deletes by ctid: see _lease_by_ctid.
create or replace function durable._delete_lanes(queue text, lane_ids uuid[])
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[] := array(
    select place.ctid
    from unnest(lane_ids) as own (lane_id)
    cross join lateral (
      select lanes.ctid
      from durable.lanes
      where lanes.queue = _queue and lanes.lane_id = own.lane_id
      offset 0
    ) as place
  );
begin
  delete from durable.lanes where (lanes.queue = _queue) is true and lanes.ctid = any (_places);
end;
$$;

-- Locks the partitions of these lanes, in key order, and makes those that are missing where the
-- queue limits each. busy: those that other sessions have locked. made: those it made; who ends
-- a task of these does not see the row yet.
create or replace function durable._hold_partitions(
  policy durable.queues, lanes durable._lane[], out busy text[], out made text[]
) language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
  _limited boolean := num_nonnulls(
    policy.partition_concurrency, policy.partition_rate_starts, policy.partition_order) > 0;
  _keys text[] := array(
    select distinct lane.partition_key collate "C"
    from unnest(lanes) as lane
    where lane.partition_key <> ''
    order by 1);
  _held text[];
  _missing text[];
begin
  busy := '{}';
  made := '{}';
  _held := array(
    select held.partition_key
    from unnest(_keys) as own (key)
    cross join lateral (
      select partitions.partition_key
      from durable.partitions
      where partitions.queue = _queue and partitions.partition_key = own.key collate "C"
      offset 0
      for no key update skip locked
    ) as held
  );
  if cardinality(_held) = cardinality(_keys) then
    return;
  end if;
  select
    coalesce(array_agg(own.key) filter (where known.held), '{}'),
    coalesce(array_agg(own.key) filter (where known.held is null), '{}')
  into busy, _missing
  from unnest(_keys) as own (key)
  left join lateral (
    select true as held
    from durable.partitions
    where partitions.queue = _queue and partitions.partition_key = own.key collate "C"
    offset 0
  ) as known on true
  where own.key <> all (_held);
  if _limited and _missing <> '{}' then
    with inserted as (
      insert into durable.partitions (queue, partition_key)
      select _queue, own.key
      from unnest(_missing) as own (key)
      where pg_try_advisory_xact_lock(
        hashtext('durable.partition'), hashtext(_queue || ' ' || own.key))
      on conflict do nothing
      returning partitions.partition_key
    )
    select coalesce(array_agg(inserted.partition_key), '{}') into made from inserted;
    busy := busy || array(
      select own.key from unnest(_missing) as own (key) where own.key <> all (made));
  end if;
end;
$$;

-- Returns lanes with how many more of their tasks may start (free, null: no limit). opens_at: from
-- when, if only a rate keeps them; null, if the end of a task does. Lanes of one partition share
-- what it has free. The caller has locked the partitions in an earlier statement.
create or replace function durable._with_room(
  policy durable.queues, lanes durable._lane[], resumes boolean, at timestamptz
) returns durable._lane[] language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
begin
  return array(
    select
      row(lane.lane_id, lane.name, lane.version, lane.partition_key, lane.priority,
        least(slots.free, begun.free),
        case when (slots.free <= 0) is not true then begun.opens_at end, null, null, lane.turn_at,
        lane.place)::durable._lane
    from unnest(lanes) with ordinality as lane (lane_id, name, version, partition_key, priority,
      free, opens_at, next_at, next_id, turn_at, place, number)
    left join lateral (
      select partitions.concurrency, partitions.rate_starts, partitions.rate_period
      from durable.partitions
      where partitions.queue = _queue
        and partitions.partition_key = lane.partition_key collate "C"
        and lane.partition_key <> ''
      offset 0
    ) as own on true
    cross join lateral (
      select
        case when lane.partition_key <> ''
          then coalesce(own.concurrency, policy.partition_concurrency) end as concurrency,
        case when lane.partition_key <> '' and not resumes
          then coalesce(own.rate_starts, policy.partition_rate_starts) end as starts,
        make_interval(secs => case when own.rate_starts is null
          then policy.partition_rate_period else own.rate_period end) as period
    ) as most
    cross join lateral (
      select case when most.concurrency is not null then most.concurrency - (
        select count(*)
        from durable.tasks
        where tasks.queue = _queue
          and tasks.partition_key = lane.partition_key collate "C"
          and tasks.state = 'running'
          and tasks.partition_key is not null
          and tasks.started_at is not null
          and tasks.finished_at is null
      ) end as free
      offset 0 -- counted once
    ) as slots
    left join lateral (
      select
        most.starts - coalesce(sum(counted.tasks), 0) as free,
        min(counted.started_at) + most.period as opens_at
      from durable.starts as counted
      where counted.queue = _queue
        and counted.partition_key = lane.partition_key collate "C"
        and counted.started_at > at - case when most.starts is not null then most.period end
      having most.starts is not null
    ) as begun on true
    order by lane.number
  );
end;
$$;

-- Locks the oldest due tasks of lanes, in turn: the first of each, then the second, and so on, at
-- most `share` of each, `free` of each partition and batch_size together; of a lane with a next
-- task only that. It chooses before it locks, so that a limit counts exactly these. waiting: the
-- lanes in which it saw more tasks.
create or replace function durable._lock_heads(
  queue text, lanes durable._lane[], resumes boolean, share integer, batch_size integer,
  at timestamptz, out heads durable._lane_head[], out waiting uuid[]
) language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  with due as (
    select
      lane.*, head.task_id, head.available_at,
      row_number() over (partition by lane.number order by head.available_at, head.task_id) as rank
    from unnest(lanes) with ordinality as lane (lane_id, name, version, partition_key, priority,
      free, opens_at, next_at, next_id, turn_at, place, number)
    cross join lateral (
      select tasks.available_at, tasks.task_id
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = lane.name collate "C"
        and tasks.version = lane.version collate "C"
        and tasks.partition_key = lane.partition_key collate "C"
        and tasks.priority = lane.priority
        and (tasks.started_at is not null and tasks.error is null) = _lock_heads.resumes
        and tasks.available_at <= at
        and (tasks.available_at, tasks.task_id) >= (coalesce(lane.next_at, '-infinity'),
          coalesce(lane.next_id, '00000000-0000-0000-0000-000000000000'))
        and tasks.partition_key is not null
        and (tasks.expires_at > at) is not false -- expire_tasks cancels the others
      order by tasks.available_at, tasks.task_id
      limit least(lane.free, share) + 1
    ) as head
  ), allowed as (
    select
      due.*,
      due.rank <= share
        and (due.task_id = due.next_id) is not false
        and (due.free >= row_number() over (
          partition by due.partition_key order by due.rank, due.number)) is not false
        as is_allowed
    from due
  ), ranked as materialized (
    select
      allowed.*,
      allowed.is_allowed and batch_size >= row_number() over (
        partition by allowed.is_allowed order by allowed.rank, allowed.number) as is_chosen
    from allowed
  )
  select
    array(
      select
        row(held.ctid, held.available_at, ranked.lane_id, ranked.name, ranked.partition_key,
          held.omitted is not null)::durable._lane_head
      from ranked
      cross join lateral (
        select tasks.ctid, tasks.available_at, tasks.omitted
        from durable.tasks
        where tasks.queue = _queue
          and tasks.task_id = ranked.task_id
          and tasks.available_at = ranked.available_at -- not rescheduled since
          and tasks.partition_key = ranked.partition_key collate "C"
        offset 0
        for no key update skip locked
      ) as held
      where ranked.is_chosen
    ),
    array(select distinct ranked.lane_id from ranked where not ranked.is_chosen)
  into heads, waiting;
end;
$$;

-- Leases tasks that the caller has locked, name by name: only their definition differs.
create or replace function durable._lease_heads(
  queue text, heads durable._lane_head[], claimer text, worker text, at timestamptz,
  lease double precision, is_logged boolean
) returns setof durable.claimed_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text;
  _incomplete boolean;
  _due durable._due;
begin
  for _name, _incomplete, _due.places, _due.waited_since in
    select
      head.name, bool_or(head.is_incomplete), array_agg(head.place),
      array_agg(head.waited_since)
    from unnest(heads) as head
    group by head.name
  loop
    if _incomplete then
      _due := durable._with_definition(_queue, _name, claimer, _due, at);
    else
      _due.known := null;
    end if;
    continue when _due.places is null;
    if is_logged then
      perform durable._log_claimed(_queue, _due.places, worker, at);
    end if;
    if _due.known is null then
      return query
        select * from durable._lease_by_ctid(
          _queue, _due.places, _due.waited_since, worker, at, lease, claimer);
    else
      return query
        select * from durable._lease_incomplete(
          _queue, _due.places, _due.waited_since, worker, at, lease, claimer, _due.known);
    end if;
  end loop;
end;
$$;

create or replace function durable._record_starts(
  policy durable.queues, heads durable._lane_head[], at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
begin
  if policy.rate_starts is not null then
    insert into durable.starts (queue, partition_key, started_at, start_id, tasks)
    values (_queue, '', at, gen_random_uuid(), cardinality(heads));
  end if;
  insert into durable.starts (queue, partition_key, started_at, start_id, tasks)
  select _queue, begun.partition_key, at, gen_random_uuid(), begun.tasks
  from (
    select head.partition_key, count(*) as tasks
    from unnest(heads) as head
    where head.partition_key <> ''
    group by head.partition_key
  ) as begun
  left join lateral (
    select partitions.rate_starts
    from durable.partitions
    where partitions.queue = _queue and partitions.partition_key = begun.partition_key collate "C"
    offset 0
  ) as own on true
  where coalesce(own.rate_starts, policy.partition_rate_starts) is not null;
end;
$$;
