begin;
\ir _setup.sql
select plan(43);

-- waiting for one task

select started('p'), started_below('p', 'c'), saved('c', 'step') \g /dev/null
select is(joining('p', 'c'), 'suspended', 'a task that waits for a live one is suspended');
select is((task('p')).available_at, null, 'and is not due by the clock');
select move_to(5), completed('c', '{"n": 42}') \g /dev/null
select is(states('p'), 'pending', 'a task that completes wakes the task that waits for it');
select is((task('p')).available_at, at(5), 'at once');
select claimed('p') \g /dev/null
select is(value::jsonb, jsonb_build_array(jsonb_build_object(
    'task_id', id('c'), 'state', 'completed', 'result', '{"n": 42}'::jsonb, 'error', null)),
  'the waiter gets its state and result')
from durable.load_checkpoints('q', held('p'));
select is((task('p')).attempt, 1, 'waking starts no new attempt');

-- every way to end

select started('p-' || way),
  started_below('p-' || way, way, '{"max_attempts": 1, "execution_timeout": 10}'),
    joining('p-' || way, way)
from words('completed failed cancelled expired late') as words (way) \g /dev/null
select completed('completed'), failed('failed'),
  durable.cancel_task('q', id('cancelled')) \g /dev/null
select is(states('p-completed p-failed p-cancelled p-expired p-late'),
  'pending pending pending sleeping sleeping',
  'completing, failing and cancelling wake the waiting tasks');
update durable.tasks set lease_expires_at = at(6) where task_id = id('expired');
update durable.tasks set lease_expires_at = at(60) where task_id = id('late');
select move_to(6), durable.expire_leases('q') \g /dev/null
select is(states('expired p-expired'), 'failed pending', 'so does a lost lease after the last attempt');
select move_to(16), durable.expire_tasks('q') \g /dev/null
select is(states('late p-late'), 'cancelled pending', 'so does a deadline');
select claimed('p-' || way)
  from words('completed failed cancelled expired late') as words (way) \g /dev/null
select results_eq(
  $$ select nick(task_id), value #>> '{0,state}', value #>> '{0,error,type}'
     from durable.load_checkpoints('q', held('p-completed p-failed p-cancelled p-expired p-late'))
     order by 1 $$,
  $$ values ('p-cancelled', 'cancelled', '$Cancelled'), ('p-completed', 'completed', null),
     ('p-expired', 'failed', '$LeaseExpired'),
       ('p-failed', 'failed', 'Oops'), ('p-late', 'cancelled', '$DeadlineExceeded') $$,
  'each gets the state and the error');
select is_empty($$ select * from durable.waits $$, 'and its wait has ended');

-- a failure that is retried wakes nobody

select started('p2'), started_below('p2', 'c2', '{"retry": {"kind": "fixed", "base_seconds": 0}}'),
  joining('p2', 'c2') \g /dev/null
select failed('c2') \g /dev/null
select is(states('p2'), 'sleeping', 'an attempt that fails wakes nobody');
select claimed('c2'), released('c2'), claimed('c2'), sleeping('c2', 17) \g /dev/null
select is(states('p2'), 'sleeping', 'nor does a release or a sleep');
select move_to(17), claimed('c2'), completed('c2') \g /dev/null
select is(states('p2'), 'pending', 'the end does');

-- waiting for many: woken once

select started('all') \g /dev/null
select started_below('all', 'c' || i) from generate_series(10, 19) as i \g /dev/null
select is(joining('all', 'c10 c11 c12 c13 c14 c15 c16 c17 c18 c19'), 'suspended',
  'a task may wait for ten');
select is((select count(*) from durable.waits where task_id = id('all')), 1::bigint,
  'with one row');
select is(
  string_agg(states('all'), ' ' order by ordinality),
  'sleeping sleeping sleeping sleeping sleeping sleeping sleeping sleeping sleeping',
  'it stays asleep while any of them is live, in whatever order they end')
from unnest(array[19, 10, 15, 18, 17, 11, 12, 16, 14]) with ordinality as ended (i)
cross join lateral completed('c' || i);
select ok((select target_task_id from durable.waits where task_id = id('all')) = id('c13'),
  'watching one that is live');
select completed('c13') \g /dev/null
select is(states('all'), 'pending', 'the last one wakes it');
select is((task('all')).claim, 2, 'once');
select claimed('all') \g /dev/null
select is(
  (select array_agg((o ->> 'task_id')::uuid order by ordinality)
   from durable.load_checkpoints('q', held('all')),
   json_array_elements(value) with ordinality as o (o)),
  ids('c10 c11 c12 c13 c14 c15 c16 c17 c18 c19'),
  'the outcomes come in the order given');

