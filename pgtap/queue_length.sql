begin;
\ir _setup.sql
select plan(28);

create function tap.length_is(most integer)
returns boolean
language sql
as $$
  select durable.create_queue('q', jsonb_build_object('max_length', most));
$$;

select throws_ok(format('select durable.create_queue(''q'', %L)', policy), '22023', null,
  format('create_queue() refuses %s', policy))
from unnest(array['{"max_length": 0}', '{"max_length": 1.5}', '{"max_length": "3"}']) as policy;

-- up to 100, every spawn counts

select length_is(3), started('parent'), started('asleep'), sleeping('asleep', 60), started('failed'),
  failed('failed', '{"retryable": false}'), spawned('a', '{"idempotency_key": "k"}'), spawned('b')
\g /dev/null
select lives_ok($$ select spawned('c') $$, 'a queue takes max_length ready tasks, beside those that run or sleep');
select throws_ok($$ select durable.spawn('q', 'job') $$, 'WFFUL',
  'queue "q" is full: 3 tasks are ready to be claimed', 'spawn() refuses one more');
select throws_ok($$ select durable.spawn('q', 'job', '{}', '{"max_attempts": 1}') $$, 'WFFUL', null,
  'with options too');
select throws_ok($$ select durable.spawn('q', 'job', '{}', '{"idempotency_key": "new"}') $$, 'WFFUL', null,
  'with a key too');
select is_empty($$ select from durable.idempotency_keys where key = 'new' $$, 'which is not taken');
select is(
  (durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}')).created, false,
  'a task that exists is returned');
select throws_ok($$ select durable.spawn_many('q', '[{"task": "job"}, {"task": "job"}]') $$, 'WFFUL', null,
  'so does spawn_many()');
select results_eq(
  $$ select created from durable.spawn_many('q', '[{"task": "job", "options": {"idempotency_key": "k"}}]') $$,
  array[false], 'unless all exist');
select lives_ok($$ select durable.spawn('q', 'job', '{}', jsonb_build_object('parent_task_id', id('parent'))) $$,
  'a child of a client is exempt');
select lives_ok(
  $$ select durable.spawn_children('q', id('parent'), claim('parent'), '[{"name": "c", "task": "job"}]') $$,
  'and that of a worker');
select lives_ok(
  $$ select durable.spawn_many('q', jsonb_build_array(jsonb_build_object('task', 'job', 'options',
       jsonb_build_object('parent_task_id', id('parent'))))) $$,
  'and of spawn_many()');
select lives_ok($$ select durable.retry_task('q', id('failed')) $$, 'so is a retry');
select lives_ok($$ select durable.fork_task('q', id('parent')) $$, 'and a fork');
select throws_ok($$ select durable.spawn('q', 'job') $$, 'WFFUL', null, 'all of which count');
select lives_ok($$ select durable.spawn('other', 'job') $$, 'other queues are not full');
select durable.claim_tasks('q', 'worker', null, 6) \g /dev/null
select lives_ok($$ select durable.spawn('q', 'job') $$, 'there is room at once when tasks are claimed');
select length_is(null) \g /dev/null
select lives_ok($$ select durable.spawn_many('q', (select jsonb_agg('{"task": "job"}'::jsonb) from generate_series(1, 200))) $$,
  'without max_length there is always room');

-- above, maintenance and some spawns count

select length_is(150) \g /dev/null
select is((select is_full from durable.queue_stats('q')), true, 'create_queue() counts');
select throws_ok($$ select durable.spawn('q', 'job') $$, 'WFFUL', null, 'spawns are refused');
select count(*) from durable.claim_tasks('q', 'worker', null, 100) \g /dev/null
select durable.run_maintenance('q') \g /dev/null
select is((select is_full from durable.queues where queue = 'q'), null, 'maintenance counts again');
select lives_ok($$ select durable.spawn('q', 'job') $$, 'and there is room');
select durable.spawn_many('q', (select jsonb_agg('{"task": "job"}'::jsonb) from generate_series(1, 100))) \g /dev/null
select is((select is_full from durable.queues where queue = 'q'), true,
  'a spawn that fills the queue records it');
select throws_ok($$ select durable.spawn('q', 'job') $$, 'WFFUL', null, 'for the next one');
select durable.cancel_tasks('q', '{"states": ["pending"]}'), durable.run_maintenance('q') \g /dev/null
select is((select is_full from durable.queues where queue = 'q'), null, 'tasks that are cancelled make room');
select results_eq($$ select max_length, is_full from durable.queue_stats('q') $$,
  $$ values (150, false) $$, 'queue_stats() has the limit');

select * from finish();
rollback;
