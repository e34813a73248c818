-- Changes when a waiting task will start: its time, or its priority.

create or replace function durable.reschedule_task(queue text, task_id uuid, run_at timestamptz)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _run_at timestamptz := greatest(run_at, _now);
  _task durable.tasks;
begin
  perform durable._require_queue(_queue);
  if isfinite(run_at) is not true then
    perform durable._refuse_argument('run_at is ' || coalesce(run_at::text, 'null'),
      'Pass a moment; one that has passed starts the task now.');
  end if;
  select * into _task from durable.tasks
  where tasks.queue = _queue and tasks.task_id = reschedule_task.task_id
  for no key update;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  elsif _task.started_at is not null or _task.available_at is null then
    return false;
  end if;
  perform durable._check_run_at(_run_at, _task.deadline);
  update durable.tasks
  set
    available_at = _run_at,
    expires_at = case when _task.expires_at = _task.deadline then _task.deadline
      else least(_task.expires_at + (_run_at - _task.available_at), _task.deadline) end
  where tasks.queue = _queue and tasks.task_id = reschedule_task.task_id;
  if _task.partition_key is not null then
    perform durable._free(_queue, array[_task.partition_key]); -- others may come first now
    perform durable._enlist(_queue, array[reschedule_task.task_id]);
  end if;
  if _run_at < _task.available_at then
    perform durable._notify_listeners(_queue, 'work');
  end if;
  perform durable._audit(_queue, 'reschedule_task', task_id, jsonb_build_object('run_at', _run_at));
  return true;
end;
$$;

comment on function durable.reschedule_task is
'Lets a task that has not started yet start at another time, now if run_at has passed. Its
start_timeout counts from there. Returns false if it has started or ended already; retry_task
starts the next attempt of a task that waits for it. Refuses an unknown queue (WFQUE), an
unknown task (WFNFD), a run_at that is null, infinite or not before the task''s deadline
(22023). Locks: the task''s row, and waits for it.';

create or replace function durable._check_run_at(run_at timestamptz, deadline timestamptz)
returns void language plpgsql immutable as $$
begin
  if run_at >= deadline then
    perform durable._refuse_argument(
      format('run_at is %s, but the deadline is %s', run_at, deadline),
      'Pass an earlier run_at or a later deadline, or the task could never start.');
  end if;
end;
$$;

create or replace function durable.reprioritize_task(queue text, task_id uuid, priority integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
begin
  perform durable._require_lanes(_queue);
  if (priority between -32768 and 32767) is not true then
    perform durable._refuse_argument('priority is ' || coalesce(priority::text, 'null'),
      'Pass a whole number from -32768 to 32767; higher ones start first.');
  end if;
  select * into _task from durable.tasks
  where tasks.queue = _queue and tasks.task_id = reprioritize_task.task_id
  for no key update;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  elsif _task.finished_at is not null then
    raise exception using errcode = 'WFFIN',
      message = format('task %s is %s', task_id, _task.state),
      hint = 'Only an unfinished task can have another priority.';
  end if;
  update durable.tasks
  set
    priority = reprioritize_task.priority,
    partition_key = coalesce(tasks.partition_key, '') -- from before the queue had lanes
  where tasks.queue = _queue and tasks.task_id = reprioritize_task.task_id;
  perform durable._enlist(_queue, array[reprioritize_task.task_id], true);
  if _task.available_at is not null then
    perform durable._notify_listeners(_queue, 'work');
  end if;
  perform durable._audit(_queue, 'reprioritize_task', task_id,
    jsonb_build_object('priority', priority));
end;
$$;

comment on function durable.reprioritize_task is
'Gives an unfinished task another priority, from its next claim on: of a task that runs, from the
next time that it waits. Refuses an unknown queue (WFQUE), an unknown task (WFNFD), a finished one
(WFFIN), a priority outside -32768 to 32767, and a queue without limits and priorities (22023).
Locks: the task''s row, and waits for it.';
