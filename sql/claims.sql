-- Claims: which worker holds a task, and until when.
--
-- Every claim of a task has a number of its own, so (queue, task_id, claim) tells the current
-- holder from former ones. Writes do not check the lease: once it has expired anybody may
-- claim the task, but until somebody does the holder may still write.

-- Returns the number of a task's next claim: odd, random and not that of the previous claim;
-- above 2^30 if it is the first. A counter would not do: a database that has lost its last
-- commits, or was restored, would count to the same number again. Tests replace this function
-- to know the numbers.
create or replace function durable._next_claim(claim integer, random integer)
returns integer language sql immutable as $$
  select case claim when 0 then 1073741824 else 0 end + 5 + 2 * (
    (((claim & 1073741823) - 3) / 2 + abs(random % 536870908)) % 536870909);
$$;

-- Returns the ordinal of a task's current or last claim: 1, 3, 5, ... while it is held, one
-- more once it has ended. A first claim is known by its number, so tasks that are claimed once
-- need no bytes for times_claimed.
create or replace function durable._claim_ordinal(claim integer, times_claimed integer)
returns integer language sql immutable as $$
  select coalesce(2 * times_claimed - claim % 2,
    case when claim > 1073741824 then 2 - claim % 2 else claim end);
$$;

create or replace function durable.claim_tasks(
  queue text, worker text, names text[] default null, batch_size integer default 1,
  lease double precision default 30, after_at timestamptz[] default null,
  after_ids uuid[] default null, version text default null
) returns setof durable.claimed_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _worker text := durable._checked_name('worker', worker, 255);
  _left integer := durable._checked_batch(batch_size, lease);
  _policy text;
  _is_logged boolean;
  _paused_names jsonb;
  _has_lanes boolean;
  _names text[] := coalesce(names, durable._waiting_names(_queue));
  _versions text[] := array[''];
  _version text := '';
  _name text;
  _from text;
  _start_at timestamptz;
  _start_id uuid;
  _due durable._due;
begin
  select queues.versions, queues.history = 'full', queues.paused_names, durable._has_lanes(queues)
  into _policy, _is_logged, _paused_names, _has_lanes
  from durable.queues
  where queues.queue = _queue and queues.paused_at is null
    and (queues.roles is null or durable._may_use(queues.roles));
  if not found then
    perform durable._require_queue(_queue);
    return; -- it is paused, or has just been created, or opened to the caller
  end if;
  if _paused_names is not null then
    _names := durable._without_paused(_names, _paused_names);
  end if;
  if _policy is not null then
    _version := coalesce(durable._checked_version(to_jsonb(version)), '');
    _versions := durable._claimable_versions(_queue, _policy, _version);
  end if;
  if _has_lanes then
    return query
      select * from durable._claim_lanes(
        _queue, _names, _versions, _version, _worker, _left, _now, lease, _is_logged,
        after_at is not null);
    return;
  end if;
  for _name, _from, _start_at, _start_id in
    select head.name, head.version, head.start_at, head.start_id
    from durable._heads(_queue, _names, _versions, _now, _now, after_at, after_ids) as head
    order by head.available_at, head.task_id
  loop
    _due := durable._lock_due(_queue, _name, _from, _version, _left, _now, _start_at, _start_id);
    continue when _due.places is null;
    if _is_logged then
      perform durable._log_claimed(_queue, _due.places, _worker, _now);
    end if;
    if _due.known is null then
      return query
        select * from durable._lease_by_ctid(
          _queue, _due.places, _due.waited_since, _worker, _now, lease, _version);
    else
      return query
        select * from durable._lease_incomplete(
          _queue, _due.places, _due.waited_since, _worker, _now, lease, _version, _due.known);
    end if;
    _left := _left - cardinality(_due.places);
    exit when _left = 0;
  end loop;
end;
$$;

comment on function durable.claim_tasks is
'Leases up to batch_size due tasks to a worker for lease seconds, and returns them. names: the
tasks that the worker knows (null: any). The name whose task has waited longest comes first,
within a name the oldest. Call it last in its transaction and commit at once. after_at and
after_ids, one pair per name: the available_at and task_id with which the worker''s last claim
of that name ended, a hint that saves reading dead rows; pass null now and then, since tasks
may appear before that point. version: of the application that the worker runs; it counts if
the queue''s policy has versions. Returns nothing from a paused queue, and no task of a paused
name (pause_queue).

