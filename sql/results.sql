-- Reads the states and results of tasks by id.

create or replace function durable.get_task_results(queue text, task_ids uuid[])
returns setof durable.task_result language plpgsql stable as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
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
'Returns the states of tasks, with their results or errors once they have finished. A task
that does not exist, or whose transaction has not committed yet, has no row. Refuses a queue
that the caller may not use (42501).';

create or replace function durable.poll_results(queue text, task_ids uuid[])
returns setof durable.task_result language plpgsql stable as $$
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

comment on function durable.poll_results is
'Returns get_task_results of those tasks that have finished, for a client that waits for many.
A live task has no row; of a task that does not exist only the id is returned.';

create or replace function durable.get_task_result(queue text, task_id uuid)
returns setof durable.task_result language sql stable as $$
  select * from durable.get_task_results(queue, array[task_id]);
$$;

comment on function durable.get_task_result is
'Returns get_task_results for one task.';
