-- Claims: who holds a task, and until when.
--
-- Taking a task and letting go of it each add one to its claim, so (queue, task_id,
-- claim) alone tells a holder from a former one. The lease is not checked by writes:
-- after it anybody may take the task, but until somebody does it is the holder's.

create or replace function durable.claim_tasks(
  queue text,
  worker text,
  names text[] default null,
  quantity integer default 1,
  lease double precision default 30,
  after_at timestamptz[] default null,
  after_ids uuid[] default null,
  version text default null
)
returns setof durable.claimed_task
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
  _now timestamptz := durable._now();
  _policy text := durable._claim_policy(_queue);
  _names text[] := coalesce(names, durable._waiting_names(_queue));
  _head record;
  _claimed integer;
  _left integer := quantity;
begin
  perform durable._check_claim(worker, quantity, lease);
  if _policy = 'full' then
    return query
      select * from durable._claim_and_log(_queue, version, names, worker, quantity, _now, lease,
        after_at, after_ids);
    return;
  elsif _policy is not null then
    return query
      select * from durable._claim_for_version(_queue, _policy, version, names, worker, quantity,
        _now, lease, after_at, after_ids);
    return;
  end if;
  for _head in
    select known.name collate "C" as name, known.after_at, known.after_id
    from unnest(_names, after_at, after_ids) as known (name, after_at, after_id)
    cross join lateral (
      select tasks.available_at, tasks.task_id
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = known.name collate "C"
        and tasks.version is null
        and tasks.available_at <= _now
        and (tasks.available_at, tasks.task_id) > (
          coalesce(known.after_at, '-infinity'),
          coalesce(known.after_id, '00000000-0000-0000-0000-000000000000'))
      order by tasks.available_at, tasks.task_id
      limit 1
    ) as first
    order by first.available_at, first.task_id
  loop
    return query
      select * from durable._claim(_queue, _head.name, worker, _left, _now, lease,
        coalesce(_head.after_at, '-infinity'),
        coalesce(_head.after_id, '00000000-0000-0000-0000-000000000000'), null);
    get diagnostics _claimed = row_count;
    _left := _left - _claimed;
    exit when _left = 0;
  end loop;
end;
$$;

comment on function durable.claim_tasks is
'Leases up to quantity due tasks to a worker for lease seconds, and returns them: the
names it knows (null: any), the name whose task has waited longest first, and within
a name oldest first. Never waits for others. Call it last in its transaction and
commit at once. after_at and after_ids, one pair per name, are where the worker''s
last claim of that name ended: a hint that spares it dead rows; it must look from the
beginning (null) now and then, since tasks may appear behind it. version: of the
application that the worker runs; it counts where the queue''s policy says so. Refuses
an unknown queue WFQUE and bad arguments 22023.';


create or replace function durable._check_claim(worker text, quantity integer, lease double precision)
returns void
language plpgsql
immutable
as $$
begin
  perform durable._checked_name('worker', worker, 255);
  if quantity is null or quantity < 0 then
    perform durable._refuse_argument('quantity is ' || coalesce(quantity::text, 'null'),
      'Pass how many tasks to claim at most.');
  end if;
  if lease is null or not lease > 0 or lease > 1e10 then
    perform durable._refuse_argument('lease is ' || coalesce(lease::text, 'null'),
      'Pass a positive number of seconds.');
  end if;
end;
$$;


-- Claims the oldest due tasks of a name that are for no version: locks them where they
-- lie, then takes them all, for one version from now on where one is given.
create or replace function durable._claim(
  queue text,
  name text,
  worker text,
  quantity integer,
  at timestamptz,
  lease double precision,
  after_at timestamptz,
  after_id uuid,
  version text
)
returns setof durable.claimed_task
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _places tid[];
  _waited_since timestamptz[];
begin
  select array_agg(due.ctid), array_agg(due.available_at) into _places, _waited_since
  from (
    select tasks.ctid, tasks.available_at, tasks.deadline_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.name = _name
      and tasks.version is null
      and tasks.available_at <= at
      and (tasks.available_at, tasks.task_id) > (after_at, after_id)
    order by tasks.available_at, tasks.task_id
    limit quantity
    for no key update skip locked
  ) as due
  where (due.deadline_at > at) is not false; -- else expire_deadlines will cancel it
  if _places is not null then
    return query select * from durable._take(_queue, _places, _waited_since, worker, at, lease, version);
  end if;
end;
$$;


-- Takes tasks that the caller has locked. Without an index to walk there is one way to
-- find a row by its place, whatever the statistics say.
create or replace function durable._take(
  queue text,
  places tid[],
  waited_since timestamptz[],
  worker text,
  at timestamptz,
  lease double precision,
  version text
)
returns setof durable.claimed_task
language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off
as $$
declare
  _queue text collate "C" := queue;
  _expires_at timestamptz := at + make_interval(secs => lease);
  _epoch double precision := extract(epoch from at);
begin
  return query
    update durable.tasks
    set
      worker = _take.worker,
      claim = tasks.claim + 1,
      state = 'running',
      available_at = null,
      lease_expires_at = _expires_at,
      deadline_at = case when tasks.started_at is null
        then least(to_timestamp(_epoch + tasks.max_duration), tasks.complete_by)
        else tasks.deadline_at end,
      started_at = coalesce(tasks.started_at, at),
      error = null,
      version = coalesce(tasks.version, _take.version)
    from unnest(places, waited_since) as place (ctid, available_at)
    where tasks.queue = _queue and tasks.ctid = place.ctid
    returning
      tasks.task_id, tasks.claim, tasks.name::text, tasks.attempt, tasks.params, tasks.headers,
      tasks.parent_task_id, tasks.spawned_at, tasks.deadline_at, place.available_at, at,
      durable._run_id(tasks.task_id, tasks.attempt);