Where the policy has limits or priorities, these decide which tasks come first and how many
there are; an after_at that is not null then lets the claim start where the last one of its
session ended. Refuses an unknown queue (WFQUE), bad arguments (22023) and, where there are
limits or priorities, a transaction stricter than READ COMMITTED (WFISO). Locks: the claimed
tasks, and what limits them, tried with SKIP LOCKED; waits for none.';

create or replace function durable._batch_or_refuse(batch_size integer, lease double precision)
returns integer language plpgsql immutable as $$
begin
  if batch_size is null or batch_size < 0 then
    perform durable._refuse_argument('batch_size is ' || coalesce(batch_size::text, 'null'),
      'Pass how many tasks to claim at most.');
  end if;
  perform durable._refuse_argument('lease is ' || coalesce(lease::text, 'null'),
    'Pass a positive number of seconds.');
  return null;
end;
$$;

create or replace function durable._checked_batch(batch_size integer, lease double precision)
returns integer language sql immutable as $$
  select case
    when batch_size >= 0 and lease > 0 and lease <= 1e10 then batch_size
    else durable._batch_or_refuse(batch_size, lease) end;
$$;

-- Returns the range of each name and version in which tasks are due until due_by, with its
-- first task: one index entry each. It is inlined.
create or replace function durable._heads(
  queue text, names text[], versions text[], at timestamptz, due_by timestamptz,
  after_at timestamptz[], after_ids uuid[]
) returns table (
  name text, version text, start_at timestamptz, start_id uuid, available_at timestamptz,
  task_id uuid
) language sql stable as $$
  select
    range.name collate "C", range.version collate "C", range.start_at, range.start_id,
    first.available_at, first.task_id
  from (
    select
      names[known.place] as name, unnest(versions) as version,
      coalesce(after_at[known.place], '-infinity') as start_at,
      coalesce(after_ids[known.place], '00000000-0000-0000-0000-000000000000') as start_id
    from generate_subscripts(names, 1) as known (place)
  ) as range
  cross join lateral (
    select tasks.available_at, tasks.task_id
    from durable.tasks
    where tasks.queue = _heads.queue collate "C"
      and tasks.name = range.name collate "C"
      and tasks.version = range.version collate "C"
      and tasks.available_at is not null
      and tasks.partition_key is null
      and (tasks.available_at, tasks.task_id) > (range.start_at, range.start_id)
      and (tasks.expires_at > greatest(at, least(tasks.available_at, due_by))) is not false
    order by tasks.available_at, tasks.task_id
    limit 1
  ) as first
  where first.available_at <= due_by;
$$;

-- Locks the oldest due tasks of a name and version, those that a claim for the version `claimer`
-- takes, and returns where they are. known: the definition that fills in options that their
-- spawns omitted; null: there is nothing to fill in.
create or replace function durable._lock_due(
  queue text, name text, version text, claimer text, batch_size integer, at timestamptz,
  start_at timestamptz, start_id uuid
) returns durable._due language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _version text collate "C" := version;
  _incomplete boolean;
  _due durable._due;
begin
  select array_agg(due.ctid), array_agg(due.available_at), bool_or(due.omitted is not null)
  into _due.places, _due.waited_since, _incomplete
  from (
    select tasks.ctid, tasks.available_at, tasks.omitted
    from durable.tasks
    where tasks.queue = _queue
      and tasks.name = _name
      and tasks.version = _version
      and tasks.available_at <= at
      and tasks.partition_key is null
      and (tasks.available_at, tasks.task_id) > (start_at, start_id)
      and (tasks.expires_at > at) is not false -- expire_tasks cancels the others
    order by tasks.available_at, tasks.task_id
    limit batch_size
    for no key update skip locked
  ) as due;
  if _incomplete then
    return durable._with_definition(_queue, _name, claimer, _due, at);
  end if;
  return _due;
end;
$$;

