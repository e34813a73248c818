-- Many tasks at once: cancelled, tried again, deleted by a filter.
--
-- A call looks at so many tasks and says where the next goes on, so none holds locks for
-- long. The tasks are other people's: they are only tried, in ascending order, and those in
-- other hands come back as busy, to be asked for again. Whether a task still matches is
-- asked under its lock.

create or replace function durable.cancel_tasks(
  queue text, filter jsonb, quantity integer default 1000, after uuid default null, reason text default null
)
returns durable.swept_tasks
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter, false);
  _error jsonb := jsonb_build_object('type', '$Cancelled', 'message', coalesce(reason, 'cancelled'));
  _cancelled uuid[] := array[]::uuid[];
  _busy uuid[] := array[]::uuid[];
  _matching uuid[];
  _last uuid;
  _id uuid;
begin
  perform durable._require_queue(_queue);
  perform durable._check_quantity(quantity);
  perform durable._check_reason(reason);
  select walk.matching, walk.last into _matching, _last
  from durable._walk(_queue, _wanted, after, quantity) as walk;
  foreach _id in array _matching loop
    perform
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id and tasks.finished_at is null
      and durable._matches(tasks, _wanted)
    for no key update skip locked;
    if not found then
      _busy := _busy || case when durable._is_live(_queue, _id) then _id end;
    elsif durable._cancel_one(_queue, _id, _error) then
      _cancelled := _id || _cancelled; -- the lowest first: what is below ends with the nearest
    end if;
  end loop;
  perform durable._ended(_queue, _cancelled);
  return (cardinality(_cancelled), array_remove(_busy, null), _last);
end;
$$;

comment on function durable.cancel_tasks is
'Cancels the live tasks that match a filter, as list_tasks takes it, and what lives below
them, looking at no more than quantity tasks from after on. Never waits: busy are those
that somebody was at, to be passed as task_ids once more; next is where to go on, null at
the end. Every task is {"all": true}. Refuses an unknown queue WFQUE, an empty or bad
filter and a reason of more than 1,000 bytes 22023.';


create or replace function durable.retry_tasks(
  queue text, filter jsonb, quantity integer default 1000, after uuid default null
)
returns durable.swept_tasks
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter, false);
  _tried uuid[] := array[]::uuid[];
  _busy uuid[] := array[]::uuid[];
  _matching uuid[];
  _last uuid;
  _id uuid;
begin
  perform durable._require_queue(_queue);
  perform durable._check_quantity(quantity);
  select walk.matching, walk.last into _matching, _last
  from durable._walk(_queue, _wanted, after, quantity) as walk;
  foreach _id in array durable._with_all_below(_queue, _matching) loop
    if _id = any (_matching) and durable._may_try_again(_queue, _id) then
      if durable._try_to_hold(_queue, _id, _wanted) then
        perform durable._try_again(_queue, _id);
        _tried := _tried || _id;
      else
        _busy := _busy || _id;
      end if;
    else
      perform durable._revive_with(_queue, _id, _tried);
    end if;
  end loop;
  perform
    durable._revive_unseen(_queue, tried.task_id, durable._deadline_of(_queue, tried.task_id)),
    durable._reach_below(_queue, durable._with_all_below(_queue, array[tried.task_id]),
      'revived_above', _queue, tried.task_id, durable._deadline_of(_queue, tried.task_id))
  from unnest(_tried) as tried (task_id);
  perform durable._knock(_queue, 'work');
  return (cardinality(_tried), _busy, _last);
end;
$$;

comment on function durable.retry_tasks is
'retry_task of those that match a filter, as list_tasks takes it: failed and cancelled
tasks get one more attempt, those that sleep until their next start it now; those whose
deadline has passed stay as they are. Looks at no more than quantity tasks from after on;
busy are those that somebody was at, to be passed as task_ids once more; next is where to
go on, null at the end. Every task is {"all": true}. Refuses an unknown queue WFQUE, an
empty or bad filter 22023.';


-- One ascending pass over all of them, so that reviving what is below may wait as it does
-- in retry_task.
create or replace function durable._with_all_below(queue text, roots uuid[])
returns uuid[]
language plpgsql
as $$
begin
  return array(
    select distinct below.task_id
    from unnest(roots) as root (task_id)
    cross join lateral (select tree.task_id from durable._tree(queue, root.task_id) as tree offset 0) as below
    order by 1
  );
end;
$$;


create or replace function durable._may_try_again(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _may_try_again.task_id
    and (tasks.complete_by > _now) is not false
    and (tasks.state in ('failed', 'cancelled') or tasks.state = 'sleeping' and tasks.error is not null);
  return found;
end;
$$;


-- The task and, as _hold_parent_of, its parent, if both can be had, and if it still matches.
create or replace function durable._try_to_hold(queue text, task_id uuid, wanted durable._task_filter)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _parent uuid;
  _parent_queue text collate "C";
begin
  select tasks.parent_task_id, coalesce(tasks.parent_queue, _queue) into _parent, _parent_queue
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _try_to_hold.task_id;
  perform from durable.tasks
  where tasks.queue = _parent_queue and tasks.task_id = _parent
  for share skip locked;
  if not found and durable._exists(_parent_queue, _parent) then
    return false;
  end if;
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _try_to_hold.task_id
    and (tasks.complete_by > _now) is not false
    and (tasks.state in ('failed', 'cancelled') or tasks.state = 'sleeping' and tasks.error is not null)
    and durable._matches(tasks, wanted)
  for no key update skip locked;
  return found;
end;
$$;


-- The caller holds the task.
create or replace function durable._try_again(queue text, task_id uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
begin
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _try_again.task_id;
  if _task.finished_at is null then
    perform durable._wake(_queue, task_id);
  else
    perform durable._revive(_queue, _task, _task.complete_by);
  end if;
end;
$$;


-- As in _revive_below: exactly those that the end of one of these cancelled.
create or replace function durable._revive_with(queue text, task_id uuid, roots uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _below durable.tasks;
begin
  select * into _below
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _revive_with.task_id
    and durable._fell_with(tasks, roots::text[], null)
    and (tasks.complete_by > _now) is not false
  for no key update;
  if found then
    perform durable._revive(_queue, _below, _below.complete_by);
  end if;
end;
$$;


create or replace function durable.delete_tasks(
  queue text, filter jsonb, quantity integer default 1000, after uuid default null
)
returns durable.swept_tasks
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter, false);
  _matching uuid[];
  _last uuid;
begin
  perform durable._require_queue(_queue);
  perform durable._check_quantity(quantity);
  select walk.matching, walk.last into _matching, _last
  from durable._walk(_queue, _wanted, after, quantity) as walk;
  return (durable._delete_tasks(_queue, _matching, 'infinity'), array[]::uuid[], _last);
end;
$$;

comment on function durable.delete_tasks is
'Deletes the finished tasks that match a filter, as list_tasks takes it, with all that
belongs to them, their idempotency keys too, looking at no more than quantity tasks from
after on. A child stays while its parent is there, as in cleanup, and so does what others
are at. next is where to go on, null at the end. Every finished task is {"all": true}.
Refuses an unknown queue WFQUE, an empty or bad filter 22023.';
