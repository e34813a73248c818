-- Finds what needs an operator: tasks that nobody runs, maintenance that is late, and what keeps
-- the database from cleaning up.
--
-- Each private function looks at one subject and returns what it finds, with the SQL or command
-- that helps. It reads by an index, at most 100 rows of each kind. What lasts for less than a
-- minute is normal, and no finding.

create or replace function durable.diagnose()
returns setof durable.finding language plpgsql stable as $$
declare
  _now timestamptz := durable._now();
  _since timestamptz := _now - interval '1 minute';
  _queue durable.queues;
begin
  for _queue in
    select * from durable.queues where durable._may_use(queues.roles) order by queues.queue
  loop
    return query select * from durable._diagnose_workers(_queue, _now, _since);
    return query select * from durable._diagnose_versions(_queue, _now);
    return query select * from durable._diagnose_maintenance(_queue, _since);
    return query select * from durable._diagnose_schedules(_queue, _now);
    return query select * from durable._diagnose_policy(_queue);
  end loop;
  return query select * from durable._diagnose_transactions(_now);
  return query select * from durable._diagnose_tables();
  return query select * from durable._diagnose_connections();
end;
$$;

comment on function durable.diagnose is
'Returns what needs an operator, in the queues that the caller may use and in the database.
severity is error, warning, or info, for what somebody has intended. code is one of

- no_worker, unknown_name: tasks wait for more than a minute, and no worker is alive, or none
  knows their name; no_version: tasks wait for a version that no live worker has.
- dead_worker: a worker has not been seen for a minute, and had not stopped.
- late_leases, late_deadlines, late_work: maintenance is late by more than a minute.
- late_schedule: a schedule is due for five minutes; failed_schedule: its tick cannot be handled.
- queue_paused, name_paused, queue_full.
- old_transaction, prepared_transaction, inactive_slot: it has kept old rows from being removed
  for ten minutes, or without an end.
- invalid_index, dead_rows: a table of the engine needs to be reindexed, or vacuumed.
- connections: nine tenths of max_connections are in use.

Transactions of other roles are found only if the owner of the engine may see them, as a member
of pg_read_all_stats may.';

create or replace function durable._diagnose_workers(
  queue durable.queues, at timestamptz, since timestamptz
) returns setof durable.finding language sql stable as $$
  with alive as (
    select worker_sessions.names
    from durable.worker_sessions
    where worker_sessions.queue = queue.queue and durable._is_alive(worker_sessions.seen_at, at)
  )
  select
    'error', case when exists (select from alive) then 'unknown_name' else 'no_worker' end,
    queue.queue::text,
    format(case when exists (select from alive) then 'no worker knows tasks named "%s"'
      else 'no worker runs, and tasks named "%s" wait' end || ', since %s',
      waiting.name, durable._readable_time(waiting.oldest_at)),
    format('start a worker that knows them, or: select durable.cancel_tasks(%L, %L)', queue.queue,
      jsonb_build_object('name', waiting.name))
  from (
    select known.name, min(first.available_at)
    from durable._waiting_versions(queue.queue) as known
    cross join lateral (
      (
        select tasks.available_at
        from durable.tasks
        where tasks.queue = queue.queue and tasks.name = known.name collate "C"
          and tasks.version = known.version collate "C"
          and tasks.available_at is not null
          and tasks.partition_key is null
          and not known.in_lanes
        order by tasks.available_at
        limit 1
      )
      union all
      ( -- no index has the oldest one of all lanes
        select tasks.available_at
        from durable.tasks
        where tasks.queue = queue.queue and tasks.name = known.name collate "C"
          and tasks.version = known.version collate "C"
          and tasks.available_at is not null
          and tasks.partition_key is not null
          and known.in_lanes
        limit 100
      )
    ) as first
    group by known.name
  ) as waiting (name, oldest_at)
  where waiting.oldest_at <= since
    and not exists (select from alive where waiting.name = any (alive.names))
  union all
  select
    'warning', 'dead_worker', queue.queue::text,
    format('worker "%s" has not been seen since %s, and had not stopped', worker_sessions.worker,
      durable._readable_time(worker_sessions.seen_at)),
    'look at its log; others take over its tasks when their leases expire'
  from durable.worker_sessions
  where worker_sessions.queue = queue.queue
    and not durable._is_alive(worker_sessions.seen_at, at);
$$;

create or replace function durable._diagnose_versions(queue durable.queues, at timestamptz)
returns setof durable.finding language sql stable as $$
  select
    'error', 'no_version', queue.queue::text,
    format('tasks wait for version "%s", which no live worker has', waiting.version),
    format('start such a worker, or: select durable.set_version(%L, ''<version>'','
      ' from_version => %L)', queue.queue, waiting.version)
  from (
    select distinct known.version
    from durable._waiting_versions(queue.queue) as known
    where known.version <> '' and queue.versions is not null
  ) as waiting
  where not exists (
    select from durable.worker_sessions
    where worker_sessions.queue = queue.queue
      and worker_sessions.version = waiting.version collate "C"
      and durable._is_alive(worker_sessions.seen_at, at)
    offset 0);
$$;

