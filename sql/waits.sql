-- Waiting: a task that waits holds no worker.
--
-- A run leaves by one statement that registers everything it waits for and ends its
-- claim. A wait row stays until its own wait is over, with the deadline it got first.
-- The task is claimable again when any of its waits is over; turning that into a
-- checkpoint is left to whoever holds the task next (load_checkpoints), so that an
-- emitter or a finishing child never writes into a stranger's history.
--
-- Lock order: the events' rows by name, then own rows ascending; watched tasks are
-- only tried.

create or replace function durable.suspend_tasks(queue text, tasks json)
returns setof durable.wait_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query select * from durable._await_all(queue, tasks, true);
end;
$$;

comment on function durable.suspend_tasks is
'Registers all that tasks wait for and ends their claims. tasks: [{"task_id", "claim",
"waits": [{"name", "event" or "task_ids" or neither, "seconds" or "until",
"position", "after"}, ...]}, ...]; seconds from now, or until when, is how long it
sleeps, or how long it waits at most. If any of a task''s waits is over already the
task is not suspended: those come back as resolved checkpoints and it goes on. Else
one row with the outcome suspended, cancelled or lost.';


create or replace function durable.poll_waits(queue text, tasks json)
returns setof durable.wait_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query select * from durable._await_all(queue, tasks, false);
end;
$$;

comment on function durable.poll_waits is
'As suspend_tasks, but the tasks stay with their worker: registers what they wait for,
so that deadlines count from now, and returns what is over (resolved) or one row with
the outcome waiting.';


create or replace function durable._await_one(queue text, task_id uuid, claim integer, wait json)
returns durable.wait_outcome
language plpgsql
as $$
declare
  _outcome durable.wait_outcome;
begin
  select * into _outcome
  from durable._await_all(queue, json_build_array(json_build_object(
    'task_id', task_id, 'claim', claim, 'waits', json_build_array(wait))), true);
  if _outcome.outcome in ('cancelled', 'lost') then
    perform durable._refuse_claim(queue, task_id, claim);
  end if;
  return _outcome;
end;
$$;


create or replace function durable.sleep_until(
  queue text, task_id uuid, claim integer, name text, until timestamptz
)
returns durable.wait_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
  select durable._await_one(queue, task_id, claim, json_build_object('name', name, 'until', until));
$$;

comment on function durable.sleep_until is
'Suspends a task until then and ends its claim; resolved if it is past already. Refuses
a claim that is over: WFCAN, WFLST.';


create or replace function durable.await_event(
  queue text, task_id uuid, claim integer, name text, event text,
  timeout double precision default null
)
returns durable.wait_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
  select durable._await_one(queue, task_id, claim,
    json_build_object('name', name, 'event', event,
      'seconds', case when event is not null then timeout end));
$$;

comment on function durable.await_event is
'Suspends a task until an event is emitted, or for timeout seconds, and ends its claim;
resolved, with the payload, if it was emitted already. Refuses a claim that is over:
WFCAN, WFLST.';


create or replace function durable.await_tasks(
  queue text, task_id uuid, claim integer, name text, task_ids uuid[],
  timeout double precision default null
)
returns durable.wait_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
  select durable._await_one(queue, task_id, claim,
    json_build_object('name', name, 'task_ids', task_ids,
      'seconds', case when task_ids is not null then timeout end));
$$;

comment on function durable.await_tasks is
'Suspends a task until all of these tasks have finished, or for timeout seconds, and
ends its claim; resolved if they have. The value is [{"task_id", "state", "result",
"error"}, ...] in the order given; the state of a task that is gone is not_found.
Refuses a claim that is over: WFCAN, WFLST.';


create or replace function durable._await_all(queue text, tasks json, leave boolean)
returns setof durable.wait_outcome
language plpgsql
as $$
declare
  _now timestamptz := durable._now();
  _own record;
