begin;
\ir _setup.sql
select plan(69);

create function tap.listed(filter jsonb)
returns text
language sql
as $$
  select string_agg(nick(task_id), ' ' order by nick(task_id)) from durable.list_tasks('q', filter);
$$;

select spawned('a', '{"headers": {"tenant": 7, "x": 1}}'), move_to(10),
  started('b', '{"max_attempts": 1}'), failed('b', '{"error": {"type": "E1", "message": "no"}}'),
  move_to(20), started('c'), completed('c'), move_to(21), spawned_below('a', 'd'), spawned('e', '{}', 'other') \g /dev/null
update durable.tasks set params = '{"n": 1, "m": 2}' where task_id = id('e');

select is(listed(filter::jsonb), found, format('list_tasks() finds by %s', what))
from (values
  ('{}', 'a b c d e', 'nothing: all'),
  ('{"all": true}', 'a b c d e', 'all'),
  ('{"name": "other"}', 'e', 'name'),
  ('{"states": ["failed", "completed"]}', 'b c', 'states'),
  ('{"states": []}', null, 'no state'),
  (format('{"task_ids": ["%s", "%s", "%s"]}', id('a'), id('c'), gen_random_uuid()), 'a c', 'ids'),
  (format('{"parent_task_id": "%s"}', id('a')), 'd', 'parent'),
  ('{"worker": "worker"}', 'b c', 'worker'),
  ('{"error_type": "E1"}', 'b', 'type of the error'),
  ('{"headers": {"tenant": 7}}', 'a', 'headers'),
  ('{"params": {"n": 1}}', 'e', 'params'),
  ('{"spawned_after": "2030-01-01 00:00:20Z"}', 'c d e', 'when they were spawned'),
  ('{"spawned_before": "2030-01-01T01:00:10+01:00"}', 'a', 'when they were spawned, before'),
  ('{"finished_after": "2030-01-01 00:00:20Z"}', 'c', 'when they finished'),
  ('{"finished_before": "2030-01-01 00:00:20.000Z"}', 'b', 'when they finished, before'),
  ('{"name": "job", "states": ["pending"], "headers": {"x": 1}}', 'a', 'several keys, which must all match')
) as filters (filter, found, what);

select results_eq(
  $$ select nick(task_id), parent_task_id, name, state, attempt, worker, spawned_at, started_at, available_at,
       finished_at, error ->> 'type'
     from durable.list_tasks('q', '{"name": "job"}', 2, id('d')) $$,
  $$ values ('c', null::uuid, 'job', 'completed', 1, 'worker', at(20), at(20), null::timestamptz, at(20), null),
       ('b', null, 'job', 'failed', 1, 'worker', at(10), at(10), null, at(10), 'E1') $$,
  'list_tasks() continues after a page, from the newest task to the oldest');
select is_empty($$ select from durable.list_tasks('other') $$, 'and returns only tasks of its queue');

select throws_ok(format('select durable.list_tasks(%L, %L, %L)', queue, filter, page_size), code, null,
  format('list_tasks() refuses %s', what))
from (values
  ('nowhere', '{}', 1, 'WFQUE', 'an unknown queue'),
  ('q', null, 1, '22023', 'no filter'),
  ('q', '[]', 1, '22023', 'a filter that is no object'),
  ('q', '{"nam": "x"}', 1, '22023', 'an unknown key'),
  ('q', '{"name": 7}', 1, '22023', 'a name that is no text'),
  ('q', '{"name": null}', 1, '22023', 'a name that is null'),
  ('q', '{"worker": []}', 1, '22023', 'a worker that is no text'),
  ('q', '{"states": "failed"}', 1, '22023', 'states that are no array'),
  ('q', '{"states": ["broken"]}', 1, '22023', 'an unknown state'),
  ('q', '{"states": [null]}', 1, '22023', 'a state that is null'),
  ('q', '{"task_ids": "x"}', 1, '22023', 'ids that are no array'),
  ('q', '{"task_ids": ["x"]}', 1, '22023', 'an id that is none'),
  ('q', '{"parent_task_id": null}', 1, '22023', 'a parent that is null'),
  ('q', '{"parent_task_id": "x"}', 1, '22023', 'a parent that is no id'),
  ('q', '{"spawned_after": "2030-01-01"}', 1, '22023', 'a day'),
  ('q', '{"spawned_after": "2030-01-01 00:00"}', 1, '22023', 'a moment without a zone'),
  ('q', '{"spawned_before": "2030-13-01 00:00Z"}', 1, '22023', 'a moment there is not'),
  ('q', '{"finished_after": "yesterday"}', 1, '22023', 'a word'),
  ('q', '{"finished_before": 7}', 1, '22023', 'a number'),
  ('q', '{"all": false}', 1, '22023', 'all that is not true'),
  ('q', '{"all": true, "name": "x"}', 1, '22023', 'all and a name'),
  ('q', '{}', 0, '22023', 'no page_size'),
  ('q', '{}', null, '22023', 'a page_size that is null'),
  ('q', '{}', 1000000, '22023', 'too many')
) as refused (queue, filter, page_size, code, what);
select throws_ok($$ select durable.list_tasks('q', scan => 0) $$, '22023', null, 'list_tasks() refuses a scan of none');

