begin;
\ir _setup.sql
select plan(33);

create function pg_temp.keyed(queue text, task text, params jsonb, key text)
returns durable.spawned_task
language sql
as $$
  select * from durable.spawn(queue, task, params, jsonb_build_object('idempotency_key', key));
$$;

select call_it('a', (pg_temp.keyed('q', 'job', '{"n": 1, "m": [2]}', 'k')).task_id) \g /dev/null

select results_eq(
  format('select task_id, created from pg_temp.keyed(%L, %L, %L, %L)', queue, task, params, key),
  $$ values (id('a'), false) $$,
  format('spawn() with a known key and %s gives the task there is', what))
from (values
  ('q', 'job', '{"n": 1, "m": [2]}',     'k', 'the same params'),
  ('q', 'job', '{"m": [2], "n": 1}',     'k', 'params in another order'),
  ('q', 'job', '{"n": 1.0, "m": [2e0]}', 'k', 'numbers in another notation')
) as same (queue, task, params, key, what);

select results_eq(
  $$ select task_id, created
     from durable.spawn('q', 'job', '{"n": 1, "m": [2]}', jsonb_build_object(
       'idempotency_key', 'k', 'max_attempts', 1, 'headers', '{"h": 1}'::jsonb,
       'parent_task_id', '00000000-0000-7000-8000-000000000000')) $$,
  $$ values (id('a'), false) $$,
  'options, headers and parent are not compared');

select throws_ok(format('select pg_temp.keyed(%L, %L, %L, %L)', queue, task, params, key),
  'WFCON', null,
  format('spawn() refuses a known key for %s', what))
from (values
  ('q', 'other-job', '{"n": 1, "m": [2]}', 'k', 'another task name'),
  ('q', 'job',       '{"n": 2, "m": [2]}', 'k', 'other params'),
  ('q', 'job',       null,                 'k', 'null params'),
  ('q', 'job',       '{}',                 'k', 'no params')
) as conflicting (queue, task, params, key, what);

select results_eq(
  format('select created from pg_temp.keyed(%L, %L, %L, %L)', queue, 'another', '{}', key),
  array[true], format('%s is another key', what))
from (values
  ('other', 'k',  'the same in another queue'),
  ('q',     'K',  'one in upper case'),
  ('q',     'k ', 'one with a space behind it'),
  ('q',     repeat('é', 127) || 'x', 'one of 255 bytes'),
  ('q',     'it''s "k" \ 🐘', 'one full of quotes')
) as different (queue, key, what);

-- how long a key is kept

select claimed('a'), failed('a'), claimed('a') \g /dev/null
select results_eq(
  $$ select task_id, attempt, run_id = durable._run_id(task_id, 2), created
     from pg_temp.keyed('q', 'job', '{"n": 1, "m": [2]}', 'k') $$,
  $$ values (id('a'), 2, true, false) $$,
  'spawn() with a known key returns the attempt the task has reached');
select completed('a') \g /dev/null
select results_eq(
  $$ select task_id, created from pg_temp.keyed('q', 'job', '{"n": 1, "m": [2]}', 'k') $$,
  $$ values (id('a'), false) $$,
  'a key outlives the completion of its task');

select move_to(2592000 - 1) \g /dev/null
select is(durable.cleanup('q'), 0, 'a key is kept as long as its task');
select move_to(2592000 + 60) \g /dev/null
select is(durable.cleanup('q'), 1, 'cleanup() deletes the finished task');
select results_eq(
  $$ select created, task_id <> id('a') from pg_temp.keyed('q', 'job', '{"n": 2}', 'k') $$,
  $$ values (true, true) $$,
  'the key of a deleted task is free for another, also with other params');

select call_it('b', (pg_temp.keyed('q', 'job', '{}', 'doomed')).task_id) \g /dev/null
select durable.cancel_task('q', id('b')) \g /dev/null
select results_eq(
  $$ select task_id, created from pg_temp.keyed('q', 'job', '{}', 'doomed') $$,
  $$ values (id('b'), false) $$,
  'a cancelled task keeps its key');
select is(
  (select count(*) from durable.idempotency_keys
   left join durable.tasks using (queue, task_id) where tasks.task_id is null),
  0::bigint, 'no key belongs to a task that does not exist');
select throws_ok(
  format('select durable.spawn(%L, %L, %L, %L)', 'q', 'job', '{}',
    jsonb_build_object('idempotency_key', 'orphan', 'parent_task_id', id('b'))),
  'WFFIN', null, 'spawn() with a new key under a finished parent is refused');

-- fingerprints, for params that are stored as other bytes each time

create function pg_temp.sealed(params jsonb, fingerprint jsonb, key text)
returns durable.spawned_task
language sql
as $$
  select * from durable.spawn('q', 'job', params,
    jsonb_build_object('idempotency_key', key, 'fingerprint', fingerprint));
$$;

select call_it('s', (pg_temp.sealed('"one"', '["f1", "f0"]', 'sealed')).task_id) \g /dev/null
select is(
  (select fingerprint from durable.idempotency_keys where queue = 'q' and key = 'sealed'),
  'f1', 'the first fingerprint is kept');
select results_eq(
  format('select task_id, created from pg_temp.sealed(%L, %L, %L)', '"two"', fingerprint, 'sealed'),
  $$ values (id('s'), false) $$, format('%s tells the same params again', fingerprint))
from (values ('"f1"'), ('["f2", "f1"]')) as same (fingerprint);
select throws_ok(
  format('select pg_temp.sealed(%L, %L, %L)', '"one"', fingerprint, 'sealed'),
  'WFCON', null, format('%s tells other params, though they look the same', fingerprint))
from (values ('"f2"'), ('["f2", "f0"]')) as other (fingerprint);
select throws_ok($$ select pg_temp.keyed('q', 'job', '"two"', 'sealed') $$,
  'WFCON', null, 'without a fingerprint the params themselves are compared');
select results_eq(
  $$ select created from durable.spawn_many('q', '[
       {"task": "job", "params": 1, "options": {"idempotency_key": "sealed", "fingerprint": "f1"}},
       {"task": "job", "params": 2, "options": {"idempotency_key": "many", "fingerprint": "g"}},
       {"task": "job", "params": 3, "options": {"idempotency_key": "many", "fingerprint": "g"}}]') $$,
  array[false, true, false], 'spawn_many() compares fingerprints, too');
select call_it('plain', (pg_temp.keyed('q', 'job', '{"n": 1}', 'plain')).task_id) \g /dev/null
select results_eq(
  $$ select task_id, created from pg_temp.sealed('"x"', '"f"', 'plain') $$,
  $$ values (id('plain'), false) $$,
  'a key from before fingerprints existed counts as equal');
select throws_ok(
  format('select durable.spawn(%L, %L, %L, %L)', 'q', 'job', '{}', options), '22023', null,
  format('spawn() refuses %s', options))
from (values
  ('{"fingerprint": "f"}'),
  ('{"fingerprint": 1, "idempotency_key": "x"}'),
  ('{"fingerprint": ["f", 1], "idempotency_key": "x"}'),
  ('{"fingerprint": [""], "idempotency_key": "x"}')
) as wrong (options);

select * from finish();
rollback;
