begin;
\ir _setup.sql
select plan(49);

-- complete_tasks

select started('a'), started('b'), started('c') \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome
     from durable.complete_tasks('q', held('a b', '{"result": {"n": [1, null]}}')) order by 1 $$,
  $$ values ('a', 'ok'), ('b', 'ok') $$,
  'complete_tasks() completes tasks');
select results_eq(
  $$ select state::text, claim, result, error, finished_at, lease_expires_at, expires_at,
     available_at
     from durable.tasks where task_id = id('a') $$,
  $$ values ('completed', 2, '{"n": [1, null]}'::jsonb, null::jsonb, at(0), null::timestamptz,
     null::timestamptz,
       null::timestamptz) $$,
  'a completed task has its result and is no longer claimable');
select is(states('c'), 'running', 'complete_tasks() leaves other tasks alone');
select everything() as before \gset
select is(outcome, 'ok', 'a completion whose answer was lost may be repeated')
from durable.complete_tasks('q', held('a', '{"claim": 1, "result": "other"}'));
select is(everything(), :'before', 'and changes nothing the second time');
select is_empty($$ select * from durable.complete_tasks('q', '[]') $$,
  'completing no tasks returns nothing');
select started('with-deadline', '{"execution_timeout": 10}'), move_to(20) \g /dev/null
select is(completed('with-deadline'), 'ok',
  'a task past its deadline may complete until it is cancelled');

-- one refused element

select started('good') \g /dev/null
select results_eq(
  $$ select coalesce(nick(task_id), '-'), outcome from durable.complete_tasks('q', (
       select json_agg(e) from (
         select json_array_elements(held('good a', '{"claim": 1}'))
         union all select json_build_object('task_id', gen_random_uuid(), 'claim', 1)
         union all select json_build_object('task_id', id('c'))
       ) as elements (e)))
     order by 1, 2 $$,
  $$ values ('-', 'lost'), ('a', 'ok'), ('c', 'lost'), ('good', 'ok') $$,
  'one refused element does not touch the others');
select is(states('c good'), 'running completed', 'the others are written');

-- fail_tasks: retried, or failed for good

select move_to(100) \g /dev/null
select is(
  (select format('%s attempt %s in %s s', (task('x')).state, (task('x')).attempt,
     extract(epoch from (task('x')).available_at - at(100))::float8)
   from started('x', coalesce(options, '{}')::jsonb)
   cross join lateral failed('x', coalesce(said, '{}')::jsonb)),
  expected,
  format('fails with %s%s: %s', coalesce(options, 'no options'), ' ' || said, expected))
from (values
  ('{"max_attempts": 1}',                                         null, 'failed attempt 1 in  s'),
  ('{"retry": {"kind": "none"}}',                                 null, 'failed attempt 1 in  s'),
  ('{"retry": {"kind": "none"}, "max_attempts": null}',           null, 'failed attempt 1 in  s'),
  (null,                                         '{"retryable": false}', 'failed attempt 1 in  s'),
  ('{"retry": {"kind": "fixed", "base_seconds": 7.5}}',           null, 'sleeping attempt 2 in 7.5 s'),
  ('{"retry": {"kind": "fixed", "base_seconds": 7.5}}', '{"retryable": null}', 'sleeping attempt 2 in 7.5 s'),
  ('{"retry": {"kind": "fixed", "base_seconds": 0}}',             null, 'pending attempt 2 in 0 s'),
  ('{"retry": {"kind": "exponential", "base_seconds": 3}}',       null, 'sleeping attempt 2 in 3 s'),
  ('{"execution_timeout": 10, "retry": {"kind": "fixed", "base_seconds": 9}}',  null, 'sleeping attempt 2 in 9 s'),
  ('{"execution_timeout": 10, "retry": {"kind": "fixed", "base_seconds": 10}}', null, 'cancelled attempt 1 in  s'),
  ('{"start_timeout": 10, "retry": {"kind": "fixed", "base_seconds": 60}}',    null, 'sleeping attempt 2 in 60 s')
) as failing (options, said, expected);

