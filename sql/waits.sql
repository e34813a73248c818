-- Waiting: a task that waits holds no worker.
--
-- A run leaves by one statement that registers everything it waits for and ends its
-- claim. A wait row stays until its own wait is over, with the deadline it got first.
-- The task is claimable again when any of its waits is over; turning that into a
-- checkpoint is left to whoever holds the task next (load_checkpoints), so that an
-- emitter or a finishing child never writes into a stranger's history.
--
-- Lock order: the events' rows by name, the mailboxes by task and topic, then own rows
-- ascending; watched tasks are only tried.

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
"waits": [{"name", "event" or "task_ids" or "topic" or none, "seconds" or "until",
"position", "after"}, ...]}, ...]; seconds from now, or until when, is how long it
sleeps, or how long it waits at most. queues, beside task_ids, says where each of those
tasks is (null: in this queue); any_of: true waits for the first of them, whose
{"task_id", "state"} is the value. withdrawn, beside waits, [{"name", "topic", "position"},
...], are waits that it has given up since: they are forgotten first, and a message that
one has been given under this claim is there again. If any of a task''s waits is over already
the task is not suspended: those come back as resolved checkpoints and it goes on. Else
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


-- All of it set by set: what a batch costs does not grow with the calls in it.
create or replace function durable._await_all(queue text, tasks json, leave boolean)
returns setof durable.wait_outcome
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _resolved durable.wait_outcome[];
  _goes_on uuid[];
  _asleep integer;
  _is_logged boolean := durable._claim_policy(_queue) = 'full';
begin
  perform durable._check_waits(tasks, leave);
  perform durable._meet_emitters(_queue, tasks);
  perform durable._lock_each(_queue, array[tasks]);
  perform durable._withdraw(_queue, tasks);
  perform durable._register(_queue, tasks, _now);
  perform durable._settle(_queue, tasks, _now);
  _resolved := durable._resolved(_queue, tasks);
  _goes_on := array(select distinct resolved.task_id from unnest(_resolved) as resolved);
  if leave then
    _asleep := durable._fall_asleep(_queue, tasks, _goes_on);
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
        when cardinality(_goes_on) + _asleep = json_array_length(tasks) then 'suspended'
        else durable._wait_outcome(_queue, own.task_id, own.claim, leave)
      end,
      null, null, null
    from json_to_recordset(tasks) as own (task_id uuid, claim integer)
    where own.task_id <> all (_goes_on);
end;
$$;


create or replace function durable._check_waits(tasks json, leave boolean)
returns void
language plpgsql
stable
as $$
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
returns void
language plpgsql
stable
as $$
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


-- Where waiting tasks and emitters meet: from here to the commit nobody emits these
-- events, or sends these messages. A row that pruning has taken meanwhile is made again.
create or replace function durable._meet_emitters(queue text, tasks json)
returns void
language plpgsql
as $$
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
    from json_to_recordset(tasks) as own (task_id uuid, waits json)
    cross join lateral json_to_recordset(own.waits) as wait (event text, topic text)
    where wait.event is not null or wait.topic is not null
    order by 1, 2, 3 -- events, then those of no event
  loop
    if _topic is not null then
      perform durable._meet_senders(_queue, _receiver, _topic);
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


-- A suspension whose answer was lost is repeated: the claim is over, as it said.
create or replace function durable._wait_outcome(queue text, task_id uuid, claim integer, leave boolean)
returns text
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  if not leave then
    return case when durable._hold(_queue, task_id, claim) then 'waiting'
      else durable._refusal(_queue, task_id, claim) end;
  end if;
  perform from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _wait_outcome.task_id
    and tasks.claim = _wait_outcome.claim + 1
    and tasks.state in ('sleeping', 'pending')
    and tasks.error is null;
  return case when found then 'suspended' else durable._refusal(_queue, task_id, claim) end;
end;
$$;


