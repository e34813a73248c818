begin;
\ir _setup.sql
select plan(68);

create function pg_temp.sent(nick text, topic text, payload jsonb default 'null', key text default null)
returns boolean
language sql
as $$
  select durable.send_message('q', tap.id(nick), topic, payload, key);
$$;

create function pg_temp.told(
  nick text, name text, receiver text, topic text, payload jsonb default 'null', key text default null
)
returns boolean
language sql
as $$
  select durable.send_from_task('q', tap.id(nick), tap.claim(nick), name, 'q', tap.id(receiver),
    topic, payload, key);
$$;

create function pg_temp.mail(nick text)
returns text
language sql
as $$
  select coalesce(string_agg(concat_ws(' ', topic, number, payload), ', ' order by topic, number), '')
  from durable.messages
  where task_id = tap.id(nick);
$$;

-- send_message

select spawned('box') \g /dev/null
select is(pg_temp.sent('box', 'a', '{"n": 1}'), true, 'a message can be sent before the task''s first run');
select is(pg_temp.sent('box', 'b', '2'), true, 'on any topic');
select is(pg_temp.sent('box', 'a', '3'), true, 'and several of them');
select is(pg_temp.mail('box'), 'a 1 {"n": 1}, a 2 3, b 1 2', 'messages are numbered by topic in the order of sending');
select is(states('box'), 'pending', 'sending does not change the task');

create temp table payloads (what, payload) as values
  ('an array',      '[1, 2]'),
  ('a string',      '"it''s \"quoted\" \\ 🐘"'),
  ('false',         'false'),
  ('JSON null',     'null'),
  ('SQL null',      null),
  ('a wide number', '9223372036854775808');
select pg_temp.sent('box', what, payload::jsonb) from payloads \g /dev/null
select is(
  (select payload from durable.messages where topic = what), coalesce(payload, 'null')::jsonb,
  format('a message may carry %s', what))
from payloads;

select started('over'), completed('over') \g /dev/null
select everything() as before \gset
select throws_ok(
  format('select durable.send_message(%L, %L, %L, null, %L)', queue, task_id, topic, key), code, null,
  format('send_message() refuses %s', what))
from (values
  ('nowhere', id('box'),           't',              null,            'WFQUE', 'an unknown queue'),
  ('other',   id('box'),           't',              null,            'WFNFD', 'a task of another queue'),
  ('q',       null,                't',              null,            'WFNFD', 'null for a task'),
  ('q',       id('over'),          't',              null,            'WFFIN', 'a finished task'),
  ('q',       id('box'),           null,             null,            '22023', 'null for a topic'),
  ('q',       id('box'),           ' ',              null,            '22023', 'a blank topic'),
  ('q',       id('box'),           e'line\nbreak',   null,            '22023', 'a control character'),
  ('q',       id('box'),           repeat('t', 256), null,            '22023', 'a topic of 256 bytes'),
  ('q',       id('box'),           't',              '',              '22023', 'an empty key'),
  ('q',       id('box'),           't',              repeat('k', 256), '22023', 'a key of 256 bytes')
) as refused (queue, task_id, topic, key, code, what);
select throws_ok($$ select pg_temp.sent('box', 't', to_jsonb(repeat('x', 16777216))) $$,
  '22023', null,
  'send_message() refuses a payload of more than 16 MiB');
select is(everything(), :'before', 'a call that send_message() refuses leaves no trace');

-- dedup_key

select spawned('keyed') \g /dev/null
select is(pg_temp.sent('keyed', 't', '1', 'k'), true, 'a message may have a key');
select is(pg_temp.sent('keyed', 't', '2', 'k'), false, 'a second one with the same key is not sent');
select is(pg_temp.sent('keyed', 'u', '3', 'k'), false, 'on any topic');
select is(pg_temp.sent('box', 't', '4', 'k'), true, 'the same key of another task is another key');
select is(pg_temp.sent('keyed', 't', '5'), true, 'a message without a key is sent');
select is(pg_temp.mail('keyed'), 't 1 1, t 2 5', 'and the numbers have no gap');
select claimed('keyed'), receiving('keyed', 't') \g /dev/null
select is(pg_temp.sent('keyed', 't', '6', 'k'), false, 'a key stays after its message was received');
select is(pg_temp.mail('keyed'), 't 2 5', 'and nothing else of it does');

-- receiving a message that is there

select claimed('box') \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome, name, state, value::text
     from durable.recv_message('q', id('box'), 1, '$recv:a', 'a') $$,
  $$ values ('box', 'resolved', '$recv:a', 'done', '{"n": 1}') $$,
  'a task does not wait for a message that is there');
select is(states('box') || (task('box')).claim, 'running1', 'and continues under its claim');
select results_eq(
  $$ select value::text from durable.recv_message('q', id('box'), 1, '$recv:a', 'a') $$,
  array['{"n": 1}'],
  'the same wait returns the checkpoint');
select results_eq(
  $$ select value::text from durable.recv_message('q', id('box'), 1, '$recv:a#2', 'a') $$,
  array['3'],
  'the next one gets the next message');
select is(receiving('box', 'a', 5), 'resolved', 'whatever its timeout');
select is((select count(*) from durable.messages where task_id = id('box') and topic = 'a'), 0::bigint,
  'received messages are deleted');

-- waiting for a message

