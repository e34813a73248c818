-- What is over is kept as long as its queue says. No index is kept for that: each
-- call walks on through the primary key from where the last one ended, and wraps
-- round. Ids ascend with spawning, so the walk ends where nothing can be old enough.

create or replace function durable.cleanup(queue text, quantity integer default 1000)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _policy durable.queues;
  _cutoff timestamptz;
  _walked uuid[];
  _over uuid[];
  _next uuid;
begin
  select * into _policy
  from durable.queues
  where queues.queue = _queue
  for no key update skip locked;
  if _policy.keep_tasks is null then
    return 0;
  end if;
  _cutoff := durable._now() - make_interval(secs => _policy.keep_tasks);
  select array_agg(old.task_id), array_agg(old.task_id) filter (where old.finished_at <= _cutoff)
  into _walked, _over
  from (
    select tasks.task_id, tasks.finished_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id > coalesce(_policy.tasks_cleaned_to, '00000000-0000-0000-0000-000000000000')
      and tasks.task_id < durable._uuid7_floor(_cutoff)
    order by tasks.task_id
    limit quantity
  ) as old;
  if cardinality(_walked) = quantity then
    _next := _walked[quantity];
  end if;
  update durable.queues
  set tasks_cleaned_to = _next
  where queues.queue = _queue and queues.tasks_cleaned_to is distinct from _next;
  return durable._delete_tasks(_queue, _over, _cutoff);
end;
$$;

comment on function durable.cleanup is
'Deletes finished tasks older than the queue''s keep_tasks, with all that belongs to
them, looking at no more than quantity tasks. A finished child stays while its parent
is there. Returns how many were deleted.';


-- Proves under the lock that the tasks are still over (retry_task), that no note is left
-- about them, that nobody is being told about their keys, and that no parent is there to
-- join or cancel them: so parents go first, then children.
create or replace function durable._delete_tasks(queue text, task_ids uuid[], cutoff timestamptz)
returns integer
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _held uuid[];
  _orphans uuid[];
  _deleted integer := 0;
begin
  if task_ids is null then
    return 0;
  end if;
  _held := array(
    select task.task_id
    from unnest(task_ids) as over (task_id)
    cross join lateral (
      select tasks.task_id
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = over.task_id and tasks.finished_at <= cutoff
      offset 0
      for update skip locked
    ) as task
  );
  _held := durable._without_notes(_queue, _held);
  loop
    _orphans := array(
      select task.task_id
      from unnest(_held) as held (task_id)
      cross join lateral (
        select tasks.task_id, tasks.parent_task_id, coalesce(tasks.parent_queue, _queue) as parent_queue,
          tasks.idempotency_key
        from durable.tasks
        where tasks.queue = _queue and tasks.task_id = held.task_id
        offset 0
      ) as task
      cross join lateral (
        select count(*) as times
        from durable.tasks
        where tasks.queue = task.parent_queue and tasks.task_id = task.parent_task_id
        offset 0
      ) as parent
      where case -- in this order: a key is freed with its task, or not at all
        when parent.times > 0 then false
        when task.idempotency_key is null then true
        else durable._free_key(_queue, task.idempotency_key)
      end
    );
    exit when _orphans = '{}';
    perform durable._delete_with_all(_queue, _orphans);
    _deleted := _deleted + cardinality(_orphans);
  end loop;
  return _deleted;
end;
$$;


-- Those of finished tasks whose end has had its effect: neither what they take with them,
-- here or in the queues that they reach into, nor whom they wake is left to a note.
create or replace function durable._without_notes(queue text, task_ids uuid[])
returns uuid[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select finished.task_id
    from unnest(task_ids) as finished (task_id)
    cross join lateral (
      select count(*) as times
      from durable.notes
      where notes.queue = _queue and notes.task_id = finished.task_id and notes.kind in ('cascade', 'finished')
      offset 0
    ) as left_over
    cross join lateral (
      select count(*) as times
      from durable.tasks
      cross join lateral unnest(tasks.child_queues) as reached (queue)
      cross join lateral (
        select
        from durable.notes
        where notes.queue = reached.queue and notes.task_id = finished.task_id
        offset 0
      ) as note
      where tasks.queue = _queue and tasks.task_id = finished.task_id
      offset 0
    ) as left_elsewhere
    where left_over.times + left_elsewhere.times = 0
  );
end;
$$;


