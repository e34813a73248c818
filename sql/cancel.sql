-- Cancels a task and its live descendants, by parent links, also below children that have
-- finished.

create or replace function durable.cancel_task(queue text, task_id uuid, reason text default null)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _error jsonb;
  _finished_at timestamptz;
  _cancelled uuid[];
begin
  perform durable._require_queue(_queue);
  _error := durable._cancellation(reason);
  select tasks.finished_at into _finished_at from durable.tasks
  where tasks.queue = _queue and tasks.task_id = cancel_task.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  elsif _finished_at is not null then
    return false;
  end if;
  perform durable._hold_tree(_queue, task_id, 10000);
  if not durable._end_task(_queue, task_id, 'cancelled', _error) then
    return false;
  end if;
  select below.cancelled into _cancelled
  from durable._cancel_below(_queue, task_id, null, _queue, task_id, 10000) as below;
  if not durable._is_read_committed() then
    perform durable._defer(_queue, 'cascade', task_id);
  end if;
  perform durable._on_finished(_queue, task_id || _cancelled);
  perform durable._audit(_queue, 'cancel_task', task_id,
    jsonb_strip_nulls(jsonb_build_object('reason', reason)));
  return true;
end;
$$;

comment on function durable.cancel_task is
'Cancels a task and its live descendants: the next writes of their workers are refused with
WFCAN. The task and its first 10,000 descendants are cancelled at once; maintenance cancels
the rest soon, 1,000 in each transaction. reason: at most 1,000 bytes. Returns false if the
task has finished already. Refuses an unknown queue (WFQUE), an unknown task (WFNFD) and a
reason that is too long (22023). Locks: the task''s row, then those of its first 10,000
descendants in its queue in ascending order, and waits for each; all others are tried with
SKIP LOCKED.';

create or replace function durable._cancellation(reason text)
returns jsonb language plpgsql as $$
begin
  if octet_length(reason) > 1000 then
    perform durable._refuse_argument(format('reason is %s bytes long', octet_length(reason)),
      'Pass at most 1000 bytes of text.');
  end if;
  return jsonb_build_object('type', '$Cancelled', 'message', coalesce(reason, 'cancelled'),
    'by', durable._caller());
end;
$$;

-- Locks a task that is about to be cancelled and its first descendants, waiting for other
-- sessions. A child's id is greater than its parent's, so one ascending pass locks all of
-- them. Descendants spawned in the meantime are only tried afterwards.
create or replace function durable._hold_tree(queue text, root uuid, batch_size integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = root and tasks.finished_at is null
  for no key update;
  perform from (
    select tree.task_id
    from durable._tree(_queue, root, batch_size + 1) as tree
    order by tree.task_id
    offset 0 -- sorted before the first is locked
  ) as own
  cross join lateral (
    select
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.finished_at is null
    offset 0
    for no key update
  ) as task;
end;
$$;

-- Returns the first children of these tasks, parent by parent in the order given; of the
-- first parent only those after `after`. The condition is a range of (parent_task_id,
-- task_id), in this order, because only the index on children can serve that. With an
-- equality the planner might walk the whole queue where one task has spawned all the others.
create or replace function durable._children(
  queue text, parents uuid[], after uuid, batch_size integer
) returns table (parent_task_id uuid, task_id uuid) language plpgsql as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
  _lowest uuid := uuid '00000000-0000-0000-0000-000000000000';
begin
  return query
    select parent.task_id, child.task_id
    from unnest(parents) with ordinality as parent (task_id, ordinal)
    cross join lateral (
      select tasks.task_id
      from durable.tasks
      where tasks.queue = _queue and (tasks.parent_task_id, tasks.task_id)
          > (parent.task_id, coalesce(case when parent.ordinal = 1 then after end, _lowest))
        and tasks.parent_task_id <= parent.task_id
      order by tasks.parent_task_id, tasks.task_id
      limit batch_size
    ) as child
    limit batch_size;
end;
$$;

-- Returns a task and its descendants in its queue, level by level, at most `most` of them. A
-- range, as in _children.
create or replace function durable._tree(queue text, root uuid, most integer)
returns table (task_id uuid) language plpgsql as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    with recursive tree as (
      select root as task_id
      union all
      select child.task_id
      from tree
      cross join lateral (
        select tasks.task_id
        from durable.tasks
        where tasks.queue = _queue and (tasks.parent_task_id, tasks.task_id)
            > (tree.task_id, uuid '00000000-0000-0000-0000-000000000000')
          and tasks.parent_task_id <= tree.task_id
        order by tasks.parent_task_id, tasks.task_id
        offset 0
      ) as child
    )
    select tree.task_id
    from tree
    limit most;
end;
$$;

-- Cancels those of these tasks that are live and not locked by others; returns their ids.
create or replace function durable._cancel_each(queue text, task_ids uuid[], error jsonb)
returns uuid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _held uuid[];
  _keys text[];
begin
  select array_agg(task.ctid), array_agg(task.task_id),
    array_agg(task.partition_key) filter (where task.partition_key is not null)
  into _places, _held, _keys
  from unnest(task_ids) as own (task_id)
  cross join lateral (
    select tasks.ctid, tasks.task_id, tasks.partition_key
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.finished_at is null
    offset 0
    for no key update skip locked
  ) as task;
  if _places is null then
    return array[]::uuid[];
  end if;
  perform durable._cancel_by_ctid(_queue, _places, error);
  if _keys is not null then
    perform durable._free(_queue, _keys);
  end if;
  perform durable._delete_waits(_queue, array(
    select wait.ctid
    from unnest(_held) as held (task_id)
    cross join lateral (
      select waits.ctid
      from durable.waits
      where waits.queue = _queue and waits.task_id = held.task_id
      offset 0
    ) as wait));
  return _held;
end;
$$;

-- Updates by ctid: see _lease_by_ctid.
create or replace function durable._cancel_by_ctid(queue text, places tid[], error jsonb)
returns void language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  with ended as (
    update durable.tasks
    set
      claim = tasks.claim + tasks.claim % 2,
      state = 'cancelled',
      available_at = null,
      lease_expires_at = null,
      expires_at = null,
      finished_at = _now,
      error = _cancel_by_ctid.error
    where tasks.queue = _queue and tasks.ctid = any (places)
    returning tasks.name
  )
  insert into durable.tallies (at, tally_id, tasks, kind, queue, name)
  select _now, gen_random_uuid(), count(*), 'cancelled', _queue, ended.name
  from ended
  group by ended.name;
end;
$$;

-- Returns the error of a task in this queue that the end of an ancestor cancelled.
create or replace function durable._cancelled_by_parent(queue text, by_queue text, by uuid)
returns jsonb language sql as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'type', '$CancelledByParent', 'message', format('cancelled by parent %s', by),
    'by', by, 'by_queue', nullif(by_queue, queue)));
