-- Ageing: a lane of a low priority comes first at last.
--
-- In a queue whose policy has it, a lane rises by one priority for each `ageing` seconds since
-- one of its tasks has started, or since its first one was due. Nothing is written while it
-- rises: a claim computes it, of the lane of each priority that has waited longest. If that one is
-- above others by now, one of its tasks starts before theirs, and it is where it was. So a lane
-- waits no longer than (highest priority - its own + 1) * ageing, and then for the lanes of its
-- priority that have waited longer.
--
-- A lane that loses its turn, since its partition is full or its rate is used up, keeps its age.

-- Returns the priorities of lanes in the order in which they are served. aged: serve one task of
-- this lane only.
create or replace function durable._aged_levels(
  policy durable.queues, names text[], versions text[], at timestamptz
) returns table (priority smallint, resumes boolean, aged uuid) language plpgsql as $$
begin
  return query
    with level as materialized (
      select known.priority, known.resumes
      from durable._levels(policy.queue, names, versions) as known
    )
    select ranked.priority, ranked.resumes, ranked.aged
    from (
      select level.priority, level.resumes, null::uuid as aged, level.priority::float8 as rank
      from level
      union all
      select
        level.priority, level.resumes, waiting.lane_id,
        level.priority + floor(extract(epoch from at - waiting.waits_since) / policy.ageing)
      from level
      cross join lateral durable._longest_waiting(
        policy, names, versions, level.priority, level.resumes, at) as waiting
    ) as ranked
    order by ranked.rank desc, ranked.priority desc, ranked.resumes desc;
end;
$$;

-- Returns the lane of a priority that has waited longest, if that is long enough to rise. Looks at
-- 200 of each name: others may have waited longer, but for a rate.
create or replace function durable._longest_waiting(
  policy durable.queues, names text[], versions text[], priority smallint, resumes boolean,
  at timestamptz, out lane_id uuid, out waits_since timestamptz
) returns setof record language plpgsql as $$
#variable_conflict use_column
declare
  _queue text collate "C" := policy.queue;
begin
  return query
    select waiting.lane_id, waiting.waits_since
    from unnest(names) as known (name)
    cross join unnest(versions) as bound (version)
    cross join lateral (
      select lanes.lane_id, lanes.waits_since, lanes.turn_at
      from durable.lanes
      where lanes.queue = _queue
        and lanes.name = known.name collate "C"
        and lanes.version = bound.version collate "C"
        and lanes.priority = _longest_waiting.priority
        and lanes.resumes = _longest_waiting.resumes
        and lanes.waits_since <= at - make_interval(secs => policy.ageing)
        and lanes.turn_at is not null
      order by lanes.waits_since, lanes.lane_id
      limit 200
    ) as waiting
    where waiting.turn_at <= at
    order by waiting.waits_since, waiting.lane_id
    limit 1;
end;
$$;

-- Locks a lane, if nobody holds it.
create or replace function durable._pick_aged_lane(queue text, lane_id uuid)
returns durable._lane[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select row(lanes.lane_id, lanes.name, lanes.version, lanes.partition_key, lanes.priority, null,
      null, null, null, lanes.turn_at, lanes.ctid)::durable._lane
    from durable.lanes
    where lanes.queue = _queue and lanes.lane_id = _pick_aged_lane.lane_id
      and (lanes.turn_at is not null) is true
    for no key update skip locked
  );
end;
$$;

-- Lets lanes of which tasks have just started age anew, all rows of each that nobody holds. Lanes
-- that are served all the time are written once in half a period, and so do not rise. Updates by
-- ctid: see _lease_by_ctid.
create or replace function durable._reset_age(
  policy durable.queues, lane_ids uuid[], at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
  _places tid[];
begin
  _places := array(
    select aged.ctid
    from (select distinct own.lane_id from unnest(lane_ids) as own (lane_id)) as own
    cross join lateral (
      select lanes.name, lanes.version, lanes.partition_key, lanes.priority, lanes.resumes
      from durable.lanes
      where lanes.queue = _queue and lanes.lane_id = own.lane_id
      offset 0
    ) as served
    cross join lateral (
      select lanes.ctid
      from durable.lanes
      where lanes.queue = _queue
        and lanes.partition_key = served.partition_key
        and lanes.name = served.name
        and lanes.version = served.version
        and lanes.priority = served.priority
        and lanes.resumes = served.resumes
        and (lanes.waits_since > at - make_interval(secs => policy.ageing / 2)) is not true
      offset 0
      for no key update skip locked
    ) as aged
  );
  update durable.lanes
  set waits_since = at
  where (lanes.queue = _queue) is true and lanes.ctid = any (_places);
end;
$$;

-- Lets a lane age that there was before its queue had ageing, if nobody holds it.
create or replace function durable._begin_age(queue text, lane_id uuid)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.lanes
  where lanes.queue = _queue and lanes.lane_id = _begin_age.lane_id
  for no key update skip locked;
  if found then
    update durable.lanes
    set waits_since = coalesce(lanes.turn_at, durable._now())
    where lanes.queue = _queue and lanes.lane_id = _begin_age.lane_id;
  end if;
end;
$$;
