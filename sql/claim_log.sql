-- What a full history keeps beside what is kept anyway: how each claim began and ended.
--
-- A queue whose history is not full pays nothing for it: whether it is, is read with what
-- its calls read of it anyway. A claim and a suspension are told by whoever writes them, in
-- the same transaction. A wake-up is not: it leaves the moment in the task's available_at,
-- and the claim that follows tells since when it could be made. So who wakes a task, in
-- its own transaction or in passing, has no more to do than ever.
--
-- `claim` is never the same twice, so a call that is repeated tells nothing anew.

create or replace function durable._checked_history_policy(policy jsonb)
returns text
language plpgsql
immutable
as $$
begin
  if policy not in ('"full"', '"brief"') then
    perform durable._refuse_argument('history in policy is ' || left(policy::text, 40),
      'Pass "full" for one that tells of every claim, or "brief".');
  end if;
  return nullif(policy #>> '{}', 'brief');
end;
$$;


-- As _require_queue, and what a claim or a suspension has to know of the queue: full, if
-- its history is; else its policy of versions; null, as for nearly all of them: nothing.
create or replace function durable._claim_policy(queue text)
returns text
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _roles text[];
  _policy text;
begin
  select queues.roles, coalesce(queues.history, queues.versions) into _roles, _policy
  from durable.queues
  where queues.queue = _queue;
  if _roles is not null and not durable._may_use(_roles) then
    perform durable._refuse_queue(queue);
  elsif not found then
    perform durable._require_queue(queue);
  end if;
  return _policy;
end;
$$;


-- As in claim_tasks, by the queue's policy of versions, if it has one.
create or replace function durable._claim_and_log(
  queue text,
  version text,
  names text[],
  worker text,
  quantity integer,
  at timestamptz,
  lease double precision,
  after_at timestamptz[],
  after_ids uuid[]
)
returns setof durable.claimed_task
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _policy text := durable._version_policy(_queue);
  _version text := case when _policy is not null then version end;
begin
  return query
    with claimed as materialized (
      select * from durable._claim_for_version(_queue, _policy, _version, names, worker, quantity,
        at, lease, after_at, after_ids)
    ),
    logged as (
      insert into durable.claim_log (queue, task_id, claim, attempt, worker, at, due_at)
      select _queue, claimed.task_id, claimed.claim, claimed.attempt, worker, at, claimed.available_at
      from claimed
    )
    select * from claimed;
end;
$$;


-- Those of these that have fallen asleep just now, or in an equal call before.
create or replace function durable._log_suspended(queue text, tasks json, at timestamptz)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.claim_log (queue, task_id, claim, attempt, worker, at, due_at, waits)
  select _queue, own.task_id, asleep.claim, asleep.attempt, asleep.worker, at, asleep.available_at,
    array(
      select waits.name
      from durable.waits
      where waits.queue = _queue and waits.task_id = own.task_id
      order by waits.position, waits.name
    )
  from json_to_recordset(tasks) as own (task_id uuid, claim integer)
  cross join lateral (
    select tasks.claim, tasks.attempt, tasks.worker, tasks.available_at
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


-- What the caller has given back. The queue's policy is only looked at here: nothing is
-- released all day.
create or replace function durable._log_released(queue text, task_ids uuid[], at timestamptz)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.claim_log (queue, task_id, claim, attempt, worker, at, due_at)
  select _queue, released.task_id, task.claim, task.attempt, task.worker, at, task.available_at
  from durable.queues
  cross join unnest(task_ids) as released (task_id)
  cross join lateral (
    select tasks.claim, tasks.attempt, tasks.worker, tasks.available_at
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = released.task_id
    offset 0
  ) as task
  where queues.queue = _queue and queues.history = 'full';
end;
$$;


create or replace function durable._delete_log(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.claim_log where claim_log.queue = _queue and claim_log.task_id = any (task_ids);
end;
$$;
