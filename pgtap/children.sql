begin;
\ir _setup.sql
select plan(47);

-- spawn_children

select started('p'), move_to(3) \g /dev/null
create temp table first_time as
select * from durable.spawn_children('q', id('p'), 1, '[
  {"name": "$spawn:a", "task": "child", "params": {"n": 1}, "options": {"max_attempts": 7, "headers": {"h": 1}},
   "position": 4, "after": 3},
  {"name": "$spawn:b", "task": "child"}]') with ordinality
    as spawned (name, task_id, run_id, attempt, created, place);
select results_eq(
  $$ select name, run_id = durable._run_id(task_id, 1), attempt, created from first_time
     order by place $$,
  $$ values ('$spawn:a', true, 1, true), ('$spawn:b', true, 1, true) $$,
  'spawn_children() returns the children in the order given');
select results_eq(
  $$ select place, name collate "default", parent_task_id, params, max_attempts, headers,
     state::text, spawned_at
     from (select place, task_id from first_time) as f join durable.tasks using (task_id)
     order by place $$,
  $$ values (1::bigint, 'child'::text, id('p'), '{"n": 1}'::jsonb, 7, '{"h": 1}'::jsonb,
     'pending', at(3)),
            (2, 'child', id('p'), '{}', 5, null, 'pending', at(3)) $$,
  'children are spawned as any task, below their parent');
select ok(bool_and(task_id > id('p')), 'a child''s id is greater than its parent''s')
  from first_time;
select results_eq(
  $$ select name collate "default", position, after, state::text, claim, attempt,
     (value ->> 'task_id')::uuid
     from durable.checkpoints where task_id = id('p') order by 1 $$,
  $$ select name, case name when '$spawn:a' then 4 else 0 end,
     case name when '$spawn:a' then 3 else 0 end,
       'done', 1, 1, task_id from first_time order by place $$,
  'each child is recorded by a checkpoint of its parent');

select everything() as before \gset
select results_eq(
  $$ select name, task_id, run_id, attempt, created from durable.spawn_children('q', id('p'), 1, '[
       {"name": "$spawn:a", "task": "child", "params": {"n": 1}}, {"name": "$spawn:b", "task": "child"}]') $$,
  $$ select name, task_id, run_id, attempt, created from first_time order by place $$,
  'a call whose answer was lost may be repeated, and returns the same');
select is(everything(), :'before', 'and spawns nothing twice');
select results_eq(
  $$ select name, created from durable.spawn_children('q', id('p'), 1, '[
       {"name": "$spawn:b", "task": "child"}, {"name": "$spawn:c", "task": "child"}]') $$,
  $$ values ('$spawn:b', true), ('$spawn:c', true) $$,
  'a recorded child is returned, a new one is spawned');
select is((select count(*) from durable.tasks where name = 'child'), 3::bigint,
  'there are three children');

select failed('p'), move_to(600), claimed('p') \g /dev/null
select results_eq(
  $$ select task_id
     from durable.spawn_children('q', id('p'), 3,
     '[{"name": "$spawn:a", "task": "child", "params": {"n": 1}}]') $$,
  $$ select task_id from first_time where name = '$spawn:a' $$,
  'the next attempt has the same child');
select is_empty($$ select * from durable.spawn_children('q', id('p'), 3, '[]') $$,
  'spawning no children returns nothing');

-- keys

select call_it('keyed',
  (durable.spawn('q', 'child', '{}', '{"idempotency_key": "k"}')).task_id) \g /dev/null
select results_eq(
  $$ select task_id, created from durable.spawn_children('q', id('p'), 3, '[
       {"name": "$spawn:k", "task": "child", "options": {"idempotency_key": "k"}}]') $$,
  $$ values (id('keyed'), false) $$,
  'a child whose key is taken is the task that has it');
select is((task('keyed')).parent_task_id, null, 'which keeps its parent');
select throws_ok(
  $$ select durable.spawn_children('q', id('p'), 3, '[
       {"name": "$spawn:l", "task": "another", "options": {"idempotency_key": "k"}}]') $$,
  'WFCON', null, 'a key of a task with another name is refused');

-- headers

select started('h', '{"headers": {"a": 1, "b": 1}, "identity": {"user": "ada"}}') \g /dev/null
create function pg_temp.spawned_below(child_queue text)
returns setof uuid
language sql
as $$
  select spawned.task_id
  from durable.spawn_children_in('q', id('h'), claim('h'), child_queue, (
    select jsonb_agg(jsonb_build_object('name', child_queue || task, 'task', task, 'options', options))
    from (values
      ('bare', jsonb '{}'),
      ('no identity', '{"identity": null}'),
      ('no headers', '{"headers": null}'),
      ('nothing', '{"headers": null, "identity": null}'),
      ('own', '{"headers": {"b": 2}, "identity": {"user": "bob"}}')
    ) as child (task, options))) as spawned;
$$;
select pg_temp.spawned_below('q'), pg_temp.spawned_below('other') \g /dev/null
create temp table inherited (task, headers) as values
  ('bare', jsonb '{"a": 1, "b": 1, "durable:identity": {"user": "ada"}}'),
  ('no headers', '{"durable:identity": {"user": "ada"}}'),
  ('no identity', '{"a": 1, "b": 1}'),
  ('nothing', null),
  ('own', '{"a": 1, "b": 2, "durable:identity": {"user": "bob"}}');
select set_eq(
  $$ select name collate "default", headers from durable.tasks where parent_task_id = id('h') and queue = 'q' $$,
  'table inherited',
  'a child inherits its parent''s headers and identity, unless it has its own or null');
