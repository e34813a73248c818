begin;
\ir _setup.sql
select plan(63);

-- The nicknames of the tasks that a worker gets, as "a b c".
create function pg_temp.claim(
  names text[] default null, batch_size integer default 1, lease double precision default 30,
    worker text default 'worker'
)
returns text
language sql
as $$
  select coalesce(string_agg(tap.nick(task_id), ' '), '')
  from durable.claim_tasks('q', worker, names, batch_size, lease);
$$;

-- claim_tasks

select spawned('a', '{"headers": {"h": 1}, "execution_timeout": 100}') \g /dev/null
select move_to(5) \g /dev/null
select results_eq(
  $$ select nick(task_id), claim, name, attempt, params, headers, parent_task_id, spawned_at,
     expires_at,
       available_at, claimed_at, run_id = durable._run_id(task_id, 1)
     from durable.claim_tasks('q', 'me') $$,
  $$ values ('a', 1, 'job', 1, '{}'::jsonb, '{"h": 1}'::jsonb, null::uuid, at(0), at(105), at(0),
     at(5), true) $$,
  'claim_tasks() returns everything that a worker needs');
select results_eq(
  $$ select state::text, worker collate "default", claim, available_at, lease_expires_at, started_at
     from durable.tasks where task_id = id('a') $$,
  $$ values ('running', 'me'::text, 1, null::timestamptz, at(35), at(5)) $$,
  'a claimed task is leased for 30 seconds');
select is(pg_temp.claim(worker => 'you'), '',
  'claim_tasks() does not hand a leased task to a second worker');
select move_to(1000) \g /dev/null
select is(pg_temp.claim(worker => 'you'), '',
  'nor one whose lease has expired, before expire_leases()');
select completed('a') \g /dev/null

select spawned('timed', '{"start_timeout": 9, "execution_timeout": 100}') \g /dev/null
select is((select expires_at from durable.claim_tasks('q', 'me')), at(1100),
  'execution_timeout counts from the first claim');
select sleeping('timed', 1050), move_to(1050) \g /dev/null
select is((select expires_at from durable.claim_tasks('q', 'me')), at(1100),
  'and not from later ones');
select completed('timed'), move_to(1000) \g /dev/null

select spawned('one'), move_to(1001) \g /dev/null
select spawned('two'), move_to(1002) \g /dev/null
select spawned('three'), move_to(1002.1), spawned('rest-1'), move_to(1002.2),
  spawned('rest-2') \g /dev/null
select is(pg_temp.claim(batch_size => 2), 'one two', 'claim_tasks() takes the oldest first');
select is(pg_temp.claim(batch_size => 0), '', 'claim_tasks() with batch_size 0 claims nothing');
select is(pg_temp.claim(batch_size => 100), 'three rest-1 rest-2',
  'claim_tasks() returns fewer tasks if there are fewer');
select is(pg_temp.claim(), '', 'claim_tasks() of an empty queue returns no row');

select spawned('early', '{}', 'b'), move_to(1003) \g /dev/null
select spawned('late', '{}', 'a'), move_to(1003.1), spawned('later', '{}', 'b'),
  spawned('foreign', '{}', 'c') \g /dev/null
select is(pg_temp.claim(array['unknown']), '',
  'a worker does not get tasks whose name it does not know');
select is(pg_temp.claim('{}'), '', 'a worker with no names gets none');
select is(pg_temp.claim(array['a', 'b'], 1), 'early',
  'the name whose task has waited longest comes first');
select is(pg_temp.claim(array['b', 'a', 'a', null], 9), 'late later', 'a name may be given twice');
select is(states('foreign'), 'pending', 'tasks of unknown names wait for a worker that knows them');
select is(pg_temp.claim(), 'foreign', 'a worker that passes null claims any name');

select is_empty($$ select * from durable.claim_tasks('other', 'worker', null, 10) $$,
  'claim_tasks() sees no other queue''s tasks');

-- where to start from

select move_to(2000) \g /dev/null
select call_it('x' || place, task_id)
from durable.spawn_many('q',
  '[{"task": "x"}, {"task": "x"}, {"task": "x"}]') with ordinality as x (task_id, r, a, c, place)
\g /dev/null
select spawned('y1', '{}', 'y') \g /dev/null
select results_eq(
  $$ select nick(task_id) from durable.claim_tasks('q', 'worker', array['x', 'y'], 10, 30,
       array[at(2000), null], array[id('x1'), null]) order by 1 $$,
  array['x2', 'x3', 'y1'],
  'claim_tasks() starts after the pair given for each name, also among equal times');
select is(pg_temp.claim(array['x', 'y']), 'x1', 'and from the beginning without a pair');

-- refusals

select spawned('bait') \g /dev/null
select everything() as before \gset
select throws_ok(
  format('select durable.claim_tasks(%L, %L, null, %L, %L::double precision)', 'q', worker,
    batch_size, lease),
  '22023', null, format('claim_tasks() refuses %s', what))
from (values
  (null,             1,    '30',        'null for a worker'),
  ('',               1,    '30',        'a worker without a name'),
  (repeat('w', 256), 1,    '30',        'a worker''s name of 256 bytes'),
  ('w',              -1,   '30',        'a negative batch_size'),
  ('w',              null, '30',        'null for a batch_size'),
  ('w',              1,    '0',         'a lease of no time'),
  ('w',              1,    '-1',        'a negative lease'),
  ('w',              1,    'NaN',       'a lease that is not a number'),
  ('w',              1,    'Infinity',  'a lease without end'),
  ('w',              1,    null,        'null for a lease')
) as refused (worker, batch_size, lease, what);
select throws_ok($$ select durable.claim_tasks('nowhere', 'worker') $$, 'WFQUE', null,
  'claim_tasks() refuses an unknown queue');
