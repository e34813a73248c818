-- Versions of the application: which workers may claim a task, in queues whose policy says so.
--
-- `pin` binds a task to the version that claims it first. `gate` binds it to the version that
-- spawned it; tasks spawned without a version belong to the latest, the one that was announced,
-- or promoted, last. Claims read the tasks of each version in an index range of its own, so any
-- number that wait for other versions slow no claim down.
--
-- A worker announces its version as part of its session: see workers.sql. No decision about tasks
-- depends on whether a version is alive: that is only shown and logged.

create or replace function durable._checked_version(version jsonb)
returns text language plpgsql immutable as $$
begin
  if jsonb_typeof(version) not in ('string', 'null') then
    perform durable._refuse_argument('version must be a string', 'Pass 1 to 100 bytes of text.');
  elsif version is null or version = 'null' then
    return null;
  end if;
  return durable._checked_name('version', version #>> '{}', 100);
end;
$$;

create or replace function durable._checked_version_policy(policy jsonb)
returns text language plpgsql immutable as $$
begin
  if policy not in ('null', '"pin"', '"gate"') then
    perform durable._refuse_argument('versions in policy is ' || left(policy::text, 40),
      'Pass "pin", "gate", or null where versions do not count.');
  end if;
  return policy #>> '{}';
end;
$$;

-- Returns the versions whose tasks a worker of this version may claim, '' for tasks that are
-- bound to none. In a gated queue only the latest may begin those, or any version as long as
-- none has been announced.
create or replace function durable._claimable_versions(queue text, policy text, version text)
returns text[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _latest text := '';
begin
  if policy = 'gate' then
    select versions.version into _latest
    from durable.versions
    where versions.queue = _queue
    order by versions.promoted_at desc, versions.version desc
    limit 1;
    if _latest <> version then
      return array_remove(array[version], '');
    end if;
  end if;
  return case version when '' then array[''] else array['', version] end;
end;
$$;

-- Makes a version that is new in a queue its latest.
create or replace function durable._add_version(queue text, version text, at timestamptz)
returns void language plpgsql as $$
begin
  insert into durable.versions (queue, version, first_seen_at, promoted_at)
  values (queue, version, at, at)
  on conflict do nothing;
end;
$$;

create or replace function durable.promote_version(queue text, version text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _version text collate "C" := version;
  _now timestamptz := durable._now();
begin
  perform from durable.queues where queues.queue = _queue for no key update; -- guards definitions
  update durable.versions
  set promoted_at = _now
  where versions.queue = _queue and versions.version = _version;
  if not found then
    return false;
  end if;
  update durable.definitions
  set ranked_at = _now
  where definitions.queue = _queue and definitions.version = _version;
  perform durable._rank_definitions(_queue);
  perform durable._notify_listeners(_queue, 'work');
  perform durable._audit(_queue, 'promote_version', null, jsonb_build_object('version', version));
  return true;
end;
$$;

comment on function durable.promote_version is
'Makes a version the latest of a queue, after a rollback for example. Where the policy is
gate, it claims from now on the tasks that were spawned without a version. Returns false if
no worker has announced it. Locks: the queue''s row; waits for announce_definitions.';

create or replace function durable.set_version(
  queue text, version text, task_ids uuid[] default null, from_version text default null,
  batch_size integer default 1000
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _version text collate "C" := coalesce(durable._checked_version(to_jsonb(version)), '');
  _from text collate "C" := from_version;
  _task_id uuid;
  _in_lane boolean;
  _laned uuid[];
  _moved integer := 0;
begin
  perform durable._require_queue(_queue);
  if num_nonnulls(task_ids, from_version) <> 1 then
    perform durable._refuse_argument('which tasks is to be said in one way',
      'Pass task_ids or from_version.');
  end if;
  for _task_id in
    select tasks.task_id
    from durable.tasks
    where task_ids is null
      and tasks.queue = _queue
      and (tasks.version, tasks.task_id) > (_from, uuid '00000000-0000-0000-0000-000000000000')
      and tasks.version <= _from -- a range, as in _children: only its own index can serve it
      and tasks.version <> ''
      and _from is distinct from _version
      and tasks.finished_at is null
    order by tasks.version, tasks.task_id
    limit batch_size
    for no key update skip locked
  loop
    update durable.tasks set version = _version
    where tasks.queue = _queue and tasks.task_id = _task_id
    returning tasks.partition_key is not null into _in_lane;
    _laned := _laned || case when _in_lane then array[_task_id] end;
    _moved := _moved + 1;
  end loop;
  for _task_id in
    select distinct given.task_id from unnest(task_ids) as given (task_id) order by 1
  loop
    update durable.tasks set version = _version
    where tasks.queue = _queue and tasks.task_id = _task_id
    returning tasks.partition_key is not null into _in_lane;
    if found then
      _laned := _laned || case when _in_lane then array[_task_id] end;
      _moved := _moved + 1;
    end if;
  end loop;
  if _laned is not null then
    perform durable._enlist(_queue, _laned, true);
  end if;
  perform durable._notify_listeners(_queue, 'work');
  if _moved > 0 then
    perform durable._audit(_queue, 'set_version',
      case when cardinality(task_ids) = 1 then task_ids[1] end,
      jsonb_build_object('version', version, 'tasks', _moved)
        || jsonb_strip_nulls(jsonb_build_object('from_version', from_version)));
  end if;
  return _moved;
end;
$$;

comment on function durable.set_version is
'Binds tasks to another version of the application (null: to none yet), from their next claim
on. Pass either task_ids, of live or finished tasks, or from_version, for at most batch_size
live tasks that are bound to it: call it again until it returns 0. Returns how many it moved.
Refuses an unknown queue (WFQUE) and bad arguments (22023). Locks: with task_ids each task
row, in ascending order, and waits for it; with from_version it tries them with SKIP LOCKED.';

-- Counts the live tasks that are bound to each version, up to `most` of each kind.
create or replace function durable._version_counts(queue text, most integer)
returns table (
  version text, live bigint, running bigint, ready bigint, oldest_ready_at timestamptz
) language plpgsql stable as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      bound.version, counted.live, coalesce(leased.running, 0), coalesce(waiting.ready, 0), waiting.oldest_at
    from durable._bound_versions(_queue) as bound (version)
    cross join lateral (
      select count(*) as live
      from (
        select from durable.tasks
        where tasks.queue = _queue and tasks.finished_at is null and tasks.version <> ''
          and (tasks.version, tasks.task_id)
            > (bound.version collate "C", uuid '00000000-0000-0000-0000-000000000000')
          and tasks.version <= bound.version collate "C" -- as in set_version
        order by tasks.version, tasks.task_id
        limit most
      ) as own
    ) as counted
    left join (
      select held.version, count(*) as running
      from (
        select tasks.version from durable.tasks
        where tasks.queue = _queue and tasks.lease_expires_at is not null
        order by tasks.lease_expires_at
        limit most
      ) as held
      group by held.version
    ) as leased on leased.version = bound.version
    left join (
      select named.version, sum(named.ready)::bigint as ready, min(named.oldest_at) as oldest_at
      from durable._waiting_counts(_queue, most) as named
      group by named.version
    ) as waiting on waiting.version = bound.version;
end;
$$;

-- Returns the versions that live tasks are bound to. It reads one index entry for each.
create or replace function durable._bound_versions(queue text)
returns setof text language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _version text collate "C" := '';
begin
  loop
    select tasks.version into _version
    from durable.tasks
    where tasks.queue = _queue and tasks.finished_at is null and tasks.version <> ''
      and tasks.version > _version
    order by tasks.version, tasks.task_id
    limit 1;
    exit when not found;
    return next _version;
  end loop;
end;
$$;

create or replace function durable.list_versions(queue text default null)
returns setof durable.version_statistics language sql stable as $$
  select
    queues.queue::text, found.version::text,
    found.promoted_at is not null and found.version = first_value(found.version)
      over (partition by queues.queue order by found.promoted_at desc nulls last, found.version desc),
    coalesce(durable._is_alive(found.last_seen_at, durable._now()), false),
    found.first_seen_at, found.last_seen_at,
    coalesce(found.live, 0), coalesce(found.running, 0), coalesce(found.ready, 0), found.oldest_ready_at
  from durable.queues
  cross join lateral (
    select *
    from (
      select versions.version, versions.first_seen_at, versions.promoted_at, session.last_seen_at
      from durable.versions
      cross join lateral (
        select max(worker_sessions.seen_at) as last_seen_at
        from durable.worker_sessions
        where worker_sessions.queue = queues.queue and worker_sessions.version = versions.version
      ) as session
      where versions.queue = queues.queue
    ) as announced
    full join durable._version_counts(queues.queue, 10001) as counted using (version)
  ) as found
  where case
    when list_versions.queue is null then durable._may_use(queues.roles)
    else queues.queue = durable._checked_queue(list_versions.queue) collate "C"
  end
  order by queues.queue, found.first_seen_at, found.version;
$$;

comment on function durable.list_versions is
'Returns the versions of a queue (null: of every queue the caller may use) that workers have
announced or that live tasks are bound to. Live tasks of a version that is not alive wait for
a worker that nobody runs: set_version moves them. last_seen_at is null if no worker of it is
listed any more: see list_workers. Counts to 10,001 tasks of a version.';

-- Unbinds waiting tasks from their versions once the queue's policy has none.
create or replace function durable._forget_versions(queue text, batch_size integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task_id uuid;
  _found boolean := false;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.version > '' -- as in set_version
    and tasks.version <> ''
    and tasks.finished_at is null
    and exists (select from durable.queues where queues.queue = _queue and queues.versions is null)
  order by tasks.version, tasks.task_id
  limit 1;
  if not found then
    return; -- the usual case
  end if;
  for _task_id in
    select bound.task_id
    from durable._waiting_versions(_queue) as waiting
    cross join lateral (
      select tasks.task_id
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = waiting.name collate "C"
        and tasks.version = waiting.version collate "C"
        and tasks.available_at is not null
        and tasks.partition_key is null
      order by tasks.available_at, tasks.task_id
      limit batch_size
      for no key update skip locked
    ) as bound
    where waiting.version <> '' and not waiting.in_lanes
    limit batch_size
  loop
    update durable.tasks set version = ''
    where tasks.queue = _queue and tasks.task_id = _task_id;
    _found := true;
  end loop;
  for _task_id in
    select bound.task_id
    from durable._waiting_versions(_queue) as waiting
    cross join lateral (
      select tasks.task_id
      from durable.tasks
      where tasks.queue = _queue
        and tasks.name = waiting.name collate "C"
        and tasks.version = waiting.version collate "C"
        and tasks.available_at is not null
        and tasks.partition_key is not null
      order by tasks.partition_key -- an order of their own index only
      limit batch_size
      for no key update skip locked
    ) as bound
    where waiting.version <> '' and waiting.in_lanes
    limit batch_size
  loop
    update durable.tasks set version = ''
    where tasks.queue = _queue and tasks.task_id = _task_id;
    perform durable._enlist(_queue, array[_task_id], true);
    _found := true;
  end loop;
  if _found then
    perform durable._notify_listeners(_queue, 'work');
  end if;
end;
$$;
