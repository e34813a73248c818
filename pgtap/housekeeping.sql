begin;
\ir _setup.sql
select plan(9);

select is(durable.keep_house('q'), '(0,0,0,0,0)'::durable.house_kept,
  'keep_house() of a tidy queue does nothing');

select durable.create_queue('q', '{"keep_tasks": 100, "keep_events": 100}') \g /dev/null
select durable.emit_event('q', 'old'), started('old'), completed('old') \g /dev/null
select move_to(200) \g /dev/null
select started('lease-1'), started('lease-2'), spawned('late', '{"max_delay": 20}'), started('p'),
  started('c'), joining('p', 'c') \g /dev/null
select durable._leave_note('q', 'waiter', id('p')) \g /dev/null
select durable.extend_leases('q', held('c'), 1000) \g /dev/null
select durable.spawn('other', 'job', '{}', '{"max_delay": 20}') \g /dev/null
select move_to(230) \g /dev/null

select is(durable.keep_house('nowhere'), '(0,0,0,0,0)'::durable.house_kept,
  'keep_house() of an unknown queue does nothing');
select is(durable.keep_house('q', 0), '(0,0,0,0,0)'::durable.house_kept,
  'keep_house() of none does nothing');
select is(durable.keep_house('q', 1), '(1,1,1,1,1)'::durable.house_kept,
  'keep_house() does at most quantity of each kind');
select is(durable.keep_house('q'), '(1,0,0,0,0)'::durable.house_kept,
  'the next call does the rest');
select is(durable.keep_house('q'), '(0,0,0,0,0)'::durable.house_kept,
  'and then there is nothing left');
select is(states('lease-1 lease-2 late old c'), 'pending pending cancelled gone running',
  'all that was due is done');
select is((select state::text from durable.tasks where queue = 'other'), 'pending',
  'keep_house() sees no other queue');

select started('poisoned'), started('healthy') \g /dev/null
insert into durable.runs (queue, task_id, attempt, outcome, ended_at) values ('q', id('poisoned'),
  1, 'failed', at(0));
set client_min_messages = error;
select move_to(260) \g /dev/null
select is(durable.keep_house('q'), '(1,0,0,0,0)'::durable.house_kept,
  'one poisoned row does not stop it');

select * from finish();
rollback;