create or replace function durable._delete_with_all(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._delete_mail(_queue, task_ids);
  perform durable._delete_at(_queue,
    array(
      select task.ctid
      from unnest(task_ids) as deleted (task_id)
      cross join lateral (
        select tasks.ctid
        from durable.tasks
        where tasks.queue = _queue and tasks.task_id = deleted.task_id
        offset 0
      ) as task
    ),
    array(
      select run.ctid
      from unnest(task_ids) as deleted (task_id)
      cross join lateral (
        select runs.ctid
        from durable.runs
        where runs.queue = _queue and runs.task_id = deleted.task_id
        offset 0
      ) as run
    ),
    array(
      select saved.ctid
      from unnest(task_ids) as deleted (task_id)
      cross join lateral (
        select checkpoints.ctid
        from durable.checkpoints
        where checkpoints.queue = _queue and checkpoints.task_id = deleted.task_id
        offset 0
      ) as saved
    ),
    array(
      select wait.ctid
      from unnest(task_ids) as deleted (task_id)
      cross join lateral (
        select waits.ctid
        from durable.waits
        where waits.queue = _queue and waits.task_id = deleted.task_id
        offset 0
      ) as wait
    ),
    array(
      select watch.ctid
      from unnest(task_ids) as deleted (task_id)
      cross join lateral (
        select watches.ctid
        from durable.watches
        where watches.queue = _queue and watches.task_id = deleted.task_id
        offset 0
      ) as watch
    ));
  perform durable._delete_published(_queue, task_ids);
  perform durable._delete_log(_queue, task_ids);
end;
$$;


create or replace function durable._free_key(queue text, key text)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := key;
begin
  perform from durable.idempotency_keys
  where idempotency_keys.queue = _queue and idempotency_keys.key = _key
  for update skip locked;
  if not found then
    return false;
  end if;
  delete from durable.idempotency_keys
  where idempotency_keys.queue = _queue and idempotency_keys.key = _key;
  return true;
end;
$$;


-- As in _take: without an index to walk, by place is the one way.
create or replace function durable._delete_at(
  queue text, of_tasks tid[], of_runs tid[], of_checkpoints tid[], of_waits tid[], of_watches tid[]
)
returns void
language plpgsql
set enable_indexscan = off
as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.watches where watches.queue = _queue and watches.ctid = any (of_watches);
  delete from durable.waits where waits.queue = _queue and waits.ctid = any (of_waits);
  delete from durable.checkpoints where checkpoints.queue = _queue and checkpoints.ctid = any (of_checkpoints);
  delete from durable.runs where runs.queue = _queue and runs.ctid = any (of_runs);
  delete from durable.tasks where tasks.queue = _queue and tasks.ctid = any (of_tasks);
end;
$$;


create or replace function durable.prune_events(queue text, quantity integer default 1000)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _policy durable.queues;
  _cutoff timestamptz;
  _name text collate "C";
  _next text collate "C";
  _walked integer := 0;
  _deleted integer := 0;
begin
  if not durable._sees_the_latest() then
    return 0;
  end if;
  select * into _policy
  from durable.queues
  where queues.queue = _queue
  for no key update skip locked;
  if not found then
    return 0;
  end if;
  _cutoff := coalesce(durable._now() - make_interval(secs => _policy.keep_events), '-infinity');
  for _name in
    select events.name
    from durable.events
    where events.queue = _queue and events.name > coalesce(_policy.events_pruned_to, '')
    order by events.name
    limit quantity
  loop
    _walked := _walked + 1;
    if durable._delete_event(_queue, _name, _cutoff) then
      _deleted := _deleted + 1;
    end if;
  end loop;
  if _walked = quantity then
    _next := _name;
  end if;
  update durable.queues
  set events_pruned_to = _next
  where queues.queue = _queue and queues.events_pruned_to is distinct from _next;
  return _deleted;
end;
$$;

comment on function durable.prune_events is
'Deletes events older than the queue''s keep_events that nobody waits for, and the places
of events that nobody waits for any more, looking at no more than quantity events.
Returns how many were deleted; does nothing outside READ COMMITTED, where it could not
see who has just begun to wait.';


-- The waits are read in the statement after the one that took the lock: a waiting
-- task that was just registering has committed by then.
create or replace function durable._delete_event(queue text, event text, cutoff timestamptz)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _event text collate "C" := event;
begin
  perform from durable.events
  where events.queue = _queue
    and events.name = _event
    and (events.emitted_at is null or events.emitted_at <= cutoff)
  for update skip locked;
  if not found then
    return false;
  end if;
  perform from durable.waits
  where waits.queue = _queue
    and waits.event_name = _event
    and durable._is_live(_queue, waits.task_id);
  if found then
    return false;
  end if;
  delete from durable.events where events.queue = _queue and events.name = _event;
  return true;
end;
$$;
