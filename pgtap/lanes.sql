begin;
\ir _setup.sql
select plan(94);

-- Spawns a task a millisecond later, since ids of one moment have no order.
create function pg_temp.spawn(nick text, options jsonb default '{}') returns uuid language sql as $$
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 0.001);
  select tap.spawned(nick, options);
$$;

-- The nicknames of the tasks that a worker gets from q, as "a b c", in order of spawning.
create function pg_temp.claim(batch_size integer default 1, version text default null)
returns text
language sql
as $$
  select coalesce(string_agg(tap.nick(task_id), ' ' order by task_id), '')
  from durable.claim_tasks('q', 'worker', null, batch_size, 30, version => claim.version);
$$;

create function pg_temp.policy(policy jsonb)
returns boolean
language sql
as $$
  select durable.create_queue('q', policy);
$$;

-- The waiting tasks without a lane: there must never be one.
create view lost as
select tasks.task_id from durable.tasks
where tasks.partition_key is not null and tasks.available_at is not null
  and not exists (
    select from durable.lanes
    where lanes.queue = tasks.queue and lanes.name = tasks.name and lanes.version = tasks.version
      and lanes.partition_key = tasks.partition_key and lanes.priority = tasks.priority
      and lanes.resumes = (tasks.started_at is not null and tasks.error is null)
      and (lanes.turn_at <= tasks.available_at or lanes.turn_at is null
        or lanes.turn_at <= durable._now()));

-- Options and policies that are refused

select everything() as before \gset
select throws_ok(format('select durable.spawn(%L, %L, %L, %L)', 'q', 'job', '{}', options), '22023', null,
  format('spawn() refuses %s in a queue without limits', options))
from unnest(array['{"partition_key": "a"}', '{"priority": 0}',
  '{"partition_key": "a", "idempotency_key": "k"}']) as refused (options);
select throws_ok(
  $$ select durable.spawn_many('q', '[{"task": "job"}, {"task": "job", "options": {"priority": 1}}]') $$,
  '22023', null, 'so does spawn_many()');
select throws_ok($$ select durable.set_partition_limit('q', 'a', '{"concurrency": 1}') $$, '22023', null,
  'and set_partition_limit()');
select throws_ok($$ select durable.set_partition_limit('none', 'a', '{}') $$, 'WFQUE', null,
  'set_partition_limit() refuses an unknown queue');
select throws_ok(format('select durable.create_queue(%L, %L)', 'q', policy), '22023', null,
  format('create_queue() refuses %s', policy))
from unnest(array['{"concurrency": 0}', '{"concurrency": 1.5}', '{"partition_concurrency": "2"}',
  '{"rate": 5}', '{"rate": {"starts": 5}}', '{"rate": {"starts": 0, "period": 1}}',
  '{"rate": {"starts": 5, "period": 0}}', '{"partition_rate": {"starts": 5, "period": 1, "burst": 2}}',
  '{"priorities": 1}']) as refused (policy);
select is(everything(), :'before', 'what is refused leaves no trace');
select pg_temp.policy('{"priorities": true}') \g /dev/null
select throws_ok(format('select durable.spawn(%L, %L, %L, %L)', 'q', 'job', '{}', options), '22023', null,
  format('spawn() refuses %s', options))
from unnest(array['{"partition_key": ""}', '{"partition_key": 7}', '{"priority": 1.5}',
  '{"priority": 32768}', '{"priority": "1"}',
  jsonb_build_object('partition_key', repeat('x', 256))::text]) as refused (options);
select throws_ok(format('select durable.set_partition_limit(%L, %L, %L)', 'q', 'a', limits), '22023', null,
  format('set_partition_limit() refuses %s', limits))
from unnest(array['{"concurrency": 0}', '{"rate": 1}', '{"limit": 1}', '[]', null]) as refused (limits);

-- Priorities and turns

select pg_temp.spawn('low', '{"priority": -1}'), pg_temp.spawn('usual'), pg_temp.spawn('high', '{"priority": 5}') \g /dev/null
select is(pg_temp.claim() || pg_temp.claim() || pg_temp.claim() || pg_temp.claim(), 'highusuallow',
  'higher priorities start first');
select completed('low usual high') \g /dev/null

