-- The fleet: which versions of the application work on a queue, and moving tasks from one
-- to another.
--
-- A version's row is written by whoever announces it, about every ten seconds and never
-- waiting for another worker that does the same. Nothing that decides over tasks reads
-- when a version was seen: only people do, and what is logged for them.

create or replace function durable.announce_version(queue text, version text)
returns setof text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _version text collate "C" := durable._checked_name('version', version, 100);
  _now timestamptz := durable._now();
  _seen_at timestamptz;
begin
  perform durable._require_queue(_queue);
  select versions.last_seen_at into _seen_at
  from durable.versions
  where versions.queue = _queue and versions.version = _version;
  if not found then
    insert into durable.versions (queue, version, first_seen_at, last_seen_at, promoted_at)
    values (_queue, _version, _now, _now, _now)
    on conflict do nothing;
  elsif _seen_at <= _now - make_interval(secs => 10) then
    perform
    from durable.versions
    where versions.queue = _queue and versions.version = _version
    for no key update skip locked;
    if found then
      update durable.versions
      set last_seen_at = _now
      where versions.queue = _queue and versions.version = _version;
    end if;
  end if;
  return query
    select distinct waiting.version
    from durable._waiting_versions(_queue) as waiting
    left join lateral (
      select versions.last_seen_at
      from durable.versions
      where versions.queue = _queue and versions.version = waiting.version collate "C"
      offset 0
    ) as known on true
    where waiting.version <> _version
      and (known.last_seen_at > _now - make_interval(secs => 60)) is not true;
end;
$$;

comment on function durable.announce_version is
'Says that a worker of this version of the application works on the queue; to be said
again every ten seconds. A version that is new in the queue is its latest. Returns those
versions that tasks wait for and nobody has announced for a minute. Refuses an unknown
queue WFQUE and a bad version 22023.';


create or replace function durable.promote_version(queue text, version text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _version text collate "C" := version;
  _now timestamptz := durable._now();
begin
  update durable.versions
  set promoted_at = _now
  where versions.queue = _queue and versions.version = _version;
  if not found then
    return false;
  end if;
  perform durable._knock(_queue, 'work');
  return true;
end;
$$;

comment on function durable.promote_version is
'Makes a version the latest of a queue: where the policy is gate, tasks that no version
spawned are for it from now on. After a rollback, say. Returns false for one that no
worker has announced.';


create or replace function durable.set_version(
  queue text,
  version text,
  task_ids uuid[] default null,
  from_version text default null,
  quantity integer default 1000
)
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
  _queue text collate "C" := queue;
  _version text collate "C" := durable._checked_version(to_jsonb(version));
  _from text collate "C" := from_version;
  _task_id uuid;
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
      and tasks.version = _from
      and _from is distinct from _version
      and tasks.finished_at is null
    order by tasks.task_id
    limit quantity
    for no key update skip locked
  loop
    update durable.tasks set version = _version
    where tasks.queue = _queue and tasks.task_id = _task_id;
    _moved := _moved + 1;
  end loop;
  for _task_id in
    select distinct given.task_id from unnest(task_ids) as given (task_id) order by 1
  loop
    update durable.tasks set version = _version
    where tasks.queue = _queue and tasks.task_id = _task_id;
    if found then
      _moved := _moved + 1;
    end if;
  end loop;
  perform durable._knock(_queue, 'work');
  return _moved;
end;
$$;

comment on function durable.set_version is
'Makes tasks be for another version of the application (null: for none yet), from their
next claim on: those with these ids, live or finished, waiting for whoever holds them; or
at most quantity live ones that are for from_version, passing over what others hold: say
it again until it returns 0. Returns how many. Refuses an unknown queue WFQUE and bad
arguments 22023.';


create or replace function durable.list_versions(queue text default null)
returns setof durable.version_statistics
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select
    queues.queue::text, found.version::text,
    found.promoted_at is not null and found.version = first_value(found.version)
      over (partition by queues.queue order by found.promoted_at desc nulls last, found.version desc),
    coalesce(found.last_seen_at > durable._now() - make_interval(secs => 60), false),
    found.first_seen_at, found.last_seen_at,
    coalesce(found.live, 0), coalesce(found.running, 0), coalesce(found.ready, 0), found.oldest_ready_at
  from durable.queues
  cross join lateral (
    select *
    from (
      select *
      from durable.versions
      where versions.queue = queues.queue
    ) as announced
    full join (
      select
        tasks.version,
        count(*) as live,
        count(*) filter (where tasks.state = 'running') as running,
        count(*) filter (where tasks.available_at <= durable._now()) as ready,
        min(tasks.available_at) filter (where tasks.available_at <= durable._now()) as oldest_ready_at
      from durable.tasks
      where tasks.queue = queues.queue and tasks.finished_at is null and tasks.version is not null
      group by tasks.version
    ) as counted using (version)
  ) as found
  where case
    when list_versions.queue is null then durable._may_use(queues.roles)
    else queues.queue = durable._granted(list_versions.queue) collate "C"
  end
  order by queues.queue, found.first_seen_at, found.version;
$$;

comment on function durable.list_versions is
'The versions of a queue (null: of every queue the caller may use) that workers have
announced or that live tasks are for. Tasks that are live where nobody is alive wait for
a version that nobody runs: set_version moves them. Reads every task of the queue.';


-- Where versions no longer count, what waits for one of them may be had by anybody.
create or replace function durable._forget_versions(queue text, quantity integer)
returns void
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
  _task_id uuid;
begin
  for _task_id in
    select tasks.task_id
    from durable.tasks
    where tasks.queue = _queue
      and tasks.available_at is not null
      and tasks.version is not null
      and exists (select from durable.queues where queues.queue = _queue and queues.versions is null)
    order by tasks.name, tasks.version, tasks.available_at, tasks.task_id
    limit quantity
    for no key update of tasks skip locked
  loop
    update durable.tasks set version = null
    where tasks.queue = _queue and tasks.task_id = _task_id;
  end loop;
  if found then
    perform durable._knock(_queue, 'work');
  end if;
end;
$$;