-- counts

select is((durable.count_tasks('q', filter::jsonb)).tasks, cardinality(string_to_array(found, ' ')), format('count_tasks() counts by %s', what))
from (values
  ('{}', 'a b c d e', 'nothing: all'),
  ('{"states": ["failed", "cancelled"]}', 'b', 'ended badly'),
  ('{"states": ["failed", "completed"]}', 'b c', 'states'),
  ('{"states": ["pending"], "name": "other"}', 'e', 'live states'),
  (format('{"task_ids": ["%s", "%s"]}', id('a'), gen_random_uuid()), 'a', 'ids'),
  ('{"spawned_after": "2030-01-01 00:00:20Z", "spawned_before": "2030-01-01 00:00:21Z"}', 'c', 'time')
) as filters (filter, found, what);
select results_eq($$ select tasks, next from durable.count_tasks('q', '{"name": "job"}', 2) $$,
  $$ values (2, id('b')) $$, 'it looks at page_size tasks, and returns where to continue');
select results_eq($$ select tasks, next from durable.count_tasks('q', '{"name": "job"}', 100, id('b')) $$,
  $$ values (2, null::uuid) $$, 'next is null at the end');
select throws_ok($$ select durable.count_tasks('nowhere') $$, 'WFQUE', null, 'it refuses an unknown queue');
select throws_ok($$ select durable.count_tasks('q', '{"nam": 1}') $$, '22023', null, 'and a bad filter');
select throws_ok($$ select durable.count_tasks('q', '{}', 0) $$, '22023', null, 'and no page_size');

-- how far a list looks

select results_eq(
  $$ select nick(task_id), name, spawned_at from durable.list_tasks('q', '{"name": "none"}', 1, null, 3) $$,
  $$ values ('c', null, at(20)) $$, 'a list that has looked at enough says where, and how far back, it stopped');
select results_eq(
  $$ select nick(task_id), name from durable.list_tasks('q', '{"name": "none", "spawned_after": "2030-01-01 00:00:15Z"}', 1, null, 3) $$,
  $$ values ('c', null) $$, 'also if the next one cannot match');
select is_empty($$ select from durable.list_tasks('q', '{"name": "none", "spawned_after": "2030-01-01 00:00:15Z"}', 1, id('c'), 3) $$,
  'then it ends');
select is_empty($$ select from durable.list_tasks('q', '{"name": "none", "states": ["failed"]}', 1, null, 2) $$,
  'a list of failed tasks looks at no others');
select is_empty($$ select from durable.list_tasks('q', '{"name": "none", "states": ["pending", "running"]}', 1, null, 1) $$,
  'nor does one of a few live tasks');
select started('child of a later clock'), move_to(100) \g /dev/null
update durable.tasks set task_id = durable._uuid7((extract(epoch from at(29)) * 1e6)::bigint)
where task_id = id('child of a later clock');
select is((select count(*) from durable.list_tasks('q', '{"spawned_before": "2030-01-01 00:00:22Z"}')), 6::bigint,
  'a task whose id is seconds later than its spawn is found');
select durable.delete_tasks('q', '{"all": true}'), durable.cancel_tasks('q', '{"all": true}') \g /dev/null

-- live tasks: few, many, and of each kind

select started('running'), started('slept'), sleeping('slept', 1000), started('waits'), awaiting('waits', 'never'),
  started('retries', '{"retry": {"kind": "fixed", "base_seconds": 100}}'), failed('retries'),
  spawned('delayed', '{"delay": 100}') \g /dev/null
select is(listed('{"states": ["sleeping"]}'), 'retries slept waits', 'sleeping tasks are found whatever they wait for');
select is(listed('{"states": ["running", "sleeping"]}'), 'retries running slept waits', 'and running ones');
select durable.spawn_many('q', (select jsonb_agg('{"task": "many"}'::jsonb) from generate_series(1, 10001))) \g /dev/null
select is((select count(*) from durable.list_tasks('q', '{"states": ["pending"], "name": "job"}', 10, null, 20000)), 1::bigint,
  'where there are too many to collect, they are walked through');
select is((durable.count_tasks('q', '{"states": ["pending"]}', 20000)).tasks, 10002, 'and none is missed');

-- the indexes that an operator may create

update durable.tasks set params = '{"order": 7, "tags": ["x", "y"]}', headers = '{"tenant": 1}' where task_id = id('slept');
select is_empty($$ select from durable.list_tasks('q', '{"params": {"order": 7}}', 1, null, 100) where name is not null $$,
  'without an index, params are looked for among the newest tasks');
create index tasks_params_idx on durable.tasks using gin (params jsonb_path_ops);
create index tasks_headers_idx on durable.tasks using gin (headers jsonb_path_ops);
select is(listed(filter::jsonb), 'slept', format('with one, %s are found at once', filter))
from (values ('{"params": {"order": 7}}'), ('{"params": {"tags": ["y"]}}'), ('{"headers": {"tenant": 1}}')) as filters (filter);
select is((select count(*) from durable.list_tasks('q', '{"params": {}}', 1, null, 1)), 1::bigint, 'params that all have are not looked up');

select * from finish();
rollback;