select pg_temp.spawn(format('big-%s', i), '{"partition_key": "big"}') from generate_series(1, 5) as i \g /dev/null
select move_to(1), pg_temp.spawn('x', '{"partition_key": "x"}'), pg_temp.spawn('y', '{"partition_key": "y"}') \g /dev/null
create temp table turns as select 0 as i, '' as nick;
create function pg_temp.turn(i integer) returns void language sql as $$
  select tap.move_to(1 + i);
  insert into turns select i, pg_temp.claim();
$$;
select pg_temp.turn(i) from generate_series(1, 7) as i \g /dev/null
select is((select string_agg(nick, ' ' order by i) from turns where i in (1, 2, 3)) like '%x%'
    and (select string_agg(nick, ' ' order by i) from turns where i in (1, 2, 3)) like '%y%', true,
  'a partition with few tasks waits one round for one with many');
select is((select count(*) from turns where nick like 'big-%'), 5::bigint, 'which are served, too');
select completed('big-1 big-2 big-3 big-4 big-5 x y') \g /dev/null
select move_to(20), pg_temp.spawn('b1', '{"partition_key": "b"}'), pg_temp.spawn('b2', '{"partition_key": "b"}'),
  pg_temp.spawn('b3', '{"partition_key": "b"}'), pg_temp.spawn('c1', '{"partition_key": "c"}'),
  pg_temp.spawn('c2', '{"partition_key": "c"}') \g /dev/null
select is(pg_temp.claim(4), 'b1 b2 c1 c2', 'a batch is divided among partitions');
select is(pg_temp.claim(4), 'b3', 'and what one leaves, others get');
select pg_temp.spawn(key || i, jsonb_build_object('partition_key', key))
from unnest(array['m', 'n', 'o']) as key cross join generate_series(1, 2) as i order by i, key \g /dev/null
select is(pg_temp.claim(4), 'm1 n1 o1 m2', 'each gets one before one gets two');
select completed('m1 n1 o1 m2 n2 o2') from pg_temp.claim(9) \g /dev/null
select completed('b1 b2 b3 c1 c2'), pg_temp.claim(9), pg_temp.claim(9) \g /dev/null
select is_empty($$ select from durable.lanes $$, 'lanes without tasks are deleted');

-- Concurrency, of the queue and of partitions

select pg_temp.policy('{"priorities": null, "concurrency": 3, "partition_concurrency": 2}') \g /dev/null
select pg_temp.spawn(key || i, jsonb_build_object('partition_key', key))
from unnest(array['d', 'e']) as key cross join generate_series(1, 4) as i order by i, key \g /dev/null
select is(pg_temp.claim(9), 'd1 e1 d2', 'no more run than the queue allows');
select is(pg_temp.claim(9), '', 'on all workers');
select is(durable.get_next_due('q'), null, 'a worker waits until a task ends');
select completed('e1') \g /dev/null
select is(durable.get_next_due('q'), 0::double precision, 'then it looks at once');
select is(pg_temp.claim(9), 'e2', 'and takes a task of a partition that is not full');
select pg_temp.policy('{"concurrency": 9}') \g /dev/null
select is(pg_temp.claim(9), 'e3', 'no more of a partition run than the queue allows each');
select is(pg_temp.claim(9), '', 'whatever the queue has free');
select is(durable.get_next_due('q'), null, 'a worker waits until a task of such a partition ends');
select results_eq($$ select partition_key collate "default" from durable.lanes where turn_at is null order by 1 $$,
  array['d', 'e'], 'full partitions have no turn');
select completed('d1') \g /dev/null
select is(pg_temp.claim(9), 'd3', 'until one of their tasks ends');
select pg_temp.spawn('none1'), pg_temp.spawn('none2'), pg_temp.spawn('none3') \g /dev/null
select is(pg_temp.claim(9), 'none1 none2 none3', 'tasks without a key are in no partition');
select completed('none1 none2 none3 d2 d3 e2 e3') \g /dev/null
select is(pg_temp.claim(9), 'd4 e4', 'all are served in the end');
select completed('d4 e4') \g /dev/null

-- Every way out of `running` gives the partition its next turn, and every way to wait again
-- makes it claimable.

