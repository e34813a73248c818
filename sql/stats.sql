-- Statistics of queues. Nothing here reads every task, unless it is asked to: finished tasks are in
-- totals, and live ones are counted through their indexes, about 10,000 of each kind. If there are
-- more, what totals say is taken for the rest.

-- Counts all tasks of a queue, in whatever plan is fast.
create or replace function durable._exact_counts(
  queue text, out pending bigint, out running bigint, out sleeping bigint, out completed bigint,
  out failed bigint, out cancelled bigint, out ready bigint, out oldest_ready_at timestamptz,
  out next_due_at timestamptz, out ready_by_name jsonb
) language sql stable as $$
  select
    sum(name.pending)::bigint, sum(name.running)::bigint, sum(name.sleeping)::bigint,
    sum(name.completed)::bigint, sum(name.failed)::bigint, sum(name.cancelled)::bigint,
    sum(name.ready)::bigint, min(name.oldest_at), min(name.next_at),
    coalesce(jsonb_object_agg(name.name, name.ready) filter (where name.ready > 0), '{}')
  from (
    select
      tasks.name,
      count(*) filter (where tasks.state = 'pending') as pending,
      count(*) filter (where tasks.state = 'running') as running,
      count(*) filter (where tasks.state = 'sleeping') as sleeping,
      count(*) filter (where tasks.state = 'completed') as completed,
      count(*) filter (where tasks.state = 'failed') as failed,
      count(*) filter (where tasks.state = 'cancelled') as cancelled,
      count(*) filter (where tasks.available_at <= durable._now()) as ready,
      min(tasks.available_at) filter (where tasks.available_at <= durable._now()) as oldest_at,
      min(tasks.available_at) filter (where tasks.available_at > durable._now()) as next_at
    from durable.tasks
    where tasks.queue = _exact_counts.queue
    group by tasks.name
  ) as name;
$$;

-- Counts the live tasks of a queue, and takes the others from totals: exactly, as long as there are no more than 10,000 of a kind, and
-- no more than _most_of_name of a name that the clock makes claimable. What totals say is missing
-- is then of that kind.
create or replace function durable._quick_counts(
  queue text, out pending bigint, out running bigint, out sleeping bigint, out completed bigint,
  out failed bigint, out cancelled bigint, out ready bigint, out oldest_ready_at timestamptz,
  out next_due_at timestamptz, out ready_by_name jsonb
) language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _most integer := 10001;
  _most_of_name integer := greatest(_most / greatest((
    select count(*) from durable._waiting_versions(_queue)), 1), 1001);
begin
  select
    coalesce(sum(named.pending + case when named.has_more_ready then named.rest else 0 end), 0),
    coalesce(sum(named.running), 0),
    coalesce(sum(named.sleeping + case when named.has_more_ready then 0 else named.rest end), 0),
    coalesce(sum(greatest(named.completed, 0)), 0), coalesce(sum(greatest(named.failed, 0)), 0),
    coalesce(sum(greatest(named.cancelled, 0)), 0),
    coalesce(sum(named.ready + case when named.has_more_ready then named.rest else 0 end), 0),
    min(named.oldest_at), min(named.next_at),
    coalesce(jsonb_object_agg(named.name, named.ready + case when named.has_more_ready then named.rest else 0 end)
      filter (where named.ready > 0), '{}')
  into pending, running, sleeping, completed, failed, cancelled, ready, oldest_ready_at, next_due_at,
    ready_by_name
  from (
    select
      known.*, known.ready >= _most_of_name as has_more_ready,
      case when known.has_more or known.sleeping + known.pending >= _most_of_name
        then greatest(known.live - known.pending - known.running - known.sleeping, 0) else 0 end as rest
    from (
      select
        counted.name, sum(counted.pending) as pending, sum(counted.running) as running,
        sum(counted.sleeping) as sleeping, sum(counted.ready) as ready,
        min(counted.oldest_at) as oldest_at, min(counted.next_at) as next_at, sum((counted.total).live) as live,
        sum((counted.total).completed) as completed, sum((counted.total).failed) as failed,
        sum((counted.total).cancelled) as cancelled,
        bool_or(bool_or(counted.has_more)) over () as has_more
      from durable._counts_by_name(_queue, _most, _most_of_name) as counted
      group by counted.name
    ) as known
  ) as named
  where named.name is not null;
end;
$$;

