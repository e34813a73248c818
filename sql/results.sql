-- Results: where a task stands, for whoever holds its id.

create or replace function durable.get_task_results(queue text, task_ids uuid[])
returns setof durable.task_result
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
begin
  return query
    select
      task.task_id, task.name::text, task.state::text, task.attempt,
      case when task.state = 'completed' then coalesce(task.result, 'null') end, task.error,
      task.spawned_at, task.finished_at
    from unnest(task_ids) as wanted (task_id)
    cross join lateral (
      select *
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = wanted.task_id
      offset 0
    ) as task;
end;
$$;

comment on function durable.get_task_results is
'Where tasks stand, with their results or errors once they have finished. No row for
those that do not exist (or not yet: their transaction has not committed).';


create or replace function durable.get_endings(queue text, task_ids uuid[])
returns setof durable.task_result
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select
      wanted.task_id, task.name, task.state, task.attempt, task.result, task.error,
      task.spawned_at, task.finished_at
    from unnest(task_ids) as wanted (task_id)
    left join durable.get_task_results(queue, task_ids) as task on task.task_id = wanted.task_id
    where task.task_id is null or task.finished_at is not null;
end;
$$;

comment on function durable.get_endings is
'get_task_results of those that have finished, for who waits for many: nothing comes of
those still live, and of one that does not exist nothing but its id.';


create or replace function durable.get_task_result(queue text, task_id uuid)
returns setof durable.task_result
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select * from durable.get_task_results(queue, array[task_id]);
$$;

comment on function durable.get_task_result is
'get_task_results for one task.';
