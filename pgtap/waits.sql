begin;
\ir _setup.sql
select plan(60);

create function pg_temp.suspend(nick text, waits json)
returns setof durable.wait_outcome
language sql
as $$
  select * from durable.suspend_tasks('q', (
    select json_agg(json_build_object('task_id', task_id, 'claim', claim, 'waits', waits))
    from json_to_recordset(tap.held(nick)) as held (task_id uuid, claim integer)));
$$;

-- sleep_until

select started('s') \g /dev/null
select is(sleeping('s', 60), 'suspended', 'sleep_until() puts a task to sleep');
select results_eq(
  $$ select state::text, claim, available_at from durable.tasks where task_id = id('s') $$,
  $$ values ('sleeping', 2, at(60)) $$, 'it is due at the time that it passed');
select move_to(59.999) \g /dev/null
select is_empty($$ select * from durable.claim_tasks('q', 'worker') $$, 'and not before');
select move_to(60) \g /dev/null
select results_eq($$ select nick(task_id), claim, attempt
  from durable.claim_tasks('q', 'worker') $$,
  $$ values ('s', 3, 1) $$, 'a sleeping task that is due is claimed directly, in the same attempt');
select results_eq(
  $$ select name, state, value #>> '{}' from durable.load_checkpoints('q', held('s')) $$,
  $$ values ('$sleep', 'done', to_json(at(60)) #>> '{}') $$,
  'waking up leaves a checkpoint with that time');
select is_empty($$ select name from durable.waits where task_id = id('s') $$, 'and deletes the wait');
select is((task('s')).started_at, at(0), 'started_at is the first claim, not the wake-up');
select is(sleeping('s', 999), 'resolved',
  'the same sleep is not slept twice, whatever time it passes now');
select is(states('s'), 'running', 'and the task continues');
select results_eq(
  $$ select outcome, state, value #>> '{}'
     from durable.sleep_until('q', id('s'), 3, '$sleep:past', at(-5)) $$,
  $$ values ('resolved', 'done', to_json(at(-5)) #>> '{}') $$,
  'a time in the past does not suspend');

select started('again'), sleeping('again', 120), failed('again') \g /dev/null
select is(states('again'), 'sleeping', 'a sleeping task cannot be failed by its former worker');
select move_to(120), claimed('again'), failed('again'), move_to(500), claimed('again') \g /dev/null
select is((select value #>> '{}' from durable.load_checkpoints('q', held('again'))),
  to_json(at(120)) #>> '{}',
  'the sleep has ended for the next attempt too');

-- timeouts

select started('t') \g /dev/null
select is(awaiting('t', 'never', 30), 'suspended', 'await_event() with a timeout suspends');
select is((task('t')).available_at, at(530), 'the task is due at its deadline');
select move_to(530), claimed('t') \g /dev/null
select results_eq(
  $$ select name, state, value::text from durable.load_checkpoints('q', held('t')) $$,
  $$ values ('$event:never', 'timed_out', 'null') $$,
  'a wait that timed out is recorded as such');
select is(awaiting('t', 'second', 10), 'suspended', 'it may register the next wait');
select move_to(540), claimed('t') \g /dev/null
select durable.load_checkpoints('q', held('t')) \g /dev/null
select is(history('t'), '$event:never timed_out null, $event:second timed_out null',
  'two timeouts in a row are two checkpoints');
select durable.emit_event('q', 'never', '"late"') \g /dev/null
select results_eq(
  $$ select outcome, state, value::text
     from durable.await_event('q', id('t'), (task('t')).claim, '$event:never', 'never') $$,
  $$ values ('resolved', 'timed_out', 'null') $$,
  'an event that comes after the timeout does not change the checkpoint');
select is(awaiting('t', 'none', 0), 'resolved', 'a timeout of 0 ends at once');
select is((select state::text from durable.checkpoints where name = '$event:none'), 'timed_out',
  'and is recorded too');

select started('photo'), awaiting('photo', 'finish', 5), move_to(550) \g /dev/null
select durable.emit_event('q', 'finish', '1'), claimed('photo') \g /dev/null
select results_eq(
  $$ select state, value::text from durable.load_checkpoints('q', held('photo')) $$,
  $$ values ('done', '1') $$, 'an event takes precedence over a deadline that passed before the wait was resolved');

-- registered once

select started('d'), awaiting('d', 'later', 100), move_to(600), started('noise') \g /dev/null
update durable.tasks set available_at = durable._now() where task_id = id('d');
select claimed('d') \g /dev/null
select is(awaiting('d', 'later', 100), 'suspended', 'a task that woke early still waits');
select is((task('d')).available_at, at(650), 'with the deadline that it got first');

-- several waits at once

select started('m') \g /dev/null
select results_eq(
  $$ select outcome from pg_temp.suspend('m', '[
       {"name": "$event:x", "event": "x", "position": 1, "after": 1},
       {"name": "$event:y", "event": "y", "seconds": 20, "position": 2, "after": 1},
       {"name": "$sleep:z", "seconds": 50, "position": 3, "after": 1}]') $$,
  array['suspended'], 'a task may wait for several things at once');
select is((task('m')).available_at, at(620), 'it is due at the first of their deadlines');
select results_eq(
  $$ select wait collate "default", event_name collate "default", expires_at from durable.waiting
     where task_id = id('m') order by 1 $$,
  $$ values ('$event:x'::text, 'x'::text, null::timestamptz), ('$event:y', 'y', at(620)),
     ('$sleep:z', null, at(650)) $$,
  'the view waiting shows all of them');
select durable.emit_event('q', 'x', '"X"'), claimed('m') \g /dev/null
select results_eq(
  $$ select name, position, after, state from durable.load_checkpoints('q', held('m')) $$,
  $$ values ('$event:x', 1, 1, 'done') $$,
  'an ended wait becomes a checkpoint, with the position of its call');
select is(outcome, 'suspended', 'the others stay registered')
from pg_temp.suspend('m',
  '[{"name": "$event:y", "event": "y", "seconds": 20}, {"name": "$sleep:z", "seconds": 50}]');
select is((task('m')).available_at, at(620), 'with their deadlines');
select move_to(621), claimed('m') \g /dev/null
select results_eq(
  $$ select name, state
     from pg_temp.suspend('m',
     '[{"name": "$event:y", "event": "y"}, {"name": "$sleep:z", "seconds": 1}]') $$,
  $$ values ('$event:y', 'timed_out') $$,
  'suspend_tasks() does not suspend a task if one of its waits has ended, and returns that one');
select is(states('m'), 'running', 'the task continues');

-- poll_waits

select started('p') \g /dev/null
select results_eq(
  $$ select outcome
     from durable.poll_waits('q',
     held('p', '{"waits": [{"name": "$event:p", "event": "p", "seconds": 30}]}')) $$,
  array['waiting'], 'poll_waits() registers a wait');
select is(states('p') || (task('p')).claim, 'running1', 'and leaves the task with its worker');
select is((select expires_at from durable.waits where task_id = id('p')), at(651),
  'its deadline counts from now');
select durable.emit_event('q', 'p', '"!"') \g /dev/null
select results_eq(
  $$ select outcome, state, value::text
     from durable.poll_waits('q', held('p', '{"waits": [{"name": "$event:p", "event": "p"}]}')) $$,
  $$ values ('resolved', 'done', '"!"') $$, 'poll_waits() returns waits that have ended');
select is(completed('p'), 'ok', 'and the task may complete');

-- an answer that was lost

select started('r'), sleeping('r', 700) \g /dev/null
select everything() as before \gset
select results_eq(
  $$ select outcome
     from durable.suspend_tasks('q',
     held('r', '{"claim": 1, "waits": [{"name": "$sleep", "seconds": 1}]}')) $$,
  array['suspended'], 'a suspension whose answer was lost may be repeated');
select is(everything(), :'before', 'and changes nothing');

-- refusals

select started('bad') \g /dev/null
select everything() as before \gset
select throws_ok(format('select * from pg_temp.suspend(%L, %L)', 'bad', waits), '22023', null,
  format('suspend_tasks() refuses %s', what))
from (values
  ('[]',                                                    'to let a task sleep for nothing'),
  ('[{"seconds": 1}]',                                      'a wait without a name'),
  ('[{"name": "", "seconds": 1}]',                          'an empty name'),
  (json_build_array(json_build_object('name', repeat('n', 513), 'seconds', 1))::text,
    'a name of 513 bytes'),
  ('[{"name": "w"}]',                                       'a wait for nothing'),
  ('[{"name": "w", "event": ""}]',                          'an empty event name'),
  (json_build_array(json_build_object('name', 'w', 'event', repeat('e', 256)))::text,
    'an event name of 256 bytes'),
  ('[{"name": "w", "event": "e", "seconds": -1}]',          'a negative timeout'),
  ('[{"name": "w", "event": "e", "seconds": "1"}]',         'a timeout that is text'),
  ('[{"name": "w", "seconds": 1e11}]',                      'a sleep beyond all bounds'),
  ('[{"name": "w", "until": "infinity"}]',                  'a sleep without end'),
  ('[{"name": "w", "event": "e", "task_ids": []}]',         'a wait for two things')
) as refused (waits, what);
select throws_ok($$ select durable.sleep_until('q', id('bad'), 1, '$sleep', 'infinity') $$,
  '22023', null,
  'sleep_until() refuses a sleep without end');
select throws_ok($$ select durable.sleep_until('q', id('bad'), 1, '$sleep', null) $$, '22023', null,
  'sleep_until() refuses null');
select throws_ok($$ select durable.await_event('q', id('bad'), 1, '$event', null) $$, '22023', null,
  'await_event() refuses null for an event');
select throws_ok($$ select durable.await_event('q', id('bad'), 1, '$event', null, 5) $$,
  '22023', null,
  'also with a timeout');
select throws_ok($$ select durable.await_tasks('q', id('bad'), 1, '$join', null) $$, '22023', null,
  'await_tasks() refuses null for the tasks');
select throws_ok($$ select durable.await_tasks('q', id('bad'), 1, '$join', null, 5) $$,
  '22023', null,
  'also with a timeout');
select throws_ok($$ select durable.suspend_tasks('nowhere',
  held('bad', '{"waits": [{"name": "w", "seconds": 1}]}')) $$,
  'WFQUE', null, 'suspend_tasks() refuses an unknown queue');
select is(everything(), :'before', 'a refused call leaves no trace');

-- many tasks at once

select started('a'), started('b'), started('c'), released('c'),
  durable.emit_event('q', 'done-already') \g /dev/null
select durable.cancel_task('q', id('b')) \g /dev/null
select started('e'), started('f') \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome from durable.suspend_tasks('q', (
       select json_agg(e) from (
         select json_array_elements(held('a b',
           '{"claim": 1, "waits": [{"name": "w", "seconds": 9}]}'))
         union all select json_array_elements(held('e',
         '{"waits": [{"name": "w", "event": "done-already"}]}'))
         union all select json_array_elements(held('f',
         '{"claim": 7, "waits": [{"name": "w", "seconds": 9}]}'))
       ) as elements (e))) order by 1 $$,
  $$ values ('a', 'suspended'), ('b', 'cancelled'), ('e', 'resolved'), ('f', 'lost') $$,
  'suspend_tasks() returns an outcome for each task');
select is(states('a b e f'), 'sleeping cancelled running running',
  'one refused element does not touch the others');

select * from finish();
rollback;
