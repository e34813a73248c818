-- Versions of the application: who may claim a task, where its code has changed.
--
-- A queue's policy says so, and only queues that have one pay for it. A task that is for
-- one version only is in an index of such tasks, by version: what waits for others, be
-- it any number, is in nobody's way. `pin`: a task is for the version that claims it
-- first. `gate`: it is for the version that spawned it; one that nobody's version
-- spawned is for the latest, the one that was announced, or promoted, last.

create or replace function durable._checked_version(version jsonb)
returns text
language plpgsql
immutable
as $$
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
returns text
language plpgsql
immutable
as $$
begin
  if policy not in ('null', '"pin"', '"gate"') then
    perform durable._refuse_argument('versions in policy is ' || left(policy::text, 40),
      'Pass "pin", "gate", or null where versions do not count.');
  end if;
  return policy #>> '{}';
end;
$$;


-- The policy of a queue that the caller may use; unless it is required, one that is not
-- there has none.
create or replace function durable._version_policy(queue text, required boolean default true)
returns text
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _roles text[];
  _versions text;
begin
  select queues.roles, queues.versions into _roles, _versions
  from durable.queues
  where queues.queue = _queue;
  if _roles is not null and not durable._may_use(_roles) then
    perform durable._refuse_queue(queue);
  elsif required and not found then
    perform durable._require_queue(queue);
  end if;
  return _versions;
end;
$$;


-- Whether a version may take tasks that are for none yet. Where a queue is gated that is
-- the latest's alone, or anybody's as long as no version has been announced.
create or replace function durable._may_begin(queue text, policy text, version text)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _latest text;
begin
  if policy is distinct from 'gate' then
    return true;
  end if;
  select versions.version into _latest
  from durable.versions
  where versions.queue = _queue
  order by versions.promoted_at desc, versions.version desc
  limit 1;
  return not found or coalesce(_latest = version, false);
end;
$$;


-- As in claim_tasks, of two lines a name: what is for this version, and what is for none
-- yet, which is for this version from then on.
create or replace function durable._claim_for_version(
  queue text,
  policy text,
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
  _version text collate "C" := durable._checked_version(to_jsonb(version));
  _names text[] := coalesce(names, durable._all_waiting_names(_queue));
  _may_begin boolean := durable._may_begin(_queue, policy, _version);
  _head record;
  _claimed integer;
  _left integer := quantity;
begin
  for _head in
    select
      known.name collate "C" as name, first.is_ours,
      coalesce(known.after_at, '-infinity') as after_at,
      coalesce(known.after_id, '00000000-0000-0000-0000-000000000000') as after_id
    from unnest(_names, after_at, after_ids) as known (name, after_at, after_id)
    cross join lateral (
      (
        select true as is_ours, tasks.available_at, tasks.task_id
        from durable.tasks
        where tasks.queue = _queue
          and tasks.name = known.name collate "C"
          and tasks.version = _version
          and tasks.available_at <= at
          and (tasks.available_at, tasks.task_id) > (
            coalesce(known.after_at, '-infinity'),
            coalesce(known.after_id, '00000000-0000-0000-0000-000000000000'))
        order by tasks.available_at, tasks.task_id
        limit 1
      )
      union all
      (
        select false, tasks.available_at, tasks.task_id
        from durable.tasks
        where _may_begin
          and tasks.queue = _queue
          and tasks.name = known.name collate "C"
          and tasks.version is null
          and tasks.available_at <= at
          and (tasks.available_at, tasks.task_id) > (
            coalesce(known.after_at, '-infinity'),
            coalesce(known.after_id, '00000000-0000-0000-0000-000000000000'))
        order by tasks.available_at, tasks.task_id
        limit 1
      )
    ) as first
    order by first.available_at, first.task_id
  loop
    if _head.is_ours then
      return query
        select * from durable._claim_own(_queue, _head.name, worker, _left, at, lease,
          _head.after_at, _head.after_id, _version);
    else
      return query
        select * from durable._claim(_queue, _head.name, worker, _left, at, lease,
          _head.after_at, _head.after_id, _version);
    end if;
    get diagnostics _claimed = row_count;
    _left := _left - _claimed;
    exit when _left = 0;
  end loop;
end;
$$;


-- _claim, of the tasks that are for this version. Not one with it: a statement finds the
-- index of such tasks, or of the others, by what its own text says of version; and who has
-- no versions is not to pay for them.
create or replace function durable._claim_own(
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
  _version text collate "C" := version;
  _places tid[];
  _waited_since timestamptz[];
begin
  select array_agg(due.ctid), array_agg(due.available_at) into _places, _waited_since
  from (
    select tasks.ctid, tasks.available_at, tasks.deadline_at
    from durable.tasks
    where tasks.queue = _queue
      and tasks.name = _name
      and tasks.version = _version
      and tasks.available_at <= at
      and (tasks.available_at, tasks.task_id) > (after_at, after_id)
    order by tasks.available_at, tasks.task_id
    limit quantity
    for no key update skip locked
  ) as due
  where (due.deadline_at > at) is not false;
  if _places is not null then
    return query
      select * from durable._take(_queue, _places, _waited_since, worker, at, lease, _version);
  end if;
end;
$$;


-- get_next_due, of what _claim_for_version looks at.
create or replace function durable._next_due_for_version(
  queue text, policy text, version text, names text[]
)
returns double precision
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _version text collate "C" := version;
  _names text[] := coalesce(names, durable._all_waiting_names(_queue));
  _may_begin boolean := durable._may_begin(_queue, policy, version);
begin
  return (
    select greatest(extract(epoch from min(first.available_at) - durable._now()), 0)
    from unnest(_names) as known (name)
    cross join lateral (
      (
        select tasks.available_at
        from durable.tasks
        where tasks.queue = _queue
          and tasks.name = known.name collate "C"
          and tasks.version = _version
          and tasks.available_at is not null
        order by tasks.available_at
        limit 1
      )
      union all
      (
        select tasks.available_at
        from durable.tasks
        where _may_begin
          and tasks.queue = _queue
          and tasks.name = known.name collate "C"
          and tasks.version is null
          and tasks.available_at is not null
        order by tasks.available_at
        limit 1
      )
    ) as first
    having count(*) > 0
  );
end;
$$;


-- What waits for one version only: one step of the index a name and version.
create or replace function durable._waiting_versions(queue text)
returns table (name text, version text)
language plpgsql
set enable_seqscan = off
set enable_sort = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := '';
  _version text collate "C" := '';
begin
  loop
    select tasks.name, tasks.version into _name, _version
    from durable.tasks
    where tasks.queue = _queue
      and (tasks.name, tasks.version) > (_name, _version)
      and tasks.available_at is not null
      and tasks.version is not null
    order by tasks.name, tasks.version
    limit 1;
    exit when not found;
    name := _name;
    version := _version;
    return next;
  end loop;
end;
$$;


create or replace function durable._all_waiting_names(queue text)
returns text[]
language plpgsql
as $$
begin
  return array(
    select unnest(durable._waiting_names(queue))
    union
    select waiting.name from durable._waiting_versions(queue) as waiting
    order by 1);
end;
$$;
