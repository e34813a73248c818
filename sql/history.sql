-- Returns the history of a task, in order.
--
-- It is derived from rows that are stored anyway: the task, its attempts, checkpoints and waits;
-- and in queues whose history is full from claim_log. Without that it lacks the times at which
-- a task was claimed again, suspended, woken or released. Entries without a time, because they
-- have not ended, come last.

create or replace function durable.task_history(queue text, task_id uuid)
returns setof durable.history_entry language plpgsql stable as $$
declare
  _task durable.tasks := durable._known_task(queue, task_id);
begin
  return query
    select told.at, told.kind, told.name, told.attempt, told.worker, told.duration_ms,
      nullif(jsonb_strip_nulls(told.detail), '{}')
    from (
      select * from durable._history_task(_task)
      union all
      select * from durable._history_attempts(_task)
      union all
      select * from durable._history_claims(_task)
      union all
      select * from durable._history_wakings(_task)
      union all
      select * from durable._history_checkpoints(_task)
      union all
      select * from durable._history_waits(_task)
    ) as told
    order by told.at, coalesce(told.attempt, 0), told.claim, told.place, told.called, told.name collate "C";
end;
$$;

comment on function durable.task_history is
'Returns what has happened to a task, in order. Kinds of entries:

- spawned, copied (checkpoints that a fork began with), started, retried.
- step, step_failed, try_failed, slept, event, joined, first_finished, message_received,
  timed_out, child_spawned, event_emitted, message_sent, patched, recorded (any other
  checkpoint).
- attempt_failed, lease_lost, attempt_cancelled, completed, failed, cancelled.
- claimed, suspended, woken, released, if the queue''s history is full.
- running, waiting, retrying: without a time, since they have not ended.

by, in the detail, is who did it: {"user": the role, "identity", "queue", "task_id": as set in
durable.caller}, {"task_id", "queue"} of an ancestor, or {"limit": start_timeout, execution_timeout or
deadline}. Refuses an unknown queue (WFQUE) and an unknown task (WFNFD).';

-- Returns a task, or refuses. STABLE, so that a history and its task are of one snapshot.
create or replace function durable._known_task(queue text, task_id uuid)
returns durable.tasks language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
begin
  perform durable._require_queue(_queue);
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _known_task.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  return _task;
end;
$$;

-- Returns an error as a detail; for a cancellation, who cancelled it is a key of its own. A
-- worker normally passes an object.
create or replace function durable._history_error(error jsonb, is_cancelled boolean)
returns jsonb language sql immutable as $$
  select case
    when is_cancelled then jsonb_build_object(
      'error', error - array['traceback', 'by', 'by_queue', 'limit'], 'by', durable._cancelled_by(error))
    when jsonb_typeof(error) = 'object' then jsonb_build_object('error', error - 'traceback')
    else jsonb_build_object('error', error)
  end;
$$;

-- Returns the spawn, the first start and the present state, or the end. The attempt that the
-- first start began is the lowest that ended since, because retry_task resets started_at.
--
-- claim, place and called order entries of the same time and attempt; entries without a claim
-- sort last.
create or replace function durable._history_task(task durable.tasks)
returns setof durable._history_row language sql stable as $$
  select task.spawned_at, 'spawned', task.name::text, null::integer, null::text, null::integer,
    jsonb_build_object('parent_task_id', task.parent_task_id, 'parent_queue', task.parent_queue,
      'idempotency_key', task.idempotency_key,
      coalesce(task.unique_kind::text, 'unique'), task.unique_key, 'forked_from', fork.origin - 'by',
      'deadline', task.deadline, 'by', fork.origin -> 'by'), 0, -2, 0
  from (select task.headers -> 'durable:forked_from') as fork (origin)
  union all
  select task.started_at, 'started', null, coalesce(min(runs.attempt), task.attempt), null, null,
    jsonb_build_object('version', nullif(task.version, '')), 0, -1, 0
  from durable.runs
  where runs.queue = task.queue and runs.task_id = task.task_id and runs.ended_at >= task.started_at
  having task.started_at is not null
  union all
  select
    task.finished_at,
    case when task.state = 'sleeping' then 'retrying' else task.state::text end,
    null, task.attempt, case when task.state <> 'sleeping' then task.worker::text end, null,
    case
      when task.finished_at is not null then durable._history_error(task.error, task.state = 'cancelled')
      else jsonb_build_object('until', coalesce(task.lease_expires_at, task.available_at))
    end,
    null, 3, 0
  where task.finished_at is not null or task.state = 'running'
    or task.state = 'sleeping' and task.error is not null;
$$;

