-- Tallies: how many tasks were spawned and have ended, so that nothing has to count tasks.
--
-- A call that spawns or ends tasks appends a row for each name to `tallies`, in its own
-- transaction. It updates no row, so it waits for none. Every ten seconds maintenance deletes
-- what it sees and adds it to `metrics` and `totals`: exactly once, since all of that is one
-- transaction. A tally of a transaction that commits late is folded late, into its own minute.
--
-- `tallies` is unlogged. What a crash takes are the tallies of its last seconds, so metrics and
-- totals lack them; recount_totals makes the totals right again. A standby cannot read it, so
-- there totals are those of the last folding.

create or replace function durable._tally(
  queue text, at timestamptz, name text, kind durable.tally_kind, tasks integer default 1,
  waits double precision[] default null, runs double precision[] default null
) returns void language plpgsql as $$
begin
  insert into durable.tallies (at, tally_id, tasks, kind, queue, name, waits, runs)
  values (at, gen_random_uuid(), tasks, kind, queue, name, waits, runs);
end;
$$;

-- Moves tallies that were written after a moment into metrics and totals, the oldest first.
-- Returns how many. The caller holds the queue's row in cleanup_cursors, so nobody else does.
create or replace function durable._fold_tallies(queue text, after timestamptz, batch_size integer)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _folded integer;
begin
  with folded as (
    delete from durable.tallies
    where (tallies.queue = _queue) is true -- by ctid: see _lease_by_ctid
      and tallies.ctid = any (array(
        select tallies.ctid
        from durable.tallies
        where tallies.queue = _queue and tallies.at > after
        order by tallies.at, tallies.tally_id
        limit batch_size
      ))
    returning tallies.*
  ),
  measured as (
    insert into durable.metrics as known (
      queue, at, name, spawned, completed, failed, cancelled, retried, lost, waits, runs)
    select
      _queue, counted.at, counted.name,
      coalesce(sum(counted.tasks) filter (where counted.kind = 'spawned'), 0),
      coalesce(sum(counted.tasks) filter (where counted.kind = 'completed'), 0),
      coalesce(sum(counted.tasks) filter (where counted.kind = 'failed'), 0),
      coalesce(sum(counted.tasks) filter (where counted.kind = 'cancelled'), 0),
      coalesce(sum(counted.tasks) filter (where counted.kind = 'retried'), 0),
      coalesce(sum(counted.tasks) filter (where counted.kind = 'lost'), 0),
      durable._histogram(array_agg(counted.wait)), durable._histogram(array_agg(counted.run))
    from (
      select
        date_trunc('minute', folded.at, 'UTC') as at, folded.name, folded.kind, took.wait, took.run,
        case when took.place > 1 then 0 else folded.tasks end as tasks
      from folded
      left join lateral unnest(folded.waits, folded.runs) with ordinality
        as took (wait, run, place) on true
      where folded.tasks > 0 and folded.kind <> 'revived'
    ) as counted
    group by counted.at, counted.name
    on conflict on constraint metrics_pkey do update
    set
      spawned = known.spawned + excluded.spawned,
      completed = known.completed + excluded.completed,
      failed = known.failed + excluded.failed,
      cancelled = known.cancelled + excluded.cancelled,
      retried = known.retried + excluded.retried,
      lost = known.lost + excluded.lost,
      waits = durable._add_buckets(known.waits, excluded.waits),
      runs = durable._add_buckets(known.runs, excluded.runs)
  ),
  totalled as (
    insert into durable.totals as known (queue, name, live, completed, failed, cancelled)
    select
      _queue, folded.name, sum(change.live), sum(change.completed), sum(change.failed),
      sum(change.cancelled)
    from folded
    cross join lateral durable._change_of(folded.kind, folded.tasks) as change
    where folded.kind not in ('retried', 'lost')
    group by folded.name
    on conflict on constraint totals_pkey do update
    set
      live = known.live + excluded.live,
      completed = known.completed + excluded.completed,
      failed = known.failed + excluded.failed,
      cancelled = known.cancelled + excluded.cancelled
  )
  select count(*) into _folded from folded;
  return _folded;
end;
$$;

