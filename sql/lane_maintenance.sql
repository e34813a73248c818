-- Maintenance of lanes: tasks enter and leave them as their queue gets and loses limits, and lanes,
-- partitions and starts that nothing needs are deleted.

-- Puts due tasks into the lane without a key that became claimable before their queue had lanes, at
-- least 100 of each name.
create or replace function durable._enter_lanes(
  queue text, names text[], versions text[], at timestamptz, batch_size integer
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text;
  _version text;
  _due durable._due;
begin
  for _name, _version in
    select head.name, head.version
    from durable._heads(_queue, names, versions, at, at, null, null) as head
  loop
    _due := durable._lock_due(_queue, _name, _version, '', greatest(batch_size, 100), at,
      '-infinity', '00000000-0000-0000-0000-000000000000');
    if _due.places is not null then
      perform durable._enlist(_queue, durable._set_partition(_queue, _due.places, '', 0::smallint));
    end if;
  end loop;
end;
$$;

-- Takes tasks out of the lanes of a queue that has none any more. Returns how many.
create or replace function durable._leave_lanes(queue text, batch_size integer)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
begin
  perform from durable.queues where queues.queue = _queue and durable._has_lanes(queues);
  if found then
    return 0;
  end if;
  _places := array(
    select tasks.ctid
    from durable.tasks
    where tasks.queue = _queue
      and tasks.available_at is not null
      and tasks.partition_key is not null
    order by tasks.name, tasks.version, tasks.partition_key -- an order of their own index only
    limit batch_size
    for no key update skip locked
  );
  if _places <> '{}' then
    perform durable._set_partition(_queue, _places, null, null);
    perform durable._notify_listeners(_queue, 'work');
  end if;
  return cardinality(_places);
end;
$$;

-- Updates by ctid: see _lease_by_ctid. The caller has locked the tasks. Returns their ids.
create or replace function durable._set_partition(
  queue text, places tid[], partition_key text, priority smallint
) returns uuid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task_ids uuid[];
begin
  with moved as (
    update durable.tasks
    set partition_key = _set_partition.partition_key, priority = _set_partition.priority
    where (tasks.queue = _queue) is true and tasks.ctid = any (places)
    returning tasks.task_id
  )
  select array_agg(moved.task_id) into _task_ids from moved;
  return _task_ids;
end;
$$;

-- Deletes lanes without tasks, which no claim looks at if no worker knows their name or version
-- any more. Those that there were before their queue had ageing begin to age. Looks at some from a
-- random one on, and from the first on at the end.
create or replace function durable._prune_lanes(queue text, batch_size integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _start uuid := gen_random_uuid();
  _ages boolean := exists (
    select from durable.queues where queues.queue = _queue and queues.ageing is not null);
  _lane record;
begin
  for _lane in
    select
      row(found.lane_id, found.name, found.version, found.partition_key, found.priority, null, null,
        null, null, null, null)::durable._lane as lane,
      found.resumes, found.waits_since
    from (
      (select * from durable.lanes
       where lanes.queue = _queue and lanes.lane_id >= _start
       order by lanes.lane_id limit batch_size)
      union all
      (select * from durable.lanes
       where lanes.queue = _queue and lanes.lane_id < _start
       order by lanes.lane_id limit batch_size)
      limit batch_size
    ) as found
  loop
    if _ages and _lane.waits_since is null then
      perform durable._begin_age(_queue, (_lane.lane).lane_id);
    end if;
    continue when (
      select first.available_at is not null
      from durable._first_in_lanes(_queue, array[_lane.lane], _lane.resumes) as first);
    perform durable._close_lanes(_queue, array[_lane.lane], _lane.resumes,
      durable._now(), durable._hold_lanes(_queue, array[(_lane.lane).lane_id]));
  end loop;
end;
$$;

-- Deletes the starts that no rate counts any more, and the partitions that have neither tasks
-- nor limits of their own. Looks at no more than batch_size partitions.
create or replace function durable._prune_partitions(queue text, batch_size integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _policy durable.queues;
  _pruned_to text collate "C";
  _key text collate "C";
  _next text collate "C";
  _walked integer := 0;
begin
  perform from durable.partitions where partitions.queue = _queue limit 1;
  if not found then
    return; -- the usual case
  end if;
  select cleanup_cursors.partitions_pruned_to into _pruned_to
  from durable.cleanup_cursors
  where cleanup_cursors.queue = _queue
  for no key update skip locked;
  if not found then
    return;
  end if;
  select * into _policy from durable.queues where queues.queue = _queue;
  perform durable._prune_partition(_policy, '');
  for _key in
    select partitions.partition_key
    from durable.partitions
    where partitions.queue = _queue and partitions.partition_key > coalesce(_pruned_to, '')
    order by partitions.partition_key
    limit batch_size
  loop
    _walked := _walked + 1;
    perform durable._prune_partition(_policy, _key);
  end loop;
  if _walked = batch_size then
    _next := _key;
  end if;
  update durable.cleanup_cursors
  set partitions_pruned_to = _next
  where cleanup_cursors.queue = _queue
    and cleanup_cursors.partitions_pruned_to is distinct from _next;
end;
$$;

create or replace function durable._prune_partition(policy durable.queues, partition_key text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
  _key text collate "C" := partition_key;
begin
  delete from durable.starts
  where starts.queue = _queue
    and starts.partition_key = _key
    and starts.started_at <= durable._now() - make_interval(secs => greatest(
      (
        select partitions.rate_period
        from durable.partitions
        where partitions.queue = _queue and partitions.partition_key = _key
      ),
      case when _key = '' then policy.rate_period else policy.partition_rate_period end,
      0));
  if not durable._is_idle_partition(policy, _key) then
    return;
  end if;
  perform from durable.partitions
  where partitions.queue = _queue and partitions.partition_key = _key
  for update skip locked;
  if found and durable._is_idle_partition(policy, _key) then
    delete from durable.partitions
    where partitions.queue = _queue and partitions.partition_key = _key;
  end if;
end;
$$;

create or replace function durable._is_idle_partition(
  policy durable.queues, partition_key text
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := policy.queue;
  _key text collate "C" := partition_key;
begin
  return (_key <> '' or not durable._has_lanes(policy))
    and exists (
      select from durable.partitions
      where partitions.queue = _queue and partitions.partition_key = _key
        and num_nonnulls(partitions.concurrency, partitions.rate_starts) = 0)
    and not exists (
      select from durable.lanes
      where lanes.queue = _queue
        and (lanes.partition_key, lanes.name) >= (_key, '') and lanes.partition_key <= _key)
    and not exists (
      select from durable.starts where starts.queue = _queue and starts.partition_key = _key)
    and not exists (
      select from durable.tasks
      where tasks.queue = _queue
        and tasks.partition_key = _key
        and tasks.state = 'running'
        and tasks.partition_key is not null
        and tasks.started_at is not null
        and tasks.finished_at is null);
end;
$$;
