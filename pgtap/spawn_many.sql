begin;
\ir _setup.sql
select plan(23);

create temp table spawned as
select *
from durable.spawn_many('q', '[
  {"task": "b", "params": {"n": 1}, "options": {"max_attempts": 2}},
  {"task": "a"},
  {"task": "c", "params": null, "options": {}}
]') with ordinality as spawned (task_id, run_id, attempt, created, place);
select results_eq(
  $$ select name collate "default", params, max_attempts, created, attempt
     from spawned join durable.tasks using (task_id, attempt) order by place $$,
  $$ values ('b', '{"n": 1}'::jsonb, 2, true, 1), ('a', '{}', 5, true, 1),
     ('c', 'null', 5, true, 1) $$,
  'spawn_many() spawns each as spawn() would, and returns them in the order given');

select is_empty($$ select * from durable.spawn_many('q', '[]') $$,
  'spawn_many() of no tasks returns nothing');

-- order

create temp table spawned_in_order as
select task_id, ordinality as place
from durable.spawn_many('other', (select jsonb_agg(jsonb_build_object('task', 'many'))
  from generate_series(1, 5000)))
with ordinality;
select is(
  (select count(distinct task_id) from spawned_in_order), 5000::bigint,
  'spawn_many() gives each of 5,000 tasks its own id');
select results_eq(
  $$ select task_id from spawned_in_order order by place $$,
  $$ select task_id from spawned_in_order order by task_id $$,
  'ids count up within a call, also beyond 4,096 of them');
select results_eq(
  $$ select task_id from durable.claim_tasks('other', 'worker', array['many'], 5) $$,
  $$ select task_id from spawned_in_order order by place limit 5 $$,
  'tasks spawned in one call are claimed in the order given');

-- all or nothing

select everything() as before \gset
select throws_ok(format('select durable.spawn_many(%L, %L)', 'q', tasks), '22023', null,
  format('spawn_many() refuses %s', what))
from (values
  (null,                                              'null'),
  ('{"task": "a"}',                                   'an object'),
  ('["a"]',                                           'a string among its tasks'),
  ('[{"task": "a"}, {"task": ""}]',                   'an empty name'),
  ('[{"task": "a"}, {}]',                             'a missing name'),
  ('[{"task": "a"}, {"task": "b", "param": 1}]',      'an unknown key'),
  ('[{"task": "a"}, {"task": "b", "options": 7}]',    'options that are a number'),
  ('[{"task": "a"}, {"task": "b", "options": null}]', 'options that are JSON null'),
  ('[{"task": "a"}, {"task": "b", "options": {"max_attempts": 0}}]', 'a bad option')
) as refused (tasks, what);
select throws_ok($$ select durable.spawn_many('nowhere', '[{"task": "a"}]') $$, 'WFQUE', null,
  'spawn_many() refuses an unknown queue');
select throws_ok(
  $$ select durable.spawn_many('q', '[{"task": "a"}, {"task": "b", "options":
       {"parent_task_id": "00000000-0000-7000-8000-000000000000"}}]') $$,
  'WFNFD', null, 'spawn_many() refuses an unknown parent');
select is(everything(), :'before', 'one bad task refuses the whole of spawn_many()');

-- keys

create temp table keyed as
select task_id, created, ordinality as place
from durable.spawn_many('q', '[
  {"task": "a", "options": {"idempotency_key": "z"}},
  {"task": "a", "options": {"idempotency_key": "b"}},
  {"task": "a", "options": {"idempotency_key": "z"}},
  {"task": "a"}
]') with ordinality;
select results_eq(
  $$ select place, created, dense_rank() over (order by task_id) from keyed order by place $$,
  $$ values (1::bigint, true, 1::bigint), (2, true, 2), (3, false, 1), (4, true, 3) $$,
  'spawn_many() makes one task of two with the same key');
select is(
  (select count(*) from durable.tasks where name = 'a' and idempotency_key = 'z'), 1::bigint,
  'a key given twice in one call stands for one row');
select throws_ok(
  $$ select durable.spawn_many('q', '[
       {"task": "a", "options": {"idempotency_key": "new"}},
       {"task": "b", "options": {"idempotency_key": "new"}}]') $$,
  'WFCON', null, 'spawn_many() refuses one key for two names in the same call');
select is(
  (select count(*) from durable.idempotency_keys where key = 'new'), 0::bigint,
  'a refused call leaves no key behind');
select throws_ok(
  $$ select durable.spawn_many('q', '[{"task": "c"},
       {"task": "a", "params": {"other": 1}, "options": {"idempotency_key": "b"}}]') $$,
  'WFCON', null, 'spawn_many() refuses a key that an earlier call gave to other params');

create temp table hasty as
select * from durable.spawn_many('q', '[{"task": "hasty", "options": {"start_timeout": 7}}]');
select is((select expires_at - spawned_at from durable.tasks join hasty using (task_id)), interval '7 s',
  'spawn_many() sets the deadline of start_timeout');

select * from finish();
rollback;
