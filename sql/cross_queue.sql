-- Parents and children in different queues.
--
-- A child belongs to its own queue, whose workers run it. It stores its parent's queue
-- (parent_queue), and its parent stores the queues of its children (child_queues), so no
-- other queue is searched.
--
-- THE LOCK ORDER holds across queues, since ids ascend from parent to child in all of them.
-- Rows of other queues are only tried, except the parent of a task that is retried, which is
-- locked first. Work on locked rows is deferred in the queue in which it has to be done. It
-- names the task that caused it, whose state at that later time decides, so work that is done
-- late, or twice, does no harm.

create or replace function durable.spawn_children_in(
  queue text, task_id uuid, claim integer, child_queue text, children jsonb
) returns setof durable.spawned_child language plpgsql as $$
begin
  return query
    select * from durable._spawn_children(queue, task_id, claim, child_queue, children);
end;
$$;

comment on function durable.spawn_children_in is
'Spawns children as spawn_children does, but into child_queue, whose workers run them and
whose keys and policy apply to them. They are cancelled and revived with their parent, as all
children are. Refuses what spawn_children refuses, for either queue. Locks: as
spawn_children; the idempotency keys are those of child_queue.';

-- The caller has locked the task.
create or replace function durable._record_child_queue(queue text, task_id uuid, child_queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  update durable.tasks
  set child_queues = array_append(tasks.child_queues, child_queue)
  where tasks.queue = _queue and tasks.task_id = _record_child_queue.task_id
    and (child_queue = any (tasks.child_queues)) is not true;
end;
$$;

-- Applies the end of a root (cascade), or its revival (revive), to a task and its
-- descendants in this queue. The root is locked meanwhile, so it neither ends nor is retried. A
-- root that has been deleted had ended. The task itself is live if it was locked when the root
-- ended. Looks at no more than batch_size tasks; returns remaining, as _cancel_below does.
create or replace function durable._propagate_state(
  queue text, kind durable.deferred_kind, task_id uuid, root_queue text, root_task_id uuid,
  root_deadline timestamptz default null, after_id uuid default null,
  batch_size integer default 1000
) returns integer language plpgsql as $$
declare
  _state text := case
    when batch_size <= 0 or not durable._is_read_committed() then 'busy'
    else coalesce(durable._try_share(root_queue, root_task_id), 'failed') end;
  _cancelled uuid[] := array[]::uuid[];
  _below record;
begin
  if _state = 'busy' then
    perform durable._defer(
      queue, kind, task_id, null, root_queue, root_task_id, root_deadline, after_id);
    return batch_size;
  elsif (_state in ('failed', 'cancelled')) = (kind = 'revive') then
    return batch_size; -- it was retried, or has ended again
  elsif kind = 'revive' then
    perform durable._revive_descendants(queue, task_id, root_queue, root_task_id, root_deadline);
    return batch_size;
  elsif after_id is null and task_id <> root_task_id then
    _cancelled := durable._cancel_each(queue, array[task_id],
      durable._cancelled_by_parent(queue, root_queue, root_task_id));
    if durable._is_live(queue, task_id) then
      perform durable._defer(queue, kind, task_id, null, root_queue, root_task_id);
      return batch_size;
    end if;
  end if;
  select * into _below
  from durable._cancel_below(queue, task_id, after_id, root_queue, root_task_id, batch_size);
  _cancelled := _cancelled || _below.cancelled;
  if _cancelled <> '{}' then
    perform durable._on_finished(queue, _cancelled);
  end if;
  return _below.remaining;
end;
$$;

-- Tries to lock a task FOR SHARE. Returns its state; busy: another session has locked it; null:
-- there is no such task.
create or replace function durable._try_share(queue text, task_id uuid)
returns text language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _state text;
begin
  select tasks.state into _state from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _try_share.task_id
  for share skip locked;
  if not found then
    select 'busy' into _state
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _try_share.task_id;
  end if;
  return _state;
end;
$$;

-- Propagates to the other queues in which these tasks have children, looking at no more than
-- batch_size tasks. Returns how many of these remain; -1 if the rest was deferred.
create or replace function durable._propagate_to_other_queues(
  queue text, task_ids uuid[], kind durable.deferred_kind, root_queue text, root_task_id uuid,
  root_deadline timestamptz, batch_size integer
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task_id uuid;
  _child_queue text;
  _remaining integer := batch_size;
begin
  for _task_id, _child_queue in
    select parent.task_id, reached.queue
    from unnest(task_ids) as parent (task_id)
    cross join lateral (
      select unnest(tasks.child_queues) as queue
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = parent.task_id
      offset 0
    ) as reached
    order by parent.task_id, reached.queue
  loop
    _remaining := durable._propagate_state(_child_queue, kind, _task_id, root_queue, root_task_id,
      root_deadline, null, _remaining) - 1;
  end loop;
  return greatest(_remaining, -1);
end;
$$;

-- Revives the descendants that the root's end cancelled, or the deadline that they had
-- inherited from it, and no others. Tasks that the end of such a task cancelled are revived
-- with it. Below a parent that stays ended nothing is revived. If a task is locked, or its
-- parent is, the work is deferred.
create or replace function durable._revive_descendants(
  queue text, task_id uuid, root_queue text, root_task_id uuid, root_deadline timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _tree uuid[] := array(select durable._tree(_queue, _revive_descendants.task_id, null));
  _root text := root_task_id;
  _deadline timestamptz := durable._deadline_of(root_queue, root_task_id);
  _by jsonb := jsonb_strip_nulls(
    jsonb_build_object('task_id', root_task_id, 'queue', nullif(root_queue, queue)));
  _id uuid;
  _task durable.tasks;
  _parent_state text;
  _late uuid[] := array[]::uuid[];
  _is_left boolean := false;
begin
  for _id in
    select member.task_id
    from unnest(_tree) as member (task_id)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = member.task_id
        and durable._was_ended_by(tasks, _root, root_deadline)
      offset 0
    ) as ended
    order by member.task_id
  loop
    select * into _task from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id
      and durable._was_ended_by(tasks, _root, root_deadline)
    for no key update skip locked;
    _parent_state := case when found
      then durable._try_share(coalesce(_task.parent_queue, _queue), _task.parent_task_id)
      else 'busy' end;
    if _parent_state = 'busy' then
      _is_left := true;
    elsif _parent_state in ('failed', 'cancelled') then
      perform durable._record_cancelled_by_parent(_task);
    else
      perform durable._revive_task(_queue, _task, case when _task.deadline = root_deadline
        then _deadline else least(_task.deadline, _deadline) end, _by);
      _late := _late || case when not _task.error ? 'by' then array[_id] end;
    end if;
  end loop;
  if _is_left then
    perform durable._defer(
      _queue, 'revive', task_id, null, root_queue, root_task_id, root_deadline);
  end if;
  perform durable._propagate_state(
    _queue, 'revive', late.task_id, _queue, late.task_id, root_deadline)
  from unnest(_late) as late (task_id);
  perform durable._propagate_to_other_queues(
    _queue, _tree, 'revive', root_queue, root_task_id, root_deadline, 1000);
  perform durable._notify_listeners(_queue, 'work');
end;
$$;

-- Records that a cancelled task, whose parent stays ended, was cancelled by that parent's end,
-- so that it is revived together with the parent. If a cascade cancelled the parent itself,
-- the cause of that is recorded. The caller has locked both.
create or replace function durable._record_cancelled_by_parent(task durable.tasks)
returns void language plpgsql as $$
declare
  _queue text collate "C" := task.queue;
  _by_queue text collate "C" := coalesce(task.parent_queue, task.queue);
  _by uuid := task.parent_task_id;
  _error jsonb;
begin
  select tasks.error into _error from durable.tasks
  where tasks.queue = _by_queue and tasks.task_id = _by
    and tasks.state = 'cancelled' and tasks.error ->> 'type' = '$CancelledByParent';
  if found then
    _by := (_error ->> 'by')::uuid;
    _by_queue := coalesce(_error ->> 'by_queue', _by_queue);
  end if;
  update durable.tasks
  set error = durable._cancelled_by_parent(_queue, _by_queue, _by)
  where tasks.queue = _queue and tasks.task_id = task.task_id and task.error ->> 'by' <> _by::text;
end;
$$;

-- Whether the end of this root ended a task, or the deadline that it shared with the root. A task
-- that its own execution_timeout ended before that deadline has ended by itself.
create or replace function durable._was_ended_by(
  task durable.tasks, root text, deadline timestamptz
)
returns boolean language sql immutable as $$
  select task.state = 'cancelled'
    and (task.error ->> 'by' = root
      or task.error ->> 'type' = '$DeadlineExceeded'
        and task.deadline = deadline and task.finished_at >= deadline);
$$;

-- Called when a queue is about to be emptied: tasks of other queues that wait for its tasks
-- look again once these are gone.
create or replace function durable._release_watchers(queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._defer(waiter.queue, 'waiter', waiter.task_id)
  from (
    select distinct watches.waiter_queue as queue, watches.waiter_task_id as task_id
    from durable.watches
    where watches.queue = _queue and watches.waiter_queue <> _queue
  ) as waiter
  join durable.queues on queues.queue = waiter.queue;
  delete from durable.watches where watches.queue = _queue;
end;
$$;

-- Cancels the descendants of its live tasks in other queues.
create or replace function durable._end_children_of_queue(queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._defer(queues.queue, 'cascade', parent.task_id, null, _queue, parent.task_id)
  from (
    select tasks.task_id, unnest(tasks.child_queues) as queue
    from durable.tasks
    where tasks.queue = _queue and tasks.child_queues is not null
      and durable._has_live_ancestor(_queue, tasks.task_id)
  ) as parent
  join durable.queues on queues.queue = parent.queue;
end;
$$;

-- Whether a task, or an ancestor in its queue, is live.
create or replace function durable._has_live_ancestor(queue text, task_id uuid)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _id uuid := task_id;
  _is_live boolean := false;
begin
  while _id is not null and not _is_live loop
    select tasks.parent_task_id, tasks.finished_at is null into _id, _is_live
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id;
  end loop;
  return coalesce(_is_live, false);
end;
$$;