select started('hasty', '{"execution_timeout": 10, "retry": {"kind": "fixed", "base_seconds": 60}}'),
  failed('hasty') \g /dev/null
select results_eq(
  $$ select error ->> 'type', error #>> '{cause,type}' from durable.tasks
     where task_id = id('hasty') $$,
  $$ values ('$DeadlineExceeded', 'Oops') $$,
  'a task without time for another attempt gets an error that names the limit and the failure');
select is(failed('hasty'), 'ok', 'a failure that leaves no time may be repeated');
select is(outcome, 'ok', 'the last failure may be repeated')
from started('last', '{"max_attempts": 1}') cross join lateral failed('last')
cross join lateral durable.fail_tasks('q', held('last', '{"claim": 1}'));

-- attempts, one after the other

select started('r',
  '{"max_attempts": 3, "retry": {"kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 5}}'),
  failed('r',
    '{"error": {"type": "E1", "message": "it''s \"1\"", "traceback": "line \\ 1"}}') \g /dev/null
select results_eq(
  $$ select state::text, attempt, available_at, lease_expires_at, error from durable.tasks
     where task_id = id('r') $$,
  $$ values ('sleeping', 2, at(102), null::timestamptz,
       '{"type": "E1", "message": "it''s \"1\"", "traceback": "line \\ 1"}'::jsonb) $$,
  'a failed attempt is followed by the next after a delay, and keeps its error');
select everything() as before \gset
select is(outcome, 'ok', 'a failure whose answer was lost may be repeated')
from durable.fail_tasks('q', held('r', '{"claim": 1, "error": {"type": "Oops"}}'));
select is(everything(), :'before', 'and does not fail a second attempt');
select is_empty($$ select * from durable.claim_tasks('q', 'worker', array['job'], 10)
  where task_id = id('r') $$,
  'the next attempt waits out its delay');
select move_to(102) \g /dev/null
select is((select attempt from durable.claim_tasks('q', 'second', array['job'], 10)
  where task_id = id('r')), 2,
  'then it is claimed directly');
select failed('r', '{"error": {"type": "E2"}}') \g /dev/null
select is((task('r')).available_at, at(107), 'the next delay is longer, and capped');
select move_to(107), claimed('r', 'third'), failed('r', '{"error": {"type": "E3"}}') \g /dev/null
select results_eq(
  $$ select state::text, attempt, error ->> 'type', finished_at from durable.tasks
     where task_id = id('r') $$,
  $$ values ('failed', 3, 'E3', at(107)) $$,
  'after max_attempts the task has failed, with the last error');
select results_eq(
  $$ select attempt, outcome::text, worker collate "default", error ->> 'type', ended_at
     from durable.runs where task_id = id('r') order by attempt $$,
  $$ values (1, 'failed', 'worker'::text, 'E1', at(100)), (2, 'failed', 'second', 'E2', at(102)) $$,
  'every attempt but the last is recorded in runs');

select started('endless',
  '{"max_attempts": null, "retry": {"kind": "fixed", "base_seconds": 0}}') \g /dev/null
update durable.tasks set attempt = 5000 where task_id = id('endless');
select failed('endless') \g /dev/null
select is(states('endless') || (task('endless')).attempt, 'pending5001',
  'max_attempts null means no limit');
select started('patient', '{"max_attempts": null,
  "retry": {"kind": "exponential", "base_seconds": 1, "factor": 10, "max_seconds": 60}}') \g /dev/null
update durable.tasks set attempt = 2147483646 where task_id = id('patient');
select failed('patient') \g /dev/null
select is((task('patient')).available_at, at(107 + 60),
  'no number of attempts makes the delay overflow');

select started('silent', '{"retry": {"kind": "fixed", "base_seconds": 9}}'),
  failed('silent', '{"error": null}') \g /dev/null
