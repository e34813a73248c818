begin;
\ir _setup.sql
select plan(32);

select results_eq(
  $$ select attempt, created from durable.spawn('default', 'x', '{}') $$,
  $$ values (1, true) $$,
  'a fresh install has a queue to spawn into');

-- create_queue

select is(durable.create_queue('new'), true, 'create_queue() returns true for a new queue');
select is(durable.create_queue('new'), false, 'create_queue() returns false for one that exists');
select is(
  (select (keep_tasks, keep_events)::text from durable.queues where queue = 'new'),
  '(2592000,2592000)',
  'a queue keeps tasks and events for 30 days by default');

select durable.create_queue('new', '{"keep_tasks": 0.5, "keep_events": null}') \g /dev/null
select is(
  (select (keep_tasks, keep_events)::text from durable.queues where queue = 'new'),
  '(0.5,)', 'create_queue() changes the policy of a queue that exists; null means for ever');
select durable.create_queue('new', '{"keep_events": 7}') \g /dev/null
select is(
  (select (keep_tasks, keep_events)::text from durable.queues where queue = 'new'),
  '(0.5,7)', 'create_queue() does not change keys that the policy does not have');
select durable.create_queue('new', '{"keep_tasks": null}') \g /dev/null
select is(
  (select keep_tasks from durable.queues where queue = 'new'),
  null, 'create_queue() can set a limit back to null');

select throws_ok(format('select durable.create_queue(%L, %L)', name, policy), '22023', null,
  format('create_queue() refuses %s', what))
from (values
  (null,             '{}',                       'null for a name'),
  ('',               '{}',                       'an empty name'),
  ('   ',            '{}',                       'a blank name'),
  (repeat('q', 101), '{}',                       'a name of 101 bytes'),
  (repeat('é', 51),  '{}',                       'a name of 51 characters in 102 bytes'),
  (e'tab\tbed',      '{}',                       'a name with a control character'),
  ('x',              null,                       'null for a policy'),
  ('x',              '[]',                       'a policy that is an array'),
  ('x',              '{"keep_task": 1}',         'an unknown key in the policy'),
  ('x',              '{"keep_tasks": "1 day"}',  'a policy in words'),
  ('x',              '{"keep_tasks": -1}',       'a negative time'),
  ('x',              '{"keep_events": 1e11}',    'a time beyond all bounds'),
  ('x',              '{"roles": "postgres"}',    'roles that are no array'),
  ('x',              '{"roles": []}',            'a queue for nobody'),
  ('x',              '{"roles": [7]}',           'a role that is no name'),
  ('x',              '{"roles": ["nobody''s"]}', 'a role that does not exist')
) as refused (name, policy, what);
select is_empty($$ select queue from durable.queues where queue = 'x' $$,
  'and leaves no queue behind');

select results_eq(
  $$ select durable.create_queue(name)
     from (values (repeat('é', 50)), ('a "queue" with ''quotes'' \ and spaces'),
     ('Ünïcode-🐘')) as n (name) $$,
  array[true, true, true],
  'any printable name of up to 100 bytes is allowed');

-- list_queues

select results_eq(
  $$ select * from durable.list_queues() where list_queues in ('new', 'other', 'q') $$,
  array['new', 'other', 'q'], 'list_queues() lists the queues by name');

-- drop_queue

select is(durable.drop_queue('never'), false, 'drop_queue() returns false for an unknown queue');

select started('a', '{"idempotency_key": "k", "retry": {"kind": "fixed", "base_seconds": 0}}'),
  failed('a'), claimed('a'),
  saved('a', 'step'),
  awaiting('a', 'never'), durable._defer('q', 'event', null, 'never'),
  durable.spawn('other', 'job'), durable.send_message('q', id('a'), 'topic', '1', 'key'),
  spawned('b', '{"unique": {"key": "k"}}')
\g /dev/null
select is(durable.drop_queue('q'), true, 'drop_queue() drops a queue that has a sleeping task');
select is_empty(
  $$ select queue from durable.tasks where queue = 'q'
     union all select queue from durable.runs where queue = 'q'
     union all select queue from durable.checkpoints where queue = 'q'
     union all select queue from durable.waits where queue = 'q'
     union all select queue from durable.events where queue = 'q'
     union all select queue from durable.idempotency_keys where queue = 'q'
     union all select queue from durable.unique_keys where queue = 'q'
     union all select queue from durable.deferred_work where queue = 'q'
     union all select queue from durable.mailboxes where queue = 'q'
     union all select queue from durable.messages where queue = 'q'
     union all select queue from durable.message_keys where queue = 'q'
     union all select queue from durable.queues where queue = 'q' $$,
  'drop_queue() leaves nothing of the queue behind');
select is((select count(*) from durable.tasks where queue = 'other'), 1::bigint,
  'drop_queue() leaves other queues alone');
select throws_ok($$ select durable.spawn('q', 'job') $$, 'WFQUE', 'no queue "q"',
  'spawn() into a dropped queue is refused');

insert into durable.tasks (task_id, spawned_at, queue, name, params, available_at)
values (gen_random_uuid(), at(0), 'q', 'straggler', '{}', at(0));
select durable.create_queue('q') \g /dev/null
select is_empty($$ select * from durable.claim_tasks('q', 'worker') $$,
  'create_queue() purges first, in case a spawn raced with drop_queue()');

select * from finish();
rollback;