select pg_temp.policy('{"concurrency": null, "partition_concurrency": 1, "priorities": true}') \g /dev/null
create function pg_temp.left(way text)
returns text
language plpgsql
as $$
declare
  _first text := 'first ' || way;
  _second text := 'second ' || way;
  _key jsonb := jsonb_build_object('partition_key', way, 'max_attempts', 2, 'retry', '{"kind": "fixed", "base_seconds": 5}'::jsonb);
  _result text;
  _again text := '';
begin
  perform pg_temp.spawn('first-' || way, _key), pg_temp.spawn('second-' || way, _key);
  _result := pg_temp.claim(9) || ',' || pg_temp.claim(9);
  case way
    when 'complete' then perform tap.completed('first-complete');
    when 'fail' then perform tap.failed('first-fail', '{"retryable": false}');
    when 'retry' then perform tap.failed('first-retry');
    when 'release' then perform tap.released('first-release');
    when 'release_unknown' then perform durable.release_unknown('q', 'worker', '{}');
    when 'cancel' then perform durable.cancel_task('q', tap.id('first-cancel'));
    when 'sleep' then perform tap.sleeping('first-sleep', extract(epoch from durable._now() - tap.at(0)) + 5);
    when 'event' then perform tap.awaiting('first-event', 'e-' || way);
    when 'lease' then
      perform tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 31);
      perform durable.expire_leases('q');
    when 'cascade' then
      perform durable._cancel_each('q', array[tap.id('first-cascade')], '{"type": "x"}');
  end case;
  _result := _result || ',' || (select count(*) from lost) || ',' ||
    (select count(*) from durable.lanes where queue = 'q' and partition_key = way and turn_at is null);
  _result := _result || ',' || pg_temp.claim(9);
  if way = 'event' then
    perform durable.emit_event('q', 'e-' || way);
  end if;
  perform tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 5);
  _again := pg_temp.claim(9);
  perform tap.completed(case when _result like '%,first%' then 'first-' else 'second-' end || way);
  _again := _again || ',' || pg_temp.claim(9) || ',' || (select count(*) from lost);
  perform durable.cancel_tasks('q', '{"states": ["pending", "sleeping", "running"]}');
  return replace(_result || ';' || _again, '-' || way, '');
end;
$$;
select is(pg_temp.left(way), expected, format('%s frees a slot of the partition', way))
from (values
  ('complete', 'first,,0,0,second;,,0'),
  ('fail', 'first,,0,0,second;,,0'),
  ('cancel', 'first,,0,0,second;,,0'),
  ('cascade', 'first,,0,0,second;,,0'),
  ('retry', 'first,,0,0,second;,first,0'),
  ('sleep', 'first,,0,0,second;,first,0'),
  ('event', 'first,,0,0,second;,first,0'),
  ('release', 'first,,0,0,first;,second,0'),
  ('release_unknown', 'first,,0,0,first;,second,0'),
  ('lease', 'first,,0,0,second;,first,0')
) as ways (way, expected);

-- Rates: only what begins an attempt counts

select pg_temp.policy('{"partition_concurrency": null, "rate": {"starts": 2, "period": 10}}') \g /dev/null
select move_to(1000), pg_temp.spawn('r1'), pg_temp.spawn('r2'), pg_temp.spawn('r3'), pg_temp.spawn('r4'), move_to(1001) \g /dev/null
select is(pg_temp.claim(9), 'r1 r2', 'no more begin in a period than the rate allows');
select is(durable.get_next_due('q'), 10::double precision, 'a worker waits until the rate lets one begin');
select move_to(1003), released('r1'), sleeping('r2', 1003.5), move_to(1004) \g /dev/null
select is(pg_temp.claim(9), 'r1 r2', 'what continues its attempt does not count');
select move_to(1010.9) \g /dev/null
select is(pg_temp.claim(9), '', 'until the period is over nothing begins');
select move_to(1011) \g /dev/null
select is(pg_temp.claim(9), 'r3 r4', 'then as many as the first period had');
select failed('r3', '{"retryable": true}'), move_to(1015) \g /dev/null
select is(pg_temp.claim(9), '', 'another attempt counts');
select move_to(1021) \g /dev/null
select is(pg_temp.claim(9), 'r3', 'as a start of its own');
select completed('r1 r2 r3 r4') \g /dev/null
select pg_temp.policy('{"rate": null, "partition_rate": {"starts": 1, "period": 10}}') \g /dev/null
select move_to(1100) \g /dev/null
select pg_temp.spawn(key || i, jsonb_build_object('partition_key', key))
from unnest(array['f', 'g']) as key cross join generate_series(1, 2) as i order by i, key \g /dev/null
select move_to(1101) \g /dev/null
select is(pg_temp.claim(9), 'f1 g1', 'a partition has a rate of its own');
select is(pg_temp.claim(9), '', 'which holds for each');
select is(durable.get_next_due('q'), 10::double precision, 'and says when the next may begin');
select durable.set_partition_limit('q', 'f', '{"rate": {"starts": 2, "period": 10}}') \g /dev/null
select is(pg_temp.claim(9), 'f2', 'set_partition_limit() gives one partition another rate at once');
select move_to(1111) \g /dev/null
select is(pg_temp.claim(9), 'g2', 'and leaves the others theirs');
select completed('f1 f2 g1 g2') \g /dev/null

