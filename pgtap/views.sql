begin;
\ir _setup.sql
select plan(8);

select started('a',
  '{"retry": {"kind": "fixed", "base_seconds": 0}, "idempotency_key": "k", "headers": {"h": 1}}'),
  failed('a', '{"error": {"type": "E1"}}'), claimed('a', 'second'), move_to(31),
    durable.expire_leases('q'), claimed('a', 'third'),
  saved('a', 'one', '1e22'), completed('a', '7')
\g /dev/null

select results_eq(
  $$ select attempt, run_id = durable._run_id(task_id, attempt), outcome, worker collate "default",
     ended_at, error ->> 'type'
     from durable.attempts where task_id = id('a') order by attempt $$,
  $$ values (1, true, 'failed', 'worker'::text, at(0), 'E1'),
     (2, true, 'lease_lost', 'second', at(31), '$LeaseExpired'),
       (3, true, 'completed', 'third', at(31), null) $$,
  'attempts shows all attempts of a task as one list');
select started('b') \g /dev/null
select results_eq($$ select attempt, outcome, ended_at, error from durable.attempts
  where task_id = id('b') $$,
  $$ values (1, 'running', null::timestamptz, null::jsonb) $$,
     'the last one with the task''s state');

select started('w'), joining('w', 'b', 9), started('e'), awaiting('e', 'ev'), started('s'),
  sleeping('s', 99) \g /dev/null
select results_eq(
  $$ select nick(task_id), task collate "default", wait collate "default",
     event_name collate "default", task_ids, expires_at
     from durable.waiting order by 1 $$,
  $$ values ('e', 'job'::text, '$event:ev'::text, 'ev'::text, null::uuid[], null::timestamptz),
       ('s', 'job', '$sleep', null, null, at(99)), ('w', 'job', '$join', null, ids('b'), at(40)) $$,
  'waiting shows what each task waits for');
select claimed('e'), completed('e') \g /dev/null
select is_empty($$ select * from durable.waiting where task_id = id('e') $$,
  'and not what finished tasks waited for');

select started('m1'), started('m2'), move_to(35), spawned('m3'),
  claimed('m3', 'another') \g /dev/null
select results_eq(
  $$ select worker collate "default", running, first_lease_expires_at from durable.workers
     where queue = 'q' order by 1 $$,
  $$ values ('another'::text, 1::bigint, at(65)), ('worker', 3, at(61)) $$,
  'workers shows how many tasks each worker holds');

select results_eq(
  $$ select name collate "default", state, attempt, worker collate "default", headers, result,
     idempotency_key collate "default",
       spawned_at, started_at, finished_at
     from durable.task_list where task_id = id('a') $$,
  $$ values ('job'::text, 'completed', 3, 'third'::text, '{"h": 1}'::jsonb, '7'::jsonb, 'k'::text,
     at(0), at(0), at(31)) $$,
  'task_list shows every task');
select is((select count(*) from durable.task_list), (select count(*) from durable.tasks),
  'live or finished');
select results_eq(
  $$ select name collate "default", state, value::text, attempt, saved_at from durable.history
     where task_id = id('a') $$,
  $$ values ('one'::text, 'done', '1e22', 3, at(31)) $$,
  'history shows a task''s checkpoints');

select * from finish();
rollback;
