-- Explains why a task is late: what it waits for, and what keeps a worker from claiming it.
--
-- Each private function looks at one subject and returns the reasons that it finds, in words
-- and as facts. explain_task returns them in the order in which they have to be removed. A new
-- reason is a new function, or a new row of one, and a line in explain_task's comment. Counts
-- are bounded, so a long queue does not make the answer slow.

create or replace function durable.explain_task(queue text, task_id uuid)
returns setof durable.explanation language plpgsql stable as $$
declare
  _task durable.tasks := durable._known_task(queue, task_id);
  _now timestamptz := durable._now();
begin
  if _task.finished_at is not null then
    return query select * from durable._explain_end(_task);
    return;
  end if;
  return query select * from durable._explain_claim(_task, _now);
  return query select * from durable._explain_waits(_task, _now);
  return query select * from durable._explain_delay(_task, _now);
  return query select * from durable._explain_limit(_task, _now);
  if _task.state <> 'running' then
    return query select * from durable._explain_pause(_task);
    return query select * from durable._explain_workers(_task, _now);
    return query select * from durable._explain_version(_task, _now);
  end if;
  return query select * from durable._explain_lock(_task);
  return query select * from durable._explain_deferred(_task);
  return query select * from durable._explain_queue_limits(_task, _now);
  return query select * from durable._explain_partition_limits(_task, _now);
  return query select * from durable._explain_partition_order(_task, _now);
  return query select * from durable._explain_place(_task, _now);
end;
$$;

comment on function durable.explain_task is
'Explains why a task has not finished, or not started: the reasons, in the order in which they
have to be removed. kind is one of

- completed, failed, cancelled: it has finished.
- running: a worker holds it; lease_expired: that worker may have died.
- event, message, tasks, sleep: it waits for this, one row for each wait.
- retry: its last attempt failed, the next one starts later; delayed: it starts later;
  released: a worker has released it until then.
- expired: a limit has passed, maintenance cancels it; expires_first: its limit comes before
  the time from which it may be claimed.
- queue_paused, name_paused: see pause_queue.
- no_worker: no worker of the queue was seen within the last minute (see announce_worker);
  unknown_name: none of them knows its name; no_version: none has a version that may claim it.
- locked: an open transaction of another session has locked its row.
- deferred: work for it was deferred, which maintenance does.
- concurrency, rate: the queue''s limit; partition_concurrency, partition_rate: that of its
  partition. It can be claimed once a task has ended, or from the time that a rate opens.
- partition_order: another task of its partition has to end first: task_id, in this state.
- queued: it can be claimed now; ahead, running: how many tasks of its name come before it and
  how many of the queue are running, at most 1,000.

detail has the facts of the message. Refuses an unknown queue (WFQUE) and an unknown task
(WFNFD).';