select is(everything(), :'before', 'a call that claim_tasks() refuses leaves no trace');
select is(pg_temp.claim(worker => repeat('w', 255), lease => 0.001), 'bait',
  'a lease may be a fraction of a second');

-- extend_leases

select move_to(3000), started('e1'), started('e2'), started('e3'), move_to(3010) \g /dev/null
select completed('e2') \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome
     from durable.extend_leases('q', held('e1 e2 e3', '{"claim": 1}'), 60) order by 1 $$,
  $$ values ('e1', 'ok'), ('e2', 'lost'), ('e3', 'ok') $$,
  'extend_leases() returns an outcome for each task');
select is((task('e1')).lease_expires_at, at(3070), 'extend_leases() counts from now');
select durable.extend_leases('q', held('e1'), 1) \g /dev/null
select is((task('e1')).lease_expires_at, at(3070), 'extend_leases() never shortens a lease');
select move_to(3100), durable.extend_leases('q', held('e1'), 1) \g /dev/null
select is((task('e1')).lease_expires_at, at(3101),
  'an expired lease that nobody took over can be extended');
select throws_ok(format('select durable.extend_leases(%L, held(%L), %L::double precision)', 'q',
  'e1', lease),
  '22023', null, format('extend_leases() refuses a lease of %s seconds', coalesce(lease, 'null')))
from unnest(array['0', '-1', 'NaN', 'Infinity', '1e300', null]) as refused (lease);
select is_empty($$ select * from durable.extend_leases('q', '[]') $$, 'extending no leases returns nothing');

-- release_tasks

select move_to(4000), spawned('kept'), move_to(4001), spawned('behind'),
  claimed('kept') \g /dev/null
select results_eq(
  $$ select outcome
     from durable.release_tasks('q', held('kept', jsonb_build_object('available_at', at(4000)))) $$,
  array['ok'], 'release_tasks() makes a task claimable again');
select results_eq(
  $$ select state::text, claim, attempt, available_at, lease_expires_at from durable.tasks
     where task_id = id('kept') $$,
  $$ values ('pending', 2, 1, at(4000), null::timestamptz) $$,
  'a release uses up no attempt');
select is(pg_temp.claim(), 'kept', 'a released task keeps its place in the queue');
select move_to(4002), released('kept') \g /dev/null
select is(pg_temp.claim(batch_size => 2), 'behind kept', 'without its old available_at it goes to the end');
select is((task('kept')).attempt, 1, 'even if it is released again and again');
select is_empty($$ select * from durable.runs where task_id = id('kept') $$,
  'a release adds no row to runs');
select results_eq(
  $$ select nick(task_id), outcome from durable.release_tasks('q', held('kept e2', '{"claim": 1}'))
     order by 1 $$,
  $$ values ('e2', 'lost'), ('kept', 'lost') $$,
  'release_tasks() of a task that is no longer held changes nothing');

-- release_unknown

select move_to(5000), spawned('known'), spawned('lost-1'), spawned('lost-2'),
  spawned('theirs') \g /dev/null
select claimed(nick, 'reconnected') from words('known lost-1 lost-2') \g /dev/null
select claimed('theirs', 'somebody else') \g /dev/null
select is(durable.release_unknown('q', 'reconnected', ids('known')), 2,
  'release_unknown() releases tasks that the worker does not know');
select is(states('known lost-1 lost-2 theirs'), 'running pending pending running',
  'release_unknown() leaves alone known tasks and other workers'' tasks');
select is((task('lost-1')).attempt, 1, 'a lost answer to a claim costs no attempt');
select is(durable.release_unknown('q', 'reconnected', '{}'), 1,
  'a worker that knows no tasks releases all of its own');
select is(durable.release_unknown('q', 'reconnected', '{}'), 0, 'and then holds none');

-- get_next_due, list_waiting_names

select is(durable.get_next_due('other'), null, 'get_next_due() of an empty queue is null');
select durable.claim_tasks('q', 'worker', null, 1000) \g /dev/null
select is(durable.get_next_due('q'), null, 'get_next_due() is null if all tasks are held');
select started('nap'), sleeping('nap', 5010.5), started('forever'),
  awaiting('forever', 'never') \g /dev/null
select is(durable.get_next_due('q'), 10.5::double precision,
  'get_next_due() returns when the next sleeping task is due');
select is(durable.get_next_due('q', array['unknown']), null,
  'get_next_due() only looks at the given names');
select spawned('due', '{}', 'soon'), move_to(5001) \g /dev/null
select is(durable.get_next_due('q'), 0::double precision, 'get_next_due() is 0 if a task is due');
select results_eq($$ select * from durable.list_waiting_names('q') $$, array['job', 'soon'],
  'list_waiting_names() returns the names of waiting tasks');
select is_empty($$ select * from durable.list_waiting_names('other') $$,
  'list_waiting_names() of an empty queue returns none');

-- a task that is not due stands behind one that is

select spawned('now', '{}', 'mixed'), spawned('later', '{}', 'mixed') \g /dev/null
update durable.tasks set available_at = durable._now() + interval '1 s' where task_id = id('later');
select is((select array_agg(nick(task_id)) from durable.claim_tasks('q', 'w', '{mixed}', 5)), array['now'],
  'a claim takes the task that is due, not the next one');

select * from finish();
rollback;
