-- Deletes finished tasks and old events after the queue's retention. There is no index for it:
-- each call continues through the primary key where the last one ended, and starts over at the
-- end. Ids ascend with spawning, so the walk ends where no task can be old enough.

create or replace function durable.cleanup(queue text, batch_size integer default 1000)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _cutoff timestamptz;
  _cleaned_to uuid;
  _walked uuid[];
  _over uuid[];
  _next uuid;
begin
  select durable._now() - make_interval(secs => queues.keep_tasks) into _cutoff
  from durable.queues
  where queues.queue = _queue;
  select cleanup_cursors.tasks_cleaned_to into _cleaned_to
  from durable.cleanup_cursors
  where cleanup_cursors.queue = _queue
  for no key update skip locked;
  if not found or _cutoff is null then
    return 0;
  end if;
  select array_agg(old.task_id), array_agg(old.task_id) filter (where old.finished_at <= _cutoff)
  into _walked, _over
  from (
    select tasks.task_id, tasks.finished_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id > coalesce(_cleaned_to, '00000000-0000-0000-0000-000000000000')
      and tasks.task_id < durable._uuid7_floor(_cutoff)
    order by tasks.task_id
    limit batch_size
  ) as old;
  if cardinality(_walked) = batch_size then
    _next := _walked[batch_size];
  end if;
  update durable.cleanup_cursors
  set tasks_cleaned_to = _next
  where cleanup_cursors.queue = _queue and cleanup_cursors.tasks_cleaned_to is distinct from _next;
  return durable._delete_tasks(_queue, _over, _cutoff);
end;
$$;

comment on function durable.cleanup is
'Deletes finished tasks that are older than the queue''s keep_tasks, with everything that
belongs to them. It looks at no more than batch_size tasks. A finished child stays while its
parent exists. Returns how many it deleted. Locks: tries each task row, and its key, with SKIP
LOCKED; waits for none.';

-- Checks under the lock that the tasks are still finished (retry_task), that no work is deferred
-- for them, that no spawn is reading their keys, and that no parent exists that may join or
-- cancel them: so parents are deleted first, then children.
create or replace function durable._delete_tasks(queue text, task_ids uuid[], cutoff timestamptz)
returns integer language plpgsql as $$
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
  _held := durable._without_deferred_work(_queue, _held);
  loop
    _orphans := array(
      select task.task_id
      from unnest(_held) as held (task_id)
      cross join lateral (
        select tasks.task_id, tasks.parent_task_id, coalesce(tasks.parent_queue, _queue) as parent_queue,
          tasks.idempotency_key, tasks.name, tasks.unique_kind, tasks.unique_key
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
      where case -- in this order: a key is deleted only with its task
        when parent.times > 0 then false
        when task.idempotency_key is not null then durable._free_key(_queue, task.idempotency_key)
        when task.unique_key is not null then durable._free_unique_key(
          _queue, task.unique_kind, task.name, task.unique_key, task.task_id)
        else true
      end
    );
    exit when _orphans = '{}';
    perform durable._delete_with_all(_queue, _orphans);
    _deleted := _deleted + cardinality(_orphans);
  end loop;
  return _deleted;
end;
$$;

-- Returns the finished tasks whose end has been processed: no deferred work has to cancel their
-- descendants, in this queue or in those they reach, or to wake tasks that wait for them.
create or replace function durable._without_deferred_work(queue text, task_ids uuid[])
returns uuid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select finished.task_id
    from unnest(task_ids) as finished (task_id)
    where not exists (
        select from durable.deferred_work
        where deferred_work.queue = _queue and deferred_work.task_id = finished.task_id
          and deferred_work.kind in ('cascade', 'finished')
        offset 0) -- so that Postgres looks up each task by the index
      and not exists (
        select from durable.deferred_work
        where deferred_work.queue = _queue and deferred_work.root_task_id = finished.task_id
        offset 0)
      and not exists (
        select
        from durable.tasks
        cross join lateral unnest(tasks.child_queues) as reached (queue)
        cross join lateral (
          select from durable.deferred_work
          where deferred_work.queue = reached.queue and deferred_work.task_id = finished.task_id
          offset 0
        ) as reaching
        where tasks.queue = _queue and tasks.task_id = finished.task_id
        offset 0)
  );
end;
$$;