end;
$$;


-- The names that something for no version waits under, now or later: one step of the
-- index a name.
create or replace function durable._waiting_names(queue text)
returns text[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := '';
  _names text[] := array[]::text[];
begin
  loop
    select tasks.name into _name
    from durable.tasks
    where tasks.queue = _queue and tasks.name > _name
      and tasks.available_at is not null and tasks.version is null
    order by tasks.name
    limit 1;
    exit when not found;
    _names := _names || _name;
  end loop;
  return _names;
end;
$$;


create or replace function durable.get_next_due(
  queue text, names text[] default null, version text default null
)
returns double precision
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _policy text := durable._version_policy(_queue, false);
  _names text[] := coalesce(names, durable._waiting_names(_queue));
begin
  if _policy is not null then
    return durable._next_due_for_version(_queue, _policy, version, names);
  end if;
  return (
    select greatest(extract(epoch from min(first.available_at) - durable._now()), 0)
    from unnest(_names) as known (name)
    cross join lateral (
      select tasks.available_at
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = known.name collate "C"
        and tasks.available_at is not null
        and tasks.version is null
      order by tasks.available_at
      limit 1
    ) as first
    having count(*) > 0
  );
end;
$$;

comment on function durable.get_next_due is
'Seconds until the next task of these names is due, 0 when one is; null when none ever
will be by the clock. version: as in claim_tasks, which alone may claim it. For a worker
whose claim came back empty.';


create or replace function durable.list_waiting_names(queue text)
returns setof text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set jit = off
as $$
begin
  return query select unnest(durable._all_waiting_names(durable._granted(queue)));
end;
$$;

comment on function durable.list_waiting_names is
'The names of the tasks that wait in a queue, so that a worker can say which of them
it does not know.';


create or replace function durable.extend_leases(queue text, tasks json, lease double precision default 30)
returns setof durable.write_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _expires_at timestamptz;
  _held record;
  _outcome text;
begin
  perform durable._check_claim('worker', 1, lease);
  _expires_at := durable._now() + make_interval(secs => lease);
  for _held in
    select held.task_id, held.claim
    from json_to_recordset(tasks) as held (task_id uuid, claim integer)
    order by held.task_id
  loop
    perform
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim = _held.claim
      and _held.claim % 2 = 1
    for no key update skip locked;
    if found then
      update durable.tasks
      set lease_expires_at = greatest(tasks.lease_expires_at, _expires_at)
      where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim = _held.claim;
      _outcome := 'ok';
    else
      perform from durable.tasks
      where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim = _held.claim
        and _held.claim % 2 = 1;
      _outcome := case when found then 'busy'
        else durable._refusal(_queue, _held.task_id, _held.claim) end;
    end if;
    return next (_held.task_id, _outcome)::durable.write_outcome;
  end loop;
end;
$$;

comment on function durable.extend_leases is
'Extends the leases of tasks a worker holds to lease seconds from now, never shortening
one. tasks: [{"task_id", "claim"}, ...]. Never waits; returns an outcome for each:
ok, busy (somebody holds the row: say it again), cancelled, lost.';


create or replace function durable.release_tasks(queue text, tasks json)
returns setof durable.write_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _now timestamptz := durable._now();
  _held record;
  _released uuid[];
begin
  for _held in
    select held.task_id, held.claim, coalesce(held.available_at, _now) as available_at
    from json_to_recordset(tasks) as held (task_id uuid, claim integer, available_at timestamptz)
    order by held.task_id
  loop
    update durable.tasks
    set
      claim = tasks.claim + 1,
      state = 'pending',
      available_at = _held.available_at,
      lease_expires_at = null
    where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim = _held.claim
      and _held.claim % 2 = 1;
    _released := _released || case when found then array[_held.task_id] end;
    return next (_held.task_id, case when found then 'ok'
      else durable._refusal(_queue, _held.task_id, _held.claim) end)::durable.write_outcome;
  end loop;
  perform durable._log_released(_queue, _released, _now);
  perform durable._knock(_queue, 'work');
end;
$$;

comment on function durable.release_tasks is
'Gives back tasks that a worker holds, without using up an attempt. tasks:
[{"task_id", "claim", "available_at"}, ...]; with the available_at it was claimed with
a task keeps its place in line. Returns an outcome for each: ok, cancelled, lost.';


create or replace function durable.release_unknown(queue text, worker text, known uuid[])
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
  _queue text collate "C" := durable._granted(queue);
  _worker text collate "C" := worker;
  _now timestamptz := durable._now();
  _unknown uuid;
  _released uuid[] := array[]::uuid[];
begin
  for _unknown in
    select tasks.task_id
    from durable.tasks
    where tasks.queue = _queue
      and tasks.lease_expires_at is not null
      and tasks.worker = _worker
      and not tasks.task_id = any (known)
    order by tasks.lease_expires_at
    for no key update skip locked
  loop
    update durable.tasks
    set claim = tasks.claim + 1, state = 'pending', available_at = _now, lease_expires_at = null
    where tasks.queue = _queue and tasks.task_id = _unknown;
    _released := _released || _unknown;
  end loop;
  perform durable._log_released(_queue, _released, _now);
  perform durable._knock(_queue, 'work');
  return cardinality(_released);
end;
$$;

comment on function durable.release_unknown is
'After a lost connection: gives back what this worker holds without knowing, because
the answer to its claim never came. Returns how many.';
