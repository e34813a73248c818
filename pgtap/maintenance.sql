begin;
\ir _setup.sql
select plan(15);

select is(durable.run_maintenance('q'), '(0,0,0,0,0,0)'::durable.maintenance_counts,
  'run_maintenance() does nothing if nothing is due');

select durable.create_queue('q', '{"keep_tasks": 100, "keep_events": 100}') \g /dev/null
select durable.emit_event('q', 'old'), started('old'), completed('old') \g /dev/null
select move_to(200) \g /dev/null
select started('lease-1'), started('lease-2'), spawned('late', '{"start_timeout": 20}'), started('p'),
  started('c'), joining('p', 'c') \g /dev/null
select durable._defer('q', 'waiter', id('p')) \g /dev/null
select durable.create_schedule('q', 's', '{"task": "job", "every": 30}') \g /dev/null
select durable.extend_leases('q', held('c'), 1000) \g /dev/null
select durable.spawn('other', 'job', '{}', '{"start_timeout": 20}') \g /dev/null
select move_to(230) \g /dev/null

select is(durable.run_maintenance('nowhere'), '(0,0,0,0,0,0)'::durable.maintenance_counts,
  'run_maintenance() of an unknown queue does nothing');
select is(durable.run_maintenance('q', 0), '(0,0,0,0,0,0)'::durable.maintenance_counts,
  'run_maintenance() with batch_size 0 does nothing');
select is(durable.run_maintenance('q', 1), '(1,1,1,1,1,1)'::durable.maintenance_counts,
  'run_maintenance() does at most batch_size of each kind');
select is(durable.run_maintenance('q'), '(1,0,0,0,0,0)'::durable.maintenance_counts,
  'the next call does the rest');
select is(durable.run_maintenance('q'), '(0,0,0,0,0,0)'::durable.maintenance_counts,
  'and then nothing is left');
select is(states('lease-1 lease-2 late old c'), 'pending pending cancelled gone running',
  'all that was due is done');
select is((select state::text from durable.tasks where queue = 'other'), 'pending',
  'run_maintenance() sees no other queue');

select durable.drop_schedule('q', 's') \g /dev/null
select started('poisoned'), started('healthy') \g /dev/null
insert into durable.runs (queue, task_id, attempt, outcome, ended_at) values ('q', id('poisoned'),
  1, 'failed', at(0));
set client_min_messages = error;
select move_to(260) \g /dev/null
select is(durable.run_maintenance('q'), '(1,0,0,0,0,0)'::durable.maintenance_counts,
  'one bad row does not stop it');

-- Other sessions look up every subtransaction of one that has more than 64. Which wrote a
-- row is its xmin.
create function pg_temp.writers(name text)
returns bigint
language sql
as $$
  select count(distinct tasks.xmin::text) from durable.tasks where tasks.name = writers.name;
$$;
select durable.spawn('q', 'lost', '1') from generate_series(1, 100) \g /dev/null
select durable.claim_tasks('q', 'w', array['lost'], 100) \g /dev/null
select durable.spawn('q', 'late', '1', '{"start_timeout": 5}') from generate_series(1, 100) \g /dev/null
select durable.spawn('q', 'waiter', '1') from generate_series(1, 100) \g /dev/null
select durable.suspend_tasks('q', json_agg(json_build_object('task_id', task_id, 'claim', claim,
  'waits', json_build_array(json_build_object('name', '$event:go', 'event', 'go')))))
from durable.claim_tasks('q', 'w', array['waiter'], 100) \g /dev/null
update durable.events set emitted_at = at(0), payload = '1' where name = 'go';
select durable._defer('q', 'waiter', task_id) from durable.tasks where name = 'waiter' \g /dev/null
select move_to(300) \g /dev/null
select is(durable.run_maintenance('q'), '(100,100,100,0,0,0)'::durable.maintenance_counts, 'three hundred things are due');
select is(pg_temp.writers('lost'), 1::bigint, 'a hundred lost leases share a subtransaction');
select is(pg_temp.writers('late'), 1::bigint, 'so do a hundred deadlines');
select is(pg_temp.writers('waiter'), 1::bigint, 'and a hundred pieces of deferred work');
insert into durable.runs (queue, task_id, attempt, outcome, ended_at)
select 'q', task_id, 2, 'failed', at(0) from durable.claim_tasks('q', 'w', array['lost'], 60) \g /dev/null
select move_to(400) \g /dev/null
select is(durable.expire_leases('q'), 0, 'leases that cannot be handled');
select is((select count(*) from durable.tasks where lease_expires_at = at(460)), 50::bigint,
  'are postponed fifty at a time, each in a subtransaction of its own');

select * from finish();
rollback;
