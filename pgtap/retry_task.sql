begin;
\ir _setup.sql
select plan(54);

-- which tasks can be retried

select started('failed', '{"max_attempts": 1, "execution_timeout": 100}'),
  saved('failed', 'kept', '1e22'),
  failed('failed') \g /dev/null
select spawned('cancelled', '{"start_timeout": 5}'),
  durable.cancel_task('q', id('cancelled')) \g /dev/null
select spawned('pending'), started('running'), started('sleeping'), started('done') \g /dev/null
select sleeping('sleeping', 60), completed('done') \g /dev/null

select everything() as before \gset
select throws_ok(format('select durable.retry_task(%L, %L)', 'q', id(nick)), 'WFFIN', null,
  format('retry_task() refuses a %s task', states(nick)))
from unnest(array['pending', 'running', 'sleeping', 'done']) as refused (nick);
select throws_ok(format('select durable.retry_task(%L, %L)', queue, task_id), code, null,
  format('retry_task() refuses %s', what))
from (values
  ('nowhere', id('failed'),      'WFQUE', 'an unknown queue'),
  ('other',   id('failed'),      'WFNFD', 'a task of another queue'),
  ('q',       gen_random_uuid(), 'WFNFD', 'an unknown task')
) as refused (queue, task_id, code, what);
select throws_ok(format('select durable.retry_task(%L, %L, %L)', 'q', id('failed'), options),
  '22023', null,
  format('retry_task() refuses the options %s', coalesce(options, 'null')))
from (values
  (null),
  ('[]'),
  ('{"max_attempt": 2}'),
  ('{"max_attempts": 0}'),
  ('{"max_attempts": 1}'),
  ('{"max_attempts": 2.5}'),
  ('{"max_attempts": 3000000000}'),
  ('{"max_attempts": "2"}'),
  ('{"spawn_new": "yes"}'),
  ('{"spawn_new": null}'),
  ('{"param": 1}')
) as refused (options);
select is(everything(), :'before', 'a call that retry_task() refuses leaves no trace');

-- in place

select move_to(500) \g /dev/null
select results_eq(
  $$ select task_id, run_id = durable._run_id(task_id, 2), attempt, created
     from durable.retry_task('q', id('failed')) $$,
  $$ values (id('failed'), true, 2, false) $$,
  'retry_task() gives the task its next attempt');
select results_eq(
  $$ select state::text, attempt, max_attempts, available_at, started_at, finished_at, error
     from durable.tasks where task_id = id('failed') $$,
  $$ values ('pending', 2, 2, at(500), null::timestamptz, null::timestamptz, null::jsonb) $$,
  'the revived task is due at once, with room for one more attempt');
select results_eq(
  $$ select attempt, outcome::text, ended_at, error ->> 'message' from durable.runs
     where task_id = id('failed') $$,
  $$ values (1, 'failed', at(0), 'no') $$,
  'the former attempt stays recorded');
select is(durable.expire_tasks('q'), 0, 'the old execution_timeout does not end the revived task');
select claimed('failed') \g /dev/null
select is((task('failed')).expires_at, at(600),
  'execution_timeout counts from the start of the revived task');
select is(history('failed'), 'kept done 1e22', 'the revived task has its checkpoints');
select is(completed('failed', '"late"'), 'ok', 'a revived task can complete');
select is((task('failed')).result, '"late"', 'with its result');

select durable.retry_task('q', id('cancelled'), '{"max_attempts": 9}') \g /dev/null
select is((task('cancelled')).max_attempts, 9, 'max_attempts in options is the new limit');
select is(states('cancelled'), 'pending', 'retry_task() revives a cancelled task');
select is((select outcome::text from durable.runs where task_id = id('cancelled')), 'cancelled',
  'its cancellation stays recorded');

select started('endless', '{"max_attempts": null}'),
  failed('endless', '{"retryable": false}') \g /dev/null
select durable.retry_task('q', id('endless')) \g /dev/null
select is((task('endless')).max_attempts, null,
  'a task without a limit has none after retry_task()');

-- as a new task

select started('old',
  '{"max_attempts": 1, "idempotency_key": "k", "headers": {"h": 1}, "execution_timeout": 9,
  "retry": {"kind": "none"}}'), saved('old', 'kept'), failed('old') \g /dev/null
select call_it('new',
  (durable.retry_task('q', id('old'), '{"spawn_new": true}')).task_id) \g /dev/null
