begin;
\ir _setup.sql
select plan(40);

-- what is refused

select spawned('x'), everything() as before \gset
select throws_ok(format('select durable.%s(%L, %L, %L)', function, queue, filter, quantity), code, null,
  format('%s() refuses %s', function, what))
from unnest(array['cancel_tasks', 'retry_tasks', 'delete_tasks']) as function
cross join (values
  ('nowhere', '{"all": true}', 1, 'WFQUE', 'an unknown queue'),
  ('q', '{}', 1, '22023', 'an empty filter'),
  ('q', '{"nam": "x"}', 1, '22023', 'an unknown key'),
  ('q', '{"all": true}', 0, '22023', 'no quantity')
) as refused (queue, filter, quantity, code, what);
select throws_ok($$ select durable.cancel_tasks('q', '{"all": true}', reason => repeat('x', 1001)) $$, '22023', null,
  'cancel_tasks() refuses a reason that is too long');
select is(everything(), :'before', 'what is refused leaves no trace');

-- cancelling

select move_to(1), started('a'), started_below('a', 'a1'), spawned_below('a1', 'a2'), move_to(2), spawned('b'),
  started('c'), completed('c'), started('d'), joining('d', 'a') \g /dev/null
select results_eq($$ select tasks, busy, next from durable.cancel_tasks('q', '{"states": ["running"]}', 3, reason => 'why') $$,
  $$ values (2, '{}'::uuid[], id('a1')) $$, 'cancel_tasks() looks at so many, and says where to go on');
select is(states('a a1 a2 b'), 'cancelled cancelled cancelled pending', 'it takes with it what lives below');
select is((task('a')).error ->> 'message', 'why', 'with the reason');
select is((task('a2')).error ->> 'by', id('a1')::text, 'or by whose end');
select is(states('d'), 'pending', 'and wakes who waits for them');
select results_eq($$ select tasks, next from durable.cancel_tasks('q', '{"states": ["running"]}', 100, id('a1')) $$,
  $$ values (0, null::uuid) $$, 'nothing is next at the end');
select is(states('b c'), 'pending completed', 'what does not match stays');
select is((durable.cancel_tasks('q', jsonb_build_object('task_ids', ids('c b x')))).tasks, 2,
  'what has finished is not counted');
select is(states('x b c'), 'cancelled cancelled completed', 'and not touched');

-- trying again

select changes_nothing($$ select durable.retry_tasks('q', '{"states": ["completed", "pending"]}') $$,
  'retry_tasks() leaves alone what cannot be tried again');
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('a c b')))).tasks, 2,
  'retry_tasks() tries again what failed or was cancelled');
select is(states('a a1 a2 b c x'), 'pending cancelled cancelled pending completed cancelled',
  'exactly that');
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('a1')))).tasks, 1,
  'retry_tasks() revives what it tries again');
select is(states('a1 a2'), 'pending pending', 'with what its end had cancelled');
select is((task('a2')).attempt, 2, 'once');

select move_to(3), started('late', '{"retry": {"kind": "fixed", "base_seconds": 100}}'), failed('late') \g /dev/null
select is((durable.retry_tasks('q', '{"states": ["sleeping"]}')).tasks, 1,
  'retry_tasks() starts now what is due later');
select is(states('late'), 'pending', 'its next attempt');
select started('nap'), sleeping('nap', 60) \g /dev/null
select is((durable.retry_tasks('q', '{"states": ["sleeping"]}')).tasks, 0, 'but not what waits');

-- deleting

select started('p', '{"idempotency_key": "k"}'), started_below('p', 'p1'), completed('p1') \g /dev/null
select is((durable.delete_tasks('q', jsonb_build_object('task_ids', ids('p p1')))).tasks, 0,
  'delete_tasks() leaves alone what lives, and its children');
select completed('p') \g /dev/null
select is((durable.delete_tasks('q', jsonb_build_object('task_ids', ids('p1')))).tasks, 0,
  'and children whose parent stays');
select is((durable.delete_tasks('q', '{"states": ["completed"]}')).tasks, 3, 'else what has finished goes');
select is(states('p p1 c late'), 'gone gone gone pending', 'and nothing else');
select is((durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}')).created, true, 'its key is free');
select is((durable.delete_tasks('q', '{"all": true}')).tasks, 1, 'all that has finished can go');
select is_empty($$ select from durable.tasks where queue = 'q' and finished_at is not null $$, 'and is gone');
select isnt_empty($$ select from durable.tasks where queue = 'q' $$, 'while the others stay');

select * from finish();
rollback;
