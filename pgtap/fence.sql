begin;
\ir _setup.sql
select plan(94);

-- A task for each way of losing it, each held once under claim 1:
--   taken     its lease expired, and another worker has claimed it
--   expired   its lease expired, and it waits for the next attempt
--   given-up  its lease expired, and there was no other attempt
--   asleep    it was suspended
--   done      it has completed
--   broken    it has failed
--   released  it was released
--   stopped   it was cancelled
--   revived   it was cancelled and retried
--   gone      it was deleted

select started('taken'), started('expired'), started('given-up', '{"max_attempts": 1}') \g /dev/null
select move_to(31), durable.expire_leases('q'), claimed('taken', 'another') \g /dev/null
select started('asleep'), started('done'), started('broken', '{"max_attempts": 1}'),
  started('released'),
  started('stopped'), started('revived'), started('gone')
\g /dev/null
select saved('done', 'kept'), sleeping('asleep', 90), completed('done'), failed('broken'),
  released('released'),
  durable.cancel_task('q', id('stopped')), durable.cancel_task('q', id('revived'))
\g /dev/null
select durable.retry_task('q', id('revived')) \g /dev/null
delete from durable.tasks where task_id = id('gone');
insert into durable.events values ('q', 'emitted', at(0), '1');

create temp table lost (nick, outcome) as
values
  ('taken', 'lost'), ('expired', 'lost'), ('given-up', 'lost'), ('asleep', 'lost'), ('done', 'lost'),
  ('broken', 'lost'), ('released', 'lost'), ('stopped', 'cancelled'), ('revived', 'lost'), ('gone', 'lost');

select is(
  states((select string_agg(nick, ' ') from lost)),
  'running pending failed sleeping completed failed pending cancelled pending gone',
  'ten ways to lose a task');

create function pg_temp.nobody(said jsonb default '{}')
returns json
language sql
as $$
  select tap.held((select string_agg(nick, ' ') from lost), said || '{"claim": 1}');
$$;

-- the functions that return an outcome for each task

select everything() as before \gset
select results_eq(
  $$ select nick(task_id), outcome
     from durable.save_checkpoints('q', pg_temp.nobody('{"name": "s", "value": 1}')) order by 1 $$,
  $$ select * from lost order by 1 $$,
  'save_checkpoints() refuses a claim that has ended');
select results_eq(
  $$ select nick(task_id), outcome from durable.extend_leases('q', pg_temp.nobody(), 999)
     order by 1 $$,
  $$ select * from lost order by 1 $$,
  'extend_leases() refuses a claim that has ended');
select results_eq(
  $$ select nick(task_id), outcome from durable.release_tasks('q', pg_temp.nobody()) order by 1 $$,
  $$ select * from lost order by 1 $$,
  'release_tasks() refuses a claim that has ended');
select results_eq(
  $$ select nick(task_id), outcome from durable.complete_tasks('q', pg_temp.nobody('{"result": 7}'))
     order by 1 $$,
  $$ select nick, case when nick = 'done' then 'ok' else outcome end from lost order by 1 $$,
  'complete_tasks() refuses a claim that has ended, unless in the same way');
select results_eq(
  $$ select nick(task_id), outcome
     from durable.fail_tasks('q', pg_temp.nobody('{"error": {"type": "Late"}}')) order by 1 $$,
  $$ select nick, case when nick = 'broken' then 'ok' else outcome end from lost order by 1 $$,
  'fail_tasks() refuses a claim that has ended, unless in the same way');
select results_eq(
  $$ select nick(task_id), outcome
     from durable.flush('q', pg_temp.nobody('{"name": "s"}'), null, null) order by 1 $$,
  $$ select * from lost order by 1 $$,
  'flush() refuses the checkpoints of a claim that has ended');
select results_eq(
  $$ select nick(task_id), outcome
     from durable.poll_waits('q',
     pg_temp.nobody('{"waits": [{"name": "$event:emitted", "event": "emitted"}]}'))
     where nick(task_id) not in ('asleep', 'released', 'revived') order by 1 $$,
  $$ select * from lost where nick not in ('asleep', 'released', 'revived') order by 1 $$,
  'poll_waits() refuses a claim that has ended');
select results_eq(
  $$ select nick(task_id), outcome
     from durable.suspend_tasks('q',
     pg_temp.nobody('{"waits": [{"name": "$event:emitted", "event": "emitted"}]}'))
     where nick(task_id) not in ('released', 'revived') order by 1 $$,
  $$ select nick, case when nick = 'asleep' then 'suspended' else outcome end
     from lost where nick not in ('released', 'revived') order by 1 $$,
  'suspend_tasks() refuses a claim that has ended, unless in the same way');
select is(everything(), :'before', 'none of them changed anything');

-- the functions that raise

select throws_ok(format(call, format('%L, %L, 1', 'q', id(nick))),
  case outcome when 'lost' then 'WFLST' else 'WFCAN' end, null,
  format('%s a task that is %s: refused as %s', what, nick, outcome))
