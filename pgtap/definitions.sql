begin;
\ir _setup.sql
select plan(61);

create function tap.announced(task text, options jsonb, version text default null, starts boolean default true)
returns integer
language sql
as $$
  select durable.announce_definitions('q',
    jsonb_build_array(jsonb_build_object('task', task, 'options', options)), version, starts);
$$;

create function tap.options_of(nick text)
returns jsonb
language sql
as $$
  select jsonb_build_object('max_attempts', max_attempts, 'retry', retry, 'headers', headers,
    'execution_timeout', execution_timeout, 'delay', extract(epoch from expires_at - spawned_at))
  from durable.tasks
  where queue = 'q' and task_id = tap.id(nick);
$$;

-- a spawn after the announcement

select is(announced('job', '{"max_attempts": 2, "retry": {"kind": "none"}, "headers": {"a": 1, "b": 1},
  "start_timeout": 60, "execution_timeout": 9}'), 1, 'announce_definitions() returns how many it has written');
select is(announced('job', '{"max_attempts": 2, "retry": {"kind": "none"}, "headers": {"a": 1, "b": 1},
  "start_timeout": 60, "execution_timeout": 9}'), 0, 'announce_definitions() writes an unchanged definition once');

select is(
  (select options_of('x') -> option from spawned('x', given::jsonb)), value::jsonb,
  format('a spawn with the options %s has %s %s', given, option, value))
from (values
  ('{}',                                'max_attempts', '2'),
  ('{"max_attempts": 7}',               'max_attempts', '7'),
  ('{"max_attempts": null}',            'max_attempts', 'null'),
  ('{"start_timeout": 5}',                  'max_attempts', '2'),
  ('{}',                                'retry',        '{"kind": "none"}'),
  ('{"retry": {"kind": "fixed"}}',      'retry',        '{"kind": "fixed"}'),
  ('{"retry": null}',                   'retry',        'null'),
  ('{"version": "9"}',                  'retry',        '{"kind": "none"}'),
  ('{}',                                'headers',      '{"a": 1, "b": 1}'),
  ('{"headers": {"b": 2}}',             'headers',      '{"a": 1, "b": 2}'),
  ('{"headers": null}',                 'headers',      'null'),
  ('{"identity": {"user": "u"}}',       'headers',      '{"a": 1, "b": 1, "durable:identity": {"user": "u"}}'),
  ('{}',                                'execution_timeout', '9'),
  ('{"execution_timeout": null}',            'execution_timeout', 'null'),
  ('{"max_attempts": 1}',               'execution_timeout', '9'),
  ('{}',                                'delay',        '60.000000'),
  ('{"start_timeout": 5}',                  'delay',        '5.000000'),
  ('{"start_timeout": null}',               'delay',        'null')
) as accepted (given, option, value);

select results_eq(
  $$ select (task('y')).max_attempts from durable.spawn_many('q',
       '[{"task": "job"}, {"task": "job", "options": {"max_attempts": 3}}, {"task": "other"}]') as s
     cross join lateral call_it('y', s.task_id) $$,
  'values (2), (3), (5)',
  'spawn_many() takes omitted options from the definition of each name');
select ok(started('parent') is not null, 'a worker holds the parent');
select is(
  (select (task('y')).max_attempts
   from durable.spawn_children('q', id('parent'), 1, '[{"name": "c", "task": "job"}]') as s
   cross join lateral call_it('y', s.task_id)),
  2, 'and so does spawn_children()');

-- a spawn before the announcement

select spawned('early', '{}', 'late'), spawned('said', '{"max_attempts": 4, "retry": null}', 'late'),
  spawned('slow', '{}', 'late') \g /dev/null
select is(options_of('early') ->> 'max_attempts', '5', 'before an announcement there are five attempts');
select announced('late', '{"max_attempts": 1, "retry": {"kind": "none"}, "headers": {"h": 1}, "execution_timeout": 30}') \g /dev/null
select ok(claimed('early') is not null, 'it is claimed');
select is(options_of('early') || '{"delay": 0}',
  '{"max_attempts": 1, "retry": {"kind": "none"}, "headers": {"h": 1}, "execution_timeout": 30, "delay": 0}',
  'the first claim fills in the omitted options');
select is((task('early')).expires_at, at(30), 'execution_timeout counts for this start');
select ok(claimed('said') is not null, 'a task with given options is claimed');
select is(options_of('said') - '{headers,delay,execution_timeout}'::text[], '{"max_attempts": 4, "retry": null}',
  'the given options stay');
select durable.fail_tasks('q', held('early')) \g /dev/null
select is((task('early')).state::text, 'failed', 'its only attempt has failed for good');

select announced('late', '{"start_timeout": 10}') \g /dev/null
select move_to(20) \g /dev/null
select is((select count(*)::integer from durable.claim_tasks('q', 'w', array['late'], 9)), 0,
  'a task whose start_timeout passed before it was announced is not started');
select durable.expire_tasks('q') \g /dev/null
select is((task('slow')).state::text || ' ' || ((task('slow')).error ->> 'limit'), 'cancelled start_timeout',
  'but cancelled');

-- which definition counts

select announced('job', '{"max_attempts": 1}', 'v1'), announced('job', '{"max_attempts": 2}', 'v1') \g /dev/null
select move_to(21), announced('job', '{"max_attempts": 8}', 'v2') \g /dev/null
select move_to(22), announced('job', '{"max_attempts": 2}', 'v1') \g /dev/null
select is((select (task('x')).max_attempts from spawned('x')), 8,
  'the version that was announced last counts, although an older one has started again since');
select is((select (task('x')).max_attempts from spawned('x', '{"version": "v1"}')), 2,
  'a spawn for one version takes that version''s own');
select durable.promote_version('q', 'v1') \g /dev/null
select is((select (task('x')).max_attempts from spawned('x')), 2, 'promote_version() makes another one count');
select announced('none', '{"max_attempts": 1}'), announced('none', '{"max_attempts": 3}'),
  announced('none', '{"max_attempts": 1}', null, false) \g /dev/null
select is((select max_attempts from durable.definitions where name = 'none'), 3,
  'a repeated announcement changes nothing that another worker has announced since');
select results_eq(
  $$ select name, version, latest, options ->> 'max_attempts' from durable.list_definitions('q')
     where name in ('job', 'none') $$,
  $$ values ('job', 'v1', true, '2'), ('job', 'v2', false, '8'), ('job', null, false, '2'),
       ('none', null, true, '3') $$,
  'list_definitions() returns them by name, the one that counts first');

-- the priority, and defaults of a spawn

select durable.create_queue('lanes', '{"priorities": true}'), durable.announce_definitions('lanes',
  '[{"task": "job", "options": {"priority": 5}}, {"task": "plain"}]') \g /dev/null
create function tap.lane_of(queue text, options jsonb, task text default 'job')
returns text
language sql
as $$
  select tap.call_it('lane', (durable.spawn(queue, task, '{}', options)).task_id);
  select format('%s %s', partition_key, priority) from tap.task('lane');
$$;
select is(tap.lane_of('lanes', options::jsonb), lane, format('a spawn with the options %s is in the lane "%s"', options, lane))
from (values
  ('{}', ' 5'),
  ('{"max_attempts": 1}', ' 5'),
  ('{"max_attempts": 1, "retry": null, "headers": null, "start_timeout": null, "execution_timeout": null}', ' 5'),
  ('{"unique": {"key": "k"}}', ' 5'),
  ('{"priority": 7}', ' 7'),
  ('{"priority": null}', ' 0'),
  ('{"defaults": {"partition_key": "a", "priority": 2}}', 'a 2'),
  ('{"defaults": {"partition_key": "a"}}', 'a 5'),
  ('{"partition_key": "b", "defaults": {"partition_key": "a", "priority": 2}}', 'b 2'),
  ('{"partition_key": null, "priority": null, "defaults": {"partition_key": "a", "priority": 2}}', ' 0')
) as accepted (options, lane);
select results_eq(
  $$ select (task('lane')).priority::integer from durable.spawn_many('lanes', '[{"task": "job"}, {"task": "job", "options": {"priority": 1}},
       {"task": "job", "options": {"max_attempts": 1, "retry": null, "headers": null, "start_timeout": null, "execution_timeout": null}},
       {"task": "plain"}]') as s cross join lateral call_it('lane', s.task_id) $$,
  'values (5), (1), (5), (0)', 'so do the tasks of spawn_many()');
select results_eq(
  $$ select (task('lane')).priority::integer from durable.spawn_many('lanes', '[{"task": "job", "options":
       {"max_attempts": 1, "retry": null, "headers": null, "start_timeout": null, "execution_timeout": null}}]') as s
     cross join lateral call_it('lane', s.task_id) $$,
  'values (5)', 'also if it gives all other options');
select is(tap.lane_of('q', '{"defaults": {"partition_key": "a", "priority": 2}}'), ' ',
  'a queue without limits and priorities ignores the defaults of a spawn');
select throws_ok($$ select durable.spawn('q', 'job', '{}', '{"defaults": {"partition": "a"}}') $$, '22023', null,
  'defaults with another key are refused');
select is(durable.announce_definitions('lanes', '[{"task": "job", "options": {"priority": 6}}]'), 1,
  'another priority is another definition');
select is(tap.lane_of('lanes', '{}'), ' 6', 'which counts from then on');
select durable.drop_queue('lanes') \g /dev/null

-- retention

select move_to(90000), announced('other', '{}', 'v3') \g /dev/null
select is(
  array(select name || ' ' || version from durable.definitions where queue = 'q' order by name, version),
  array['job v1', 'late ', 'none ', 'other v3'],
  'a definition that nobody has announced for a day is deleted, but not the one that counts');
select move_to(90000 + 2592001), announced('other', '{}', 'v3') \g /dev/null
select is(
  array(select name || ' ' || version from durable.definitions where queue = 'q' order by name, version),
  array['other v3'], 'which is deleted after the queue''s keep_tasks');
select durable.drop_queue('q') \g /dev/null
select is((select count(*)::integer from durable.definitions), 0, 'drop_queue() deletes them');

-- refusals

select throws_ok(
  format('select durable.announce_definitions(%L, %L)', queue, definitions), code, null,
  format('announce_definitions() refuses %s of %s', definitions, queue))
from (values
  ('gone',  '[]',                                                'WFQUE'),
  ('other', '{}',                                                '22023'),
  ('other', '[{"task": ""}]',                                    '22023'),
  ('other', '[{"task": "x", "options": {"max_attempts": 0}}]',   '22023'),
  ('other', '[{"task": "x", "options": {"version": "1"}}]',      '22023')
) as bad (queue, definitions, code);

select * from finish();
rollback;