create or replace function durable._history_attempts(task durable.tasks)
returns setof durable._history_row language sql stable as $$
  select
    runs.ended_at,
    case runs.outcome when 'failed' then 'attempt_failed' when 'cancelled' then 'attempt_cancelled'
      else 'lease_lost' end,
    null::text, runs.attempt, runs.worker::text, null::integer,
    durable._history_error(runs.error, runs.outcome = 'cancelled'),
    null::integer, 2, 0
  from durable.runs
  where runs.queue = task.queue and runs.task_id = task.task_id
  union all
  select runs.retried_at, 'retried', null, runs.attempt + 1, null, null,
    jsonb_build_object('by', runs.retried_by), 0, -2, 0
  from durable.runs
  where runs.queue = task.queue and runs.task_id = task.task_id and runs.retried_at is not null;
$$;

create or replace function durable._history_claims(task durable.tasks)
returns setof durable._history_row language sql stable as $$
  select
    log.at,
    case when log.claim % 2 = 1 then 'claimed' when log.waits is null then 'released' else 'suspended' end,
    case cardinality(log.waits) when 1 then log.waits[1] end, log.attempt, log.worker::text, null::integer,
    jsonb_build_object('waits', case when cardinality(log.waits) > 1 then log.waits end,
      'until', case when log.waits is not null then log.due_at end),
    log.claim, case log.claim % 2 when 1 then 0 else 2 end, 0
  from durable.claim_log as log
  where log.queue = task.queue and log.task_id = task.task_id;
$$;

-- Returns those waits of a suspension that had ended before the next one. If there was only one
-- wait, it is that.
create or replace function durable._waits_over(
  queue text, task_id uuid, claim integer, asleep_again integer, waits text[]
) returns text[] language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
begin
  if cardinality(waits) = 1 then
    return waits;
  end if;
  return array(
    select wait.name
    from unnest(waits) with ordinality as wait (name, ordinal)
    cross join lateral (
      select
      from durable.checkpoints as saved
      where saved.queue = _queue
        and saved.task_id = _waits_over.task_id
        and saved.name = wait.name collate "C"
        and saved.state = 'done'
        and saved.claim > _waits_over.claim
        and saved.claim <= coalesce(asleep_again, saved.claim)
      offset 0
    ) as over
    where wait.name !~ '^\$(sleep|retry):'
    order by wait.ordinal -- the order of their positions
  );
end;
$$;

-- A task was woken if it became claimable again before the time set by its suspension. Its
-- waits that had ended by then are what woke it.
create or replace function durable._history_wakings(task durable.tasks)
returns setof durable._history_row language sql stable as $$
  select
    woken.at, 'woken', case cardinality(over.waits) when 1 then over.waits[1] end, woken.attempt,
    null::text, null::integer,
    jsonb_build_object('waits', case when cardinality(over.waits) > 1 then over.waits end),
    woken.claim, 3, 0
  from (
    select
      log.claim, log.attempt, log.waits, log.due_at as until,
      case
        when lead(log.claim) over claims = log.claim + 1 and lead(log.attempt) over claims = log.attempt
          then lead(log.due_at) over claims
        when durable._claim_ordinal(task.claim, task.times_claimed) = log.claim
          and task.attempt = log.attempt and task.state = 'pending'
          then task.available_at
      end as at,
      lead(log.claim) over (partition by log.waits is null order by log.claim) as asleep_again
    from durable.claim_log as log
    where log.queue = task.queue and log.task_id = task.task_id
    window claims as (order by log.claim)
  ) as woken
  cross join lateral (
    select durable._waits_over(task.queue, task.task_id, woken.claim, woken.asleep_again, woken.waits)
  ) as over (waits)
  where woken.waits is not null
    and woken.at < coalesce(woken.until, 'infinity');
$$;

