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

-- who cancels

select spawned('a'), spawned('b'), spawned('c') \g /dev/null
select durable.cancel_task('q', id('a')) \g /dev/null
select is(by('a', 'cancelled'), jsonb_build_object('user', session_user), 'a role has cancelled it');
select is((select detail -> 'error' from durable.task_history('q', id('a')) where kind = 'cancelled'),
  '{"type": "$Cancelled", "message": "cancelled"}', 'which stands beside the error');
set local role durable_tap_ada;
set local durable.caller = '{"identity": {"name": "ada"}, "queue": "other", "task_id": "00000000-0000-7000-8000-000000000000"}';
select durable.cancel_task('q', id('b'), 'enough') \g /dev/null
reset role;
select is(by('b', 'cancelled'), '{"user": "durable_tap_ada", "identity": {"name": "ada"}, "queue": "other",
  "task_id": "00000000-0000-7000-8000-000000000000"}', 'the role that was set, and on whose behalf');
set local durable.caller = '{"identity": {"name": "bob"}}';
select durable.cancel_tasks('q', jsonb_build_object('task_ids', ids('c'))) \g /dev/null
select is(by('c', 'cancelled') -> 'identity', '{"name": "bob"}', 'so it is for many');

-- what nobody can say

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

select started('p'), spawned_below('p', 'q'), spawned('slow', '{"max_delay": 5}'), spawned('late', '{"max_duration": 5}'),
  claimed('late'), spawned('due', '{"deadline": "2030-01-01T00:00:05Z"}') \g /dev/null
select durable.cancel_task('q', id('p')), move_to(6), durable.expire_deadlines('q') \g /dev/null
select is(by('q', 'cancelled'), jsonb_build_object('task_id', id('p')), 'a task above it has taken it with it');
select is(by('slow', 'cancelled'), '{"limit": "max_delay"}', 'it did not start in time');
select is(by('late', 'cancelled'), '{"limit": "max_duration"}', 'or took too long');
select is(by('due', 'cancelled'), '{"limit": "deadline"}', 'or its deadline passed');
select spawned('soon', '{"max_duration": 5, "retry": {"kind": "fixed", "base_seconds": 9}}'), claimed('soon'), failed('soon')
  \g /dev/null
select is(by('soon', 'cancelled'), '{"limit": "max_duration"}', 'or it left no time for another attempt');

-- who tries again

set local durable.caller = '{"identity": {"name": "eve"}}';
select durable.retry_task('q', id('p')) \g /dev/null
select is(by('p', 'retried') -> 'identity', '{"name": "eve"}', 'somebody has had it tried again');
select is((select concat_ws(' ', extract(epoch from at - at(0))::integer, attempt) from durable.task_history('q', id('p'))
  where kind = 'retried'), '6 2', 'when, and as which attempt');
select is(by('q', 'retried'), jsonb_build_object('task_id', id('p')), 'and what it had taken with it, with it');
select is(by('p', 'attempt_cancelled'), jsonb_build_object('user', session_user), 'who had cancelled it stays on record');
select spawned('w', '{"retry": {"kind": "fixed", "base_seconds": 60}}'), claimed('w'), failed('w'), move_to(7) \g /dev/null
select durable.retry_task('q', id('w')) \g /dev/null
select is((select string_agg(kind, ' ' order by attempt nulls first, at) from durable.task_history('q', id('w'))),
  'spawned started attempt_failed retried', 'nor does a delay wait that somebody has skipped');
select is(by('w', 'retried') -> 'identity', '{"name": "eve"}', 'by whom');
select claimed('w'), failed('w'), durable.retry_tasks('q', '{"all": true}') \g /dev/null
select is((select count(*) from durable.task_history('q', id('w')) where kind = 'retried'), 2::bigint, 'or of many');
select is(by('soon', 'retried') -> 'identity', '{"name": "eve"}', 'as was what had ended');

-- who forks

select call_it('f', (durable.fork_task('q', id('a'))).task_id) \g /dev/null
select is(by('f', 'spawned'), jsonb_build_object('user', session_user, 'identity', '{"name": "eve"}'::jsonb), 'a fork says by whom');
select is((select detail -> 'forked_from' from durable.task_history('q', id('f')) where kind = 'spawned'),
  jsonb_build_object('task_id', id('a')), 'beside whose it is');

select spawned('g', '{"headers": {"h": 1, "durable:forked_from": {"by": {"user": "root"}}}}') \g /dev/null
select is((select detail from durable.task_history('q', id('g')) where kind = 'spawned'), null, 'only a fork is one');
select is((task('g')).headers, '{"h": 1}', 'whatever its headers say');
select durable.cancel_task('q', id('f')) \g /dev/null
select call_it('h', (durable.retry_task('q', id('f'), '{"spawn_new": true}')).task_id) \g /dev/null
select is(by('h', 'spawned'), null, 'nor is what is spawned like a fork');

-- what a worker says of a failure is no more than that

select started('x'), failed('x', '{"error": {"type": "$Cancelled", "by": {"user": "root"}, "limit": 3}, "retryable": false}')
  \g /dev/null
select is((select detail from durable.task_history('q', id('x')) where kind = 'failed'),
  '{"error": {"type": "$Cancelled", "by": {"user": "root"}, "limit": 3}}', 'nobody else has ended it');
select durable.retry_task('q', id('x')), claimed('x'), failed('x', '{"error": "oops", "retryable": false}') \g /dev/null
select is((select string_agg(kind || ' ' || (detail ->> 'error'), ', ' order by attempt) from durable.task_history('q', id('x'))
  where kind ~ 'failed'), 'attempt_failed {"by": {"user": "root"}, "type": "$Cancelled", "limit": 3}, failed oops',
  'then or now, however it is said');

select * from finish();
rollback;