create or replace function durable._delete_with_all(queue text, task_ids uuid[])
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.messages where messages.queue = _queue and messages.task_id = any (task_ids);
  delete from durable.message_keys where message_keys.queue = _queue and message_keys.task_id = any (task_ids);
  delete from durable.mailboxes where mailboxes.queue = _queue and mailboxes.task_id = any (task_ids);
  delete from durable.task_values where task_values.queue = _queue and task_values.task_id = any (task_ids);
  delete from durable.stream_entries where stream_entries.queue = _queue and stream_entries.task_id = any (task_ids);
  delete from durable.log_lines where log_lines.queue = _queue and log_lines.task_id = any (task_ids);
  delete from durable.claim_log where claim_log.queue = _queue and claim_log.task_id = any (task_ids);
  perform durable._delete_by_ctid(_queue,
    array_agg(own.ctid) filter (where own.kind = 'task'),
    array_agg(own.ctid) filter (where own.kind = 'run'),
    array_agg(own.ctid) filter (where own.kind = 'checkpoint'),
    array_agg(own.ctid) filter (where own.kind = 'wait'),
    array_agg(own.ctid) filter (where own.kind = 'watch'))
  from unnest(task_ids) as deleted (task_id)
  cross join lateral (
    select 'task' as kind, tasks.ctid
    from durable.tasks where tasks.queue = _queue and tasks.task_id = deleted.task_id
    union all
    select 'run', runs.ctid
    from durable.runs where runs.queue = _queue and runs.task_id = deleted.task_id
    union all
    select 'checkpoint', checkpoints.ctid
    from durable.checkpoints where checkpoints.queue = _queue and checkpoints.task_id = deleted.task_id
    union all
    select 'wait', waits.ctid
    from durable.waits where waits.queue = _queue and waits.task_id = deleted.task_id
    union all
    select 'watch', watches.ctid
    from durable.watches where watches.queue = _queue and watches.task_id = deleted.task_id
    offset 0
  ) as own;
end;
$$;

create or replace function durable._free_key(queue text, key text)
returns boolean language plpgsql as $$
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

-- Deletes by ctid: see _lease_by_ctid.
create or replace function durable._delete_by_ctid(
  queue text, of_tasks tid[], of_runs tid[], of_checkpoints tid[], of_waits tid[], of_watches tid[]
) returns void language plpgsql
set enable_indexscan = off as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.watches where watches.queue = _queue and watches.ctid = any (of_watches);
  delete from durable.waits where waits.queue = _queue and waits.ctid = any (of_waits);
  delete from durable.checkpoints where checkpoints.queue = _queue and checkpoints.ctid = any (of_checkpoints);
  delete from durable.runs where runs.queue = _queue and runs.ctid = any (of_runs);
  with deleted as (
    delete from durable.tasks where tasks.queue = _queue and tasks.ctid = any (of_tasks)
    returning tasks.name, tasks.state
  )
  insert into durable.tallies (at, tally_id, tasks, kind, queue, name)
  select durable._now(), gen_random_uuid(), -count(*), deleted.state::text::durable.tally_kind, _queue,
    deleted.name
  from deleted
  group by deleted.name, deleted.state;
end;
$$;

create or replace function durable.prune_events(queue text, batch_size integer default 1000)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _cutoff timestamptz;
  _pruned_to text collate "C";
  _name text collate "C";
  _next text collate "C";
  _walked integer := 0;
  _deleted integer := 0;
begin
  perform durable._require_read_committed('prune_events');
  select coalesce(durable._now() - make_interval(secs => queues.keep_events), '-infinity') into _cutoff
  from durable.queues
  where queues.queue = _queue;
  select cleanup_cursors.events_pruned_to into _pruned_to
  from durable.cleanup_cursors
  where cleanup_cursors.queue = _queue
  for no key update skip locked;
  if not found then
    return 0;
  end if;
  for _name in
    select events.name
    from durable.events
    where events.queue = _queue and events.name > coalesce(_pruned_to, '')
    order by events.name
    limit batch_size
  loop
    _walked := _walked + 1;
    if durable._delete_event(_queue, _name, _cutoff) then
      _deleted := _deleted + 1;
    end if;
  end loop;
  if _walked = batch_size then
    _next := _name;
  end if;
  update durable.cleanup_cursors
  set events_pruned_to = _next
  where cleanup_cursors.queue = _queue and cleanup_cursors.events_pruned_to is distinct from _next;
  return _deleted;
end;
$$;

comment on function durable.prune_events is
'Deletes events that are older than the queue''s keep_events and for which no task waits, and
rows of events that were never emitted and for which no task waits any more. It looks at no
more than batch_size events. Returns how many it deleted. Refuses a transaction stricter than
READ COMMITTED, which could not see a task that has just begun to wait (WFISO).';

-- Reads the waits in the statement after the one that took the lock: a task that was registering
-- its wait has committed by then.
create or replace function durable._delete_event(queue text, event text, cutoff timestamptz)
returns boolean language plpgsql as $$
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
