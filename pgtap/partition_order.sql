begin;
\ir _setup.sql
select plan(59);

select durable.create_queue('q', '{"partition_order": "strict"}') \g /dev/null

create function pg_temp.after(seconds double precision) returns text language sql as $$
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + seconds);
$$;

-- Spawns tasks of a partition, a second after each other.
create function pg_temp.spawn(
  nicks text, key text default 'k', options jsonb default '{}', task text default 'job'
) returns void language sql as $$
  select pg_temp.after(1), tap.spawned(nick, jsonb_build_object('partition_key', key,
    'retry', '{"kind": "fixed", "base_seconds": 5}'::jsonb) || options, task)
  from tap.words(nicks);
$$;

-- The nicknames of the tasks that a worker gets, in order of spawning.
create function pg_temp.claim(names text[] default null, version text default null)
returns text language sql as $$
  select coalesce(string_agg(tap.nick(task_id), ' ' order by task_id), '')
  from durable.claim_tasks('q', 'worker', names, 100, 30, version => claim.version);
$$;

create function pg_temp.reason(nick text) returns text language sql as $$
  select string_agg(message, '; ') from durable.explain_task('q', tap.id(nick))
  where kind = 'partition_order';
$$;

-- One after the other

select pg_temp.spawn('a1 a2 a3', 'a'), pg_temp.spawn('b1 b2', 'b') \g /dev/null
select is(pg_temp.claim(), 'a1 b1', 'the first task of each partition starts');
select is(pg_temp.claim(), '', 'and no other');
select is(durable.get_next_due('q'), null, 'a worker waits until one ends');
select results_eq($$ select distinct turn_at is null from durable.lanes $$, array[true],
  'lanes whose next task has to wait for another one have no turn');
select completed('a1') \g /dev/null
select is(pg_temp.claim(), 'a2', 'the next starts when it has ended');
select failed('a2', '{"retryable": false}'), durable.cancel_task('q', id('b1')) \g /dev/null
select is(pg_temp.claim(), 'a3 b2', 'also when it has failed or was cancelled');
select completed('a3 b2') \g /dev/null
select is(pg_temp.claim(), '', 'nothing is left');
select is_empty($$ select from durable.lanes $$, 'and no lane');
select spawned('free1'), pg_temp.after(1), spawned('free2') \g /dev/null
select is(pg_temp.claim(), 'free1 free2', 'tasks without a key have no order');
select completed('free1 free2') \g /dev/null

-- Whatever their names, versions and priorities

select pg_temp.spawn('one', task => 'one'), pg_temp.spawn('two', task => 'two'),
  pg_temp.spawn('urgent', options => '{"priority": 9}', task => 'one') \g /dev/null
select is(pg_temp.claim(array['two']) || pg_temp.claim(array['two']), '', 'a worker that does not know the first one takes none');
select is(durable.get_next_due('q', array['two']), null, 'and waits');
select is(pg_temp.reason('two'), format('task %s of the partition "k" comes before it', id('one')),
  'explain_task() says for which task');
select is(pg_temp.claim(array['one', 'two']), 'one', 'the first starts, though another has a higher priority');
select is(pg_temp.reason('urgent'),
  format('task %s of the partition "k" has started, and has to end first: it is running', id('one')),
  'explain_task() says for which task');
select completed('one') \g /dev/null
select is(pg_temp.claim(array['one']), '', 'the second has the other name');
select is(durable.get_next_due('q', array['two']), 0::double precision, 'workers that know it look at once');
select is(pg_temp.claim(array['two']), 'two', 'and take it');
select completed('two') \g /dev/null
select is(pg_temp.claim(array['one', 'two']), 'urgent', 'then the third');
select is(pg_temp.reason('urgent'), null, 'a task does not wait for itself');
select completed('urgent') \g /dev/null
select durable.create_queue('q', '{"versions": "gate"}'), durable.announce_worker('q', 'w1', '{"version": "v1"}'),
  durable.announce_worker('q', 'w2', '{"version": "v2"}'), pg_temp.spawn('old', options => '{"version": "v1"}'),
  pg_temp.spawn('new', options => '{"version": "v2"}') \g /dev/null