create or replace function durable._readable_time(at timestamptz)
returns text language sql stable as $$
  select to_char(at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"');
$$;

create or replace function durable._explain_end(task durable.tasks)
returns setof durable.explanation language sql stable as $$
  select
    task.state::text,
    format('%s at %s%s', task.state, durable._readable_time(task.finished_at),
      ' with ' || (task.error ->> 'type')),
    jsonb_build_object('finished_at', task.finished_at) || case when task.error is null then '{}'
      else jsonb_strip_nulls(durable._history_error(task.error, task.state = 'cancelled')) end;
$$;

-- The time of a claim is known of a first claim, and of others if the queue's history is full.
create or replace function durable._explain_claim(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    'running',
    format('worker "%s" runs attempt %s%s', task.worker, task.attempt,
      ' since ' || durable._readable_time(claimed.at)),
    jsonb_strip_nulls(jsonb_build_object('worker', task.worker, 'attempt', task.attempt,
      'since', claimed.at, 'lease_expires_at', task.lease_expires_at))
  from (
    select case
      when task.times_claimed is null then task.started_at
      else (
        select claim_log.at
        from durable.claim_log
        where claim_log.queue = task.queue and claim_log.task_id = task.task_id
          and claim_log.claim = durable._claim_ordinal(task.claim, task.times_claimed))
    end
  ) as claimed (at)
  where task.state = 'running'
  union all
  select
    'lease_expired',
    format('its lease ended at %s: unless worker "%s" extends it, maintenance takes the task back',
      durable._readable_time(task.lease_expires_at), task.worker),
    jsonb_build_object('lease_expires_at', task.lease_expires_at)
  where task.state = 'running' and task.lease_expires_at <= at;
$$;

-- Returns how many tasks of a wait have not finished, counted up to 1,000, and the first 20.
-- watched: those after it have finished.
create or replace function durable._unfinished(wait durable.waits)
returns table (number bigint, tasks jsonb) language sql stable as $$
  select
    count(*), coalesce(jsonb_agg(live.facts order by live.place) filter (where live.place <= 20), '[]')
  from (
    select row_number() over () as place, jsonb_build_object(
      'task_id', found.task_id, 'queue', found.queue,
      'name', case when queues.roles is null or durable._may_use(queues.roles) then found.name end,
      'state', case when queues.roles is null or durable._may_use(queues.roles) then found.state end
    ) as facts
    from (select coalesce(wait.watched, cardinality(wait.task_ids))) as watched (number)
    cross join lateral unnest(wait.task_ids[1:watched.number], wait.task_queues[1:watched.number])
      as target (task_id, queue)
    cross join lateral (
      select tasks.task_id, tasks.queue, tasks.name, tasks.state
      from durable.tasks
      where tasks.queue = coalesce(target.queue, wait.queue) collate "C"
        and tasks.task_id = target.task_id and tasks.finished_at is null
      offset 0
    ) as found
    join durable.queues on queues.queue = found.queue
    limit 1000
  ) as live;
$$;

-- A task that can be claimed was woken by one of its waits, and one with an error sleeps until
-- its next attempt, so the waits that are left are not the reason.
create or replace function durable._explain_waits(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    case
      when waits.event_name is not null then 'event'
      when waits.topic is not null then 'message'
      when waits.task_ids is not null then 'tasks'
      else 'sleep'
    end,
    case
      when event.emitted_at is not null
        then format('the event "%s" was emitted: it is about to be woken', waits.event_name)
      when unfinished.number = 0 then 'the tasks that it waits for have finished: it is about to be woken'
      else concat(case
        when waits.event_name is not null then format('waits for the event "%s"', waits.event_name)
        when waits.topic is not null then format('waits for a message of the topic "%s"', waits.topic)
        when waits.task_ids is null then 'sleeps'
        when waits.any_of then format('waits for the first of %s tasks', cardinality(waits.task_ids))
        else format('waits for tasks, %s of %s have not finished: %s', unfinished.number,
          cardinality(waits.task_ids), unfinished.tasks -> 0 ->> 'task_id')
      end, ' until ' || durable._readable_time(waits.expires_at))
    end,
    jsonb_strip_nulls(jsonb_build_object('name', waits.name, 'event', waits.event_name,
      'emitted_at', event.emitted_at, 'topic', waits.topic, 'unfinished', unfinished.number,
      'tasks', unfinished.tasks, 'any_of', waits.any_of, 'until', waits.expires_at))
  from durable.waits
  left join lateral (
    select events.emitted_at
    from durable.events
    where events.queue = waits.queue and events.name = waits.event_name
    offset 0
  ) as event on true
  left join lateral durable._unfinished(waits) as unfinished on waits.task_ids is not null
  where waits.queue = task.queue and waits.task_id = task.task_id
    and task.error is null and (task.available_at <= at) is not true
  order by waits.position, waits.name;
$$;

create or replace function durable._explain_delay(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    late.kind,
    format(case late.kind
      when 'retry' then 'its last attempt failed with %2$s; the next one starts at %1$s'
      when 'delayed' then 'starts at %1$s at the earliest'
      else 'was released, and can be claimed from %1$s on'
    end, durable._readable_time(task.available_at), coalesce(task.error ->> 'type', 'an error')),
    jsonb_build_object('until', task.available_at)
      || case when task.error is null then '{}' else durable._history_error(task.error, false) end
  from (
    select case
      when task.error is not null then 'retry'
      when task.started_at is null then 'delayed'
      else 'released'
    end
  ) as late (kind)
  where task.available_at > at
    and (task.error is not null or not exists (
      select from durable.waits where waits.queue = task.queue and waits.task_id = task.task_id));
$$;

create or replace function durable._explain_limit(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    case when task.expires_at <= at then 'expired' else 'expires_first' end,
    format(case when task.expires_at <= at
      then 'its %s passed at %s: maintenance cancels it'
      else 'its %s ends at %s, before it may be claimed: it is cancelled then'
    end, durable._limit(task), durable._readable_time(task.expires_at)),
    jsonb_build_object('limit', durable._limit(task), 'expires_at', task.expires_at)
  where task.expires_at <= at
    or task.state <> 'running' and task.expires_at <= task.available_at;
$$;

create or replace function durable._explain_pause(task durable.tasks)
returns setof durable.explanation language sql stable as $$
  select
    paused.kind,
    format('%s been paused since %s by role %s%s', paused.what, durable._readable_time(paused.at),
      paused.by ->> 'user', ' for ' || (paused.by -> 'identity')::text),
    jsonb_build_object('since', paused.at, 'by', paused.by)
  from durable.queues
  cross join lateral (
    values
      (1, 'queue_paused', 'its queue has', queues.paused_at, queues.paused_by),
      (2, 'name_paused', format('tasks named "%s" have', task.name),
        (queues.paused_names -> task.name ->> 'at')::timestamptz,
        queues.paused_names -> task.name -> 'by')
  ) as paused (place, kind, what, at, by)
  where queues.queue = task.queue and paused.at is not null
  order by paused.place;
$$;

-- A name is unknown if no live worker knows it; without a live worker, if none has ever known it.
create or replace function durable._explain_workers(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  with alive as (
    select worker_sessions.names
    from durable.worker_sessions
    where worker_sessions.queue = task.queue and durable._is_alive(worker_sessions.seen_at, at)
  )
  select
    'no_worker', 'no worker of its queue was seen within the last minute',
    jsonb_build_object('queue', task.queue)
  where task.available_at <= at and not exists (select from alive)
  union all
  select
    'unknown_name',
    format('no worker knows a task named "%s"%s', task.name,
      '; the last one was announced at ' || durable._readable_time(known.announced_at)),
    jsonb_strip_nulls(jsonb_build_object('name', task.name, 'announced_at', known.announced_at))
  from (
    select max(definitions.announced_at)
    from durable.definitions
    where definitions.queue = task.queue and definitions.name = task.name
  ) as known (announced_at)
  where not exists (select from alive where task.name = any (alive.names))
    and (known.announced_at is null or exists (select from alive));
$$;

create or replace function durable._explain_version(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    'no_version',
    format('only workers of version "%s" may claim it, and none is alive%s', needed.version,
      '; one was last seen at ' || durable._readable_time(session.seen_at)),
    jsonb_strip_nulls(jsonb_build_object('version', needed.version, 'last_seen_at', session.seen_at))
  from durable.queues
  cross join lateral (
    select task.version as version
    where task.version <> ''
    union all
    (select versions.version
    from durable.versions
    where task.version = '' and queues.versions = 'gate' and versions.queue = task.queue
    order by versions.promoted_at desc, versions.version desc
    limit 1)
  ) as needed (version)
  cross join lateral (
    select max(worker_sessions.seen_at)
    from durable.worker_sessions
    where worker_sessions.queue = task.queue and worker_sessions.version = needed.version
  ) as session (seen_at)
  where queues.queue = task.queue and queues.versions is not null
    and durable._is_alive(session.seen_at, at) is not true;
$$;

-- The transaction that has locked or changed a row is its xmax, as long as it is the only one;
-- several that share a lock are not found.
create or replace function durable._explain_lock(task durable.tasks)
returns setof durable.explanation language sql stable as $$
  select
    'locked',
    case
      when pg_locks.pid is null then 'a prepared transaction has locked its row'
      else format('an open transaction has locked its row: session %s%s', pg_locks.pid,
        ' since ' || durable._readable_time(session.xact_start))
    end,
    jsonb_strip_nulls(jsonb_build_object('pid', pg_locks.pid, 'since', session.xact_start,
      'application_name', session.application_name))
  from durable.tasks
  join pg_locks on pg_locks.transactionid = tasks.xmax
  left join pg_stat_activity as session on session.pid = pg_locks.pid
  where tasks.queue = task.queue and tasks.task_id = task.task_id
    and pg_locks.locktype = 'transactionid' and pg_locks.mode = 'ExclusiveLock' and pg_locks.granted
    and pg_locks.pid is distinct from pg_backend_pid();
$$;

create or replace function durable._explain_deferred(task durable.tasks)
returns setof durable.explanation language sql stable as $$
  select
    'deferred', 'work for it was deferred, because rows were locked: maintenance does it',
    jsonb_build_object('kinds', jsonb_agg(distinct deferred.kind))
  from (
    select deferred_work.kind
    from durable.deferred_work
    where deferred_work.queue = task.queue and deferred_work.task_id = task.task_id
    limit 100
  ) as deferred
  having count(*) > 0;
$$;

create or replace function durable._bounded_text(number bigint)
returns text language sql immutable as $$
  select case when number < 1000 then number::text else '1,000 or more' end;
$$;

-- Whether the next claim of a task continues its attempt, which no rate limits.
create or replace function durable._resumes(task durable.tasks)
returns boolean language sql immutable as $$
  select task.started_at is not null and task.error is null;
$$;

create or replace function durable._explain_place(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    'queued',
    format('can be claimed since %s; tasks of its name before it: %s; running in the queue: %s',
      durable._readable_time(task.available_at), durable._bounded_text(ahead.number),
      durable._bounded_text(running.number)),
    jsonb_build_object('since', task.available_at, 'ahead', ahead.number, 'running', running.number)
  from (
    select count(*)
    from (
      (
        select
        from durable.tasks
        where tasks.queue = task.queue and tasks.name = task.name and tasks.version = task.version
          and tasks.available_at is not null
          and tasks.partition_key is null
          and task.partition_key is null
          and (tasks.available_at, tasks.task_id) < (task.available_at, task.task_id)
        order by tasks.available_at, tasks.task_id
        limit 1000
      )
      union all
      ( -- in its lane, which takes turns with others
        select
        from durable.tasks
        where tasks.queue = task.queue and tasks.name = task.name and tasks.version = task.version
          and tasks.partition_key = task.partition_key
          and tasks.priority = task.priority
          and (tasks.started_at is not null and tasks.error is null) = durable._resumes(task)
          and tasks.available_at is not null
          and tasks.partition_key is not null
          and (tasks.available_at, tasks.task_id) < (task.available_at, task.task_id)
        order by tasks.available_at, tasks.task_id
        limit 1000
      )
    ) as earlier
  ) as ahead (number)
  cross join (
    select count(*)
    from (
      select
      from durable.tasks
      where tasks.queue = task.queue and tasks.lease_expires_at > at
      order by tasks.lease_expires_at
      limit 1000
    ) as leased
  ) as running (number)
  where task.available_at <= at;
$$;

create or replace function durable._explain_queue_limits(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    case when room.slots <= 0 then 'concurrency' else 'rate' end,
    case
      when room.slots <= 0
        then format('%s tasks of the queue are running, as many as may', queues.concurrency)
      else format('%s attempts have begun within %s s, as many as may: the next one from %s',
        queues.rate_starts, queues.rate_period, durable._readable_time(room.opens_at))
    end,
    jsonb_strip_nulls(case
      when room.slots <= 0 then jsonb_build_object('concurrency', queues.concurrency)
      else jsonb_build_object('starts', queues.rate_starts, 'period', queues.rate_period,
        'until', room.opens_at) end)
  from durable.queues
  cross join lateral durable._queue_room(queues, at) as room
  where queues.queue = task.queue
    and task.partition_key is not null
    and task.available_at <= at
    and (room.slots <= 0 or room.starts <= 0 and not durable._resumes(task));
$$;

create or replace function durable._explain_partition_limits(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    case when lane.opens_at is null then 'partition_concurrency' else 'partition_rate' end,
    case
      when lane.opens_at is null
        then format('as many tasks of the partition "%s" are running as may', task.partition_key)
      else format('as many attempts of the partition "%s" have begun as may: the next one from %s',
        task.partition_key, durable._readable_time(lane.opens_at))
    end,
    jsonb_strip_nulls(jsonb_build_object(
      'partition_key', task.partition_key,
      'until', lane.opens_at,
      'running', case when lane.opens_at is null then (
        select jsonb_agg(holder.task_id)
        from (
          select tasks.task_id
          from durable.tasks
          where tasks.queue = task.queue and tasks.partition_key = task.partition_key
            and tasks.state = 'running' and tasks.partition_key is not null
            and tasks.started_at is not null and tasks.finished_at is null
          limit 10
        ) as holder
      ) end))
  from durable.queues
  cross join lateral unnest(durable._with_room(queues, array[
      durable._lane_of(task)],
    durable._resumes(task), at)) as lane
  where queues.queue = task.queue
    and task.partition_key <> ''
    and task.available_at <= at
    and lane.free <= 0;
$$;

-- A task that has started holds its partition itself.
create or replace function durable._explain_partition_order(task durable.tasks, at timestamptz)
returns setof durable.explanation language sql stable as $$
  select
    'partition_order',
    format(case when first.started_at is null
      then 'task %s of the partition "%s" comes before it'
      else 'task %s of the partition "%s" has started, and has to end first: it is %s' end,
      first.task_id, task.partition_key, first.state),
    jsonb_build_object(
      'partition_key', task.partition_key, 'task_id', first.task_id, 'state', first.state)
  from durable.queues
  cross join lateral durable._next_in_partition(task.queue, durable._lane_of(task), at) as next
  cross join lateral (
    select coalesce(
      durable._holder_of_partition(task.queue, task.partition_key), next.task_id) as task_id
    offset 0
  ) as known
  cross join lateral (
    select tasks.task_id, tasks.state, tasks.started_at
    from durable.tasks
    where tasks.queue = task.queue and tasks.task_id = known.task_id
    offset 0
  ) as first
  where queues.queue = task.queue
    and queues.partition_order = 'strict'
    and task.partition_key <> ''
    and task.started_at is null
    and task.available_at <= at
    and first.task_id <> task.task_id;
$$;
