begin;
\ir _setup.sql
select plan(18);

-- Announces a worker, and returns the versions without one.
create function tap.announced(worker text, about jsonb default '{}')
returns text
language sql
as $$
  select string_agg(version, ' ' order by version)
  from durable.announce_worker('q', worker, about) as version;
$$;

create function tap.sessions()
returns text
language sql
as $$
  select string_agg(worker, ' ' order by worker) from durable.worker_sessions where queue = 'q';
$$;

-- announcements

select is(announced('one', '{"version": "1", "names": ["job"], "host": "h", "pid": 7, "slots": 5}'), null,
  'a worker announces itself');
select move_to(10), announced('one', '{"draining": true}'), announced('two') \g /dev/null
select results_eq(
  $$ select version, names, host, pid, slots, draining, started_at, seen_at
     from durable.worker_sessions where worker = 'one' $$,
  $$ values ('1' collate "C", array['job' collate "C"], 'h' collate "C", 7, 5, true, at(0), at(10)) $$,
  'again it changes only whether it is draining');
select is((select array_agg(version) from durable.versions where queue = 'q'), array['1' collate "C"],
  'its version is recorded, and no empty one');

-- what is alive

select started('held'), move_to(69) \g /dev/null
select results_eq(
  $$ select worker, version, slots, running, started_at, seen_at, alive, draining
     from durable.list_workers('q') $$,
  $$ values ('one', '1', 5, 0::bigint, at(0), at(10), true, true),
       ('two', null, null, 0, at(10), at(10), true, false),
       ('worker', null, null, 1, null, null, false, false) $$,
  'list_workers() has those that announced themselves, and those that hold a task');
select move_to(70) \g /dev/null
select is((select bool_or(alive) from durable.list_workers('q')), false, 'none is alive after a minute');
select durable.create_queue('q', '{"versions": "pin"}') \g /dev/null
update durable.tasks set version = '1', lease_expires_at = null, claim = 2, state = 'pending', available_at = at(70);
select is(announced('two'), '1', 'then tasks wait for a version without workers');
select announced('one') \g /dev/null
select is(announced('two'), null, 'unless one comes back');
select is((select started_at from durable.list_workers('q') where worker = 'one'), at(0), 'with its old session');

-- ends

select is(durable.remove_worker('q', 'one'), true, 'a worker that stops removes its session');
select is(durable.remove_worker('q', 'one'), false, 'once');
select move_to(3669), announced('three') \g /dev/null
select is(sessions(), 'three two', 'one that has died leaves it');
select move_to(3670), announced('three') \g /dev/null
select is(sessions(), 'three', 'for an hour');
select durable.drop_queue('q') \g /dev/null
select is(sessions(), null, 'or as long as the queue exists');
select throws_ok($$ select durable.announce_worker('q', 'three') $$, 'WFQUE', null, 'announce_worker() needs a queue');

select throws_ok(format('select durable.announce_worker(%L, %L, %L)', 'other', 'w', about), '22023', null,
  'announce_worker() refuses ' || about)
from unnest(array['{"names": "job"}', '{"names": [1]}', '{"draining": 1}', '{"color": "blue"}']) as about;

select * from finish();
rollback;