select is(pg_temp.claim(null, 'v2') || pg_temp.claim(null, 'v2'), '', 'the first is of another version');
select durable.set_version('q', 'v2', ids('old')) \g /dev/null
select is(pg_temp.claim(null, 'v2'), 'old', 'set_version() gives it to these workers');
select completed('old') \g /dev/null
select is(pg_temp.claim(null, 'v1') || pg_temp.claim(null, 'v2'), 'new', 'and then the next');
select completed('new'), durable.create_queue('q', '{"versions": null}') \g /dev/null

-- A task holds its partition until it ends

create function pg_temp.held(way text) returns text language plpgsql as $$
declare
  _result text;
begin
  perform pg_temp.spawn('first-' || way || ' second-' || way, way);
  _result := pg_temp.claim();
  case way
    when 'retry' then perform tap.failed('first-retry');
    when 'release' then perform tap.released('first-release');
    when 'release_unknown' then perform durable.release_unknown('q', 'worker', '{}');
    when 'sleep' then
      perform tap.sleeping('first-sleep', extract(epoch from durable._now() - tap.at(0)) + 5);
    when 'event' then perform tap.awaiting('first-event', 'e');
    when 'lease' then
      perform pg_temp.after(31);
      perform durable.expire_leases('q');
    when 'skip' then
      perform tap.failed('first-skip'), pg_temp.claim(), durable.retry_task('q', tap.id('first-skip'));
    when 'crash' then
      perform durable.create_queue('q', '{"max_lost_leases": 1}'), pg_temp.after(31);
      perform durable.expire_leases('q');
  end case;
  _result := _result || ',' || pg_temp.claim();
  if way = 'event' then
    perform durable.emit_event('q', 'e');
  end if;
  perform pg_temp.after(5);
  _result := _result || ',' || pg_temp.claim();
  if tap.states('first-' || way) = 'running' then
    perform tap.completed('first-' || way);
  end if;
  _result := _result || ',' || pg_temp.claim();
  perform tap.completed('second-' || way);
  return replace(_result, '-' || way, '');
end;
$$;
select is(pg_temp.held(way), expected, format('a task keeps its partition: %s', way))
from (values
  ('retry', 'first,,first,second'),
  ('release', 'first,first,,second'),
  ('release_unknown', 'first,first,,second'),
  ('sleep', 'first,,first,second'),
  ('event', 'first,,first,second'),
  ('lease', 'first,first,,second'),
  ('skip', 'first,first,,second'),
  ('crash', 'first,second,,')
) as ways (way, expected);

-- The line changes while it waits

select pg_temp.spawn('r1 r2 r3') \g /dev/null
select is(pg_temp.claim(array['other']), '', 'they wait');
select durable.reschedule_task('q', id('r1'), at(9000)) \g /dev/null
select is(pg_temp.claim(), 'r2', 'a task that is rescheduled leaves its place');
select pg_temp.after(1), durable.reschedule_task('q', id('r1'), at(0)), completed('r2') \g /dev/null
select is(pg_temp.claim(), 'r3', 'and comes behind those that wait');
select completed('r3') \g /dev/null
select is(pg_temp.claim(), 'r1', 'at its new time');
select completed('r1') \g /dev/null
select pg_temp.spawn('late', options => '{"delay": 60}', task => 'one'), pg_temp.spawn('soon', task => 'two') \g /dev/null
select is(pg_temp.claim(), 'soon', 'a delayed task does not hold up those before it');
select pg_temp.after(60) \g /dev/null
select is(pg_temp.claim(), '', 'its time has come, but not its turn');
select completed('soon') \g /dev/null
select is(pg_temp.claim(), 'late', 'which it gets');
select completed('late') \g /dev/null
select pg_temp.spawn('x1 x2 x3'), durable.cancel_task('q', id('x1')), durable.cancel_tasks('q', jsonb_build_object('task_ids', ids('x2'))) \g /dev/null
select is(pg_temp.claim(), 'x3', 'cancelled tasks leave the line');
select completed('x3') \g /dev/null
select pg_temp.spawn('timely', options => '{"start_timeout": 10}', task => 'one'), pg_temp.spawn('next', task => 'two') \g /dev/null
select is(pg_temp.claim(array['two']), '', 'one waits for one that workers do not know');
select pg_temp.after(11) \g /dev/null
select durable.expire_tasks('q') \g /dev/null
select is(pg_temp.claim(array['two']), 'next', 'and starts when that has expired');
select completed('next') \g /dev/null
-- How many lanes of tasks named "two" have no turn, after claims of these.
create function pg_temp.blocked() returns bigint language sql as $$
  select pg_temp.claim(array['two']), pg_temp.claim(array['two']);
  select count(*) from durable.lanes where turn_at is null and name = 'two';
