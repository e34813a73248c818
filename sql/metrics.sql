-- Metrics of queues: throughput and latency by time, depth, totals. They are read from what
-- maintenance folds and samples (tallies.sql), so no call counts tasks.
--
-- Durations are kept as histograms, which can be added: twelve buckets, separated by the bounds
-- below. A percentile is interpolated within its bucket; one above the last bound is that bound.

create or replace function durable._latency_bounds()
returns double precision[] language sql immutable as $$
  select array[0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 60, 600, 3600]::double precision[];
$$;

-- Returns how many of these durations lie in each bucket; nulls in none.
create or replace function durable._histogram(seconds double precision[])
returns integer[] language sql immutable as $$
  select array[
    count(*) filter (where bucket = 0), count(*) filter (where bucket = 1),
    count(*) filter (where bucket = 2), count(*) filter (where bucket = 3),
    count(*) filter (where bucket = 4), count(*) filter (where bucket = 5),
    count(*) filter (where bucket = 6), count(*) filter (where bucket = 7),
    count(*) filter (where bucket = 8), count(*) filter (where bucket = 9),
    count(*) filter (where bucket = 10), count(*) filter (where bucket = 11)]::integer[]
  from (
    select width_bucket(took.seconds, durable._latency_bounds()) as bucket
    from unnest(seconds) as took (seconds)
  ) as measured;
$$;

create or replace function durable._add_buckets(buckets integer[], more integer[])
returns integer[] language sql immutable as $$
  select array_agg(pair.n + pair.more order by pair.place)
  from unnest(buckets, more) with ordinality as pair (n, more, place);
$$;

-- Returns the duration that this fraction of the tasks did not exceed; null without tasks.
create or replace function durable._percentile(buckets bigint[], fraction double precision)
returns double precision language plpgsql immutable as $$
declare
  _bounds double precision[] := durable._latency_bounds();
  _left double precision := fraction * (select sum(n) from unnest(buckets) as n);
begin
  for _bucket in 1 .. coalesce(cardinality(buckets), 0) loop
    if buckets[_bucket] > 0 and buckets[_bucket] >= _left then
      return case
        when _bucket = 1 then _bounds[1] * _left / buckets[1]
        when _bucket > cardinality(_bounds) then _bounds[_bucket - 1]
        else _bounds[_bucket - 1]
          * (_bounds[_bucket] / _bounds[_bucket - 1]) ^ (_left / buckets[_bucket])
      end;
    end if;
    _left := _left - buckets[_bucket];
  end loop;
  return null;
end;
$$;

