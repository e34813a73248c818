-- Cancelling: a task and everything that still lives below it, by parent links,
-- also below children that have finished.

create or replace function durable.cancel_task(queue text, task_id uuid, reason text default null)
returns boolean
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
  _finished_at timestamptz;
  _cancelled uuid[];
begin
  perform durable._require_queue(_queue);
  perform durable._check_reason(reason);
  select tasks.finished_at into _finished_at
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = cancel_task.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  elsif _finished_at is not null then
    return false;
  end if;
  perform durable._hold_tree(_queue, task_id);
  _cancelled := durable._cancel_held(_queue, task_id, coalesce(reason, 'cancelled'));
  if _cancelled is null then
    return false;
  end if;
  perform durable._finished(_queue, _cancelled);
  return true;
end;
$$;

comment on function durable.cancel_task is
'Cancels a task and all live tasks below it, at once: their workers'' next writes are
refused with WFCAN. Returns false when it had finished already. Refuses an unknown
queue WFQUE, an unknown task WFNFD and a reason of more than 1,000 bytes 22023.';


create or replace function durable._check_reason(reason text)
returns void
language plpgsql
immutable
as $$
begin
  if octet_length(reason) > 1000 then
    perform durable._refuse_argument(format('reason is %s bytes long', octet_length(reason)),
      'Pass at most 1000 bytes of text.');
  end if;
end;
$$;


create or replace function durable._cancellation(reason text)
returns jsonb
language plpgsql
as $$
begin
  return jsonb_build_object('type', '$Cancelled', 'message', reason, 'by', durable._caller());
end;
$$;


-- Locks the tree below a task that is about to be cancelled. A child's id is greater
-- than its parent's, so one ascending pass holds all of them; but children can be
-- spawned until their parent is held, so it looks again until nothing is new. What
-- then turns up below the highest id held can only be tried.
create or replace function durable._hold_tree(queue text, root uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _held uuid[] := array[]::uuid[];
  _new uuid[];
  _id uuid;
  _highest uuid := uuid '00000000-0000-0000-0000-000000000000';
  _left_over boolean := not durable._sees_the_latest();
begin
  loop
    _new := array(
      select tree.task_id from durable._tree(_queue, root) as tree
      except
      select held.task_id from unnest(_held) as held (task_id)
      order by 1
    );
    exit when _new = '{}';
    foreach _id in array _new loop
      if _id > _highest then
        perform from durable.tasks
        where tasks.queue = _queue and tasks.task_id = _id and tasks.finished_at is null
        for no key update;
        _highest := _id;
      else
        perform from durable.tasks
        where tasks.queue = _queue and tasks.task_id = _id and tasks.finished_at is null
        for no key update skip locked;
        _left_over := _left_over or not found;
      end if;
    end loop;
    _held := _held || _new;
  end loop;
  if _left_over then
    perform durable._leave_note(_queue, 'cascade', root);
  end if;
end;
$$;


create or replace function durable._tree(queue text, root uuid)
returns table (task_id uuid)
language plpgsql
as $$
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
        where tasks.queue = _queue
          and tasks.parent_task_id = tree.task_id
        offset 0
      ) as child
    )
    select tree.task_id
    from tree;
end;
$$;


-- Cancels what is live of a tree; rows in other hands are passed over. Returns what
-- it cancelled, or null when the root itself is not live.
create or replace function durable._cancel_held(queue text, root uuid, reason text)
returns uuid[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  if not durable._cancel_one(_queue, root, durable._cancellation(reason)) then
    return null;
  end if;
  return array[root] || durable._cancel_below(_queue, root, 2147483647, _queue, root);
end;
$$;


-- Ends one live task. The caller holds its row.
create or replace function durable._cancel_one(queue text, task_id uuid, error jsonb)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
begin
  update durable.tasks
  set
    claim = tasks.claim + tasks.claim % 2,
    state = 'cancelled',
    available_at = null,
    lease_expires_at = null,
    deadline_at = null,
    finished_at = _now,
    error = _cancel_one.error
  where tasks.queue = _queue
    and tasks.task_id = _cancel_one.task_id
    and tasks.finished_at is null;
  if not found then
    return false;
  end if;
  delete from durable.waits where waits.queue = _queue and waits.task_id = _cancel_one.task_id;
  return true;
end;
$$;


-- Cancels what lives below a task that ended badly, never waiting for anybody: at
-- most so many, and what was in other hands is left to a note. A task can spawn until
-- it is held or has finished, so this looks again until nothing is new. Records whose
-- end it was (by: the root's, or of a task in another queue above it), so that retry_task
-- can revive exactly these.
create or replace function durable._cancel_below(
  queue text, root uuid, quantity integer, by_queue text, by uuid
)
returns uuid[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _error jsonb := jsonb_strip_nulls(jsonb_build_object(
    'type', '$CancelledByParent', 'message', format('cancelled by parent %s', by),
    'by', by, 'by_queue', nullif(by_queue, queue)));
  _cancelled uuid[] := array[]::uuid[];
  _seen uuid[] := array[root];
  _new uuid[];
  _left_over boolean := false;
  _id uuid;
begin
  loop
    _new := array(
      select tree.task_id from durable._tree(_queue, root) as tree
      except
      select seen.task_id from unnest(_seen) as seen (task_id)
      order by 1
    );
    exit when _new = '{}';
    for _id in
      select new.task_id
      from unnest(_new) as new (task_id)
      cross join lateral (
        select
        from durable.tasks
        where tasks.queue = _queue
          and tasks.task_id = new.task_id
          and tasks.finished_at is null
        offset 0
      ) as live
    loop
      if cardinality(_cancelled) >= quantity then
        perform durable._leave_cascade(_queue, root, by_queue, by);
        return _cancelled;
      end if;
      perform
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = _id and tasks.finished_at is null
      for no key update skip locked;
      if not found then
        _left_over := true;
      elsif durable._cancel_one(_queue, _id, _error) then
        _cancelled := _cancelled || _id;
      end if;
    end loop;
    _seen := _seen || _new;
  end loop;
  if _left_over then
    perform durable._leave_cascade(_queue, root, by_queue, by);
  end if;
  perform durable._reach_below(_queue, _seen, 'ended_above', by_queue, by);
  return _cancelled;
end;
$$;


-- What a failed or cancelled task takes with it. It must still be that: a note may
-- come after retry_task has revived it.
create or replace function durable._cascade(queue text, root uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _cancelled uuid[];
begin
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = root and tasks.state in ('failed', 'cancelled')
  for share skip locked;
  if found and durable._sees_the_latest() then
    _cancelled := durable._cancel_below(_queue, root, 1000, _queue, root);
    if _cancelled <> '{}' then
      perform durable._finished(_queue, _cancelled);
    end if;
  elsif durable._ended_badly(_queue, root) then
    perform durable._leave_note(_queue, 'cascade', root);
  end if;
end;
$$;


create or replace function durable._ended_badly(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _ended_badly.task_id
    and tasks.state in ('failed', 'cancelled');
  return found;
end;
$$;