-- Adds the definition of these tasks, and removes those that are past a limit of it.
create or replace function durable._with_definition(
  queue text, name text, claimer text, due durable._due, at timestamptz
) returns durable._due language plpgsql as $$
begin
  due.known := durable._definition(queue, name, claimer);
  if num_nulls((due.known).start_timeout, (due.known).execution_timeout) < 2 then
    due := durable._pass_over_late(queue, due, at);
  end if;
  return due;
end;
$$;

-- Leases tasks that the caller has locked, and binds them to a version. Updates by ctid: with
-- sequential scans off, and a condition on the queue that no index serves, a TID scan is the
-- only plan, whatever the statistics say. Where such a function switches index scans off, that
-- has the same effect, but costs more at every call.
create or replace function durable._lease_by_ctid(
  queue text, places tid[], waited_since timestamptz[], worker text, at timestamptz,
  lease double precision, version text
) returns setof durable.claimed_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _expires_at timestamptz := at + make_interval(secs => lease);
  _epoch double precision := extract(epoch from at);
  _random integer := uuid_hash(gen_random_uuid()); -- independent of anything that is stored
begin
  return query
    update durable.tasks
    set
      worker = _lease_by_ctid.worker,
      claim = durable._next_claim(tasks.claim, _random),
      state = 'running',
      available_at = null,
      lease_expires_at = _expires_at,
      expires_at = case when tasks.started_at is null
        then least(to_timestamp(_epoch + tasks.execution_timeout), tasks.deadline)
        else tasks.expires_at end,
      started_at = coalesce(tasks.started_at, at),
      error = null,
      version = _lease_by_ctid.version,
      times_claimed = nullif(
        (durable._claim_ordinal(tasks.claim, tasks.times_claimed) + 1) / 2 + 1, 1)
    from unnest(places, waited_since) as place (ctid, available_at)
    where (tasks.queue = _queue) is true and tasks.ctid = place.ctid
    returning
      tasks.task_id, tasks.claim, tasks.name::text, tasks.attempt, tasks.params, tasks.headers,
      tasks.parent_task_id, tasks.spawned_at, tasks.expires_at, place.available_at, at,
      durable._run_id(tasks.task_id, tasks.attempt);
end;
$$;

-- Returns the names and versions of unclaimed tasks, due now or later, in lanes or not. It reads
-- one index entry for each.
create or replace function durable._waiting_versions(queue text)
returns table (name text, version text, in_lanes boolean) language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := '';
  _version text collate "C" := '';
begin
  in_lanes := false;
  loop
    if in_lanes then
      select tasks.name, tasks.version into _name, _version
      from durable.tasks
      where tasks.queue = _queue
        and (tasks.name, tasks.version) > (_name, _version)
        and tasks.available_at is not null
        and tasks.partition_key is not null
      order by tasks.name, tasks.version
      limit 1;
    else
      select tasks.name, tasks.version into _name, _version
      from durable.tasks
      where tasks.queue = _queue
        and (tasks.name, tasks.version) > (_name, _version)
        and tasks.available_at is not null
        and tasks.partition_key is null
      order by tasks.name, tasks.version
      limit 1;
    end if;
    if found then
      name := _name;
      version := _version;
      return next;
    elsif in_lanes then
      return;
    else
      in_lanes := true;
      _name := '';
      _version := '';
    end if;
  end loop;
end;
$$;

create or replace function durable._waiting_names(queue text)
returns text[] language sql as $$
  select array(
    select distinct waiting.name from durable._waiting_versions(queue) as waiting order by 1);
$$;

create or replace function durable.get_next_due(
  queue text, names text[] default null, version text default null
) returns double precision language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _names text[] := coalesce(names, durable._waiting_names(_queue));
  _versions text[] := array[''];
  _policy text;
  _paused_names jsonb;
  _has_lanes boolean;
  _now timestamptz := durable._now();
  _next_at timestamptz;