-- Limits of one partition, and changes while tasks wait

select pg_temp.policy('{"partition_rate": null, "partition_concurrency": 1}') \g /dev/null
select pg_temp.spawn('h' || i, '{"partition_key": "h"}') from generate_series(1, 6) as i \g /dev/null
select is(pg_temp.claim(9) || pg_temp.claim(9), 'h1', 'one of a partition');
select durable.set_partition_limit('q', 'h', '{"concurrency": 2}') \g /dev/null
select is(pg_temp.claim(9) || pg_temp.claim(9), 'h2', 'two, with a limit of its own');
select pg_temp.policy('{"partition_concurrency": 5}'), durable.set_partition_limit('q', 'h', '{}') \g /dev/null
select is(pg_temp.claim(9) || pg_temp.claim(9), 'h3 h4 h5', 'without it, what the queue says now');
select pg_temp.policy('{"partition_concurrency": 1}'), completed('h1 h2 h3') \g /dev/null
select is(pg_temp.claim(9), '', 'a lower limit waits until fewer run');
select pg_temp.policy('{"partition_concurrency": null}') \g /dev/null
select is(pg_temp.claim(9), 'h6', 'no limit lets all start');
select completed('h4 h5 h6') \g /dev/null

-- Other ways to wait: children, forks, retries, another version, another time

select started('origin', '{"partition_key": "o", "priority": 3}') \g /dev/null
select task_id as child from durable.spawn_children('q', id('origin'), claim('origin'),
  '[{"name": "c", "task": "job", "options": {"partition_key": "k"}}]') \gset
select call_it('child', :'child') \g /dev/null
select move_to(1200) \g /dev/null
select call_it('fork', task_id) from durable.fork_task('q', id('origin')) \g /dev/null
select call_it('elsewhere', task_id) from durable.fork_task('q', id('origin'), '{"queue": "other"}') \g /dev/null
select failed('origin', '{"retryable": false}') \g /dev/null
select call_it('anew', task_id) from durable.retry_task('q', id('origin'), '{"spawn_new": true}') \g /dev/null
select durable.retry_task('q', id('origin')) \g /dev/null
select results_eq(
  $$ select nick, (task(nick)).partition_key collate "default", (task(nick)).priority
     from unnest(array['anew', 'child', 'elsewhere', 'fork', 'origin']) as nick $$,
  $$ values ('anew', 'o', 3::smallint), ('child', 'k', 0::smallint), ('elsewhere', null, null), ('fork', 'o', 3::smallint), ('origin', 'o', 3::smallint) $$,
  'a task''s copies have its key and priority, in queues where they count');
select throws_ok(format('select durable.fork_task(%L, %L, %L)', 'q', id('origin'), '{"queue": "other", "priority": 1}'),
  '22023', null, 'fork_task() refuses a priority where it does not count');
