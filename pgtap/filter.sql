begin;
\ir _setup.sql
select plan(42);

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

select * from finish();
rollback;