$$;
select pg_temp.spawn('y1', task => 'one'), pg_temp.spawn('y2', task => 'two') \g /dev/null
select is(pg_temp.blocked(), 1::bigint, 'a lane has no turn');
select durable.reschedule_task('q', id('y1'), at(9000)) \g /dev/null
select is(pg_temp.claim(array['two']), 'y2', 'until the task before it starts later');
select completed('y2'), durable.cancel_task('q', id('y1')) \g /dev/null
select pg_temp.spawn('u1', options => '{"unique": {"key": "u", "on_conflict": "replace"}}', task => 'one'),
  pg_temp.spawn('u2', task => 'two') \g /dev/null
select is(pg_temp.blocked(), 1::bigint, 'a lane has no turn');
select pg_temp.spawn('u1', 'elsewhere', '{"unique": {"key": "u", "on_conflict": "replace"}}', 'one') \g /dev/null
select is(pg_temp.claim(array['two']), 'u2', 'until the task before it is replaced by one elsewhere');
select is(pg_temp.claim(array['one']), 'u1', 'which starts there');
select completed('u1 u2') \g /dev/null
select pg_temp.spawn('z1', task => 'one'), pg_temp.spawn('z3', task => 'two') \g /dev/null
select is(pg_temp.blocked(), 1::bigint, 'a lane has no turn');
select pg_temp.after(-50), pg_temp.spawn('z2', task => 'two'), pg_temp.after(50) \g /dev/null
select is(pg_temp.claim(array['one']) || ',' || pg_temp.claim(array['two']), ',z2',
  'until the clock goes back: then the lane of the first task gets the turn of the others');
select completed('z2'), pg_temp.claim(), completed('z1'), pg_temp.claim(), completed('z3') \g /dev/null
select pg_temp.spawn('f1 f2') \g /dev/null
select is(pg_temp.claim(), 'f1', 'one starts');
select pg_temp.after(1) \g /dev/null
select call_it('fork', task_id) from durable.fork_task('q', id('f1')) \g /dev/null
select failed('f1', '{"retryable": false}'), pg_temp.after(1), durable.retry_task('q', id('f1')) \g /dev/null
select is(pg_temp.claim(), 'f2', 'a task that is retried after its end comes behind those that wait');
select completed('f2') \g /dev/null
select is(pg_temp.claim(), 'fork', 'as a fork does');
select completed('fork') \g /dev/null
select is(pg_temp.claim(), 'f1', 'in the order in which they came');
select completed('f1') \g /dev/null

-- With rates and other limits; while tasks run and wait

select durable.create_queue('q', '{"partition_rate": {"starts": 1, "period": 100}, "partition_concurrency": 3}'),
  pg_temp.spawn('t1 t2') \g /dev/null
select is(pg_temp.claim(), 't1', 'a rate holds, too');
select completed('t1') \g /dev/null
select is(pg_temp.claim(), '', 'the next may not start yet');
select is(durable.get_next_due('q'), 100::double precision, 'and a worker knows when');
select pg_temp.after(100) \g /dev/null
select is(pg_temp.claim(), 't2', 'then it does');
select completed('t2'), durable.create_queue('q', '{"partition_rate": null, "partition_order": null}'),
  pg_temp.spawn('p1 p2 p3 p4') \g /dev/null
select is(pg_temp.claim(), 'p1 p2 p3', 'without the order, several start');
select failed('p1'), durable.create_queue('q', '{"partition_order": "strict", "partition_concurrency": null}') \g /dev/null
select is(pg_temp.claim(), '', 'with it, none does while these have not ended');
select completed('p2'), pg_temp.after(5) \g /dev/null
select is(pg_temp.claim(), 'p1', 'but they go on');
select completed('p1'), pg_temp.claim(), completed('p3') \g /dev/null
select is(pg_temp.claim(), 'p4', 'until the last has ended');
select completed('p4') \g /dev/null

select * from finish();
rollback;
