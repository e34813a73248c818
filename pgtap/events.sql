begin;
\ir _setup.sql
select plan(42);

-- emit_event

select is(durable.emit_event('q', 'packed', '{"by": "Ann"}'), true,
  'emit_event() returns true the first time');
select move_to(10) \g /dev/null
select is(durable.emit_event('q', 'packed', '{"by": "Bob"}'), false,
  'emit_event() returns false after that');
select results_eq(
  $$ select emitted_at, payload from durable.events where name = 'packed' $$,
  $$ values (at(0), '{"by": "Ann"}'::jsonb) $$,
  'the first payload and its time stay');
select is(durable.emit_event('other', 'packed'), true,
  'an event of the same name in another queue is another event');

create temp table payloads (what, payload) as values
  ('an array',      '[1, 2]'),
  ('a string',      '"it''s \"quoted\" \\ 🐘"'),
  ('false',         'false'),
  ('JSON null',     'null'),
  ('SQL null',      null),
  ('a wide number', '9223372036854775808');
select durable.emit_event('q', what, payload::jsonb) from payloads \g /dev/null
select is(
  (select payload from durable.events where name = what), coalesce(payload, 'null')::jsonb,
  format('an event may carry %s', what))
from payloads;

select everything() as before \gset
select throws_ok(format('select durable.emit_event(%L, %L)', queue, event), code, null,
  format('emit_event() refuses %s', what))
from (values
  ('nowhere', 'e',              'WFQUE', 'an unknown queue'),
  (null,      'e',              'WFQUE', 'null for a queue'),
  ('q',       null,             '22023', 'null for a name'),
  ('q',       '',               '22023', 'an empty name'),
  ('q',       '  ',             '22023', 'a blank name'),
  ('q',       e'line\nbreak',   '22023', 'a control character'),
  ('q',       repeat('e', 256), '22023', 'a name of 256 bytes')
) as refused (queue, event, code, what);
select throws_ok($$ select durable.emit_event('q', 'big', to_jsonb(repeat('x', 16777216))) $$,
  '22023', null,
  'emit_event() refuses a payload of more than 16 MiB');
select is(everything(), :'before', 'a call that emit_event() refuses leaves no trace');
select is(durable.emit_event('q', repeat('é', 127) || 'e'), true, 'a name may have 255 bytes');

-- waiting for an event that was emitted already

select started('late') \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome, name, state, value::text
     from durable.await_event('q', id('late'), 1, '$event:packed', 'packed') $$,
  $$ values ('late', 'resolved', '$event:packed', 'done', '{"by": "Ann"}') $$,
  'a task does not wait for an event that was emitted already');
select is(states('late') || (task('late')).claim, 'running1',
  'and continues under its claim');
select is(history('late'), '$event:packed done {"by": "Ann"}', 'with a checkpoint');

-- waiting for an event that was not emitted yet

select started('w1'), started('w2'), started('w3') \g /dev/null
select is(awaiting(nick, 'shipped'), 'suspended', format('%s falls asleep until the event', nick))
from words('w1 w2 w3');
select results_eq(
  $$ select state::text, claim, attempt, available_at, lease_expires_at from durable.tasks
     where task_id = id('w1') $$,
  $$ values ('sleeping', 2, 1, null::timestamptz, null::timestamptz) $$,
  'a waiting task has no worker, no lease, and is never due by the clock');
select is((select emitted_at from durable.events where name = 'shipped'), null,
  'an awaited event has a row without a payload');
select is(durable.emit_event('other', 'shipped'), true, 'another queue''s event of that name') ;
select is(states('w1 w2 w3'), 'sleeping sleeping sleeping', 'wakes nobody here');
select move_to(20) \g /dev/null
select is(durable.emit_event('q', 'shipped', '{"n": 1}'), true,
  'emit_event() of an awaited event is the first');
select is(states('w1 w2 w3'), 'pending pending pending',
  'emit_event() wakes every task that waits');
select is((task('w2')).available_at, at(20), 'they are due at once');
select is((task('w2')).attempt, 1, 'waking starts no new attempt');
select durable.emit_event('q', 'shipped', '{"n": 2}') \g /dev/null
select claimed('w1'), claimed('w2'), claimed('w3') \g /dev/null
select results_eq(
  $$ select nick(task_id), name, state, value::text
     from durable.load_checkpoints('q', held('w1 w2 w3')) order by 1 $$,
  $$ select nick, '$event:shipped', 'done', '{"n": 1}' from words('w1 w2 w3') $$,
  'each finds the first payload in its checkpoints');
select is_empty($$ select * from durable.waits $$, 'an ended wait is deleted');

select failed('w1'), move_to(600), claimed('w1') \g /dev/null
select results_eq(
  $$ select value::text from durable.load_checkpoints('q', held('w1')) $$, array['{"n": 1}'],
  'the next attempt sees the same payload');
select is(awaiting('w1', 'shipped'), 'resolved', 'and awaiting it again returns the checkpoint');

-- more waiters than one call wakes

insert into durable.tasks (queue, task_id, name, params, spawned_at, state)
select 'q', durable._uuid7(1900000000000000, i), 'crowd', '{}', at(0), 'sleeping'
  from generate_series(1, 1000) as i;
insert into durable.waits (queue, task_id, name, position, after, event_name)
select 'q', task_id, '$event:open', 0, 0, 'open' from durable.tasks where name = 'crowd';
insert into durable.events (queue, name) values ('q', 'open');
select durable.emit_event('q', 'open') \g /dev/null
select is((select count(*) from durable.tasks where name = 'crowd' and state = 'pending'),
  100::bigint,
  'emit_event() wakes a hundred');
select is((select count(*) from durable.deferred_work where kind = 'event'), 1::bigint,
  'and defers the rest');
select durable.apply_deferred_work('q') \g /dev/null
select is((select count(*) from durable.tasks where name = 'crowd' and state = 'pending'),
  1000::bigint,
  'which maintenance applies');
select is_empty($$ select * from durable.deferred_work $$, 'and then nothing is deferred');

select * from finish();
rollback;