select set_eq(
  $$ select name collate "default", headers from durable.tasks where parent_task_id = id('h') and queue = 'other' $$,
  'table inherited',
  'in another queue too');

-- refusals

select everything() as before \gset
select throws_ok(format('select durable.spawn_children(%L, id(%L), 3, %L)', 'q', 'p', children),
  '22023', null,
  format('spawn_children() refuses %s', what))
from (values
  (null,                                                         'null'),
  ('{}',                                                         'an object'),
  ('[{"task": "a"}]',                                            'a child without a checkpoint''s name'),
  ('[{"name": "", "task": "a"}]',                                'an empty checkpoint''s name'),
  ('[{"name": "$spawn:x"}]',                                     'a child without a task''s name'),
  ('[{"name": "$spawn:x", "task": "a", "queue": "q"}]',          'an unknown key'),
  ('[{"name": "$spawn:x", "task": "a"}, {"name": "$spawn:y", "task": "b", "options": {"retry": 1}}]', 'a bad option'),
  ('[{"name": "$spawn:x", "task": "a"}, {"name": "$spawn:x", "task": "b"}]', 'one checkpoint for two children')
) as refused (children, what);
select throws_ok($$ select durable.spawn_children('nowhere', id('p'), 3, '[]') $$, 'WFQUE', null,
  'spawn_children() refuses an unknown queue');
select is(everything(), :'before', 'a refused call leaves no trace');

-- children when their parent ends

select started('short'), completed('short') \g /dev/null
select throws_ok($$ select durable.spawn_children('q', id('short'), 1,
  '[{"name": "$spawn:x", "task": "a"}]') $$,
  'WFLST', null, 'a finished task spawns no children');
select durable.cancel_task('q', id('p')) \g /dev/null
select throws_ok($$ select durable.spawn_children('q', id('p'), 3,
  '[{"name": "$spawn:x", "task": "a"}]') $$,
  'WFCAN', null, 'a cancelled task spawns no orphans');
select is((select string_agg(distinct state::text, '') from durable.tasks
  where parent_task_id = id('p')), 'cancelled',
  'the children it had are cancelled with it');

-- emit_from_task

select started('e'), started('listener'), awaiting('listener', 'hello'), move_to(610) \g /dev/null
select is(durable.emit_from_task('q', id('e'), 1, '$emit:hello', 'hello', '{"n": 1}', 2, 1), true,
  'emit_from_task() returns that it was the first');
select results_eq(
  $$ select position, after, state::text, value::text from durable.checkpoints
     where task_id = id('e') $$,
  $$ values (2, 1, 'done', 'true') $$, 'and saves a checkpoint with that answer');
select is(states('listener'), 'pending', 'it wakes the waiting task');
select is((select payload from durable.events where name = 'hello'), '{"n": 1}'::jsonb,
  'the event has its payload');
select everything() as before \gset
select is(durable.emit_from_task('q', id('e'), 1, '$emit:hello', 'hello', '{"n": 2}'), true,
  'a repeated emit_from_task() answers as the first time');
select is(everything(), :'before', 'and changes nothing');
select is(durable.emit_from_task('q', id('e'), 1, '$emit:hello#2', 'hello'), false,
  'another emit of the same event returns that it was not the first');
select is(durable.emit_from_task('q', id('e'), 1, '$emit:hello#2', 'hello'), false, 'every time');

select throws_ok(format('select durable.emit_from_task(%L, id(%L), 1, %L, %L)', queue, 'e', name,
  event), code, null,
  format('emit_from_task() refuses %s', what))
from (values
  ('nowhere', 'n', 'e',              'WFQUE', 'an unknown queue'),
  ('q',       '',  'e',              '22023', 'an empty checkpoint''s name'),
  ('q',       'n', '',               '22023', 'an empty event name'),
  ('q',       'n', repeat('e', 256), '22023', 'an event name of 256 bytes')
) as refused (queue, name, event, code, what);
select released('e'), claimed('e') \g /dev/null
select throws_ok($$ select durable.emit_from_task('q', id('e'), 1, '$emit:stale', 'stale') $$,
  'WFLST', null,
  'a former claim emits nothing');
select is((select count(*) from durable.events where name = 'stale'), 0::bigint,
  'not even the event');

-- recorded effects stay, whatever happens to the child, its key or the event

select durable.create_queue('q', '{"keep_tasks": 0, "keep_events": 0}') \g /dev/null
select started('asker'), spawned('known', '{"idempotency_key": "key"}') \g /dev/null
create function pg_temp.asked(task text default 'job')
returns setof durable.spawned_child
language sql
as $$
  select durable.spawn_children('q', id('asker'), claim('asker'), jsonb_build_array(
    jsonb_build_object('name', '$spawn:known', 'task', task, 'options', '{"idempotency_key": "key"}'::jsonb)));
$$;
select is(task_id, id('known'), 'a child may be one that had the key before') from pg_temp.asked();
select is(task_id, id('known'), 'once recorded it is returned, whatever options the code passes now')
from pg_temp.asked('renamed');
select durable.cancel_task('q', id('known')), move_to(700), durable.cleanup('q') \g /dev/null
select is(task_id, id('known'), 'even after it was deleted') from pg_temp.asked();
select is_empty($$ select from durable.idempotency_keys where key = 'key' $$,
  'and its key stays free');

select durable.emit_from_task('q', id('asker'), claim('asker'), '$emit:once', 'once'),
  move_to(701), durable.prune_events('q') \g /dev/null
select durable.emit_from_task('q', id('asker'), claim('asker'), '$emit:once', 'once') \g /dev/null
select is_empty($$ select from durable.events where name = 'once' $$,
  'a repeated emit_from_task() does not emit a pruned event again');

select * from finish();
rollback;
