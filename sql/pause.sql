-- Pauses queues and task names: their tasks are not claimed until they are resumed.
--
-- A pause is a state of the queue's row, which a claim reads anyway, so queues that are not
-- paused pay nothing for it. Only claims look at it: what runs goes on, sleeping tasks wake,
-- deadlines expire, and spawns are accepted.

create or replace function durable.pause_queue(queue text, task text default null)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text := case when task is not null then durable._checked_name('task name', task, 100) end;
  _now timestamptz := durable._now();
  _by jsonb := durable._caller();
begin
  perform durable._require_queue(_queue);
  if _name is null then
    update durable.queues set paused_at = _now, paused_by = _by
    where queues.queue = _queue and queues.paused_at is null;
  else
    update durable.queues
    set paused_names = coalesce(queues.paused_names, '{}')
      || jsonb_build_object(_name, jsonb_build_object('at', _now, 'by', _by))
    where queues.queue = _queue and (queues.paused_names ? _name) is not true;
  end if;
  if not found then
    return false;
  end if;
  perform durable._audit(_queue, 'pause_queue', null,
    jsonb_strip_nulls(jsonb_build_object('task', _name)));
  return true;
end;
$$;

comment on function durable.pause_queue is
'Pauses a queue, or one task name of it: claims return none of its tasks until resume_queue.
Tasks that run go on, until they end or suspend; start_timeout and deadlines still count, and
spawns are accepted. A claim that began before may still return tasks. Records the caller, as
cancel_task does. Returns false if it was paused already. Refuses an unknown queue
(WFQUE) and a bad name (22023). Locks: the queue''s row; waits for calls that change it.';

create or replace function durable.resume_queue(queue text, task text default null)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._require_queue(_queue);
  if task is null then
    update durable.queues set paused_at = null, paused_by = null
    where queues.queue = _queue and queues.paused_at is not null;
  else
    update durable.queues set paused_names = nullif(queues.paused_names - task, '{}')
    where queues.queue = _queue and queues.paused_names ? task;
  end if;
  if not found then
    return false;
  end if;
  perform durable._notify_listeners(_queue, 'work');
  perform durable._audit(_queue, 'resume_queue', null,
    jsonb_strip_nulls(jsonb_build_object('task', task)));
  return true;
end;
$$;

comment on function durable.resume_queue is
'Resumes a queue that is paused, or one task name of it, and notifies its workers. The two are
independent: names that are paused stay so when the queue is resumed. Returns false if it was
not paused. Refuses an unknown queue (WFQUE). Locks: the queue''s row; waits for calls that
change it.';

-- Returns the names of a claim with null in place of those that are paused: their places stand
-- for those in after_at and after_ids.
create or replace function durable._without_paused(names text[], paused jsonb)
returns text[] language sql immutable as $$
  select array(
    select case when not paused ? known.name then known.name end
    from unnest(names) with ordinality as known (name, place)
    order by known.place);
$$;