select is_empty('select * from lost', 'they all have lanes');
select pg_temp.policy('{"versions": "gate"}'), durable.announce_worker('q', 'w1', '{"version": "v1"}') \g /dev/null
select durable.set_version('q', 'v1', ids('child fork')) \g /dev/null
select durable.reschedule_task('q', id('anew'), at(1210)) \g /dev/null
select is_empty('select * from lost', 'also those of another version and time');
select is(pg_temp.claim(9, 'v2'), '', 'a worker of another version gets none of them');
select is(pg_temp.claim(9, 'v1'), 'origin child fork', 'a worker of theirs does');
select pg_temp.policy('{"versions": null}'), move_to(1210), released('child') \g /dev/null
select durable.run_maintenance('q') \g /dev/null
select is(pg_temp.claim(9), 'child anew', 'without the policy, any worker');
select completed('origin child fork anew') \g /dev/null

-- A queue gets lanes, and loses them, while tasks wait

select durable.create_queue('live') \g /dev/null
create function pg_temp.live(batch_size integer default 9) returns text language sql as $$
  select coalesce(string_agg(tap.nick(task_id), ' ' order by task_id), '')
  from durable.claim_tasks('live', 'worker', null, batch_size);
$$;
create function pg_temp.spawn_live(nick text, options jsonb default '{}') returns uuid language sql as $$
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 0.001);
  select tap.call_it(nick, (durable.spawn('live', 'job', '{}', options)).task_id);
$$;
select pg_temp.spawn_live('w1'), pg_temp.spawn_live('w2'), pg_temp.spawn_live('w3', '{"delay": 5}') \g /dev/null
select durable.create_queue('live', '{"concurrency": 1}') \g /dev/null
select is(durable.get_next_due('live'), 0::double precision, 'what waited before is due');
select is(pg_temp.live(), 'w1', 'the limit holds for what waited before');
select is(pg_temp.live(), '', 'the rest waits');
select durable.create_queue('live', '{"concurrency": 2}') \g /dev/null
select pg_temp.spawn_live('w4', '{"partition_key": "k", "priority": 1}') \g /dev/null
select is(pg_temp.live(), 'w4', 'new tasks have priorities');
select durable.create_queue('live', '{"concurrency": null}') \g /dev/null
select is(pg_temp.live(), '', 'tasks in lanes wait until maintenance has moved them');
select durable.run_maintenance('live') \g /dev/null
select is(pg_temp.live(), 'w2', 'then the queue is as if it had never had lanes');
select move_to(2010), durable.complete_tasks('live', held('w1 w2 w4')) \g /dev/null
select is(pg_temp.live(), 'w3', 'delayed tasks, too');
select durable.run_maintenance('live') from generate_series(1, 3) \g /dev/null
select is_empty($$ select from durable.lanes where queue = 'live' $$, 'no lane is left');
select is_empty($$ select from durable.partitions where queue = 'live' $$, 'and no partition');

-- Maintenance deletes what nobody needs

select pg_temp.policy('{"partition_concurrency": 1, "partition_rate": {"starts": 1, "period": 10}}') \g /dev/null
select durable.set_partition_limit('q', 'own', '{"concurrency": 3}') \g /dev/null
select move_to(3000), pg_temp.spawn('p' || i, jsonb_build_object('partition_key', 'p' || i))
from generate_series(1, 30) as i \g /dev/null
select pg_temp.claim(100) \g /dev/null
select completed('p' || i) from generate_series(1, 30) as i \g /dev/null
select pg_temp.claim(100) \g /dev/null
select is((select count(*) from durable.starts where queue = 'q'), 30::bigint, 'starts are kept while a rate counts them');
select move_to(3011), durable.run_maintenance('q', 1) from generate_series(1, 6) \g /dev/null
select results_eq($$ select partition_key collate "default" from durable.partitions where queue = 'q' order by 1 $$,
  array['', 'f', 'own'], 'partitions without tasks and limits are deleted');
select is_empty($$ select from durable.starts where queue = 'q' $$, 'so are starts');
select durable.run_maintenance('q') \g /dev/null
select is_empty($$ select * from durable.lanes where queue = 'q' $$, 'and lanes, also those that no worker looks at');
select pg_temp.spawn('last', '{"partition_key": "p1"}'), durable.drop_queue('q') \g /dev/null
select is_empty($$ select from durable.lanes where queue = 'q' union all select from durable.partitions where queue = 'q'
  union all select from durable.starts where queue = 'q' $$, 'drop_queue() leaves nothing');

select * from finish();
rollback;
