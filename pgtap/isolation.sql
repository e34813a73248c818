begin isolation level repeatable read;
\ir _setup.sql
select plan(21);

-- A call in REPEATABLE READ cannot see what has just been committed, so what depends
-- on other people's rows is always left to a note. Somebody applies it later.

select is(current_setting('transaction_isolation'), 'repeatable read',
  'this test runs in REPEATABLE READ');

select results_eq($$ select attempt, created
  from durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}') $$,
  $$ values (1, true) $$, 'spawn() works as ever');
select results_eq($$ select created
  from durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}') $$, array[false],
  'a known key is known');

-- emit

select started('w'), awaiting('w', 'e') \g /dev/null
select is(states('w'), 'sleeping', 'a task may wait');
select is(durable.emit_event('q', 'e', '1'), true, 'emit_event() emits');
select is(states('w'), 'sleeping', 'it wakes nobody itself');
select results_eq($$ select kind::text, event_name collate "default" from durable.notes $$,
  $$ values ('event', 'e'::text) $$,
  'but leaves a note that somebody is to be woken');
delete from durable.notes;

-- send

select started('r'), receiving('r', 't') \g /dev/null
select is(states('r'), 'sleeping', 'a task may wait for a message');
select is(durable.send_message('q', id('r'), 't', '1'), true, 'send_message() sends');
select is(states('r'), 'sleeping', 'it wakes nobody itself');
select results_eq($$ select kind::text, task_id from durable.notes $$, $$ values ('waiter', id('r')) $$,
  'but leaves a note that somebody is to be woken');
delete from durable.notes;

-- the end of a task

select started('p'), started('c'), joining('p', 'c'), completed('c') \g /dev/null
select is(states('c p'), 'completed sleeping', 'completing wakes nobody itself');
select results_eq($$ select distinct kind::text, task_id from durable.notes
  where task_id = id('c') $$,
  $$ values ('finished', id('c')) $$,
  'but leaves a note on who has finished');
delete from durable.notes;

-- cascades

select started('root', '{"max_attempts": 1}'), spawned_below('root', 'child'),
  failed('root') \g /dev/null
select is(states('root child'), 'failed pending', 'failing cancels nobody itself');
select ok(exists (select from durable.notes where kind = 'cascade' and task_id = id('root')),
  'but leaves a note on what lives below');
delete from durable.notes;

select started('root2'), spawned_below('root2', 'child2') \g /dev/null
select is(durable.cancel_task('q', id('root2')), true, 'cancel_task() cancels');
select is(states('root2 child2'), 'cancelled cancelled', 'all that it can see');
select ok(exists (select from durable.notes where kind = 'cascade' and task_id = id('root2')),
  'and leaves a note on what it cannot');

-- notes

select is(durable.apply_notes('q'), 0, 'apply_notes() leaves notes alone');
select isnt_empty($$ select * from durable.notes $$, 'for somebody who sees the latest');
select lives_ok($$ select durable.keep_house('q') $$, 'keeping house raises nothing');

select * from finish();
rollback;