begin
  perform durable._require_queue(queue);
  perform durable._refuse_argument('a task is to be suspended without any wait',
    'Pass what it waits for, or release it.')
  from json_to_recordset(tasks) as own (waits json)
  where leave and coalesce(json_array_length(own.waits), 0) = 0;
  perform durable._check_wait(wait)
  from json_to_recordset(tasks) as own (waits json)
  cross join lateral json_array_elements(own.waits) as wait;
  perform durable._meet_emitters(queue, array(
    select distinct (wait ->> 'event') collate "C"
    from json_to_recordset(tasks) as own (waits json)
    cross join lateral json_array_elements(own.waits) as wait
    where wait ->> 'event' is not null
    order by 1
  ));
  for _own in
    select own.*
    from json_to_recordset(tasks) as own (task_id uuid, claim integer, waits json)
    order by own.task_id
  loop
    if durable._hold(queue, _own.task_id, _own.claim) then
      return query select * from durable._await(queue, _own.task_id, _own.claim, _own.waits, leave, _now);
    else
      return next (_own.task_id, durable._suspension(queue, _own.task_id, _own.claim), null, null, null)
        ::durable.wait_outcome;
    end if;
  end loop;
end;
$$;


create or replace function durable._check_wait(wait json)
returns void
language plpgsql
immutable
as $$
begin
  perform durable._checked_name('name of a wait', wait ->> 'name', 512);
  if wait ->> 'event' is not null then
    perform durable._checked_name('event name', wait ->> 'event', 255);
  elsif coalesce(wait ->> 'task_ids', wait ->> 'seconds', wait ->> 'until') is null then
    perform durable._refuse_argument('a wait for nothing',
      'Pass an event, task_ids, seconds or until.');
  end if;
  if wait ->> 'event' is not null and wait ->> 'task_ids' is not null then
    perform durable._refuse_argument('a wait for an event and for tasks', 'Pass two waits.');
  elsif wait ->> 'until' ~* 'infinity' then
    perform durable._refuse_argument('a wait without end', 'Leave out until, or pass a time.');
  end if;
  perform durable._number('wait', wait::jsonb, 'seconds', 0);
end;
$$;


