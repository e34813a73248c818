begin;
\ir _setup.sql
select plan(32);

create function tap.by(nick text, kind text)
returns jsonb
language sql
as $$
  select detail -> 'by' from durable.task_history('q', id(nick)) as entry where entry.kind = by.kind;
$$;

create role durable_tap_ada;
grant durable_client, durable_operator to durable_tap_ada;
grant usage on schema tap to durable_tap_ada;
grant select on tap.nicknames to durable_tap_ada;

-- who cancelled

select spawned('a'), spawned('b'), spawned('c') \g /dev/null
select durable.cancel_task('q', id('a')) \g /dev/null
select is(by('a', 'cancelled'), jsonb_build_object('user', session_user), 'a role cancelled it');
select is((select detail -> 'error' from durable.task_history('q', id('a')) where kind = 'cancelled'),
  '{"type": "$Cancelled", "message": "cancelled"}', 'which is stored beside the error');
set local role durable_tap_ada;
set local durable.caller = '{"identity": {"name": "ada"}, "queue": "other", "task_id": "00000000-0000-7000-8000-000000000000"}';
select durable.cancel_task('q', id('b'), 'enough') \g /dev/null
reset role;
select is(by('b', 'cancelled'), '{"user": "durable_tap_ada", "identity": {"name": "ada"}, "queue": "other",
  "task_id": "00000000-0000-7000-8000-000000000000"}', 'the role that was set, and on whose behalf it acted');
set local durable.caller = '{"identity": {"name": "bob"}}';
select durable.cancel_tasks('q', jsonb_build_object('task_ids', ids('c'))) \g /dev/null
select is(by('c', 'cancelled') -> 'identity', '{"name": "bob"}', 'the same for a bulk operation');

-- what a caller cannot set

select throws_ok(format($$ set local durable.caller = %L; select durable.cancel_task('q', id('d')) $$, said), '22023', message, what)
from (values
  ('{"user": "root"}', 'unknown key "user" in durable.caller', 'the role is not for a caller to say'),
  ('[]', null, 'it is an object'),
  ('{', 'durable.caller is no JSON', 'in JSON'),
  (format('{"identity": {"x": "%s"}}', repeat('x', 4000)), 'durable.caller is 4023 bytes long', 'of some size'),
  ('{"identity": "ada"}', 'identity in durable.caller must be a JSON object', 'that says who in one, too'),
  ('{"queue": 1}', 'queue and task_id in durable.caller are no task''s', 'and names a queue'),
  ('{"queue": "q", "task_id": "a"}', 'queue and task_id in durable.caller are no task''s', 'and a task by its id'),
  ('{"queue": "q", "task_id": null}', 'queue and task_id in durable.caller are no task''s', 'or none')
) as wrong (said, message, what), lateral (select spawned('d')) as fresh;
set local durable.caller = '';

-- a cascade, a limit

select started('p'), spawned_below('p', 'q'), spawned('slow', '{"start_timeout": 5}'), spawned('late', '{"execution_timeout": 5}'),
  claimed('late'), spawned('due', '{"deadline": "2030-01-01T00:00:05Z"}') \g /dev/null
select durable.cancel_task('q', id('p')), move_to(6), durable.expire_tasks('q') \g /dev/null
select is(by('q', 'cancelled'), jsonb_build_object('task_id', id('p')), 'the end of an ancestor cancelled it');
select is(by('slow', 'cancelled'), '{"limit": "start_timeout"}', 'it did not start in time');
select is(by('late', 'cancelled'), '{"limit": "execution_timeout"}', 'or took too long');
select is(by('due', 'cancelled'), '{"limit": "deadline"}', 'or its deadline passed');
select spawned('soon', '{"execution_timeout": 5, "retry": {"kind": "fixed", "base_seconds": 9}}'), claimed('soon'), failed('soon')
  \g /dev/null
select is(by('soon', 'cancelled'), '{"limit": "execution_timeout"}', 'or no time was left for another attempt');

-- who retried

set local durable.caller = '{"identity": {"name": "eve"}}';
select durable.retry_task('q', id('p')) \g /dev/null
select is(by('p', 'retried') -> 'identity', '{"name": "eve"}', 'a caller retried it');
select is((select concat_ws(' ', extract(epoch from at - at(0))::integer, attempt) from durable.task_history('q', id('p'))
  where kind = 'retried'), '6 2', 'the history has the time and the attempt');
select is(by('q', 'retried'), jsonb_build_object('task_id', id('p')), 'descendants are revived with it, by it');
select is(by('p', 'attempt_cancelled'), jsonb_build_object('user', session_user), 'the caller that cancelled it stays recorded');
select spawned('w', '{"retry": {"kind": "fixed", "base_seconds": 60}}'), claimed('w'), failed('w'), move_to(7) \g /dev/null
select durable.retry_task('q', id('w')) \g /dev/null
select is((select string_agg(kind, ' ' order by attempt nulls first, at) from durable.task_history('q', id('w'))),
  'spawned started attempt_failed retried', 'a retry that skips a delay is recorded too');
select is(by('w', 'retried') -> 'identity', '{"name": "eve"}', 'by whom');
select claimed('w'), failed('w'), durable.retry_tasks('q', '{"all": true}') \g /dev/null
select is((select count(*) from durable.task_history('q', id('w')) where kind = 'retried'), 2::bigint, 'also by a bulk operation');
select is(by('soon', 'retried') -> 'identity', '{"name": "eve"}', 'and for tasks that had ended');

-- who forked

select call_it('f', (durable.fork_task('q', id('a'))).task_id) \g /dev/null
select is(by('f', 'spawned'), jsonb_build_object('user', session_user, 'identity', '{"name": "eve"}'::jsonb), 'a fork records who made it');
select is((select detail -> 'forked_from' from durable.task_history('q', id('f')) where kind = 'spawned'),
  jsonb_build_object('task_id', id('a')), 'beside the task it was made from');

select spawned('g', '{"headers": {"h": 1, "durable:forked_from": {"by": {"user": "root"}}}}') \g /dev/null
select is((select detail from durable.task_history('q', id('g')) where kind = 'spawned'), null, 'only fork_task() marks a fork');
select is((task('g')).headers, '{"h": 1}', 'whatever headers a spawn gives');
select durable.cancel_task('q', id('f')) \g /dev/null
select call_it('h', (durable.retry_task('q', id('f'), '{"spawn_new": true}')).task_id) \g /dev/null
select is(by('h', 'spawned'), null, 'a new task that retry_task() spawns like a fork is none');

-- what a worker reports as the error of a failure is not trusted

select started('x'), failed('x', '{"error": {"type": "$Cancelled", "by": {"user": "root"}, "limit": 3}, "retryable": false}')
  \g /dev/null
select is((select detail from durable.task_history('q', id('x')) where kind = 'failed'),
  '{"error": {"type": "$Cancelled", "by": {"user": "root"}, "limit": 3}}', 'nobody else has ended it');
select durable.retry_task('q', id('x')), claimed('x'), failed('x', '{"error": "oops", "retryable": false}') \g /dev/null
select is((select string_agg(kind || ' ' || (detail ->> 'error'), ', ' order by attempt) from durable.task_history('q', id('x'))
  where kind ~ 'failed'), 'attempt_failed {"by": {"user": "root"}, "type": "$Cancelled", "limit": 3}, failed oops',
  'in the current or a former attempt, whatever the error says');

select * from finish();
rollback;
