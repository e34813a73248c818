-- Cancels, retries and deletes many tasks by a filter.
--
-- A call looks at a bounded number of tasks and returns where the next one continues, so no
-- call holds locks for long. It waits for no row: tasks are tried in ascending order, and
-- locked ones are returned as busy, for the caller to try again. Whether a task still
-- matches is checked under its lock.

create or replace function durable.cancel_tasks(
  queue text, filter jsonb, page_size integer default 1000, after uuid default null,
  reason text default null
) returns durable.bulk_progress language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter, false);
  _error jsonb;
  _cancelled uuid[] := array[]::uuid[];
  _busy uuid[] := array[]::uuid[];
  _matching uuid[];
  _last uuid;
  _progress durable.bulk_progress;
  _id uuid;
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  _error := durable._cancellation(reason);
  select walk.matching, walk.last into _matching, _last
  from durable._walk(_queue, _wanted, after, page_size) as walk;
  foreach _id in array _matching loop
    perform from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id and tasks.finished_at is null
      and durable._matches(tasks, _wanted)
    for no key update skip locked;
    if found then
      perform durable._end_task(_queue, _id, 'cancelled', _error);
      _cancelled := _cancelled || _id;
    elsif durable._is_live(_queue, _id) then
      _busy := _busy || _id;
    end if;
  end loop;
  perform durable._ended(_queue, _cancelled);
  _progress := (cardinality(_cancelled), _busy, _last);
  perform durable._audit_bulk(_queue, 'cancel_tasks', filter, _progress, reason);
  return _progress;
end;
$$;

comment on function durable.cancel_tasks is
'Cancels the live tasks that match a filter, and their live descendants. filter: as in
list_tasks; {"all": true} for every task. It looks at no more than page_size tasks, from after
on. Returns how many it cancelled; busy, the ids of locked tasks, to pass as task_ids once
more; and next, where to continue, null at the end. Refuses an unknown queue (WFQUE), an empty
or bad filter and a reason of more than 1,000 bytes (22023). Locks: tries each task row with
SKIP LOCKED; waits for none.';

create or replace function durable.retry_tasks(
  queue text, filter jsonb, page_size integer default 1000, after uuid default null
) returns durable.bulk_progress language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter, false);
  _now timestamptz := durable._now();
  _by jsonb := durable._caller();
  _retried uuid[] := array[]::uuid[];
  _busy uuid[] := array[]::uuid[];
  _matching uuid[];
  _last uuid;
  _progress durable.bulk_progress;
  _id uuid;
  _task durable.tasks;
  _key text;
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  select walk.matching, walk.last into _matching, _last
  from durable._walk(_queue, _wanted, after, page_size) as walk;
  foreach _id in array _matching loop
    select * into _task from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id and durable._may_retry_now(tasks, _now);
    continue when not found;
    _key := durable._try_unique_key(_queue, _task);
    continue when _key = 'lost';
    if _key = 'busy'
      or durable._try_share(coalesce(_task.parent_queue, _queue), _task.parent_task_id) = 'busy'
    then
      _busy := _busy || _id; -- see _hold_parent_of
      continue;
    end if;
    select * into _task from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id and durable._may_retry_now(tasks, _now)
      and durable._matches(tasks, _wanted)
    for no key update skip locked;
    if not found then
      _busy := _busy || _id;
      continue;
    elsif _task.finished_at is null then
      perform durable._skip_delay(_queue, _task, _by);
    else
      perform durable._revive_task(_queue, _task, _task.deadline, _by);
    end if;
    _retried := _retried || _id;
  end loop;
  perform durable._propagate_state(_queue, 'revive', retried.task_id, _queue,
    retried.task_id, durable._deadline_of(_queue, retried.task_id))
  from unnest(_retried) as retried (task_id);
  perform durable._notify_listeners(_queue, 'work');
  _progress := (cardinality(_retried), _busy, _last);
  perform durable._audit_bulk(_queue, 'retry_tasks', filter, _progress);
  return _progress;
end;
$$;

comment on function durable.retry_tasks is
'Retries the tasks that match a filter, as retry_task does: failed and cancelled tasks get one
more attempt, tasks that sleep until their next attempt start it now; tasks whose deadline
has passed, or whose unique key a later task got, are left as they are. filter: as in list_tasks; {"all": true} for every task. It
looks at no more than page_size tasks, from after on. Returns how many it retried; busy, the
ids of locked tasks, to pass as task_ids once more; and next, where to continue, null at the
end. Refuses an unknown queue (WFQUE) and an empty or bad filter (22023). Locks: tries each
task row, its unique key and its parent''s row with SKIP LOCKED; waits for none.';

create or replace function durable._may_retry_now(task durable.tasks, at timestamptz)
returns boolean language sql immutable as $$
  select (task.deadline > at) is not false
    and (task.state in ('failed', 'cancelled')
      or task.state = 'sleeping' and task.error is not null);
$$;

create or replace function durable.delete_tasks(
  queue text, filter jsonb, page_size integer default 1000, after uuid default null
) returns durable.bulk_progress language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter, false);
  _matching uuid[];
  _last uuid;
  _progress durable.bulk_progress;
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  select walk.matching, walk.last into _matching, _last
  from durable._walk(_queue, _wanted, after, page_size) as walk;
  _progress := (durable._delete_tasks(_queue, _matching, 'infinity'), array[]::uuid[], _last);
  perform durable._audit_bulk(_queue, 'delete_tasks', filter, _progress);
  return _progress;
end;
$$;

comment on function durable.delete_tasks is
'Deletes the finished tasks that match a filter, with everything that belongs to them, their
keys too. filter: as in list_tasks; {"all": true} for every finished task. It
looks at no more than page_size tasks, from after on. A child stays while its parent exists,
as in cleanup, and so do tasks that are locked. Returns how many it deleted, and next, where
to continue, null at the end. Refuses an unknown queue (WFQUE) and an empty or bad filter
(22023). Locks: tries each task row with SKIP LOCKED; waits for none.';