$$;

-- Cancels the descendants of a task that failed or was cancelled, level by level, in this
-- queue and in those the tree reaches. Never waits: what follows from a locked task is
-- deferred. Looks at no more than batch_size tasks and defers the rest; remaining is how many
-- more it might have looked at, -1 if there are more tasks. It reads the children of a task
-- only after that has ended, in a later statement, so it misses none: a task that has ended
-- spawns no more. Each task's error records whose end cancelled it (by: the root, or an
-- ancestor in another queue), so that retry_task can revive exactly these. after: the last
-- child of the task that an earlier call has handled.
create or replace function durable._cancel_below(
  queue text, above uuid, after uuid, by_queue text, by uuid, batch_size integer,
  out cancelled uuid[], out remaining integer
) language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _error jsonb := durable._cancelled_by_parent(queue, by_queue, by);
  _parents uuid[] := array[above];
  _after uuid := after;
  _parent_of uuid[];
  _children uuid[];
  _rest uuid[];
  _busy uuid[];
  _reaching uuid[] := case when after is null then array[above] end;
  _into uuid[];
begin
  cancelled := '{}';
  remaining := batch_size;
  loop
    select array_agg(child.parent_task_id), array_agg(child.task_id) into _parent_of, _children
    from durable._children(_queue, _parents, _after, remaining + 1) as child;
    exit when _children is null;
    if cardinality(_children) > remaining then
      _rest := _parents[array_position(_parents, _parent_of[remaining + 1]):];
      _after := case
        when _parent_of[remaining] = _rest[1] then _children[remaining]
        when _parents[1] = _rest[1] then _after end;
      _children := _children[1:remaining];
    end if;
    cancelled := cancelled || durable._cancel_each(_queue, _children, _error);
    remaining := remaining - cardinality(_children);
    select
      array_agg(child.task_id) filter (where task.finished_at is not null),
      array_agg(child.task_id) filter (where task.finished_at is null),
      array_agg(child.task_id) filter (
        where task.finished_at is not null and task.child_queues is not null)
    into _parents, _busy, _into
    from unnest(_children) as child (task_id)
    cross join lateral (
      select tasks.finished_at, tasks.child_queues
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = child.task_id
      offset 0
    ) as task;
    _reaching := _reaching || _into;
    perform durable._defer(_queue, 'cascade', busy.task_id, null, by_queue, by)
    from unnest(_busy) as busy (task_id);
    if _rest is not null then
      perform durable._defer_cascades(_queue, _rest || _parents, _after, by_queue, by);
      remaining := -1;
      exit;
    end if;
    _after := null;
  end loop;
  remaining := durable._propagate_to_other_queues(
    _queue, _reaching, 'cascade', by_queue, by, null, remaining);
end;
$$;

-- Defers the cascades of those tasks that have children, for the first one after `after`.
create or replace function durable._defer_cascades(
  queue text, parents uuid[], after uuid, by_queue text, by uuid
) returns void language plpgsql as $$
begin
  perform durable._defer(queue, 'cascade', parent.task_id, null, by_queue, by, null, parent.after)
  from (
    select above.task_id, case when above.ordinal = 1 then _defer_cascades.after end as after
    from unnest(parents) with ordinality as above (task_id, ordinal)
  ) as parent
  cross join lateral durable._children(queue, array[parent.task_id], parent.after, 1) as child;
end;
$$;

-- Cancels the descendants of failed and cancelled tasks, which share the batch_size. Children
-- come before their parents, so that a task is cancelled by its nearest ancestor among them.
create or replace function durable._cascade_each(queue text, roots uuid[], batch_size integer)
returns void language plpgsql as $$
declare
  _root uuid;
  _remaining integer := batch_size;
begin
  for _root in select ended.task_id from unnest(roots) as ended (task_id) order by 1 desc loop
    _remaining := durable._propagate_state(
      queue, 'cascade', _root, queue, _root, batch_size => _remaining);
  end loop;
end;
$$;