begin
  select queues.versions, queues.paused_names, durable._has_lanes(queues)
  into _policy, _paused_names, _has_lanes
  from durable.queues
  where queues.queue = _queue and queues.paused_at is null
    and (queues.roles is null or durable._may_use(queues.roles));
  if not found then
    perform durable._checked_queue(_queue); -- refuses a caller that may not use it
    return null;
  elsif _policy is not null then
    _versions := durable._claimable_versions(_queue, _policy, coalesce(version, ''));
  end if;
  if _paused_names is not null then
    _names := durable._without_paused(_names, _paused_names);
  end if;
  if _has_lanes then
    _next_at := durable._next_turn(_queue, _names, _versions, _now);
  else
    select min(head.available_at) into _next_at
    from durable._heads(_queue, _names, _versions, _now, 'infinity', null, null) as head;
  end if;
  _next_at := least(_next_at, durable._next_tick_at(_queue, _now));
  return case when _next_at is not null then greatest(extract(epoch from _next_at - _now), 0) end;
end;
$$;

comment on function durable.get_next_due is
'Returns the seconds until the next task of these names (null: any) is due, 0 if one is, or
until the next tick of a schedule; null if nothing will become due by the clock. Tasks whose
deadline comes first do not count, nor do those that are paused. Where the policy has limits, a
task is due when they let it start; null if one has to end first. version: as in claim_tasks. A
worker calls it after a claim that returned nothing.';

create or replace function durable.list_waiting_names(queue text)
returns setof text language plpgsql as $$
begin
  return query select unnest(durable._waiting_names(durable._checked_queue(queue)));
end;
$$;

comment on function durable.list_waiting_names is
'Returns the names of the tasks that wait to be claimed in a queue, so that a worker can
report those it does not know.';

create or replace function durable.extend_leases(
  queue text, tasks json, lease double precision default 30
)
returns setof durable.write_outcome language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _expires_at timestamptz;
  _held record;
  _outcome text;
begin
  perform durable._checked_batch(1, lease);
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
'Extends the leases of tasks that a worker holds to lease seconds from now; never shortens
one. tasks: [{"task_id", "claim"}, ...]. Returns an outcome for each: ok; busy, its row is
locked, try again; cancelled; lost. Refuses a bad lease (22023). Locks: tries each task row,
in ascending order, with SKIP LOCKED; waits for none.';

create or replace function durable.release_tasks(queue text, tasks json)
returns setof durable.write_outcome language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _now timestamptz := durable._now();
  _held record;
  _key text;
  _keys text[];
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
      and _held.claim % 2 = 1
    returning tasks.partition_key into _key;
    _keys := _keys || case when _key is not null then array[_key] end;
    _released := _released || case when found then array[_held.task_id] end;
    return next (_held.task_id, case when found then 'ok'
      else durable._refusal(_queue, _held.task_id, _held.claim) end)::durable.write_outcome;
  end loop;
  if _keys is not null then
    perform durable._free(_queue, _keys), durable._enlist(_queue, _released);
  end if;
  perform durable._log_released(_queue, _released, _now);
  perform durable._notify_listeners(_queue, 'work');
end;
$$;

comment on function durable.release_tasks is
'Releases tasks that a worker holds, without using up an attempt. tasks:
[{"task_id", "claim", "available_at"}, ...]; a task keeps its place in the queue if
available_at is that of its claim (default: now). Returns an outcome for each: ok, cancelled,
lost. Locks: the task rows, in ascending order; raises 55P03 after waiting 200 ms for one.';

create or replace function durable.release_unknown(queue text, worker text, known uuid[])
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _worker text collate "C" := worker;
  _now timestamptz := durable._now();
  _unknown uuid;
  _key text;
  _keys text[];
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
    where tasks.queue = _queue and tasks.task_id = _unknown
    returning tasks.partition_key into _key;
    _keys := _keys || case when _key is not null then array[_key] end;
    _released := _released || _unknown;
  end loop;
  if _keys is not null then
    perform durable._free(_queue, _keys), durable._enlist(_queue, _released);
  end if;
  perform durable._log_released(_queue, _released, _now);
  perform durable._notify_listeners(_queue, 'work');
  return cardinality(_released);
end;
$$;

comment on function durable.release_unknown is
'Releases the tasks that a worker holds without knowing it, because it never received the
answer to its claim: all tasks held under its name, except those in known. A worker calls it
after a lost connection. Returns how many. Locks: tries each task row with SKIP LOCKED; waits
for none.';
