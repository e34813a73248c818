begin isolation level repeatable read;
\ir _setup.sql
select plan(23);

-- A call in REPEATABLE READ cannot see what was just committed, so work on the rows of
-- others is always deferred, and maintenance does it later.

select is(current_setting('transaction_isolation'), 'repeatable read',
  'this test runs in REPEATABLE READ');

select results_eq($$ select attempt, created
  from durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}') $$,
  $$ values (1, true) $$, 'spawn() works as usual');
select results_eq($$ select created
  from durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}') $$, array[false],
  'a taken key is found');

-- emit

select started('w'), awaiting('w', 'e') \g /dev/null
select is(states('w'), 'sleeping', 'a task may wait');
select is(durable.emit_event('q', 'e', '1'), true, 'emit_event() emits');
select is(states('w'), 'sleeping', 'emitting wakes no task itself');
select results_eq($$ select kind::text, event_name collate "default" from durable.deferred_work $$,
  $$ values ('event', 'e'::text) $$,
  'but defers the waking of them');
delete from durable.deferred_work;

-- send

select started('r'), receiving('r', 't') \g /dev/null
select is(states('r'), 'sleeping', 'a task may wait for a message');
select is(durable.send_message('q', id('r'), 't', '1'), true, 'send_message() sends');
select is(states('r'), 'sleeping', 'sending wakes no task itself');
select results_eq($$ select kind::text, task_id from durable.deferred_work $$, $$ values ('waiter', id('r')) $$,
  'but defers the waking of it');
delete from durable.deferred_work;

-- the end of a task

select started('p'), started('c'), joining('p', 'c'), completed('c') \g /dev/null
select is(states('c p'), 'completed sleeping', 'completing wakes no task itself');
select results_eq($$ select distinct kind::text, task_id from durable.deferred_work
  where task_id = id('c') $$,
  $$ values ('finished', id('c')) $$,
  'but defers what follows from its end');
delete from durable.deferred_work;

-- cascades

select started('root', '{"max_attempts": 1}'), spawned_below('root', 'child'),
  failed('root') \g /dev/null
select is(states('root child'), 'failed pending', 'failing cancels no task itself');
select ok(exists (select from durable.deferred_work where kind = 'cascade' and task_id = id('root')),
  'but defers the cancellation of its descendants');
delete from durable.deferred_work;

select started('root2'), spawned_below('root2', 'child2') \g /dev/null
select is(durable.cancel_task('q', id('root2')), true, 'cancel_task() cancels');
select is(states('root2 child2'), 'cancelled cancelled', 'cancel_task() cancels all tasks that it can see');
select ok(exists (select from durable.deferred_work where kind = 'cascade' and task_id = id('root2')),
  'and defers the others');

-- deferred work

select throws_ok($$ select durable.apply_deferred_work('q') $$, 'WFISO', null,
  'apply_deferred_work() refuses to run here');
select throws_ok($$ select durable.prune_events('q') $$, 'WFISO', null,
  'and so does prune_events()');
select isnt_empty($$ select * from durable.deferred_work $$, 'work is left for a READ COMMITTED transaction');
select throws_ok($$ select durable.drop_queue('q') $$, 'WFISO', null,
  'drop_queue() refuses too: it would not see every task that waits for one of its own');
select throws_ok($$ select durable.run_maintenance('q') $$, 'WFISO', null, 'run_maintenance() refuses too');

select * from finish();
rollback;
