-- Suspends tasks: a task that waits occupies no worker.
--
-- One statement registers everything that a run waits for and ends its claim. A wait's row
-- stays until that wait ends, with the deadline it got first. The task becomes claimable when
-- any of its waits ends. The worker that claims it next turns the wait into a checkpoint
-- (load_checkpoints), so an emitter or a finishing child never writes another task's history.

create or replace function durable.suspend_tasks(queue text, tasks json)
returns setof durable.wait_outcome language plpgsql as $$
begin
  return query select * from durable._suspend_or_poll(queue, tasks, true);
end;
$$;

comment on function durable.suspend_tasks is
'Registers what tasks wait for and ends their claims. tasks: [{"task_id", "claim", "waits":
[{"name", "position", "after", ...}, ...], "withdrawn": [{"name", "topic", "position"}, ...]},
...]. A wait is for one of

- event: the name of an event.
- task_ids: tasks, all of which must finish, or, with any_of: true, one; its value is then
  {"task_id", "state"}. queues: the queue of each (null: this one).
- topic: a message of this topic.
- none of these: a sleep.

and has a limit, required for a sleep: seconds from now, or until, a time. withdrawn: waits
that the task has given up; they are deleted first, and a message that one was given under
this claim can be received again.

If one of these waits has ended already the task is not suspended: its ended waits are
returned as resolved, with their checkpoints, and it continues. If only a wait that an earlier
call registered has ended, the task is suspended and can be claimed at once. Every other task
has one row: suspended, cancelled or lost. Refuses bad waits (22023). Locks: events and
mailboxes, then the task rows in ascending order; raises 55P03 after waiting 200 ms for one;
watched tasks are tried with SKIP LOCKED.';

create or replace function durable.poll_waits(queue text, tasks json)
returns setof durable.wait_outcome language plpgsql as $$
begin
  return query select * from durable._suspend_or_poll(queue, tasks, false);
end;
$$;

comment on function durable.poll_waits is
'Registers what tasks wait for, as suspend_tasks does, but the tasks stay with their worker.
Deadlines count from now. Returns the waits that have ended (resolved), also those that an
earlier call registered, or one row for the task: waiting, cancelled or lost. Locks: as
suspend_tasks.';

-- Suspends a task for one wait: `kind` is the key of what it waits for.
create or replace function durable._await_one(
  queue text, task_id uuid, claim integer, name text, kind text, awaited json,
  timeout double precision
) returns durable.wait_outcome language plpgsql as $$
declare
  _wait json := json_build_object('name', name, kind, awaited,
    'seconds', case when awaited is not null then timeout end);
  _outcome durable.wait_outcome;
begin
  select * into _outcome
  from durable._suspend_or_poll(queue, json_build_array(json_build_object(
    'task_id', task_id, 'claim', claim, 'waits', json_build_array(_wait))), true);
  if _outcome.outcome in ('cancelled', 'lost') then
    perform durable._refuse_claim(queue, task_id, claim);
  end if;
  return _outcome;
end;
$$;

create or replace function durable.sleep_until(
  queue text, task_id uuid, claim integer, name text, until timestamptz
) returns durable.wait_outcome language sql as $$
  select durable._await_one(queue, task_id, claim, name, 'until', to_json(until), null);
$$;

comment on function durable.sleep_until is
'Suspends a task until a time and ends its claim; resolved if the time has passed. Refuses a
claim that has ended (WFCAN, WFLST). Locks: as suspend_tasks.';

create or replace function durable.await_event(
  queue text, task_id uuid, claim integer, name text, event text,
  timeout double precision default null
) returns durable.wait_outcome language sql as $$
  select durable._await_one(queue, task_id, claim, name, 'event', to_json(event), timeout);
$$;

comment on function durable.await_event is
'Suspends a task until an event is emitted, or for timeout seconds at most, and ends its
claim; resolved, with the payload, if it was emitted already. Refuses a claim that has ended
(WFCAN, WFLST). Locks: as suspend_tasks.';

create or replace function durable.await_tasks(
  queue text, task_id uuid, claim integer, name text, task_ids uuid[],
  timeout double precision default null
) returns durable.wait_outcome language sql as $$
  select durable._await_one(queue, task_id, claim, name, 'task_ids', to_json(task_ids), timeout);