-- Returns what a tally adds to totals. It is inlined.
create or replace function durable._change_of(kind durable.tally_kind, tasks integer)
returns table (live integer, completed integer, failed integer, cancelled integer)
language sql immutable as $$
  select
    case
      when kind in ('spawned', 'revived') then tasks
      when kind in ('completed', 'failed', 'cancelled') then -greatest(tasks, 0)
      else 0
    end,
    case kind when 'completed' then tasks else 0 end,
    case kind when 'failed' then tasks else 0 end,
    case kind when 'cancelled' then tasks else 0 end;
$$;

-- Returns the totals of a queue together with the tallies that are still to be folded: at most 20,000,
-- since nobody folds them while no worker runs. Like _measure, it passes over dead ones.
create or replace function durable._current_totals(queue text)
returns setof durable.task_total language plpgsql stable as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
  _since timestamptz;
begin
  if pg_is_in_recovery() then
    return query
      select totals.name::text, totals.live, totals.completed, totals.failed, totals.cancelled
      from durable.totals
      where totals.queue = _queue;
    return;
  end if;
  select cleanup_cursors.measured_at - make_interval(mins => 1) into _since
  from durable.cleanup_cursors
  where cleanup_cursors.queue = _queue;
  return query
    select
      known.name::text, sum(known.live)::bigint, sum(known.completed)::bigint, sum(known.failed)::bigint,
      sum(known.cancelled)::bigint
    from (
      select totals.name, totals.live, totals.completed, totals.failed, totals.cancelled
      from durable.totals
      where totals.queue = _queue
      union all
      select fresh.name, change.*
      from (
        select tallies.name, tallies.kind, tallies.tasks
        from durable.tallies
        where tallies.queue = _queue and tallies.at > coalesce(_since, '-infinity')
        order by tallies.at, tallies.tally_id
        limit 20000
      ) as fresh
      cross join lateral durable._change_of(fresh.kind, fresh.tasks) as change
    ) as known
    group by known.name;
end;
$$;

create or replace function durable.recount_totals(queue text)
returns bigint language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _corrected bigint;
begin
  perform durable._require_queue(_queue);
  perform durable._require_read_committed('recount_totals');
  perform from durable.cleanup_cursors where cleanup_cursors.queue = _queue for no key update;
  with corrected as (
    insert into durable.totals as known (queue, name, live, completed, failed, cancelled)
    select _queue, found.name, sum(found.live), sum(found.completed), sum(found.failed), sum(found.cancelled)
    from durable._true_totals(_queue) as found
    group by found.name
    on conflict on constraint totals_pkey do update
    set
      live = excluded.live,
      completed = excluded.completed,
      failed = excluded.failed,
      cancelled = excluded.cancelled
    where (known.live, known.completed, known.failed, known.cancelled)
      is distinct from (excluded.live, excluded.completed, excluded.failed, excluded.cancelled)
    returning 1
  )
  select count(*) into _corrected from corrected;
  return _corrected;
end;
$$;

comment on function durable.recount_totals is
'Counts every task of a queue, and corrects the totals that task_totals returns: after a crash,
which takes the tallies of its last seconds. Returns for how many names they were wrong. Reads
every task of the queue. Refuses an unknown queue (WFQUE) and a transaction stricter than READ
COMMITTED (WFISO). Locks: the queue''s row in cleanup_cursors, and waits for a maintenance that
holds it; until it commits, maintenance neither cleans up nor takes samples.';

-- Returns rows whose sums are the totals that, with the tallies which are still to be folded, give
-- what a count gives. One statement, so that both are of one moment.
create or replace function durable._true_totals(queue text)
returns table (name text, live bigint, completed bigint, failed bigint, cancelled bigint)
language sql as $$
  select
    tasks.name, count(*) filter (where tasks.finished_at is null),
    count(*) filter (where tasks.state = 'completed'), count(*) filter (where tasks.state = 'failed'),
    count(*) filter (where tasks.state = 'cancelled')
  from durable.tasks
  where tasks.queue = _true_totals.queue
  group by tasks.name
  union all
  select tallies.name, -change.live, -change.completed, -change.failed, -change.cancelled
  from durable.tallies
  cross join lateral durable._change_of(tallies.kind, tallies.tasks) as change
  where tallies.queue = _true_totals.queue
  union all
  select totals.name, 0, 0, 0, 0
  from durable.totals
  where totals.queue = _true_totals.queue;
$$;