select started('w') \g /dev/null
select is(receiving('w', 'go'), 'suspended', 'a task is suspended until it is sent a message');
select results_eq(
  $$ select state::text, claim, attempt, available_at, lease_expires_at from durable.tasks
     where task_id = id('w') $$,
  $$ values ('sleeping', 2, 1, null::timestamptz, null::timestamptz) $$,
  'a waiting task has no worker, no lease, and is never due by the clock');
select is((select sent from durable.mailboxes where task_id = id('w')), 0::bigint,
  'its mailbox exists, and is empty');
select is((select topic from durable.waiting where task_id = id('w')), 'go', 'the view waiting shows the topic');
select pg_temp.sent('w', 'other') \g /dev/null
select is(states('w'), 'sleeping', 'a message of another topic wakes nobody');
select move_to(20), pg_temp.sent('w', 'go', '7') \g /dev/null
select is(states('w') || (task('w')).attempt, 'pending1', 'one of its topic does, and starts no new attempt');
select is((task('w')).available_at, at(20), 'and the task is due at once');
select pg_temp.sent('w', 'go', '8'), claimed('w') \g /dev/null
select results_eq(
  $$ select name, state, value::text from durable.load_checkpoints('q', held('w')) $$,
  $$ values ('$recv:go', 'done', '7') $$,
  'it finds the first message in its checkpoints');
select is(pg_temp.mail('w'), 'go 2 8, other 1 null', 'and the others are left');
select is_empty($$ select * from durable.waits $$, 'an ended wait is deleted');
select failed('w'), move_to(600), claimed('w') \g /dev/null
select is(history('w'), '$recv:go done 7', 'the next attempt has received the same message');
select is(pg_temp.mail('w'), 'go 2 8, other 1 null', 'and the others are left for it');

-- several waits for one topic

select started('two') \g /dev/null
select durable.suspend_tasks('q', held('two', '{"waits": [
  {"name": "$recv:b/t", "topic": "t", "position": 2}, {"name": "$recv:a/t", "topic": "t", "position": 10},
  {"name": "$recv:c/t", "topic": "t", "position": 1, "seconds": 60}]}')) \g /dev/null
select pg_temp.sent('two', 't', '"x"'), pg_temp.sent('two', 't', '"y"'), claimed('two') \g /dev/null
select durable.load_checkpoints('q', held('two')) \g /dev/null
select is(history('two'), '$recv:b/t done "y", $recv:c/t done "x"',
  'the call that was made first gets the oldest message');
select is((select string_agg(name, ' ') from durable.waits where task_id = id('two')), '$recv:a/t',
  'the wait without a message stays');

-- a timeout

select started('t'), receiving('t', 'late', 60) \g /dev/null
select is((task('t')).available_at, at(660), 'a wait may have a timeout');
select move_to(661), claimed('t') \g /dev/null
select durable.load_checkpoints('q', held('t')) \g /dev/null
select is(history('t'), '$recv:late timed_out null', 'after which it has ended');
select pg_temp.sent('t', 'late', '1') \g /dev/null
select results_eq(
  $$ select state, value::text from durable.recv_message('q', id('t'), claim('t'), '$recv:late', 'late') $$,
  $$ values ('timed_out', 'null') $$,
  'for good');
select results_eq(
  $$ select state, value::text from durable.recv_message('q', id('t'), claim('t'), '$recv:late#2', 'late') $$,
  $$ values ('done', '1') $$,
  'a message that came too late goes to the next wait');
select started('just'), receiving('just', 't', 60), pg_temp.sent('just', 't', '1') \g /dev/null
select move_to(9999), claimed('just') \g /dev/null
select durable.load_checkpoints('q', held('just')) \g /dev/null
select is(history('just'), '$recv:t done 1', 'a message that came in time counts, whenever the wait is resolved');

select throws_ok(format('select durable.recv_message(%L, id(%L), claim(%L), %L, %L)', 'q', 'just', 'just', 'n', topic),
  '22023', null, format('recv_message() refuses %s', what))
from (values (null, 'null for a topic'), (' ', 'a blank topic'), (repeat('t', 256), 'a topic of 256 bytes'))
  as refused (topic, what);
select throws_ok(
  $$ select durable.poll_waits('q', held('just', '{"waits": [{"name": "n", "topic": "t", "event": "e"}]}')) $$,
  '22023', null, 'a wait is for one thing');

-- send_from_task

select started('teller') \g /dev/null
select is(pg_temp.told('teller', '$send:t', 'two', 't', '"z"'), true, 'a task sends a message');
select is(states('two') || pg_temp.mail('two'), 'runningt 3 "z"', 'to a task that does not sleep');
select is(history('teller'), '$send:t done true', 'and saves a checkpoint');
select changes_nothing($$ select pg_temp.told('teller', '$send:t', 'two', 't', '"z"') $$,
  'repeating the call does nothing');
select is(pg_temp.told('teller', '$send:k', 'two', 't', '1', 'k'), true, 'a task may give a key');
select is(pg_temp.told('teller', '$send:k#2', 'two', 't', '2', 'k'), false, 'and learns that it was sent');
select is(pg_temp.told('teller', '$send:self', 'teller', 't', '3'), true, 'a task sends to itself');
select is(receiving('teller', 't'), 'resolved', 'and receives it');

select * from finish();
rollback;