$$;

comment on function durable.await_tasks is
'Suspends a task until all of these tasks have finished, or for timeout seconds at most, and
ends its claim; resolved if they have finished already. The value is [{"task_id", "state",
"result", "error"}, ...] in the order given; the state of a task that does not exist is
not_found. Refuses a claim that has ended (WFCAN, WFLST). Locks: as suspend_tasks.';

create or replace function durable.recv_message(
  queue text, task_id uuid, claim integer, name text, topic text,
  timeout double precision default null
) returns durable.wait_outcome language sql as $$
  select durable._await_one(queue, task_id, claim, name, 'topic', to_json(topic), timeout);
$$;

comment on function durable.recv_message is
'Suspends a task until it is sent a message of this topic, or for timeout seconds at most, and
ends its claim. If a message is there already it resolves the wait with the oldest, which no
other wait then gets. Refuses a claim that has ended (WFCAN, WFLST). Locks: as suspend_tasks.';

-- Works on whole sets: the cost of a batch does not grow with the calls in it. Waits that the
-- tasks have registered before count too, whether the call names them or not: otherwise one
-- could end between two calls and wake nobody.
create or replace function durable._suspend_or_poll(queue text, tasks json, suspends boolean)
returns setof durable.wait_outcome language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _is_logged boolean := durable._has_full_history(_queue);
  _held json := tasks;
  _ended durable.checkpoints[];
  _resolved durable.wait_outcome[];
  _continuing uuid[];
  _suspended integer := 0;
begin
  perform durable._check_waits(tasks, suspends);
  perform durable._lock_event_rows(_queue, tasks);
  if durable._lock_claims(_queue, array[tasks]) < json_array_length(tasks) then
    _held := (
      select coalesce(json_agg(task), '[]')
      from json_array_elements(tasks) as task
      where durable._hold(_queue, (task ->> 'task_id')::uuid, (task ->> 'claim')::integer));
  end if;
  perform durable._withdraw_waits(_queue, _held);
  perform durable._register_waits(_queue, _held, _now);
  _ended := durable._resolve_ended_waits(_queue, _held, _now);
  _resolved := durable._resolved_waits(_queue, _held, case when not suspends then _ended end);
  _continuing := array(select distinct resolved.task_id from unnest(_resolved) as resolved);
  if suspends then
    _suspended := durable._suspend_held(_queue, _held, _continuing);
    if _ended is not null then
      perform durable._wake_all(_queue, array(
        select distinct ended.task_id
        from unnest(_ended) as ended
        where ended.task_id <> all (_continuing)));
    end if;
    if _is_logged then
      perform durable._log_suspended(_queue, tasks, _now);
    end if;
  end if;
  return query
    select * from unnest(_resolved)
    union all
    select
      own.task_id,
      case
        when cardinality(_continuing) + _suspended = json_array_length(tasks) then 'suspended'
        else durable._wait_outcome(_queue, own.task_id, own.claim, suspends)
      end,
      null, null, null
    from json_to_recordset(tasks) as own (task_id uuid, claim integer)
    where own.task_id <> all (_continuing);
end;
$$;

create or replace function durable._check_waits(tasks json, leave boolean)
returns void language plpgsql stable as $$
begin
  perform durable._refuse_argument('a task is to be suspended without any wait',
    'Pass what it waits for, or release it.')
  from json_to_recordset(tasks) as own (waits json)
  where leave and coalesce(json_array_length(own.waits), 0) = 0;
  perform durable._check_wait(wait, own.task_id)
  from json_to_recordset(tasks) as own (task_id uuid, waits json)
  cross join lateral json_array_elements(own.waits) as wait;
end;
$$;