select started('both'), started('x1'), started('x2'), joining('both', 'x1 x2') \g /dev/null
select is(completed('x1 x2'), 'ok ok', 'two that end in one call');
select is(states('both'), 'pending', 'wake the task that waits for both');

select started('w1'), started('w2'), started('w3'), started('star') \g /dev/null
select joining(nick, 'star') from words('w1 w2 w3') \g /dev/null
select completed('star') \g /dev/null
select is(states('w1 w2 w3'), 'pending pending pending', 'several tasks may wait for one');

-- nothing to wait for

select started('easy') \g /dev/null
select is(joining('easy', 'c10 c11'), 'resolved', 'finished tasks do not suspend');
select results_eq(
  $$ select outcome, value::text from durable.await_tasks('q', id('easy'), 1, '$none', '{}') $$,
  $$ values ('resolved', '[]') $$, 'waiting for no tasks ends at once');
select results_eq(
  $$ select outcome, value #>> '{0,state}'
     from durable.await_tasks('q', id('easy'), 1, '$gone', array[gen_random_uuid()]) $$,
  $$ values ('resolved', 'not_found') $$, 'a task that does not exist does not suspend');
select durable.spawn('other', 'job') as elsewhere \gset
select results_eq(
  format($$ select outcome, value #>> '{0,state}'
    from durable.await_tasks('q', id('easy'), 1, '$else', array[%L::uuid]) $$,
    (:'elsewhere'::durable.spawned_task).task_id),
  $$ values ('resolved', 'not_found') $$, 'nor does one in another queue, unless queues names it');
select is(joining('easy', 'c12 all'), 'resolved',
  'a recorded join is not made again, whatever tasks it is for now');

-- timeouts

select started('impatient'), started('slow') \g /dev/null
select is(joining('impatient', 'slow', 30), 'suspended', 'a join may have a timeout');
select is((task('impatient')).available_at, at(47), 'the task is due at its deadline');
select move_to(47), claimed('impatient') \g /dev/null
select results_eq(
  $$ select state, value::text from durable.load_checkpoints('q', held('impatient')) $$,
  $$ values ('timed_out', 'null') $$, 'a join that timed out is recorded as such');
select is(completed('slow'), 'ok', 'the task that is no longer waited for ends normally');
select is(states('impatient'), 'running', 'and wakes nobody');

-- together with other waits

select started('mixed'), started('friend') \g /dev/null
select is(outcome, 'suspended', 'a task may wait for a task and an event at once')
from durable.suspend_tasks('q', held('mixed', jsonb_build_object('waits', jsonb_build_array(
  jsonb_build_object('name', '$join', 'task_ids', jsonb_build_array(id('friend'))),
  '{"name": "$event:e", "event": "e"}'::jsonb))));
select completed('friend') \g /dev/null
select is(states('mixed'), 'pending', 'the task ends first, and wakes it');
select claimed('mixed') \g /dev/null
select results_eq($$ select name from durable.load_checkpoints('q', held('mixed')) $$,
  array['$join'], 'only the join has ended');
select awaiting('mixed', 'e'), durable.emit_event('q', 'e', '1') \g /dev/null
select is(states('mixed'), 'pending', 'then the event');

-- a task between two attempts is not woken

select started('hurt', '{"retry": {"kind": "fixed", "base_seconds": 60}}') \g /dev/null
select durable.poll_waits('q',
  held('hurt', '{"waits": [{"name": "$event:f", "event": "f"}]}')) \g /dev/null
select failed('hurt'), durable.emit_event('q', 'f') \g /dev/null
select is(states('hurt') || ' ' || extract(epoch from (task('hurt')).available_at - at(47))::int,
  'sleeping 60',
  'a task between two attempts is not woken early by the event that it waited for');
select move_to(107), claimed('hurt') \g /dev/null
select is((select state from durable.load_checkpoints('q', held('hurt'))), 'done',
  'its next attempt finds the event');

-- a task is revived while another waits for it

select started('loyal'), started('phoenix', '{"max_attempts": 1}'), started('other') \g /dev/null
select joining('loyal', 'phoenix other') \g /dev/null
select failed('phoenix') \g /dev/null
select durable.retry_task('q', id('phoenix')) \g /dev/null
select completed('other') \g /dev/null
select is(states('loyal'), 'sleeping', 'a task that waits for a revived task waits for its new end');
select claimed('phoenix'), completed('phoenix') \g /dev/null
select is(states('loyal'), 'pending', 'and is woken by it');
select is_empty($$ select * from durable.deferred_work $$,
  'without locked rows no work is deferred');

select * from finish();
rollback;