-- Maintenance: folds tallies, takes a sample and deletes old metrics, if that was not done in the
-- last ten seconds. Dead tallies at the beginning of the index are passed over, except once an
-- hour, when those are folded whose transactions took longer than a minute.
create or replace function durable._measure(queue text, batch_size integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _last timestamptz;
  _starts_hour boolean;
begin
  select cleanup_cursors.measured_at into _last
  from durable.cleanup_cursors
  where cleanup_cursors.queue = _queue
    and (cleanup_cursors.measured_at > _now - make_interval(secs => 10)
      and cleanup_cursors.measured_at <= _now) is not true -- later: the clock was put back
  for no key update skip locked;
  if not found then
    return;
  end if;
  _starts_hour := date_trunc('hour', _last, 'UTC') is distinct from date_trunc('hour', _now, 'UTC');
  if durable._fold_tallies(_queue, case when _starts_hour then '-infinity'
    else _last - make_interval(mins => 1) end, batch_size) = batch_size
  then
    return; -- the next call folds more
  end if;
  perform durable._take_sample(_queue, _now);
  if _starts_hour then
    perform durable._merge_minutes(_queue,
      coalesce(date_trunc('hour', _last, 'UTC'), '-infinity') - make_interval(days => 2),
      date_trunc('hour', _now, 'UTC') - make_interval(days => 2));
    delete from durable.metrics
    where metrics.queue = _queue and metrics.at < (
      select _now - make_interval(secs => queues.keep_metrics)
      from durable.queues
      where queues.queue = _queue);
  end if;
  update durable.cleanup_cursors set measured_at = _now where cleanup_cursors.queue = _queue;
end;
$$;

create or replace function durable._take_sample(queue text, at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.samples
  where samples.queue = _queue and samples.at < _take_sample.at - make_interval(days => 2);
  insert into durable.samples (queue, at, pending, running, sleeping, ready, oldest_ready_at)
  select _queue, _take_sample.at, counted.pending, counted.running, counted.sleeping, counted.ready,
    counted.oldest_ready_at
  from durable._quick_counts(_queue) as counted
  where counted.pending + counted.running + counted.sleeping > 0
  on conflict do nothing;
end;
$$;

-- Turns the minutes between two hours into hours.
create or replace function durable._merge_minutes(queue text, since timestamptz, until timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _hours durable.metrics[] := array(
    select row(hour.at, hour.spawned, hour.completed, hour.failed, hour.cancelled, hour.retried,
      hour.lost, _queue, hour.name, hour.waits, hour.runs)::durable.metrics
    from durable._sum_metrics(_queue, since, until, make_interval(hours => 1), true) as hour);
begin
  delete from durable.metrics
  where metrics.queue = _queue and metrics.at >= since and metrics.at < until;
  insert into durable.metrics select hour.* from unnest(_hours) as hour;
end;
$$;

create or replace function durable._sum_metrics(
  queue text, since timestamptz, until timestamptz, bucket interval, by_name boolean
) returns table (
  at timestamptz, name text, spawned bigint, completed bigint, failed bigint, cancelled bigint,
  retried bigint, lost bigint, waits bigint[], runs bigint[]
) language plpgsql stable as $$
#variable_conflict use_column
declare
  _queue text collate "C" := queue;
begin
  return query
    select
      date_bin(bucket, metrics.at, timestamptz '2001-01-01 00:00:00Z'), -- a Monday
      case when by_name then metrics.name end,
      sum(spawned), sum(completed), sum(failed), sum(cancelled), sum(retried), sum(lost),
      array[sum(waits[1]), sum(waits[2]), sum(waits[3]), sum(waits[4]), sum(waits[5]), sum(waits[6]),
        sum(waits[7]), sum(waits[8]), sum(waits[9]), sum(waits[10]), sum(waits[11]), sum(waits[12])],
      array[sum(runs[1]), sum(runs[2]), sum(runs[3]), sum(runs[4]), sum(runs[5]), sum(runs[6]),
        sum(runs[7]), sum(runs[8]), sum(runs[9]), sum(runs[10]), sum(runs[11]), sum(runs[12])]
    from durable.metrics
    where metrics.queue = _queue and metrics.at >= since and metrics.at < until
    group by 1, 2;
end;
$$;

create or replace function durable.queue_throughput(
  queue text, since timestamptz default null, until timestamptz default null,
  bucket interval default '1 minute', by_name boolean default false
) returns setof durable.throughput language plpgsql stable as $$
declare
  _until timestamptz := coalesce(until, durable._now());
begin
  perform durable._require_queue(queue);
  perform durable._check_bucket(bucket, make_interval(mins => 1));
  return query
    select
      summed.at, summed.name, summed.spawned, summed.completed, summed.failed, summed.cancelled,
      summed.retried, summed.lost,
      durable._percentile(summed.waits, 0.5), durable._percentile(summed.waits, 0.95),
      durable._percentile(summed.waits, 0.99), durable._percentile(summed.runs, 0.5),
      durable._percentile(summed.runs, 0.95), durable._percentile(summed.runs, 0.99)
    from durable._sum_metrics(
      queue, coalesce(since, _until - make_interval(days => 1)), _until, bucket, by_name) as summed
    order by summed.at, summed.name collate "C";
end;
$$;

comment on function durable.queue_throughput is
'Returns what happened to the tasks of a queue, in time buckets from since (default: a day before
until) to until (default: now), with by_name also by task name; buckets in which nothing happened
have no row. bucket: at least a minute, in days and smaller units. Counts of minutes become those
of hours after two days, and are kept for keep_metrics of the queue''s policy. Percentiles are in
seconds, from twelve buckets of a histogram: wait is the time from the spawn to the first start, a
delay included, of tasks that ended in their first attempt; run is that from the first start to
the end, waits included, of tasks that completed or failed. What happened less than 10 seconds ago
may be missing, and after a crash what happened just before it. Refuses an unknown queue (WFQUE)
and a bad bucket (22023).';

create or replace function durable.queue_depth(
  queue text, since timestamptz default null, until timestamptz default null,
  bucket interval default '1 minute'
) returns setof durable.depth language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _until timestamptz := coalesce(until, durable._now());
  _since timestamptz := coalesce(since, _until - make_interval(days => 1));
begin
  perform durable._require_queue(_queue);
  perform durable._check_bucket(bucket, make_interval(secs => 10));
  return query
    select
      date_bin(bucket, samples.at, timestamptz '2001-01-01 00:00:00Z') as bucket_at,
      max(samples.pending), max(samples.running), max(samples.sleeping), max(samples.ready),
      date_part('epoch', max(samples.at - samples.oldest_ready_at))
    from durable.samples
    where samples.queue = _queue and samples.at >= _since and samples.at <= _until
    group by bucket_at
    order by bucket_at;
end;
$$;

comment on function durable.queue_depth is
'Returns how many live tasks a queue had, in time buckets from since (default: a day before until)
to until (default: now): the most that a sample found in each state, and ready to be claimed, and
for how many seconds the oldest of these had been. A sample is taken every ten seconds by
maintenance and kept for two days. Buckets without a sample have no row: there was no live task,
or no worker ran. bucket: at least ten seconds, in days and smaller units. Refuses an unknown
queue (WFQUE) and a bad bucket (22023).';

create or replace function durable._check_bucket(bucket interval, shortest interval)
returns void language plpgsql immutable as $$
begin
  if bucket is null or bucket < shortest or date_part('year', bucket) <> 0 or date_part('month', bucket) <> 0 then
    perform durable._refuse_argument('bucket is ' || coalesce(bucket::text, 'null'),
      format('Pass an interval of %s or more, in days and smaller units.', shortest));
  end if;
end;
$$;

create or replace function durable.task_totals(queue text)
returns setof durable.task_total language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._require_queue(_queue);
  return query
    select
      totals.name, greatest(totals.live, 0), greatest(totals.completed, 0),
      greatest(totals.failed, 0), greatest(totals.cancelled, 0)
    from durable._current_totals(_queue) as totals
    where (totals.live, totals.completed, totals.failed, totals.cancelled) <> (0, 0, 0, 0)
    order by totals.name collate "C";
end;
$$;

comment on function durable.task_totals is
'Returns how many tasks of each name a queue has: live ones, and finished ones that are not deleted.
They are added up when tasks are spawned and end, not counted: after a crash of the database they
are wrong by what its last ten seconds did, until recount_totals. A standby lags by ten seconds.
Refuses an unknown queue (WFQUE).';