-- What is not registered yet, of the tasks whose claims hold; the caller has locked them,
-- here and below, so that nobody else writes their waits.
create or replace function durable._register(queue text, tasks json, at timestamptz)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.waits (
    queue, task_id, name, position, after, deadline_at, event_name, task_ids, topic,
    task_queues, any_of
  )
  select distinct on (own.task_id, wait.name)
    _queue, own.task_id, wait.name, coalesce(wait.position, 0), coalesce(wait.after, 0),
    coalesce(wait.until, at + make_interval(secs => wait.seconds)), wait.event, wait.task_ids,
    wait.topic, wait.queues, wait.any_of
  from json_to_recordset(tasks) as own (task_id uuid, claim integer, waits json)
  cross join lateral (
    select
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
      and own.claim % 2 = 1
    offset 0
  ) as task
  cross join lateral json_to_recordset(own.waits) as wait (
    name text, position integer, after integer, event text, task_ids uuid[],
    seconds double precision, until timestamptz, topic text, queues text[], any_of boolean
  )
  cross join lateral (
    select count(*) as times
    from durable.checkpoints
    where checkpoints.queue = _queue
      and checkpoints.task_id = own.task_id
      and checkpoints.name = wait.name collate "C"
    offset 0
  ) as saved
  cross join lateral (
    select count(*) as times
    from durable.waits
    where waits.queue = _queue
      and waits.task_id = own.task_id
      and waits.name = wait.name collate "C"
    offset 0
  ) as registered
  where saved.times + registered.times = 0
  order by own.task_id, wait.name;
end;
$$;


create or replace function durable._resolved(queue text, tasks json)
returns durable.wait_outcome[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select row(own.task_id, 'resolved', saved.name, saved.state, saved.value)::durable.wait_outcome
    from json_to_recordset(tasks) as own (task_id uuid, claim integer, waits json)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
        and own.claim % 2 = 1
      offset 0
    ) as task
    cross join lateral json_to_recordset(own.waits) as wait (name text)
    cross join lateral (
      select checkpoints.name, checkpoints.state, checkpoints.value
      from durable.checkpoints
      where checkpoints.queue = _queue
        and checkpoints.task_id = own.task_id
        and checkpoints.name = wait.name collate "C"
      offset 0
    ) as saved
  );
end;
$$;


-- Ends the claims of those that do not go on; returns how many.
create or replace function durable._fall_asleep(queue text, tasks json, goes_on uuid[])
returns integer
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _until timestamptz[];
  _waits bigint[];
begin
  select array_agg(task.ctid), array_agg(waiting.until), array_agg(waiting.times)
  into _places, _until, _waits
  from json_to_recordset(tasks) as own (task_id uuid, claim integer)
  cross join lateral (
    select tasks.ctid
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
      and own.claim % 2 = 1
    offset 0
  ) as task
  cross join lateral (
    select count(*) as times, min(waits.deadline_at) as until
    from durable.waits
    where waits.queue = _queue and waits.task_id = own.task_id
    offset 0
  ) as waiting
  where own.task_id <> all (goes_on);
  if _places is null then
    return 0;
  elsif 0 = any (_waits) then
    perform durable._refuse_argument('a task would wait for nothing', 'Pass what it waits for.');
  end if;
  perform durable._set_watches(_queue, tasks, goes_on);
  return durable._suspend_at(_queue, _places, _until);
end;
$$;


-- Every watch is set anew: a task that is awake is passed over by those it waits for,
-- and one that had finished may have been tried again. Where none can be set, what has
-- happened since the waits were looked at is left to a note.
create or replace function durable._set_watches(queue text, tasks json, goes_on uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _wait durable.waits;
  _watch text;
begin
  for _wait in
    select wait.*
    from json_to_recordset(tasks) as own (task_id uuid, claim integer)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
        and own.claim % 2 = 1
      offset 0
    ) as task
    cross join lateral (
      select *
      from durable.waits
      where waits.queue = _queue and waits.task_id = own.task_id and waits.task_ids is not null
      offset 0
    ) as wait
    where own.task_id <> all (goes_on)
  loop
    _wait.target_task_id := null;
    _wait.watched := null;
    _watch := case when _wait.any_of then durable._watch_each(_wait, true) else durable._watch(_wait) end;
    if _watch <> 'watched' then
      perform durable._leave_note(_queue, 'waiter', _wait.task_id);
    end if;
  end loop;
end;
$$;


-- As in _take: without an index to walk, by place is the one way.
create or replace function durable._suspend_at(queue text, places tid[], until timestamptz[])
returns integer
language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off
as $$
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
