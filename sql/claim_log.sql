-- Logs how each claim began and ended, in queues whose history is full.
--
-- Other queues pay nothing for it: the setting is read with the queue's row, which a call
-- reads anyway. A claim or a suspension is logged by the transaction that writes it. A
-- wake-up is not: it sets the task's available_at, and the log of the next claim contains
-- that time. So waking a task costs the same in every queue.
--
-- `claim` counts a task's claims, so a call that is repeated logs nothing new.

create or replace function durable._checked_history_policy(policy jsonb)
returns text language plpgsql immutable as $$
begin
  if policy not in ('"full"', '"brief"') then
    perform durable._refuse_argument('history in policy is ' || left(policy::text, 40),
      'Pass "full" for one that tells of every claim, or "brief".');
  end if;
  return nullif(policy #>> '{}', 'brief');
end;
$$;

-- Whether the queue's history is full. Refuses a queue as _require_queue does.
create or replace function durable._has_full_history(queue text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _is_full boolean;
begin
  select queues.history = 'full' into _is_full
  from durable.queues
  where queues.queue = _queue and (queues.roles is null or durable._may_use(queues.roles));
  if not found then
    perform durable._require_queue(_queue);
  end if;
  return _is_full;
end;
$$;

-- Logs the claim of tasks that the caller has locked and is about to lease. Reads by ctid: see
-- _lease_by_ctid.
create or replace function durable._log_claimed(
  queue text, places tid[], worker text, at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.claim_log (queue, task_id, claim, attempt, worker, at, due_at)
  select
    _queue, tasks.task_id, durable._claim_ordinal(tasks.claim, tasks.times_claimed) + 1,
    tasks.attempt, _log_claimed.worker, _log_claimed.at, tasks.available_at
  from unnest(places) as place (ctid)
  join durable.tasks on tasks.ctid = place.ctid
  where (tasks.queue = _queue) is true;
end;
$$;

-- Logs those of these tasks that were suspended just now, or in an equal call before.
create or replace function durable._log_suspended(queue text, tasks json, at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.claim_log (queue, task_id, claim, attempt, worker, at, due_at, waits)
  select _queue, own.task_id, asleep.ordinal, asleep.attempt, asleep.worker, at, asleep.available_at,
    array(
      select waits.name
      from durable.waits
      where waits.queue = _queue and waits.task_id = own.task_id
      order by waits.position, waits.name
    )
  from json_to_recordset(tasks) as own (task_id uuid, claim integer)
  cross join lateral (
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt, tasks.worker, tasks.available_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id = own.task_id
      and tasks.claim = own.claim + 1
      and tasks.state = 'sleeping'
      and tasks.error is null
    offset 0
  ) as asleep
  on conflict on constraint claim_log_pkey do nothing;
end;
$$;

-- Logs tasks that the caller has released. The queue's history is only read here, since
-- releases are rare.
create or replace function durable._log_released(queue text, task_ids uuid[], at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.claim_log (queue, task_id, claim, attempt, worker, at, due_at)
  select _queue, released.task_id, task.ordinal, task.attempt, task.worker, at, task.available_at
  from durable.queues
  cross join unnest(task_ids) as released (task_id)
  cross join lateral (
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt, tasks.worker, tasks.available_at
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = released.task_id
    offset 0
  ) as task
  where queues.queue = _queue and queues.history = 'full';
end;
$$;
