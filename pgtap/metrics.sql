begin;
\ir _setup.sql
select plan(27);

-- percentiles

select is(durable._percentile(buckets::bigint[], fraction), found::double precision, what)
from (values
  (array_fill(0, array[12]), 0.5, null, 'no tasks have no percentile'),
  (null, 0.5, null, 'nor has nothing'),
  (array[0,10,0,0,0,0,0,0,0,0,0,0], 1, 0.01, 'all of a bucket are below its upper bound'),
  (array[10,0,0,0,0,0,0,0,0,0,0,0], 0.5, 0.0015, 'the first bucket begins with zero'),
  (array[0,0,0,0,0,0,0,0,0,0,0,10], 0.5, 3600, 'the last one has only a lower bound'),
  (array[90,0,0,0,0,0,0,10,0,0,0,0], 0.9, 0.003, 'nine tenths in the first')
) as given (buckets, fraction, found, what);
select is(durable._histogram(array[-1, 0, 0.003, 0.5, 59, 1e9, null]), array[2,1,0,0,0,1,0,0,1,0,0,1],
  'a histogram counts durations by bucket');
select is(durable._add_buckets(array[1,2], array[10,20]), array[11,22], 'histograms can be added');

-- throughput

select started('a'), move_to(2), completed('a'), move_to(4), started('b', '{"max_attempts": 1}'), move_to(5),
  failed('b'), spawned('late'), move_to(25), claimed('late'), move_to(26), completed('late') \g /dev/null
select started('again', '{"retry": {"kind": "fixed", "base_seconds": 0}}'), failed('again'), move_to(50), claimed('again'),
  move_to(65), completed('again'), started('n'), durable.cancel_task('q', id('n')) \g /dev/null
select durable._measure('q', 1000) \g /dev/null
select results_eq(
  $$ select waits, runs from durable.metrics where at = at(0) $$,
  $$ values (array[2,0,0,0,0,0,0,0,1,0,0,0], array[0,0,0,0,0,0,3,0,0,0,0,0]) $$,
  'waits end with the first start, runs with the end');
select results_eq(
  $$ select waits, runs from durable.metrics where at = at(60) $$,
  $$ values (array[0,0,0,0,0,0,0,0,0,0,0,0], array[0,0,0,0,0,0,0,0,1,0,0,0]) $$,
  'a retried task has no wait, a cancelled one no run');
select results_eq(
  $$ select at, completed, failed, cancelled, retried, round(wait_p99), round(run_p50::numeric, 1)
     from durable.queue_throughput('q', at(0), at(3600), '1 hour') $$,
  $$ values (at(0), 3::bigint, 1::bigint, 1::bigint, 1::bigint, 57::double precision, 2.1) $$,
  'minutes can be summed up');
select results_eq($$ select at from durable.queue_throughput('q', at(60), at(120)) $$, array[at(60)],
  'of a range of time');
select is_empty($$ select at from durable.queue_throughput('q', at(120), at(500)) $$,
  'in which what does not exist has no row');
select move_to(3600) \g /dev/null
select is((select count(*) from durable.queue_throughput('q')), 2::bigint, 'by default of a day, until now');
select throws_ok(format('select durable.%s(%L, bucket => %L)', function, queue, bucket), code, null,
  format('%s() refuses %s', function, what))
from (values
  ('queue_throughput', 'nowhere', '1 minute', 'WFQUE', 'an unknown queue'),
  ('queue_throughput', 'q', '59 seconds', '22023', 'a bucket that is too short'),
  ('queue_throughput', 'q', '1 month', '22023', 'months, which differ'),
  ('queue_throughput', 'q', null, '22023', 'no bucket'),
  ('queue_depth', 'nowhere', '1 minute', 'WFQUE', 'an unknown queue'),
  ('queue_depth', 'q', '9 seconds', '22023', 'a bucket that is too short')
) as refused (function, queue, bucket, code, what);

-- depth

delete from durable.samples;
select move_to(3610), spawned('ready'), started('held'), started('asleep'), sleeping('asleep', 9999) \g /dev/null
select move_to(3615), durable._take_sample('q', at(3615)) \g /dev/null
select move_to(3625), completed('held'), spawned('second'), durable._take_sample('q', at(3625)) \g /dev/null
select results_eq($$ select * from durable.queue_depth('q', at(3600)) $$,
  $$ values (at(3600), 2, 1, 1, 2, 15::double precision) $$, 'queue_depth() returns the most of each');
select results_eq($$ select at, ready, running from durable.queue_depth('q', at(3600), bucket => '10 seconds') $$,
  $$ values (at(3610), 1, 1), (at(3620), 2, 0) $$, 'in each bucket');
select durable._take_sample('other', at(3630)) \g /dev/null
select is_empty($$ select from durable.samples where queue = 'other' $$, 'a queue without live tasks has no samples');

-- keeping

select durable._measure('q', 1000) \g /dev/null
select move_to(2 * 86400 + 7180), spawned('last'), durable._measure('q', 1000) \g /dev/null
select results_eq($$ select at, completed, waits[1] from durable.queue_throughput('q', at(0), at(7200), by_name => true)
    join durable.metrics using (at, completed) $$,
  $$ values (at(0), 3::bigint, 2), (at(3600), 1, 1) $$, 'minutes become hours after two days');
select is((select count(*) from durable.metrics where metrics.at < at(7200)), 2::bigint, 'one row for each');
select is((select count(*) from durable.samples where samples.at < at(3615)), 0::bigint, 'samples are deleted then');
select durable.create_queue('q', '{"keep_metrics": 172800}'), move_to(2 * 86400 + 7200), durable._measure('q', 1000)
\g /dev/null
select results_eq($$ select min(metrics.at) from durable.metrics $$, array[at(2 * 86400 + 7140)],
  'metrics are deleted after keep_metrics');

select * from finish();
rollback;
