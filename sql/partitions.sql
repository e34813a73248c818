-- Lists the partitions of a queue: those with tasks that wait or have started, or with limits.
--
-- A page reads one index entry for each partition and kind of row, and counts no more than 1,000
-- tasks of each.

create or replace function durable.list_partitions(
  queue text, page_size integer default 100, after text default null
) returns setof durable.listed_partition language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := coalesce(after, '');
  _policy durable.queues;
  _now timestamptz := durable._now();
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  select * into _policy from durable.queues where queues.queue = _queue;
  for _ in 1 .. page_size loop
    _key := durable._next_partition(_queue, _key);
    exit when _key is null;
    return next durable._listed_partition(_policy, _key, _now);
  end loop;
end;
$$;

comment on function durable.list_partitions is
'Returns the partitions of a queue by key, at most page_size (1 to 100,000): those with tasks that
wait to be claimed or have started and not ended, those with limits of their own, and for some time
others. after: the last partition_key of the previous page. Refuses an unknown queue (WFQUE) and a
bad page_size (22023).';

-- Returns the first key after another one; null: there is none. One index entry of each kind.
create or replace function durable._next_partition(queue text, after text)
returns text language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _after text collate "C" := after;
begin
  return least(
    (
      select lanes.partition_key
      from durable.lanes
      where lanes.queue = _queue and lanes.partition_key > _after
      order by lanes.partition_key
      limit 1
    ),
    (
      select partitions.partition_key
      from durable.partitions
      where partitions.queue = _queue and partitions.partition_key > _after
      order by partitions.partition_key
      limit 1
    ),
    durable._next_started_partition(_queue, _after, 'running'),
    durable._next_started_partition(_queue, _after, 'sleeping'),
    durable._next_started_partition(_queue, _after, 'pending')
  );
end;
$$;

create or replace function durable._next_started_partition(
  queue text, after text, state durable.task_state
) returns text language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _after text collate "C" := after;
begin
  return (
    select tasks.partition_key
    from durable.tasks
    where tasks.queue = _queue
      and tasks.state = _next_started_partition.state
      and tasks.partition_key > _after
      and tasks.partition_key is not null
      and tasks.started_at is not null
      and tasks.finished_at is null
    order by tasks.partition_key
    limit 1
  );
end;
$$;

create or replace function durable._listed_partition(
  policy durable.queues, partition_key text, at timestamptz
) returns durable.listed_partition language plpgsql stable as $$
declare
  _queue text collate "C" := policy.queue;
  _key text collate "C" := partition_key;
  _lane durable._lane;
  _listed durable.listed_partition;
begin
  _listed.partition_key := _key;
  select ready.number, ready.oldest_at into _listed.ready, _listed.oldest_ready_at
  from durable._ready_in_partition(_queue, _key, at) as ready;
  select count(*) into _listed.running
  from (
    select
    from durable.tasks
    where tasks.queue = _queue
      and tasks.state = 'running'
      and tasks.partition_key = _key
      and tasks.partition_key is not null
      and tasks.started_at is not null
      and tasks.finished_at is null
    limit 1000
  ) as running;
  select
    partitions.concurrency,
    case when partitions.rate_starts is not null then jsonb_build_object(
      'starts', partitions.rate_starts, 'period', partitions.rate_period) end
  into _listed.concurrency, _listed.rate
  from durable.partitions
  where partitions.queue = _queue and partitions.partition_key = _key;
  _lane.partition_key := _key;
  _lane := (durable._with_room(policy, array[_lane], false, at))[1];
  if policy.partition_order = 'strict' then
    _listed.blocked_by := durable._holder_of_partition(_queue, _key);
  end if;
  _listed.blocked := case
    when _listed.blocked_by is not null then 'partition_order'
    when _lane.free > 0 or _lane.free is null then null
    when _lane.opens_at is null then 'partition_concurrency'
    else 'partition_rate' end;
  if _listed.blocked = 'partition_rate' then
    _listed.blocked_until := _lane.opens_at;
  end if;
  return _listed;
end;
$$;

-- Returns how many tasks of a partition are due, counted up to 1,000, and since when the first.
create or replace function durable._ready_in_partition(
  queue text, partition_key text, at timestamptz, out number bigint, out oldest_at timestamptz
) language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := partition_key;
begin
  select least(coalesce(sum(due.number), 0), 1000), min(due.oldest_at) into number, oldest_at
  from (
    select distinct lanes.name, lanes.version, lanes.priority, lanes.resumes
    from durable.lanes
    where lanes.queue = _queue
      and (lanes.partition_key, lanes.name) >= (_key, '') and lanes.partition_key <= _key
  ) as lane
  cross join lateral (
    select count(*) as number, min(task.available_at) as oldest_at
    from (
      select tasks.available_at
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = lane.name
        and tasks.version = lane.version
        and tasks.partition_key = _key
        and tasks.priority = lane.priority
        and (tasks.started_at is not null and tasks.error is null) = lane.resumes
        and tasks.available_at <= at
        and tasks.partition_key is not null
      order by tasks.available_at, tasks.task_id
      limit 1000
    ) as task
  ) as due;
end;
$$;