create or replace function durable._check_wait(wait json, task_id uuid)
returns void language plpgsql stable as $$
begin
  perform durable._checked_name('name of a wait', wait ->> 'name', 512);
  if wait ->> 'event' is not null then
    perform durable._checked_name('event name', wait ->> 'event', 255);
  elsif wait ->> 'topic' is not null then
    perform durable._checked_name('topic', wait ->> 'topic', 255);
  elsif coalesce(wait ->> 'task_ids', wait ->> 'seconds', wait ->> 'until') is null then
    perform durable._refuse_argument('a wait for nothing',
      'Pass an event, task_ids, a topic, seconds or until.');
  end if;
  if num_nonnulls(wait ->> 'event', wait ->> 'task_ids', wait ->> 'topic') > 1 then
    perform durable._refuse_argument('a wait for several things', 'Pass a wait for each.');
  elsif wait ->> 'until' ~* 'infinity' then
    perform durable._refuse_argument('a wait without end', 'Leave out until, or pass a time.');
  elsif wait ->> 'task_ids' is not null then
    perform durable._check_awaited(wait, task_id);
  end if;
  perform durable._number('wait', wait::jsonb, 'seconds', 0);
end;
$$;

create or replace function durable._check_awaited(wait json, task_id uuid)
returns void language plpgsql stable as $$
begin
  if position(task_id::text in lower(wait ->> 'task_ids')) > 0 then
    perform durable._refuse_argument(format('task %s would wait for itself', task_id),
      'Pass other tasks.');
  elsif wait ->> 'any_of' = 'true' and json_array_length(wait -> 'task_ids') = 0 then
    perform durable._refuse_argument('a wait for the first of no tasks', 'Pass at least one.');
  elsif wait ->> 'queues' is not null then
    if json_array_length(wait -> 'queues') <> json_array_length(wait -> 'task_ids') then
      perform durable._refuse_argument('a wait has not as many queues as task_ids',
        'Pass one for each, or leave queues out.');
    end if;
    perform durable._checked_queue(awaited.queue)
    from (select distinct json_array_elements_text(wait -> 'queues')) as awaited (queue)
    where awaited.queue is not null;
  end if;
end;
$$;

-- Locks the rows on which waiting tasks and emitters synchronize: until the commit nobody
-- emits these events or sends these messages. A row that pruning has deleted is inserted again.
-- Only the holder of a task writes its waits, so its stored ones can be read before it is locked.
create or replace function durable._lock_event_rows(queue text, tasks json)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _event text collate "C";
  _receiver uuid;
  _topic text collate "C";
begin
  for _event, _receiver, _topic in
    select distinct
      wait.event collate "C", case when wait.topic is not null then own.task_id end,
      wait.topic collate "C"
    from json_to_recordset(tasks) as own (task_id uuid, waits json, withdrawn json)
    cross join lateral (
      select named.event, named.topic
      from json_to_recordset(own.waits) as named (event text, topic text)
      union all
      select waits.event_name, waits.topic
      from durable.waits
      where waits.queue = _queue and waits.task_id = own.task_id and waits.name not in (
        select withdrawn.name collate "C"
        from json_to_recordset(own.withdrawn) as withdrawn (name text))
    ) as wait
    where wait.event is not null or wait.topic is not null
    order by 1, 2, 3 -- events first, then topics
  loop
    if _topic is not null then
      perform durable._lock_mailbox(_queue, _receiver, _topic);
      continue;
    end if;
    loop
      insert into durable.events (queue, name) values (_queue, _event) on conflict do nothing;
      perform from durable.events
      where events.queue = _queue and events.name = _event
      for share;
      exit when found;
    end loop;
  end loop;
end;
$$;

-- A suspension that is repeated, since its answer was lost, is answered as before.
create or replace function durable._wait_outcome(
  queue text, task_id uuid, claim integer, leave boolean
) returns text language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  if not leave then
    return case when durable._hold(_queue, task_id, claim) then 'waiting'
      else durable._refusal(_queue, task_id, claim) end;
  end if;
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _wait_outcome.task_id
    and tasks.claim = _wait_outcome.claim + 1
    and tasks.state in ('sleeping', 'pending') and tasks.error is null;
  return case when found then 'suspended' else durable._refusal(_queue, task_id, claim) end;
end;
$$;

