-- The children of a task, in whichever queues they live.

create or replace function durable.list_children(
  queue text, task_id uuid, quantity integer default 1000, after uuid default null
)
returns table (child_queue text, child durable.listed_task)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _homes text[] collate "C";
begin
  perform durable._require_queue(_queue);
  perform durable._check_quantity(quantity);
  select _queue || tasks.child_queues into _homes
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = list_children.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  return query
    select queues.queue::text, found.child
    from unnest(_homes) as home (queue)
    join durable.queues on queues.queue = home.queue
    cross join lateral (
      select (
        tasks.task_id, tasks.parent_task_id, tasks.name, tasks.state, tasks.attempt, tasks.worker,
        tasks.spawned_at, tasks.started_at, tasks.available_at, tasks.finished_at, tasks.error
      )::durable.listed_task as child
      from durable.tasks
      where tasks.queue = queues.queue
        and tasks.parent_task_id = list_children.task_id
        and coalesce(tasks.parent_queue, tasks.queue) = _queue
        and tasks.task_id > coalesce(after, '00000000-0000-0000-0000-000000000000')
      order by tasks.task_id
      limit quantity
    ) as found
    where queues.roles is null or durable._may_use(queues.roles)
    order by (found.child).task_id
    limit quantity;
end;
$$;

comment on function durable.list_children is
'The children of a task, finished ones too, in the order in which they were spawned: the
queue of each, which may be another, and what list_tasks says of it. At most quantity;
after is the last id of the page before. Those in queues that the caller may not use are
left out. Refuses an unknown queue WFQUE, an unknown task WFNFD.';
