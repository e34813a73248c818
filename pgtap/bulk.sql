begin;
\ir _setup.sql
select plan(40);

-- refusals

select spawned('x'), everything() as before \gset
select throws_ok(format('select durable.%s(%L, %L, %L)', function, queue, filter, page_size), code, null,
  format('%s() refuses %s', function, what))
from unnest(array['cancel_tasks', 'retry_tasks', 'delete_tasks']) as function
cross join (values
  ('nowhere', '{"all": true}', 1, 'WFQUE', 'an unknown queue'),
  ('q', '{}', 1, '22023', 'an empty filter'),
  ('q', '{"nam": "x"}', 1, '22023', 'an unknown key'),
  ('q', '{"all": true}', 0, '22023', 'no page_size')
) as refused (queue, filter, page_size, code, what);
select throws_ok($$ select durable.cancel_tasks('q', '{"all": true}', reason => repeat('x', 1001)) $$, '22023', null,
  'cancel_tasks() refuses a reason that is too long');
select is(everything(), :'before', 'a refused call leaves no trace');

-- cancelling

select move_to(1), started('a'), started_below('a', 'a1'), spawned_below('a1', 'a2'), move_to(2), spawned('b'),
  started('c'), completed('c'), started('d'), joining('d', 'a') \g /dev/null
select results_eq($$ select tasks, busy, next from durable.cancel_tasks('q', '{"worker": "worker"}', 3, reason => 'why') $$,
  $$ values (2, '{}'::uuid[], id('a1')) $$, 'cancel_tasks() looks at page_size tasks, and returns where to continue');
select is(states('a a1 a2 b'), 'cancelled cancelled cancelled pending', 'it cancels their descendants');
select is((task('a')).error ->> 'message', 'why', 'with the reason');
select is((task('a2')).error ->> 'by', id('a1')::text, 'or the task whose end cancelled it');
select is(states('d'), 'pending', 'and wakes the tasks that wait for them');
select results_eq($$ select tasks, next from durable.cancel_tasks('q', '{"states": ["running"]}', 100, id('a1')) $$,
  $$ values (0, null::uuid) $$, 'next is null at the end');
select is(states('b c'), 'pending completed', 'a task that does not match is left alone');
select is((durable.cancel_tasks('q', jsonb_build_object('task_ids', ids('c b x')))).tasks, 2,
  'a finished task is not counted');
select is(states('x b c'), 'cancelled cancelled completed', 'and not changed');

-- retrying

select changes_nothing($$ select durable.retry_tasks('q', '{"states": ["completed", "pending"]}') $$,
  'retry_tasks() leaves alone tasks that cannot be retried');
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('a c b')))).tasks, 2,
  'retry_tasks() retries failed and cancelled tasks');
select is(states('a a1 a2 b c x'), 'pending cancelled cancelled pending completed cancelled',
  'exactly that');
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('a1')))).tasks, 1,
  'retry_tasks() revives the tasks that it retries');
select is(states('a1 a2'), 'pending pending', 'with the tasks that their end had cancelled');
select is((task('a2')).attempt, 2, 'once');

select move_to(3), started('late', '{"retry": {"kind": "fixed", "base_seconds": 100}}'), failed('late') \g /dev/null
select is((durable.retry_tasks('q', '{"states": ["sleeping"]}')).tasks, 1,
  'retry_tasks() starts delayed attempts now');
select is(states('late'), 'pending', 'its next attempt');
select started('nap'), sleeping('nap', 60) \g /dev/null
select is((durable.retry_tasks('q', '{"states": ["sleeping"]}')).tasks, 0, 'but not a task that waits');

-- deleting

select started('p', '{"idempotency_key": "k"}'), started_below('p', 'p1'), completed('p1') \g /dev/null
select is((durable.delete_tasks('q', jsonb_build_object('task_ids', ids('p p1')))).tasks, 0,
  'delete_tasks() leaves alone live tasks and their children');
select completed('p') \g /dev/null
select is((durable.delete_tasks('q', jsonb_build_object('task_ids', ids('p1')))).tasks, 0,
  'and children whose parent stays');
select is((durable.delete_tasks('q', '{"states": ["completed"]}')).tasks, 3, 'other finished tasks are deleted');
select is(states('p p1 c late'), 'gone gone gone pending', 'and nothing else');
select is((durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}')).created, true, 'its key is free');
select is((durable.delete_tasks('q', '{"all": true}')).tasks, 1, 'all finished tasks can be deleted');
select is_empty($$ select from durable.tasks where queue = 'q' and finished_at is not null $$, 'and are gone');
select isnt_empty($$ select from durable.tasks where queue = 'q' $$, 'while the others stay');

select * from finish();
rollback;
