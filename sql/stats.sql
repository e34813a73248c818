-- Statistics of queues. They count every row of the queue: for people, not for hot loops.

create or replace function durable.queue_stats(queue text default null)
returns setof durable.queue_statistics language sql stable as $$
  select
    queues.queue::text,
    counted.pending, counted.running, counted.sleeping,
    counted.completed, counted.failed, counted.cancelled,
    coalesce(ready.total, 0), ready.oldest_at, ready.next_at, coalesce(ready.by_name, '{}'),
    queues.max_length, coalesce(queues.is_full, false), queues.paused_at, queues.paused_by,
    coalesce(queues.paused_names, '{}')
  from durable.queues
  cross join lateral (
    select
      count(*) filter (where tasks.state = 'pending') as pending,
      count(*) filter (where tasks.state = 'running') as running,
      count(*) filter (where tasks.state = 'sleeping') as sleeping,
      count(*) filter (where tasks.state = 'completed') as completed,
      count(*) filter (where tasks.state = 'failed') as failed,
      count(*) filter (where tasks.state = 'cancelled') as cancelled
    from durable.tasks
    where tasks.queue = queues.queue
  ) as counted
  cross join lateral (
    select
      sum(name.ready)::bigint as total,
      min(name.oldest_at) as oldest_at,
      min(name.next_at) as next_at,
      jsonb_object_agg(name.name, name.ready) filter (where name.ready > 0) as by_name
    from (
      select
        tasks.name,
        count(*) filter (where tasks.available_at <= durable._now()) as ready,
        min(tasks.available_at) filter (where tasks.available_at <= durable._now()) as oldest_at,
        min(tasks.available_at) filter (where tasks.available_at > durable._now()) as next_at
      from durable.tasks
      where tasks.queue = queues.queue and tasks.available_at is not null
      group by tasks.name
    ) as name
  ) as ready
  where case
    when queue_stats.queue is null then durable._may_use(queues.roles)
    else queues.queue = durable._checked_queue(queue_stats.queue) collate "C"
  end
  order by queues.queue;
$$;

comment on function durable.queue_stats is
'Returns the number of tasks of a queue (null: of every queue the caller may use) by state,
and of those claimable now by name; and whether it is paused or full. Reads every task of the queue. Refuses a queue that the
caller may not use (42501).';