-- Where waiting tasks and emitters meet: from here to the commit nobody emits these
-- events. A row that pruning has taken meanwhile is made again.
create or replace function durable._meet_emitters(queue text, events text[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _event text collate "C";
begin
  foreach _event in array events loop
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


-- A suspension whose answer was lost is repeated: the claim is over, as it said.
create or replace function durable._suspension(queue text, task_id uuid, claim integer)
returns text
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _suspension.task_id
    and tasks.claim = _suspension.claim + 1
    and tasks.state in ('sleeping', 'pending')
    and tasks.error is null;
  return case when found then 'suspended' else durable._refusal(queue, task_id, claim) end;
end;
$$;


-- One task's waits. The caller holds the task, and the rows of the events.
create or replace function durable._await(
  queue text, task_id uuid, claim integer, waits json, leave boolean, at timestamptz
)
returns setof durable.wait_outcome
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._register(_queue, task_id, waits, at);
  perform durable._settle(_queue, task_id, claim, at);
  return query
    select saved.task_id, 'resolved', saved.name::text, saved.state::text, saved.value
    from json_to_recordset(waits) as wait (name text)
    cross join lateral (
      select *
      from durable.checkpoints
      where checkpoints.queue = _queue
        and checkpoints.task_id = _await.task_id
        and checkpoints.name = wait.name collate "C"
      offset 0
    ) as saved;
  if not found then
    if leave then
      perform durable._fall_asleep(_queue, task_id);
    end if;
    return next (task_id, case when leave then 'suspended' else 'waiting' end, null, null, null)
      ::durable.wait_outcome;
  end if;
end;
$$;


create or replace function durable._register(queue text, task_id uuid, waits json, at timestamptz)
returns void
language plpgsql -- keeps its plan, which a function in SQL makes anew with every call
as $$
begin
  insert into durable.waits (
    queue, task_id, name, position, after, deadline_at, event_name, task_ids
  )
  select
    _register.queue, _register.task_id, wait.name, coalesce(wait.position, 0), coalesce(wait.after, 0),
    coalesce(wait.until, at + make_interval(secs => wait.seconds)), wait.event, wait.task_ids
  from json_to_recordset(_register.waits) as wait (
    name text, position integer, after integer, event text, task_ids uuid[],
    seconds double precision, until timestamptz
  )
  cross join lateral (
    select count(*) as times
    from durable.checkpoints
    where checkpoints.queue = _register.queue collate "C"
      and checkpoints.task_id = _register.task_id
      and checkpoints.name = wait.name collate "C"
    offset 0
  ) as saved
  where saved.times = 0
  on conflict do nothing;
end;
$$;


-- Every watch is set anew: a task that is awake is passed over by those it waits for,
-- and one that had finished may have been tried again. Where none can be set, what has
-- happened since the waits were looked at is left to a note.
create or replace function durable._fall_asleep(queue text, task_id uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _wait durable.waits;
  _waits bigint;
  _until timestamptz;
begin
  for _wait in
    select *
    from durable.waits
    where waits.queue = _queue
      and waits.task_id = _fall_asleep.task_id
      and waits.task_ids is not null
  loop
    _wait.target_task_id := null;
    _wait.watched := null;
    if durable._watch(_wait) <> 'watched' then
      perform durable._leave_note(_queue, 'waiter', task_id);
    end if;
  end loop;
  select count(*), min(waits.deadline_at) into _waits, _until
  from durable.waits
  where waits.queue = _queue and waits.task_id = _fall_asleep.task_id;
  if _waits = 0 then
    perform durable._refuse_argument(format('task %s would wait for nothing', task_id),
      'Pass what it waits for.');
  end if;
  update durable.tasks
  set
    claim = tasks.claim + 1,
    state = 'sleeping',
    available_at = _until,
    lease_expires_at = null
  where tasks.queue = _queue and tasks.task_id = _fall_asleep.task_id;
end;
$$;


-- Turns the waits of a task that are over into checkpoints, if the claim still holds.
create or replace function durable._settle(
  queue text, task_id uuid, claim integer, at timestamptz default durable._now()
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _wait durable.waits;
  _attempt integer;
  _resolution durable._resolution;
begin
  for _wait in
    select *
    from durable.waits
    where waits.queue = _queue and waits.task_id = _settle.task_id
    order by waits.position
  loop
    if _attempt is null then
      select tasks.attempt into _attempt
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = _settle.task_id and tasks.claim = _settle.claim
        and _settle.claim % 2 = 1
      for no key update;
      exit when not found;
    end if;
    _resolution := durable._resolve(_wait, at);
    continue when _resolution.state is null;
    insert into durable.checkpoints (
      task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
    )
    values (
      _wait.task_id, at, _settle.claim, _attempt, _wait.position, _wait.after, 0,
      _resolution.state, _queue, _wait.name, _resolution.value
    )
    on conflict do nothing;
    delete from durable.waits
    where waits.queue = _queue and waits.task_id = _wait.task_id and waits.name = _wait.name;
  end loop;
end;
$$;


-- How a wait has ended; no state: it has not. What happened wins over the deadline.
create or replace function durable._resolve(wait durable.waits, at timestamptz)
returns durable._resolution
language plpgsql
as $$
declare
  _resolution durable._resolution;
begin
  if wait.event_name is not null then
    select 'done'::durable.checkpoint_state, events.payload::json into _resolution
    from durable.events
    where events.queue = wait.queue and events.name = wait.event_name and events.emitted_at is not null;
  elsif wait.task_ids is not null then
    if durable._all_finished(wait.queue, wait.task_ids) then
      _resolution.value := durable._outcomes(wait.queue, wait.task_ids);
      _resolution.state := case when _resolution.value is not null
        then 'done'::durable.checkpoint_state end;
    end if;
  elsif wait.deadline_at <= at then
    _resolution := ('done', to_json(wait.deadline_at));
  end if;
  if _resolution.state is null and wait.deadline_at <= at then
    _resolution := ('timed_out', 'null');
  end if;
  return _resolution;
end;
$$;


create or replace function durable._all_finished(queue text, task_ids uuid[])
returns boolean
language plpgsql
as $$
begin
  return not exists (
    select
    from unnest(task_ids) as wanted (task_id)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _all_finished.queue collate "C"
        and tasks.task_id = wanted.task_id
        and tasks.finished_at is null
      offset 0
    ) as live
  );
end;
$$;


-- Null when one of them is live after all: retry_task may have come between.
create or replace function durable._outcomes(queue text, task_ids uuid[])
returns json
language plpgsql
as $$
begin
  return (
    select coalesce(
      json_agg(json_build_object(
        'task_id', wanted.task_id, 'state', coalesce(task.state::text, 'not_found'),
        'result', task.result, 'error', task.error) order by wanted.ordinal),
      '[]')
    from unnest(task_ids) with ordinality as wanted (task_id, ordinal)
    left join lateral (
      select tasks.state, tasks.result, tasks.error, tasks.finished_at
      from durable.tasks
      where tasks.queue = _outcomes.queue collate "C" and tasks.task_id = wanted.task_id
      offset 0
    ) as task on true
    having coalesce(bool_and(task.state is null or task.finished_at is not null), true)
  );
end;
$$;