select isnt(id('new'), id('old'), 'spawn_new makes another task');
select results_eq(
  $$ select name collate "default", params, headers, retry, max_attempts, execution_timeout, state::text,
     attempt,
       idempotency_key collate "default", parent_task_id
     from durable.tasks where task_id = id('new') $$,
  $$ values ('job'::text, '{}'::jsonb, '{"h": 1}'::jsonb, '{"kind": "none"}'::jsonb, 1, 9::float8,
     'pending', 1,
       null::text, null::uuid) $$,
  'spawn_new copies name, params and options, but neither key nor parent');
select is(history('new'), '', 'spawn_new starts without checkpoints');
select is(states('old'), 'failed', 'spawn_new leaves the old task as it is');

-- with other params

select started('wrong', '{"max_attempts": 1, "idempotency_key": "w"}'), saved('wrong', 'kept'),
  failed('wrong') \g /dev/null
select durable.retry_task('q', id('wrong'), '{"params": {"right": 1}}') \g /dev/null
select is((task('wrong')).params, '{"right": 1}', 'a task can be retried with other params');
select is(history('wrong'), 'kept done null', 'and keeps its checkpoints');
select is((durable.spawn('q', 'job', '{"right": 1}', '{"idempotency_key": "w"}')).task_id, id('wrong'),
  'its key stands for the new params from then on');
select throws_ok($$ select durable.spawn('q', 'job', '{}', '{"idempotency_key": "w"}') $$, 'WFCON', null,
  'and no longer for the old ones');
select call_it('other', (durable.retry_task('q', id('old'), '{"spawn_new": true, "params": null}')).task_id)
\g /dev/null
select is((task('other')).params, 'null', 'a new task like it can have other params too, also null');
select is((task('old')).params, '{}', 'the old one is unchanged');

-- between two attempts

select started('late', '{"retry": {"kind": "fixed", "base_seconds": 1000}}'), failed('late') \g /dev/null
select is(states('late'), 'sleeping', 'a task sleeps until its next attempt');
select throws_ok($$ select durable.retry_task('q', id('late'), '{"deadline": "2040-01-01T00:00:00Z"}') $$,
  '22023', null, 'deadline is only for a task that has ended');
select throws_ok(format('select durable.retry_task(%L, %L, %L)', 'q', id('late'), options), code, null,
  format('retry_task() refuses it with %s', options))
from (values ('{"spawn_new": true}', 'WFFIN'), ('{"max_attempts": 1}', '22023')) as refused (options, code);
select results_eq(
  $$ select attempt, created from durable.retry_task('q', id('late'), '{"max_attempts": 2}') $$,
  $$ values (2, false) $$, 'retry_task() starts an attempt that was due later');
select results_eq(
  $$ select state::text, available_at, max_attempts, attempt from durable.tasks where task_id = id('late') $$,
  $$ values ('pending', at(500), 2, 2) $$, 'now, without counting it twice');

-- descendants
--
--   root ── joined ── deep
--        ├─ own          cancelled by a caller
--        ├─ broken       failed, and its end cancelled `below`
--        │    └─ below
--        └─ done

select started('root', '{"max_attempts": 1}'), started_below('root', 'joined'),
  spawned_below('joined', 'deep'),
  spawned_below('root', 'own'), started_below('root', 'broken', '{"max_attempts": 1}'),
  spawned_below('broken', 'below'), started_below('root', 'done') \g /dev/null
select durable.cancel_task('q', id('own')), failed('broken'), completed('done') \g /dev/null
select is(states('below'), 'cancelled', 'the children of a task that fails are cancelled');
select failed('root') \g /dev/null
select is(states('root joined deep own broken below done'),
  'failed cancelled cancelled cancelled failed cancelled completed',
  'the live descendants of a root that fails are cancelled');

select durable.retry_task('q', id('root')) \g /dev/null
select is(states('root joined deep own broken below done'),
  'pending pending pending cancelled failed cancelled completed',
  'retry_task() revives exactly the tasks that this end had cancelled');
select is((task('joined')).attempt || '-' || (task('joined')).max_attempts, '2-5',
  'a revived child starts its next attempt');
select durable.retry_task('q', id('broken')) \g /dev/null
select is(states('broken below'), 'pending pending',
  'so does a task further down that this end had cancelled');

select durable.cancel_task('q', id('root')) \g /dev/null
select is(states('root joined deep broken below'),
  'cancelled cancelled cancelled cancelled cancelled',
  'a revived tree can be cancelled again');
select durable.retry_task('q', id('root')) \g /dev/null
select is(states('root joined deep broken below own'),
  'pending pending pending pending pending cancelled',
  'and revived again');

select * from finish();
rollback;
