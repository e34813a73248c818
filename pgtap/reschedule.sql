begin;
\ir _setup.sql
select plan(54);

create function pg_temp.claimed_now() returns text language sql as $$
  select string_agg(nick(task_id), ' ' order by available_at, task_id)
  from durable.claim_tasks('q', 'worker', null, 100);
$$;

-- delay and run_at of a spawn

select spawned('delayed', '{"delay": 60, "start_timeout": 10}'),
  spawned('at', '{"run_at": "2030-01-01T00:02:00Z", "deadline": "2030-01-01T00:02:05Z"}'),
  spawned('past', '{"run_at": "2029-01-01T00:00:00Z"}') \g /dev/null
select results_eq(
  $$ select available_at, expires_at from durable.tasks where task_id in (id('delayed'), id('at'), id('past'))
     order by available_at $$,
  $$ values (at(0), null::timestamptz), (at(60), at(70)), (at(120), at(125)) $$,
  'start_timeout counts from when a task may start; a run_at that has passed is now');
select is(pg_temp.claimed_now(), 'past', 'a delayed task is not claimed before its time');
select is(durable.get_next_due('q'), 60::double precision, 'a worker sleeps until then');
select results_eq(
  $$ select pending, ready, next_due_at from durable.queue_stats('q') $$,
  $$ values (2::bigint, 0::bigint, at(60)) $$,
  'it is pending, but not ready');
select move_to(60) \g /dev/null
select is(pg_temp.claimed_now(), 'delayed', 'it is claimed when its time has come');
select move_to(125) \g /dev/null
select is(durable.expire_tasks('q'), 1, 'a deadline holds for a delayed task');
select is(states('at'), 'cancelled', 'it is cancelled without having started');

create function pg_temp.first_start(options jsonb) returns timestamptz language plpgsql as $$
declare
  _task_id uuid;
begin
  select task_id into _task_id
  from durable.spawn_many('q', jsonb_build_array(jsonb_build_object('task', 'job', 'options', options)));
  return (select available_at from durable.tasks where tasks.task_id = _task_id);
end;
$$;
select is(pg_temp.first_start(options), at(125 + wait), format('spawn_many() takes %s', options))
from (values ('{"delay": 5}'::jsonb, 5), ('{"run_at": "2030-01-01T00:03:00Z"}', 55), ('{}', 0),
  ('{"delay": null, "run_at": null}', 0)) as given (options, wait);

select everything() as before \gset
select throws_ok(format('select durable.spawn(%L, %L, %L, %L)', 'q', 'job', '{}', options), '22023', null,
  format('spawn() refuses %s', options))
from unnest(array[
  '{"delay": -1}', '{"delay": "1"}', '{"delay": 1e11}', '{"run_at": "tomorrow"}', '{"run_at": "2030-01-01T00:00:00"}',
  '{"run_at": 7}', '{"delay": 1, "run_at": "2031-01-01T00:00:00Z"}',
  '{"run_at": "2031-01-01T00:00:00Z", "deadline": "2030-12-31T00:00:00Z"}'
]) as refused (options);
select is(everything(), :'before', 'a spawn that is refused leaves no trace');

-- a limit of a definition that is announced later counts from there, too

select spawned('unknown', '{"delay": 100}') \g /dev/null
select durable.announce_definitions('q', '[{"task": "job", "options": {"start_timeout": 30}}]') \g /dev/null
select move_to(250) \g /dev/null
select is(pg_temp.claimed_now(), 'unknown', 'a start_timeout that its spawn omitted counts from when it may start');

-- reschedule_task

select spawned('later', '{"start_timeout": 10}'), spawned('limited', '{"deadline": "2030-01-01T00:05:00Z"}'),
  spawned('free', '{"start_timeout": null}'), started('started'), started('slept'), started('done'), spawned('gone') \g /dev/null