-- The prefix of a checkpoint's name, after the $, gives the kind of the call.
create or replace function durable._history_checkpoints(task durable.tasks)
returns setof durable._history_row language sql stable as $$
  select
    case when saved.claim = 0 then task.spawned_at else saved.saved_at end,
    case
      when saved.claim = 0 then 'copied'
      when saved.state = 'timed_out' then 'timed_out'
      when saved.name !~ '^\$' then case saved.state when 'failed' then 'step_failed' else 'step' end
      else case split_part(saved.name, ':', 1)
        when '$sleep' then 'slept' when '$retry' then 'slept' when '$try' then 'try_failed'
        when '$event' then 'event' when '$emit' then 'event_emitted'
        when '$join' then 'joined' when '$first' then 'first_finished'
        when '$send' then 'message_sent' when '$recv' then 'message_received'
        when '$spawn' then 'child_spawned' when '$patch' then 'patched' else 'recorded' end
    end,
    saved.name::text, nullif(saved.attempt, 0), null::text,
    case when saved.name !~ '^\$(?!try:)' and saved.claim > 0 then saved.duration_ms end,
    case
      when saved.claim = 0 then jsonb_build_object('saved_at', saved.saved_at)
      when saved.state = 'failed' then durable._history_error(saved.value::jsonb, false)
      when saved.state = 'done' and saved.name ~ '^\$(spawn|first):' then jsonb_build_object(
        'task_id', saved.value ->> 'task_id', 'queue', saved.value ->> 'queue')
      when saved.name like '$try:%' then case json_typeof(saved.value)
        when 'object' then saved.value::jsonb
        else jsonb_build_object('until', saved.value #>> '{}') end
    end,
    saved.claim, case when saved.claim = 0 then -1 else 1 end, saved.position
  from durable.checkpoints as saved
  where saved.queue = task.queue and saved.task_id = task.task_id;
$$;

create or replace function durable._history_waits(task durable.tasks)
returns setof durable._history_row language sql stable as $$
  select
    null::timestamptz, 'waiting', waits.name::text, null::integer, null::text, null::integer,
    jsonb_build_object('event', waits.event_name, 'topic', waits.topic,
      'task_ids', to_jsonb(waits.task_ids), 'queues', to_jsonb(waits.task_queues),
      'any_of', waits.any_of, 'until', waits.expires_at), null::integer, 4, waits.position
  from durable.waits
  where waits.queue = task.queue and waits.task_id = task.task_id and task.finished_at is null;
$$;

create or replace function durable.task_timeline(
  queue text, task_id uuid, depth integer default 2, after timestamptz default null,
  page_size integer default 100
) returns setof durable.timeline_entry language plpgsql stable as $$
declare
  _root durable.tasks := durable._known_task(queue, task_id);
begin
  perform durable._check_page_size(page_size);
  return query
    with recursive family as (
      select
        0 as level, _root.queue collate "C" as queue, _root.task_id as task_id,
        null::uuid as parent_task_id, _root.name collate "C" as name
      union all
      select
        family.level + 1, child.child_queue collate "C", (child.child).task_id,
        family.task_id, (child.child).name collate "C"
      from family
      cross join lateral (
        select *
        from durable.list_children(family.queue, family.task_id, page_size)
      ) as child
      where family.level < depth
    )
    select
      member.queue::text, member.task_id, member.level, member.parent_task_id, member.name::text,
      entry.at, entry.kind, entry.name, entry.attempt, entry.worker, entry.duration_ms,
      entry.detail
    from (select * from family limit page_size + 1) as member
    cross join lateral durable.task_history(member.queue, member.task_id) with ordinality
      as entry (at, kind, name, attempt, worker, duration_ms, detail, place)
    where (entry.at <= after) is not true
    order by member.level, member.task_id, entry.place;
end;
$$;

comment on function durable.task_timeline is
'Returns the history of a task and those of its descendants down to depth (0: none), of at most
page_size of them, in one call: the task''s own first, then level by level, each as task_history
returns it. after: only entries since then, and those without a time, so a live page asks again
with the last time that it has seen. Descendants in queues that the caller may not use are left
out. Refuses an unknown queue (WFQUE), an unknown task (WFNFD) and a bad page_size (22023).';

create or replace function durable.export_history(queue text, task_id uuid)
returns json language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks := durable._known_task(queue, task_id);
begin
  return json_build_object(
    'version', 1, 'queue', queue, 'task_id', task_id, 'name', _task.name,
    'params', _task.params, 'headers', coalesce(_task.headers, '{}'), 'attempt', _task.attempt,
    'checkpoints', (
      select coalesce(json_agg(json_build_object(
        'name', saved.name, 'position', saved.position, 'after', saved.after, 'state', saved.state,
        'value', saved.value, 'attempt', saved.attempt, 'order', saved.ordinal
      ) order by saved.position, saved.after, saved.name), '[]')
      from (
        select
          checkpoints.*,
          row_number() over (order by claim, saved_at, xmin::text::bigint, position) as ordinal
        from durable.checkpoints
        where checkpoints.queue = _queue and checkpoints.task_id = export_history.task_id
      ) as saved
    ));
end;
$$;

comment on function durable.export_history is
'Returns a task with its checkpoints, to replay it elsewhere: {"version": 1, "queue",
"task_id", "name", "params", "headers", "attempt", "checkpoints": [{"name", "position",
"after", "state", "value", "attempt", "order"}, ...]}. Checkpoints are sorted by position,
order is that in which they were saved; values are exactly as written. Refuses an unknown
queue (WFQUE) and an unknown task (WFNFD).';