create or replace function durable._diagnose_maintenance(
  queue durable.queues, since timestamptz
) returns setof durable.finding language sql stable as $$
  select
    'error', late.code, queue.queue::text,
    format(late.message, case when late.number < 100 then late.number::text
      else '100 or more' end),
    format('start a worker, or: select durable.run_maintenance(%L)', queue.queue)
  from (
    select 'late_leases', '%s leases have expired, and nobody has taken their tasks back', (
      select count(*)
      from (
        select
        from durable.tasks
        where tasks.queue = queue.queue and tasks.lease_expires_at <= since
        limit 100
      ) as lease)
    union all
    select 'late_deadlines', '%s tasks are past their limit, and nobody has cancelled them', (
      select count(*)
      from (
        select
        from durable.tasks
        where tasks.queue = queue.queue and tasks.expires_at <= since
        limit 100
      ) as deadline)
    union all
    select 'late_work', '%s pieces of work were deferred, and nobody has done them', (
      select count(*)
      from (
        select
        from durable.deferred_work
        where deferred_work.queue = queue.queue
          and deferred_work.work_id < durable._uuid7_floor(since)
        limit 100
      ) as work)
  ) as late (code, message, number)
  where late.number > 0;
$$;

create or replace function durable._diagnose_schedules(queue durable.queues, at timestamptz)
returns setof durable.finding language sql stable as $$
  select
    'error', case when late.failed_at is null then 'late_schedule' else 'failed_schedule' end,
    queue.queue::text,
    format('schedule "%s" is due since %s%s', late.schedule, durable._readable_time(late.next_at),
      ': ' || late.error),
    case when late.failed_at is null
      then format('start a worker, or: select durable.fire_schedules(%L)', queue.queue)
      else format('correct it, or: select durable.pause_schedule(%L, %L)', queue.queue,
        late.schedule) end
  from (
    select *
    from durable.schedules
    where schedules.queue = queue.queue and schedules.next_at <= at
    order by schedules.next_at
    limit 100
  ) as late
  where late.failed_at is not null or late.next_at <= at - interval '5 minutes';
$$;

create or replace function durable._diagnose_policy(queue durable.queues)
returns setof durable.finding language sql stable as $$
  select
    'info', 'queue_paused', queue.queue::text,
    format('it has been paused since %s by role %s', durable._readable_time(queue.paused_at),
      queue.paused_by ->> 'user'),
    format('select durable.resume_queue(%L)', queue.queue)
  where queue.paused_at is not null
  union all
  select
    'info', 'name_paused', queue.queue::text,
    format('tasks named "%s" have been paused since %s by role %s', paused.key,
      durable._readable_time((paused.value ->> 'at')::timestamptz),
      paused.value -> 'by' ->> 'user'),
    format('select durable.resume_queue(%L, %L)', queue.queue, paused.key)
  from jsonb_each(queue.paused_names) as paused
  union all
  select
    'warning', 'queue_full', queue.queue::text,
    format('spawns are refused: %s tasks or more are ready', queue.max_length),
    'start more workers, or raise max_length with create_queue()'
  where queue.is_full;
$$;

create or replace function durable._diagnose_transactions(at timestamptz)
returns setof durable.finding language sql stable as $$
  select
    'warning', 'old_transaction', format('session %s', session.pid),
    format('%s of role %s has an open transaction since %s: no row that died since is removed',
      coalesce(nullif(session.application_name, ''), 'a session'), session.usename,
      durable._readable_time(session.xact_start)),
    format('end it, or: select pg_terminate_backend(%s)', session.pid)
  from pg_stat_activity as session
  where session.datname = current_database()
    and session.xact_start <= at - interval '10 minutes'
    and session.pid <> pg_backend_pid()
    and num_nonnulls(session.backend_xmin, session.backend_xid) > 0
  union all
  select
    'warning', 'prepared_transaction', prepared.gid,
    format('it was prepared at %s: no row that died since is removed',
      durable._readable_time(prepared.prepared)),
    format('commit prepared %L, or rollback prepared %1$L', prepared.gid)
  from pg_prepared_xacts as prepared
  where prepared.database = current_database()
    and prepared.prepared <= at - interval '10 minutes'
  union all
  select
    'warning', 'inactive_slot', slot.slot_name::text,
    'nobody reads this replication slot: rows and log that it may need are kept',
    format('connect its reader, or: select pg_drop_replication_slot(%L)', slot.slot_name)
  from pg_replication_slots as slot
  where not slot.active;
$$;

create or replace function durable._diagnose_tables()
returns setof durable.finding language sql stable as $$
  select
    'error', 'invalid_index', pg_index.indexrelid::regclass::text,
    'a concurrent build of this index has failed: it is maintained, but not used',
    format('reindex index concurrently %s', pg_index.indexrelid::regclass)
  from pg_index
  join pg_class on pg_class.oid = pg_index.indrelid
  where pg_class.relnamespace = 'durable'::regnamespace and not pg_index.indisvalid
  union all
  select
    'warning', 'dead_rows', format('durable.%s', counted.relname),
    format('it has %s dead rows beside %s live ones; last vacuum: %s', counted.n_dead_tup,
      counted.n_live_tup, coalesce(durable._readable_time(
        greatest(counted.last_vacuum, counted.last_autovacuum)), 'never')),
    format('look for old transactions, then: vacuum durable.%I', counted.relname)
  from pg_stat_all_tables as counted
  where counted.schemaname = 'durable'
    and counted.n_dead_tup > 100000 and counted.n_dead_tup > counted.n_live_tup;
$$;

create or replace function durable._diagnose_connections()
returns setof durable.finding language sql stable as $$
  select
    'warning', 'connections', 'max_connections',
    format('%s of %s connections are in use', used.number, allowed.number),
    'start fewer workers and clients, use a pooler, or raise max_connections'
  from (
    select count(*) from pg_stat_activity where backend_type = 'client backend'
  ) as used (number)
  cross join (select current_setting('max_connections')::integer) as allowed (number)
  where used.number >= 0.9 * allowed.number;
$$;