-- Returns what the indexes of live tasks say, and in `total` what totals do, in several rows for a
-- name. has_more: there are waiting tasks that were not counted, of any name.
create or replace function durable._counts_by_name(queue text, most integer, most_of_name integer)
returns table (
  name text, pending bigint, running bigint, sleeping bigint, ready bigint, oldest_at timestamptz,
  next_at timestamptz, total durable.task_total, has_more boolean
) language plpgsql stable as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      waiting.name, waiting.pending, 0::bigint, waiting.sleeping, waiting.ready, waiting.oldest_at,
      waiting.next_at, null::durable.task_total, false
    from durable._waiting_counts(_queue, most_of_name) as waiting
    union all
    select totals.name, 0, 0, 0, 0, null, null, totals, false
    from durable._current_totals(_queue) as totals
    union all
    select leased.name, 0, count(*), 0, 0, null, null, null, false
    from (
      select tasks.name from durable.tasks
      where tasks.queue = _queue and tasks.lease_expires_at is not null
      order by tasks.lease_expires_at
      limit most
    ) as leased
    group by leased.name
    union all -- those that wait for an event, a message or other tasks without a time limit
    select task.name, 0, 0, count(task.name), 0, null, null, null, sum(count(*)) over () >= most
    from (
      select distinct waits.task_id
      from durable.waits
      where waits.queue = _queue
      order by waits.task_id
      limit most
    ) as waiting
    left join lateral (
      select tasks.name from durable.tasks
      where tasks.queue = _queue and tasks.task_id = waiting.task_id
        and tasks.state = 'sleeping' and tasks.available_at is null
      offset 0
    ) as task on true
    group by task.name;
end;
$$;

-- Counts the unclaimed tasks of each name and version that the clock makes claimable: at most this
-- many that are due, and as many later ones.
create or replace function durable._waiting_counts(queue text, most integer)
returns table (
  name text, version text, pending bigint, sleeping bigint, ready bigint, oldest_at timestamptz,
  next_at timestamptz
) language plpgsql stable as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  return query
    select
      waiting.name, waiting.version,
      count(*) filter (where found.state = 'pending'), count(*) filter (where found.state = 'sleeping'),
      count(*) filter (where found.available_at <= _now),
      min(found.available_at) filter (where found.available_at <= _now),
      min(found.available_at) filter (where found.available_at > _now)
    from durable._waiting_versions(_queue) as waiting
    cross join lateral (
      (select tasks.state, tasks.available_at
      from durable.tasks
      where not waiting.in_lanes and tasks.queue = _queue
        and tasks.name = waiting.name collate "C" and tasks.version = waiting.version collate "C"
        and tasks.available_at <= _now and tasks.partition_key is null
      order by tasks.available_at, tasks.task_id
      limit most)
      union all
      (select tasks.state, tasks.available_at
      from durable.tasks
      where not waiting.in_lanes and tasks.queue = _queue
        and tasks.name = waiting.name collate "C" and tasks.version = waiting.version collate "C"
        and tasks.available_at > _now and tasks.partition_key is null
      order by tasks.available_at, tasks.task_id
      limit most)
      union all
      (select tasks.state, tasks.available_at
      from durable.tasks
      where waiting.in_lanes and tasks.queue = _queue
        and tasks.name = waiting.name collate "C" and tasks.version = waiting.version collate "C"
        and tasks.available_at is not null and tasks.partition_key is not null
      order by tasks.partition_key -- an order of their own index only
      limit most)
    ) as found
    group by waiting.name, waiting.version;
end;
$$;

create or replace function durable.queue_stats(queue text default null, exact boolean default false)
returns setof durable.queue_statistics language sql stable as $$
  select
    queues.queue::text,
    counted.pending, counted.running, counted.sleeping,
    counted.completed, counted.failed, counted.cancelled,
    counted.ready, counted.oldest_ready_at, counted.next_due_at, counted.ready_by_name,
    queues.max_length, coalesce(queues.is_full, false), queues.paused_at, queues.paused_by,
    coalesce(queues.paused_names, '{}')
  from durable.queues
  cross join lateral (
    select counts.* from durable._quick_counts(queues.queue) as counts
    where not exact
    union all
    select counts.* from durable._exact_counts(queues.queue) as counts
    where exact
  ) as counted
  where case
    when queue_stats.queue is null then durable._may_use(queues.roles)
    else queues.queue = durable._checked_queue(queue_stats.queue) collate "C"
  end
  order by queues.queue;
$$;

comment on function durable.queue_stats is
'Returns the number of tasks of a queue (null: of every queue the caller may use) by state,
and of those claimable now by name; and whether it is paused or full. Finished tasks are not
counted but read from task_totals, which says how right that is. Live ones are counted up to about
10,000, and above that taken from there, too; of a name with more than 1,000 ready tasks, not all may
be counted. exact: counts every task of the queue, however many. Refuses a queue that the caller may not use (42501).';