from lost
cross join (values
  ('spawn_children() by',  'select durable.spawn_children(%s, ''[{"name": "$spawn:a", "task": "a"}]'')'),
  ('emit_from_task() by',  'select durable.emit_from_task(%s, ''$emit:a'', ''a'')'),
  ('send_from_task() by',  'select durable.send_from_task(%s, ''$send:t'', ''q'', tap.id(''taken''), ''t'')'),
  ('recv_message() by',    'select durable.recv_message(%s, ''$recv:t'', ''t'')'),
  ('await_event() by',     'select durable.await_event(%s, ''$event:emitted'', ''emitted'')'),
  ('await_tasks() by',     'select durable.await_tasks(%s, ''$join'', ''{}'')'),
  ('sleep_until() by',     'select durable.sleep_until(%s, ''$sleep'', ''2020-01-01'')')
) as calls (what, call)
where (what ~ 'spawn_children|emit|send' or nick not in ('asleep', 'released', 'revived'));
select is(everything(), :'before', 'they did not change anything either');

-- load_checkpoints only reads for a claim that has ended

select claimed('expired'), awaiting('expired', 'soon', 5), move_to(60),
  claimed('expired') \g /dev/null
select everything() as before \gset
select is_empty($$ select * from durable.load_checkpoints('q', held('expired', '{"claim": 3}')) $$,
  'load_checkpoints() resolves no waits under a claim that has ended');
select is(everything(), :'before', 'and leaves them to the current one');

-- an even number is no claim

select spawned('idle'), started('loose'), released('loose') \g /dev/null
create function pg_temp.unheld(said jsonb default '{}')
returns json
language sql
as $$
  select json_agg(element::jsonb || jsonb_build_object('claim', claim)) from (
    select json_array_elements(tap.held(nick, said)), (tap.task(nick)).claim from tap.words('idle loose')
  ) as elements (element, claim);
$$;
select everything() as before \gset
select results_eq(format('select outcome from durable.%s(%L, pg_temp.unheld(%L))', call, 'q', said),
  array['lost', 'lost'], call || '() refuses the number of a task that nobody holds')
from (values
  ('save_checkpoints', '{"name": "s"}'),
  ('extend_leases',    '{}'),
  ('release_tasks',    '{}'),
  ('complete_tasks',   '{}'),
  ('fail_tasks',       '{}'),
  ('poll_waits',       '{"waits": [{"name": "$sleep", "seconds": 1}]}'),
  ('suspend_tasks',    '{"waits": [{"name": "$sleep", "seconds": 1}]}')
) as calls (call, said);
select throws_ok(
  $$ select durable.spawn_children('q', id('idle'), 0, '[{"name": "$spawn:a", "task": "a"}]') $$, 'WFLST', null,
  'spawn_children() refuses it');
select throws_ok($$ select durable.emit_from_task('q', id('idle'), 0, '$emit:a', 'a') $$, 'WFLST', null,
  'so does emit_from_task()');
select throws_ok(
  $$ select durable.send_from_task('q', id('idle'), 0, '$send:t', 'q', id('taken'), 't') $$, 'WFLST', null,
  'and send_from_task()');
select is_empty($$ select * from durable.load_checkpoints('q', pg_temp.unheld()) $$, 'load_checkpoints() returns nothing');
select is(everything(), :'before', 'none of them changed anything');

-- a claim that nobody has taken over is valid, however late

select started('late') \g /dev/null
select move_to(86400) \g /dev/null
select is(saved('late', 'step'), 'ok', 'an expired lease that nobody took over still saves');
select is(completed('late'), 'ok', 'and completes');
select is(history('late'), 'step done null', 'with its checkpoint');

-- the same worker claims a task again

select spawned('twice'), claimed('twice', 'me'), saved('twice', 'one'),
  sleeping('twice', 86500) \g /dev/null
select move_to(86501), claimed('twice', 'me') \g /dev/null
select results_eq(
  $$ select outcome from durable.save_checkpoints('q', held('twice', '{"claim": 1, "name": "two"}'))
     union all select outcome from durable.complete_tasks('q', held('twice', '{"claim": 1}')) $$,
  array['lost', 'lost'],
  'after sleep and re-claim the former claim has ended, even for the same worker and attempt');
select is((task('twice')).attempt, 1, 'the attempt is the same');
select results_eq(
  $$ select outcome from durable.save_checkpoints('q', held('twice', '{"name": "two"}')) $$,
  array['ok'], 'the current claim is valid');

-- a worker that passes both of its claims in one call gets an outcome for each

create function pg_temp.both(said jsonb)
returns json
language sql
as $$
  select json_agg(element)
  from (values ('{"claim": 1}'::jsonb), ('{}')) as claims (claim)
  cross join lateral json_array_elements(tap.held('twice', said || claim)) as element;
$$;
select results_eq(
  $$ select outcome from durable.save_checkpoints('q', pg_temp.both('{"name": "both"}')) order by 1 $$,
  array['lost', 'ok'], 'save_checkpoints() refuses only the former claim');
select is(history('twice') like 'both done null%', true, 'and saves for the current one');
select results_eq(
  $$ select outcome from durable.flush('q', pg_temp.both('{"name": "more"}'), null, null) $$,
  array['lost'], 'flush() returns one of the two');
select results_eq(
  $$ select outcome from durable.complete_tasks('q', pg_temp.both('{"result": 1}')) order by 1 $$,
  array['lost', 'ok'], 'so does complete_tasks()');
select is((select claim from durable._write('q', null, pg_temp.both('{}'), null)), 1,
  'it is the former one');

select * from finish();
rollback;
