begin;
\ir _setup.sql
select plan(64);

-- the spawned task

select spawned('plain') \g /dev/null
select results_eq(
  $$ select name collate "default", params, headers, retry, max_attempts, execution_timeout,
     idempotency_key collate "default", parent_task_id,
       state::text, attempt, claim, spawned_at, available_at, expires_at, started_at, finished_at
     from durable.tasks where task_id = id('plain') $$,
  $$ values ('job'::text, '{}'::jsonb, null::jsonb, null::jsonb, 5, null::float8, null::text,
     null::uuid,
       'pending', 1, 0, at(0), at(0), null::timestamptz, null::timestamptz, null::timestamptz) $$,
  'spawn() makes a pending task that is due at once and may have five attempts');

select results_eq(
  $$ select attempt, created, run_id = durable._run_id(task_id, 1), run_id <> task_id
     from durable.spawn('q', 'job') $$,
  $$ values (1, true, true, true) $$,
  'spawn() returns the first attempt of a new task');
select isnt(spawned('one'), spawned('two'), 'spawn() without a key makes a new task each time');

select is(
  (select (task('x')).params from call_it('x', (durable.spawn('q', 'job', params::jsonb)).task_id)),
  coalesce(params, 'null')::jsonb,
  format('spawn() takes %s for params', what))
from (values
  ('{"user": 42}',                              'an object'),
  ('[1, "two", null]',                          'an array'),
  ('"text"',                                    'a string'),
  ('false',                                     'false'),
  ('null',                                      'JSON null'),
  (null,                                        'SQL null, as JSON null,'),
  ('9223372036854775808',                       'an integer above 2^63'),
  ('0.1000000000000000055511151231257827',      'a number with more digits than a double'),
  ('"it''s a \"trap\"; drop table x; \\ $$"',   'quotes and backslashes'),
  ('"Ünïcode 🐘"',                              'Unicode'),
  (repeat('[', 500) || repeat(']', 500),        'a value nested 500 deep')
) as accepted (params, what);

-- options

select is(
  (select to_jsonb(task('x')) -> stored from spawned('x', options::jsonb)),
  value::jsonb,
  format('spawn() takes the options %s', options))
from (values
  ('{"max_attempts": 1}',                                     'max_attempts', '1'),
  ('{"max_attempts": 2147483647}',                            'max_attempts', '2147483647'),
  ('{"max_attempts": null}',                                  'max_attempts', 'null'),
  ('{"retry": {"kind": "none"}}',                             'retry',        '{"kind": "none"}'),
  ('{"retry": {"kind": "fixed", "base_seconds": 0.25}}',      'retry',        '{"kind": "fixed", "base_seconds": 0.25}'),
  ('{"retry": {"kind": "exponential", "base_seconds": 1, "factor": 1.5, "max_seconds": 9, "jitter": true}}',
   'retry', '{"kind": "exponential", "base_seconds": 1, "factor": 1.5, "max_seconds": 9, "jitter": true}'),
  ('{"retry": null}',                                         'retry',        'null'),
  ('{"headers": {"trace": "ab", "n": 1}}',                    'headers',      '{"trace": "ab", "n": 1}'),
  ('{"headers": null}',                                       'headers',      'null'),
  ('{"idempotency_key": "order:7"}',                          'idempotency_key', '"order:7"'),
  ('{"idempotency_key": null}',                               'idempotency_key', 'null'),
  ('{"start_timeout": 1.5}',                                      'expires_at',  '"2030-01-01T00:00:01.5+00:00"'),
  ('{"start_timeout": null}',                                     'expires_at',  'null'),
  ('{"execution_timeout": 3600.5}',                                'execution_timeout', '3600.5'),
  ('{"parent_task_id": null}',                                'parent_task_id', 'null')
) as accepted (options, stored, value);

select everything() as before \gset
select throws_ok(format('select durable.spawn(%L, %L, %L, %L)', 'q', 'job', '{}', options),
  '22023', null,
  format('spawn() refuses the options %s', left(coalesce(options, 'null'), 70)))
from (values
  (null),
  ('null'),
  ('[]'),
  ('"max_attempts"'),
  ('{"max_attempt": 3}'),
  ('{"max_attempts": 0}'),
  ('{"max_attempts": 1.5}'),
  ('{"max_attempts": "3"}'),
  ('{"max_attempts": 2147483648}'),
  ('{"retry": "none"}'),
  ('{"retry": {}}'),
  ('{"retry": {"kind": "linear"}}'),
  ('{"retry": {"kind": "fixed", "base": 1}}'),
  ('{"retry": {"kind": "fixed", "base_seconds": "oops"}}'),
  ('{"retry": {"kind": "fixed", "base_seconds": -1}}'),
  ('{"retry": {"kind": "exponential", "factor": 0.5}}'),
  ('{"retry": {"kind": "exponential", "max_seconds": 1e11}}'),
  ('{"retry": {"kind": "fixed", "jitter": "yes"}}'),
  ('{"headers": ["a"]}'),
  ('{"idempotency_key": 7}'),
  ('{"idempotency_key": ""}'),
  ('{"start_timeout": "1h"}'),
  ('{"start_timeout": -1}'),
  ('{"execution_timeout": 1e300}'),
  ('{"parent_task_id": 7}'),
  ('{"parent_task_id": "7"}'),
  (jsonb_build_object('idempotency_key', repeat('k', 256))::text)
) as refused (options);

select throws_ok($$ select durable.spawn('q', 'job', to_jsonb(repeat('x', 16777216))) $$,
  '22023', null,
  'spawn() refuses params of more than 16 MiB');
select throws_ok($$ select durable.spawn('nowhere', 'job') $$, 'WFQUE', 'no queue "nowhere"',
  'spawn() refuses an unknown queue');
select throws_ok($$ select durable.spawn(null, 'job') $$,
  'WFQUE', null, 'spawn() refuses null for a queue');
select is(everything(), :'before', 'a call that spawn() refuses leaves no trace');

-- parents

select started('parent'), completed('parent'), spawned('alive'), spawned('dropped') \g /dev/null
select durable.cancel_task('q', id('dropped')) \g /dev/null
select throws_ok(format('select spawned_below(%L, %L)', nick, 'child'), 'WFFIN', null,
  format('spawn() refuses a child of a %s task', (task(nick)).state))
from unnest(array['parent', 'dropped']) as finished (nick);
select throws_ok($$ select durable.spawn('other', 'job', '{}',
  jsonb_build_object('parent_task_id', id('alive'))) $$,
  'WFNFD', null, 'spawn() refuses a parent in another queue');
select spawned_below('alive', 'child') \g /dev/null
select ok((task('child')).parent_task_id = id('alive') and id('child') > id('alive'),
  'a child''s id is greater than its parent''s, even at the same time');

select * from finish();
rollback;