select is((task('silent')).error, '{"type": "Error", "message": ""}', 'a failure without an error is recorded with an empty one');
select is(outcome, 'ok', 'and may be repeated')
from durable.fail_tasks('q', held('silent', '{"claim": 1, "error": null}'));

-- a failed parent

select started('p', '{"max_attempts": 2, "retry": {"kind": "fixed", "base_seconds": 0}}'),
  started_below('p', 'c1'),
  spawned_below('c1', 'c2') \g /dev/null
select failed('p') \g /dev/null
select is(states('c1 c2'), 'running pending',
  'an attempt that fails leaves the children alone if another one follows');
select claimed('p'), failed('p') \g /dev/null
select is(states('p c1 c2'), 'failed cancelled cancelled',
  'the descendants of a task that fails for good are cancelled');
select is(outcome, 'cancelled', 'their workers get "cancelled"')
  from durable.complete_tasks('q', held('c1', '{"claim": 1}'));

-- flush

select started('f1'), started('f2', '{"max_attempts": 1}'), started('f3'),
  started('f4', '{"retry": {"kind": "fixed", "base_seconds": 9}}'),
  started('stale') \g /dev/null
select released('stale') \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome from durable.flush('q',
       (select json_agg(e) from (
          select json_array_elements(held('f1 f2 f3 f4', '{"name": "s", "value": 1}'))
          union all select json_array_elements(held('stale',
          '{"claim": 1, "name": "s"}'))) as elements (e)),
       held('f1', '{"result": 1}'), held('f2 f4', '{"error": {"type": "E"}}')) $$,
  $$ values ('stale', 'lost') $$,
  'flush() returns only the refused elements');
select is(states('f1 f2 f3 f4 stale'), 'completed failed running sleeping pending',
  'flush() ends the tasks');
select is(history('f1') || history('f2') || history('f3') || history('f4') || history('stale'),
  's done 1s done 1s done 1s done 1', 'flush() saves a task''s checkpoints together with its end');
select results_eq(
  $$ select distinct attempt, claim from durable.checkpoints
     where task_id = any (ids('f1 f2 f3 f4')) $$,
  $$ values (1, 1) $$,
  'a checkpoint records the attempt that saved it, also if that attempt fails in the same call');
select is_empty($$ select * from durable.flush('q', null, null, null) $$,
  'flush() without elements returns nothing');

select started('t'), released('t'), claimed('t') \g /dev/null
select results_eq(
  $$ select outcome from durable.flush('q',
       (select json_agg(e) from (
          select json_array_elements(held('t', '{"claim": 1, "name": "old"}'))
          union all select json_array_elements(held('t', '{"name": "new"}'))) as elements (e)),
          null, null) $$,
  array['lost'], 'flush() refuses a former claim beside the current one');
select is(history('t'), 'new done null', 'and saves only for the current one');
select results_eq(
  $$ select outcome
     from durable.flush('q', held('t', '{"name": "more"}'), held('t', '{"claim": 1}'), null) $$,
  array['lost'], 'a former claim cannot complete the task');
select is(states('t') || ' ' || history('t'), 'running more done null, new done null',
  'nor keep the current one from saving');

-- between two attempts

select started('between', '{"retry": {"kind": "fixed", "base_seconds": 9}}'), started('other') \g /dev/null
select durable.poll_waits('q', held('between', jsonb_build_object('waits', jsonb_build_array(
  jsonb_build_object('name', '$join', 'task_ids', ids('other')))))) \g /dev/null
update durable.waits set target_task_id = id('other'), watched = 1 where task_id = id('between');
select failed('between'), completed('other') \g /dev/null
select is(states('between'), 'sleeping', 'a wait that ends does not wake a task before its next attempt');
select claimed('between') \g /dev/null
select is((task('between')).error, null, 'the next attempt has no error yet');

select * from finish();
rollback;
