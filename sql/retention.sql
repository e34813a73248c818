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
  _queue text collate "C" := queue;
  _policy durable.queues;
  _cutoff timestamptz;
  _task record;
  _walked integer := 0;
  _deleted integer := 0;
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
  for _task in
    select tasks.task_id, tasks.finished_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id > coalesce(_policy.tasks_cleaned_to, '00000000-0000-0000-0000-000000000000')
      and tasks.task_id < durable._uuid7_floor(_cutoff)
    order by tasks.task_id
    limit quantity
  loop
    _walked := _walked + 1;
    if _task.finished_at <= _cutoff and durable._delete_task(_queue, _task.task_id, _cutoff) then
      _deleted := _deleted + 1;
    end if;
  end loop;
  if _walked = quantity then
    _next := _task.task_id;
  end if;
  update durable.queues
  set tasks_cleaned_to = _next
  where queues.queue = _queue and queues.tasks_cleaned_to is distinct from _next;
  return _deleted;
end;
$$;

comment on function durable.cleanup is
'Deletes finished tasks older than the queue''s keep_tasks, with all that belongs to
them, looking at no more than quantity tasks. A finished child stays while its parent
is there. Returns how many were deleted.';


-- Proves under the lock that the task is still over (retry_task), that nobody is
-- being told about its key, and that no parent is there to join or cancel it.
create or replace function durable._delete_task(queue text, task_id uuid, cutoff timestamptz)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _task record;
begin
  select tasks.parent_task_id, tasks.idempotency_key into _task
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _delete_task.task_id
    and tasks.finished_at <= cutoff
  for update skip locked;
  if not found then
    return false;
  end if;
  perform from durable.tasks where tasks.queue = _queue and tasks.task_id = _task.parent_task_id;
  if found then
    return false;
  end if;
  if _task.idempotency_key is not null then
    perform from durable.idempotency_keys
    where idempotency_keys.queue = _queue and idempotency_keys.key = _task.idempotency_key
    for update skip locked;
    if not found then
      return false;
    end if;
    delete from durable.idempotency_keys
    where idempotency_keys.queue = _queue and idempotency_keys.key = _task.idempotency_key;
  end if;
  delete from durable.waits where waits.queue = _queue and waits.task_id = _delete_task.task_id;
  delete from durable.checkpoints
  where checkpoints.queue = _queue and checkpoints.task_id = _delete_task.task_id;
  delete from durable.runs where runs.queue = _queue and runs.task_id = _delete_task.task_id;
  delete from durable.tasks where tasks.queue = _queue and tasks.task_id = _delete_task.task_id;
  return true;
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
  _queue text collate "C" := queue;
  _policy durable.queues;
  _cutoff timestamptz;
  _name text collate "C";
  _next text collate "C";
  _walked integer := 0;
  _deleted integer := 0;
begin
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
Returns how many were deleted.';


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
