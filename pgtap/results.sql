begin;
\ir _setup.sql
select plan(16);

select spawned('a'), started('b', '{"max_attempts": 1}'), started('c') \g /dev/null

select results_eq(
  $$ select task_id, name, state, attempt, result, error, spawned_at, finished_at
     from durable.get_task_result('q', id('a')) $$,
  $$ values (id('a'), 'job', 'pending', 1, null::jsonb, null::jsonb, at(0), null::timestamptz) $$,
  'get_task_result() of a new task: pending, without result or error');

select claimed('a') \g /dev/null
select is((durable.get_task_result('q', id('a'))).state, 'running',
  'get_task_result() shows a running task');
select sleeping('a', 60) \g /dev/null
select is((durable.get_task_result('q', id('a'))).state, 'sleeping',
  'get_task_result() shows a sleeping task');

select move_to(61), claimed('a') \g /dev/null
select completed('a', '{"total": 10000000000000000000000}'), failed('b'),
  durable.cancel_task('q', id('c'), 'enough') \g /dev/null
select results_eq(
  $$ select nick(task_id), state, result, error, finished_at
     from durable.get_task_results('q', ids('c b a')) order by 1 $$,
  $$ values
       ('a', 'completed', '{"total": 1e22}'::jsonb, null::jsonb, at(61)),
       ('b', 'failed', null, '{"type": "Oops", "message": "no"}', at(61)),
       ('c', 'cancelled', null, '{"type": "$Cancelled", "message": "enough", "by": {"user": "postgres"}}', at(61)) $$,
  'a completed task has a result; a failed and a cancelled one an error');

select is_empty(format('select * from durable.get_task_result(%L, %L)', queue, task_id),
  format('get_task_result() of %s is no row', what))
from (values
  ('q',       gen_random_uuid(), 'an unknown task'),
  ('q',       null,              'null'),
  ('other',   id('a'),           'a task of another queue'),
  ('nowhere', id('a'),           'a task of an unknown queue')
) as unknown (queue, task_id, what);
select is_empty($$ select * from durable.get_task_results('q', '{}') $$,
  'get_task_results() of no ids returns none');
select is_empty($$ select * from durable.get_task_results('q', null) $$,
  'get_task_results() of null returns none');
select is(
  (select count(*) from durable.get_task_results('q', ids('a b') || gen_random_uuid())), 2::bigint,
  'get_task_results() leaves out tasks that do not exist');

select spawned('live') \g /dev/null
select results_eq(
  $$ select nick(task_id), state, result, finished_at
     from durable.poll_results('q', ids('live c a')) order by 1 $$,
  $$ values ('a', 'completed', '{"total": 1e22}'::jsonb, at(61)), ('c', 'cancelled', null, at(61)) $$,
  'poll_results() leaves out live tasks');
select results_eq(
  $$ select task_id, state, finished_at
     from durable.poll_results('q', array['00000000-0000-7000-8000-000000000000'::uuid]) $$,
  $$ values ('00000000-0000-7000-8000-000000000000'::uuid, null::text, null::timestamptz) $$,
  'and returns only the id of a task that does not exist');

select started('n'), completed('n') \g /dev/null
select is((durable.get_task_result('q', id('n'))).result, 'null'::jsonb,
  'a task that returned nothing has JSON null as its result');

select started('retried', '{"retry": {"kind": "fixed", "base_seconds": 60}}'),
  failed('retried') \g /dev/null
select results_eq(
  $$ select state, attempt, error ->> 'type', finished_at
     from durable.get_task_result('q', id('retried')) $$,
  $$ values ('sleeping', 2, 'Oops', null::timestamptz) $$,
  'between two attempts a task shows why the last one failed');
select claimed('retried') \g /dev/null
select is((durable.get_task_result('q', id('retried'))).error, null,
  'and no longer once the next has started');

select * from finish();
rollback;