-- Registers the new ones of these waits, and those of earlier calls keep their deadlines. The
-- caller holds these tasks, here and in the functions below, so no other session writes their
-- waits.
create or replace function durable._register_waits(queue text, tasks json, at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.waits (
    queue, task_id, name, position, after, expires_at, event_name, task_ids, topic,
    task_queues, any_of
  )
  select
    _queue, own.task_id, wait.name, coalesce(wait.position, 0), coalesce(wait.after, 0),
    coalesce(wait.until, at + make_interval(secs => wait.seconds)), wait.event, wait.task_ids,
    wait.topic, wait.queues, wait.any_of
  from json_to_recordset(tasks) as own (task_id uuid, waits json)
  cross join lateral json_to_recordset(own.waits) as wait (
    name text, position integer, after integer, event text, task_ids uuid[],
    seconds double precision, until timestamptz, topic text, queues text[], any_of boolean
  )
  cross join lateral (
    select count(*) as times
    from durable.checkpoints
    where checkpoints.queue = _queue and checkpoints.task_id = own.task_id
      and checkpoints.name = wait.name collate "C"
    offset 0
  ) as saved
  where saved.times = 0
  on conflict on constraint waits_pkey do nothing;
end;
$$;

-- Returns those of the named waits that have ended, and these others.
create or replace function durable._resolved_waits(
  queue text, tasks json, others durable.checkpoints[]
) returns durable.wait_outcome[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select row(wait.task_id, 'resolved', saved.name, saved.state, saved.value)::durable.wait_outcome
    from (
      select own.task_id, named.name collate "C" as name
      from json_to_recordset(tasks) as own (task_id uuid, waits json)
      cross join lateral json_to_recordset(own.waits) as named (name text)
      union
      select other.task_id, other.name
      from unnest(others) as other
    ) as wait
    cross join lateral (
      select checkpoints.name, checkpoints.state, checkpoints.value
      from durable.checkpoints
      where checkpoints.queue = _queue and checkpoints.task_id = wait.task_id
        and checkpoints.name = wait.name
      offset 0
    ) as saved
  );
end;
$$;

-- Ends the claims of the tasks that do not continue; returns how many. Sets every watch again: a
-- task that is awake is not woken, and a target that had finished may have been retried. If no
-- watch can be set, a check is deferred, since the target may have finished after the waits
-- were read.
create or replace function durable._suspend_held(queue text, tasks json, continuing uuid[])
returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task_ids uuid[];
  _places tid[];
  _until timestamptz[];
  _keys text[];
  _suspended integer;
begin
  select array_agg(own.task_id), array_agg(task.ctid), array_agg(waiting.until),
    array_agg(task.partition_key) filter (where task.partition_key is not null)
  into _task_ids, _places, _until, _keys
  from json_to_recordset(tasks) as own (task_id uuid)
  cross join lateral (
    select tasks.ctid, tasks.partition_key
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id
    offset 0
  ) as task
  cross join lateral (
    select min(waits.expires_at) as until
    from durable.waits
    where waits.queue = _queue and waits.task_id = own.task_id
    offset 0
  ) as waiting
  where own.task_id <> all (continuing);
  if _places is null then
    return 0;
  end if;
  perform durable._defer(_queue, 'waiter', own.task_id)
  from unnest(_task_ids) as own (task_id)
  cross join lateral (
    select waits as wait
    from durable.waits
    where waits.queue = _queue and waits.task_id = own.task_id and waits.task_ids is not null
    offset 0
  ) as waiting
  where durable._watch(waiting.wait, true) <> 'watched';
  _suspended := durable._suspend_by_ctid(_queue, _places, _until);
  if _keys is not null then
    perform durable._free(_queue, _keys), durable._enlist(_queue, _task_ids);
  end if;
  return _suspended;
end;
$$;

-- Updates by ctid: see _lease_by_ctid.
create or replace function durable._suspend_by_ctid(queue text, places tid[], until timestamptz[])
returns integer language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off as $$
declare
  _queue text collate "C" := queue;
  _suspended integer;
begin
  update durable.tasks
  set
    claim = tasks.claim + 1,
    state = 'sleeping',
    available_at = place.until,
    lease_expires_at = null
  from unnest(places, until) as place (ctid, until)
  where tasks.queue = _queue and tasks.ctid = place.ctid;
  get diagnostics _suspended = row_count;
  return _suspended;
end;
$$;