select sleeping('slept', 600), completed('done'), durable.cancel_task('q', id('gone')) \g /dev/null
select is(durable.reschedule_task('q', id('later'), at(400)), true, 'a task can start later');
select is(durable.reschedule_task('q', id('limited'), at(280)), true, 'also one with a deadline');
select is(durable.reschedule_task('q', id('free'), at(500)), true, 'and one without limits');
select results_eq(
  $$ select available_at, expires_at from durable.tasks where task_id in (id('later'), id('limited'), id('free'))
     order by available_at $$,
  $$ values (at(280), at(300)), (at(400), at(410)), (at(500), null::timestamptz) $$,
  'its start_timeout moves with it, its deadline stands');
select is(durable.reschedule_task('q', id('free'), at(0)), true, 'a moment that has passed');
select is(pg_temp.claimed_now(), 'free', 'is now');
select is(durable.reschedule_task('q', id(nick), at(600)), false, format('a %s task stays as it is', states(nick)))
from unnest(array['started', 'slept', 'done', 'gone']) as unchanged (nick);

select everything() as before \gset
select throws_ok(format('select durable.reschedule_task(%L, %L, %L)', queue, task_id, run_at), code, null,
  format('reschedule_task() refuses %s', what))
from (values
  ('nowhere', id('later'),       at(600)::text, 'WFQUE', 'an unknown queue'),
  ('q',       gen_random_uuid(), at(600)::text, 'WFNFD', 'an unknown task'),
  ('q',       id('later'),       null,          '22023', 'no moment'),
  ('q',       id('later'),       'infinity',    '22023', 'never'),
  ('q',       id('limited'),     at(300)::text, '22023', 'a moment at the deadline')
) as refused (queue, task_id, run_at, code, what);
select is(everything(), :'before', 'a call that is refused changes nothing');

-- reprioritize_task

select durable.cancel_tasks('q', '{"all": true}') \g /dev/null
select throws_ok($$ select durable.reprioritize_task('q', id('later'), 1) $$, '22023', null,
  'reprioritize_task() refuses a queue without limits and priorities');
select spawned('before') \g /dev/null
select durable.create_queue('q', '{"priorities": true}') \g /dev/null
create function pg_temp.next() returns text language sql as $$
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 1);
  select string_agg(tap.nick(task_id), ' ') from durable.claim_tasks('q', 'worker');
$$;
select spawned('low'), move_to(251), spawned('usual'), move_to(252), spawned('high', '{"priority": 2}') \g /dev/null
select durable.reprioritize_task('q', id('low'), 3), durable.reprioritize_task('q', id('high'), -1) \g /dev/null
select is(pg_temp.next(), 'low', 'a waiting task can have a higher priority');
select durable.reprioritize_task('q', id('before'), 1) \g /dev/null
select is(pg_temp.next(), 'before', 'also one from before the queue had priorities');
select is(pg_temp.next(), 'usual', 'the others keep theirs');
select is(pg_temp.next(), 'high', 'and a lower one');
select spawned('other'), durable.reprioritize_task('q', id('usual'), 7), sleeping('usual', 260),
  sleeping('low', 260), durable.reprioritize_task('q', id('low'), 8), failed('high'),
  durable.reprioritize_task('q', id('high'), 9), move_to(261) \g /dev/null
select is(pg_temp.next(), 'high', 'a task that waits for its next attempt');
select is(pg_temp.next(), 'low', 'one that sleeps');
select is(pg_temp.next(), 'usual', 'and one that was running');
select is(pg_temp.next(), 'other', 'have their new priorities when they are due');
select is(durable.get_next_due('q'), null, 'nothing is left');
select completed('other') \g /dev/null

select everything() as before \gset
select throws_ok(format('select durable.reprioritize_task(%L, %L, %L)', queue, task_id, priority), code, null,
  format('reprioritize_task() refuses %s', what))
from (values
  ('nowhere', id('low'),         1,      'WFQUE', 'an unknown queue'),
  ('q',       gen_random_uuid(), 1,      'WFNFD', 'an unknown task'),
  ('q',       id('other'),       1,      'WFFIN', 'a finished task'),
  ('q',       id('low'),         null,   '22023', 'no priority'),
  ('q',       id('low'),         32768,  '22023', 'a priority that is too high'),
  ('q',       id('low'),         -32769, '22023', 'one that is too low')
) as refused (queue, task_id, priority, code, what);
select is(everything(), :'before', 'a call that is refused changes nothing');

select * from finish();
rollback;
