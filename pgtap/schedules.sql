begin;
\ir _setup.sql
select plan(125);

-- A schedule in the queue q, every hour unless said otherwise.
create function pg_temp.scheduled(schedule text, definition jsonb default '{}')
returns boolean
language sql
as $$
  select durable.create_schedule('q', schedule,
    case when definition ? 'cron' then '{}' else '{"every": 3600}' end::jsonb || '{"task": "job"}' || definition);
$$;


create function pg_temp.schedule(schedule text)
returns durable.listed_schedule
language sql
as $$
  select listed from durable.list_schedules('q') as listed where listed.schedule = $1;
$$;


-- Returns how many ticks are handled at a time.
create function pg_temp.fired(seconds double precision, batch_size integer default 100)
returns integer
language sql
as $$
  select durable.fire_schedules('q', batch_size) from tap.move_to(seconds);
$$;


-- Returns the ticks of the tasks that a schedule has spawned, in seconds.
create function pg_temp.ticks(schedule text)
returns text
language sql
as $$
  select coalesce(string_agg((extract(epoch from scheduled_at - at(0)))::float8::text, ' ' order by scheduled_at), '')
  from durable.list_schedule_runs('q', schedule);
$$;


create function pg_temp.refusal(call text)
returns text
language plpgsql
as $$
begin
  execute call;
  return 'none';
exception when others then
  return sqlstate;
end;
$$;

-- create_schedule

select is(pg_temp.scheduled('hourly', '{"params": [1], "options": {"max_attempts": 2}}'), true,
  'create_schedule() creates a schedule');
select is(pg_temp.schedule('hourly'),
  ('hourly', 'job', '[1]', '{"max_attempts": 2}', null, 3600, 'UTC', '"last"', 'skip', null, null, at(0), null,
    at(3600), null, null, null, null)::durable.listed_schedule,
  'list_schedules() lists it, with its first tick');
select is(durable.create_schedule('q', 'hourly', '{"overlap": "allow", "catch_up": 3, "jitter": 1.5}'), false,
  'create_schedule() changes one that exists');
select is(pg_temp.schedule('hourly'),
  ('hourly', 'job', '[1]', '{"max_attempts": 2}', null, 3600, 'UTC', '3', 'allow', 1.5, null, at(0), null,
    at(3600), null, null, null, null)::durable.listed_schedule,
  'keys that are left out keep their values');
select move_to(100), durable.create_schedule('q', 'hourly', '{"cron": "30 0 * * *", "time_zone": "Europe/Vienna"}')
\g /dev/null
select results_eq($$ select cron, every, time_zone, next_at from pg_temp.schedule('hourly') $$,
  $$ values ('30 0 * * *', null::integer, 'Europe/Vienna', at(84600)) $$,
  'a cron expression takes the place of an interval, and counts from now on');
select durable.create_schedule('q', 'hourly',
  '{"every": 60, "overlap": "skip", "catch_up": "all", "jitter": 0, "params": null}') \g /dev/null
select results_eq($$ select cron, every, next_at, catch_up, jitter, params from pg_temp.schedule('hourly') $$,
  $$ values (null, 60, at(120), '"all"'::jsonb, null::float8, 'null'::jsonb) $$, 'and an interval that of a cron expression');

select is_empty(
  $$ select definition from (values
    ('{}'), ('[]'), ('null'), ('{"every": 60}'), ('{"task": "job"}'), ('{"task": "", "every": 60}'),
    ('{"task": "job", "every": 60, "cron": "* * * * *"}'), ('{"task": "job", "every": 0.5}'),
    ('{"task": "job", "every": 1.5}'), ('{"task": "job", "every": "60"}'), ('{"task": "job", "every": 1e10}'),
    ('{"task": "job", "cron": "nonsense"}'), ('{"task": "job", "cron": "0 0 30 2 *"}'), ('{"task": "job", "cron": 5}'),
    ('{"task": "job", "cron": "* * * * *", "time_zone": "Mars/Base1"}'),
    ('{"task": "job", "every": 60, "catch_up": "first"}'), ('{"task": "job", "every": 60, "catch_up": 0}'),
    ('{"task": "job", "every": 60, "catch_up": 10001}'), ('{"task": "job", "every": 60, "catch_up": 1.5}'),
    ('{"task": "job", "every": 60, "overlap": "buffer"}'), ('{"task": "job", "every": 60, "jitter": -1}'),
    ('{"task": "job", "every": 60, "options": {"unknown": 1}}'), ('{"task": "job", "every": 60, "options": []}'),
    ('{"task": "job", "every": 60, "options": {"idempotency_key": "k"}}'),
    ('{"task": "job", "every": 60, "options": {"deadline": "2031-01-01T00:00:00Z"}}'),
    ('{"task": "job", "every": 60, "whenever": 1}')) as bad (definition)
    where pg_temp.refusal(format('select durable.create_schedule(''q'', ''bad'', %L)', definition)) <> '22023' $$,
  'create_schedule() refuses bad definitions');
select is(pg_temp.schedule('bad'), null, 'and writes nothing then');
select throws_ok($$ select durable.create_schedule('q', '', '{"task": "job", "every": 60}') $$, '22023', null,
  'it refuses an empty name');
select throws_ok($$ select durable.create_schedule('nowhere', 's', '{"task": "job", "every": 60}') $$, 'WFQUE', null,
  'and an unknown queue');

-- fire_schedules

select is(durable.drop_schedule('q', 'hourly'), true, 'drop_schedule() deletes a schedule');
select is(durable.drop_schedule('q', 'hourly'), false, 'once');
select move_to(0) \g /dev/null
select pg_temp.scheduled('h', '{"params": {"a": 1}, "options": {"max_attempts": 7, "headers": {"team": "x"}}}')
\g /dev/null
select is(pg_temp.fired(3599.999), 0, 'fire_schedules() does nothing before a tick');
select is(pg_temp.fired(3600.5), 1, 'it handles a tick that is due');
select is(pg_temp.fired(3600.5), 0, 'once');
select results_eq(
  $$ select name, params, max_attempts, available_at, idempotency_key, headers from durable.tasks $$,
  $$ values ('job' collate "C", '{"a": 1}'::jsonb, 7, at(3600.5), 'schedule/h/2030-01-01T01:00:00Z' collate "C",
       '{"team": "x", "durable:schedule": {"name": "h", "at": "2030-01-01T01:00:00Z"}}'::jsonb) $$,
  'it spawns the task, with the key and the header of the tick');
select results_eq($$ select last_at, next_at, (select task_id from durable.tasks) = last_task_id from pg_temp.schedule('h') $$,
  $$ values (at(3600), at(7200), true) $$, 'and knows the next tick, and the last task');
select is(durable.fire_schedules('other'), 0, 'it sees no other queue');
select is(durable.fire_schedules('nowhere'), 0, 'an unknown queue has no schedules');
select is(durable.fire_schedules('q', 0), 0, 'with batch_size 0 it handles none');
select is((durable.run_maintenance('q')).ticks, 0, 'run_maintenance() counts the ticks');
select move_to(7200) \g /dev/null
select is((durable.run_maintenance('q')).ticks, 1, 'that it has handled');

-- overlap

select is(pg_temp.ticks('h'), '3600', 'a tick is skipped while the last task has not finished');
select is((pg_temp.schedule('h')).next_at, at(10800), 'the next one comes');
update durable.tasks set state = 'completed', available_at = null, finished_at = at(7201);
select pg_temp.fired(10800) \g /dev/null
select is(pg_temp.ticks('h'), '3600 10800', 'and spawns, once that has finished');
select durable.create_schedule('q', 'h', '{"overlap": "allow"}'), pg_temp.fired(14400) \g /dev/null
select is(pg_temp.ticks('h'), '3600 10800 14400', 'allow spawns beside it');
select durable.create_schedule('q', 'h', '{"overlap": "cancel"}') \g /dev/null
select call_it('last', (pg_temp.schedule('h')).last_task_id), spawned_below('last', 'child') \g /dev/null
select started('waits'), joining('waits', 'last') \g /dev/null
select is(pg_temp.fired(18000), 1, 'cancel');
select is(states('last child waits'), 'cancelled cancelled pending', 'cancels the last task with what is below it, and wakes its waiters');
select is((task('last')).error, '{"type": "$Cancelled", "message": "schedule \"h\" is due again"}'::jsonb, 'it says why');
select is(pg_temp.ticks('h'), '3600 10800 14400 18000', 'and spawns another');
select call_it('last', (pg_temp.schedule('h')).last_task_id), claimed('last'), spawned_below('last', 'child'),
  completed('last') \g /dev/null
select is(pg_temp.fired(21600), 1, 'after one that has completed');
select is(states('last child'), 'completed pending', 'it cancels nothing');

-- overlap: buffer_one

select durable.drop_schedule('q', schedule) from durable.list_schedules('q') \g /dev/null
select move_to(0), pg_temp.scheduled('b', '{"overlap": "buffer_one"}'), pg_temp.fired(3600) \g /dev/null
select call_it('b1', (pg_temp.schedule('b')).last_task_id), claimed('b1') \g /dev/null
select is(pg_temp.fired(7200), 0, 'buffer_one: a tick waits while the last task has not finished');
select is((pg_temp.schedule('b')).next_at, at(7200), 'it stays due');
select is(durable.get_next_due('q', '{}'), null, 'it wakes no worker, since it waits for no time');
select pg_temp.scheduled('other', '{"overlap": "allow", "every": 60}'), pg_temp.fired(7260, 1) \g /dev/null
select is(pg_temp.ticks('other'), '7260', 'those that wait do not hold up other schedules, however many there are');
select durable.drop_schedule('q', 'other') \g /dev/null
select is(pg_temp.fired(3 * 86400), 0, 'it waits for days');
select completed('b1') \g /dev/null
select is(durable.get_next_due('q', '{}'), 1::float8, 'when that task has ended it is due');
select is(pg_temp.fired(3 * 86400 + 1), 1, 'and handled, however late it is');
select is(pg_temp.ticks('b'), '3600 7200', 'the ticks that came meanwhile are skipped');
select is((pg_temp.schedule('b')).next_at, at(3 * 86400 + 3600), 'the next one comes');
select is(durable.fire_schedules('q'), 0, 'once');
select call_it('b2', (pg_temp.schedule('b')).last_task_id), pg_temp.fired(3 * 86400 + 3600),
  durable.cancel_task('q', id('b2')), pg_temp.fired(3 * 86400 + 3601) \g /dev/null
select is(pg_temp.ticks('b'), '3600 7200 262800', 'it starts after a task that was cancelled');
select call_it('b3', (pg_temp.schedule('b')).last_task_id), claimed('b3'), pg_temp.fired(3 * 86400 + 7200),
  failed('b3', '{"retryable": false}'), durable.retry_task('q', id('b3')) \g /dev/null
select is(durable.fire_schedules('q'), 0, 'it waits for a failed task that is retried in time');
select claimed('b3'), failed('b3', '{"retryable": false}') \g /dev/null
select is(durable.fire_schedules('q'), 1, 'and starts after one that has failed for good');
select is(durable.retry_task('q', id('b3')) is not null, true, 'which may be retried then, beside the new one');
select is((durable.trigger_schedule('q', 'b')).created, true, 'trigger_schedule() does not wait');
select call_it('b5', (pg_temp.schedule('b')).last_task_id), claimed('b5'), pg_temp.fired(4 * 86400),
  completed('b5'), durable.delete_tasks('q', jsonb_build_object('task_ids', jsonb_build_array(id('b5')))) \g /dev/null
select is(pg_temp.fired(4 * 86400 + 7200), 1, 'after a task that was deleted meanwhile');
select is((pg_temp.schedule('b')).last_at, at(4 * 86400 + 7200), 'catch_up decides which tick is handled');
select durable.drop_schedule('q', 'b') \g /dev/null
select move_to(21600), pg_temp.scheduled('day', '{"overlap": "buffer_one", "catch_up": "all"}'),
  pg_temp.fired(21600 + 86400), durable.cancel_task('q', (pg_temp.schedule('day')).last_task_id),
  durable.fire_schedules('q'), durable.cancel_task('q', (pg_temp.schedule('day')).last_task_id), durable.fire_schedules('q')
\g /dev/null
select is(pg_temp.ticks('day'), '25200 28800', 'after a time without a worker no more than one tick waits');
select durable.drop_schedule('q', 'day'), move_to(21600) \g /dev/null

-- catch_up: a day without a worker, from 21600 on

select pg_temp.scheduled(one.catch_up, jsonb_build_object('overlap', 'allow', 'catch_up', one.catch_up))
from unnest(array['skip', 'last', 'all']) as one (catch_up) \g /dev/null
select pg_temp.scheduled('3', '{"overlap": "allow", "catch_up": 3}'),
  pg_temp.scheduled('100', '{"overlap": "allow", "catch_up": 100}'),
  pg_temp.scheduled('cron', '{"overlap": "allow", "catch_up": 2, "cron": "0 5 * * *"}'),
  pg_temp.scheduled('year', '{"overlap": "allow", "cron": "@yearly"}'),
  pg_temp.scheduled('minutes', '{"overlap": "allow", "cron": "* 9 * * *"}'),
  durable.drop_schedule('q', 'h')
\g /dev/null
select pg_temp.fired(21600 + 86400 + 1800) \g /dev/null
select is(pg_temp.ticks('skip'), '', 'skip: no tick that is more than a minute late is handled');
select is(pg_temp.ticks('last'), '108000', 'last: only the latest is');
select is(pg_temp.ticks('3'), '100800 104400 108000', 'a number: so many of the latest');
select is(pg_temp.ticks('minutes'), '35940', 'the last minute of an hour');
select is(pg_temp.ticks('all'), (select string_agg(n::text, ' ' order by n) from generate_series(25200, 72000, 3600) as n),
  'all: no more at once than the share of one of seven in batch_size');
select is(durable.fire_schedules('q'), 20, 'the next call continues with both that have more');
select is(pg_temp.ticks(one), (select string_agg(n::text, ' ' order by n) from generate_series(25200, 108000, 3600) as n),
  one || ': until all are handled')
from unnest(array['all', '100']) as one;
select is((select count(distinct next_at) from durable.list_schedules('q') where every is not null), 1::bigint,
  'all of them have the same next tick');
select is(pg_temp.ticks('cron'), '104400', 'a cron expression with fewer ticks than it may have');
select pg_temp.fired(21600 + 10 * 86400) \g /dev/null
select is(pg_temp.ticks('cron'), '104400 795600 882000', 'or more');
select pg_temp.fired(3600 * 247 + 30) \g /dev/null
select is(pg_temp.ticks('skip'), '885600 889200', 'skip: one that is half a minute late is handled');
select is(pg_temp.ticks('year'), '', 'a tick of next year');
select pg_temp.fired(400 * 86400.0) \g /dev/null
select is(pg_temp.ticks('year'), '31536000', 'is found from months away');
select durable.drop_schedule('q', schedule) from durable.list_schedules('q') \g /dev/null

-- an interval of a second: ticks that are late by less than a minute are all handled

select move_to(0), pg_temp.scheduled('second', '{"every": 1, "overlap": "allow"}') \g /dev/null
select is(pg_temp.fired(30.5), 30, 'ticks that are at most a minute late are all handled');
select is(pg_temp.fired(3600), 61, 'after an hour those of the last minute are');
select durable.drop_schedule('q', 'second') \g /dev/null

-- the clock is set back

select move_to(0), pg_temp.scheduled('back', '{"overlap": "allow"}') \g /dev/null
select pg_temp.fired(3600), pg_temp.fired(7200) \g /dev/null
select is(pg_temp.fired(1800) + pg_temp.fired(3600) + pg_temp.fired(7200), 0, 'a clock that is set back fires nothing again');
select move_to(1800), durable.create_schedule('q', 'back', '{"params": "new"}'), pg_temp.fired(3600), pg_temp.fired(7200)
\g /dev/null
select is(pg_temp.ticks('back'), '3600 7200', 'also if the next tick is computed again meanwhile');
select is(pg_temp.fired(10800), 1, 'and then it goes on');

-- a due tick stays due if the schedule is created again

select move_to(14400), pg_temp.scheduled('back', '{"overlap": "allow"}'), durable.fire_schedules('q') \g /dev/null
select is(pg_temp.ticks('back'), '3600 7200 10800 14400', 'a schedule that is created again keeps a tick that is due');
update durable.schedules set next_at = at(99999) where schedule = 'back';
select pg_temp.scheduled('back', '{"overlap": "allow"}') \g /dev/null
select is((pg_temp.schedule('back')).next_at, at(18000), 'one that is to come is computed again');

-- jitter

select pg_temp.scheduled('late', '{"jitter": 600, "overlap": "allow"}'), pg_temp.fired(18000), pg_temp.fired(21600) \g /dev/null
create temp table late as
select available_at - scheduled_at as by from durable.list_schedule_runs('q', 'late') join durable.tasks using (task_id);
select is((select count(*) from late where by between interval '0' and interval '600 seconds'), 2::bigint,
  'jitter: a task starts late by no more than that');
select is((select count(distinct by) from late), 2::bigint, 'by another part of it each time');
select is(durable._run_options(schedules, at(25200), durable._run_key('late', at(25200))),
  durable._run_options(schedules, at(25200), durable._run_key('late', at(25200))), 'which is the same for the same tick')
from durable.schedules where schedule = 'late';
select move_to(25200 + 601), durable.fire_schedules('q') \g /dev/null
select is((select available_at from durable.list_schedule_runs('q', 'late', 1) join durable.tasks using (task_id)), at(25801),
  'it does not delay a task that is late anyway');
select durable.drop_schedule('q', schedule) from durable.list_schedules('q') \g /dev/null

-- pause, resume, trigger, backfill

select move_to(0), pg_temp.scheduled('p', '{"overlap": "allow", "catch_up": "all"}') \g /dev/null
select is(durable.pause_schedule('q', 'p'), true, 'pause_schedule() pauses');
select is(durable.pause_schedule('q', 'p'), false, 'once');
select results_eq($$ select paused_at, next_at from pg_temp.schedule('p') $$, $$ values (at(0), null::timestamptz) $$,
  'a paused schedule has no next tick');
select is(pg_temp.fired(7200), 0, 'and fires nothing');
select pg_temp.scheduled('p', '{"overlap": "allow", "catch_up": "all"}') \g /dev/null
select is((pg_temp.schedule('p')).paused_at, at(0), 'a schedule that is created again stays paused');
select is((durable.trigger_schedule('q', 'p')).created, true, 'trigger_schedule() spawns a task at once, also while it is paused');
select is((durable.trigger_schedule('q', 'p')).created, true, 'and another one, at the same time');
select move_to(9000.25) \g /dev/null
select is(durable.resume_schedule('q', 'p'), true, 'resume_schedule() resumes');
select is(durable.resume_schedule('q', 'p'), false, 'once');
select is(durable.fire_schedules('q'), 0, 'the ticks of the pause are not caught up');
select is((pg_temp.schedule('p')).next_at, at(10800), 'the next tick is the next one');
select durable.trigger_schedule('q', 'p') \g /dev/null
select results_eq($$ select last_at, last_task_id from pg_temp.schedule('p') $$,
  $$ select scheduled_at, task_id from durable.list_schedule_runs('q', 'p', 1) where triggered $$,
  'a task that was triggered is the last one');
select is(pg_temp.ticks('p'), '7200 7200 9000.25', 'list_schedule_runs() returns what was triggered');
create temp table filled as select * from durable.backfill_schedule('q', 'p', at(0), at(7200));
select results_eq($$ select created, params from filled join durable.tasks using (task_id) $$,
  $$ values (true, '{}'::jsonb), (true, '{}') $$, 'backfill_schedule() spawns the ticks from one time on and before another');
select is(pg_temp.ticks('p'), '0 3600 7200 7200 9000.25', 'in order');
select durable.create_schedule('q', 'p', '{"params": {"new": 1}}') \g /dev/null
create temp table refilled as select * from durable.backfill_schedule('q', 'p', at(3600), at(999999));
select results_eq($$ select created, params from refilled join durable.tasks using (task_id) $$,
  $$ values (false, '{}'::jsonb), (true, '{"new": 1}') $$, 'never twice, also with other params, and not those to come');
select is_empty($$ select durable.backfill_schedule('q', 'p', at(7200), at(3600)) $$, 'nothing in a time that is none');
select durable.create_schedule('q', 'p', '{"every": 1}'), move_to(99999) \g /dev/null
select throws_ok($$ select durable.backfill_schedule('q', 'p', at(0), at(10001)) $$, '22023', null,
  'it refuses more than 10,000 ticks');
select is(pg_temp.refusal(call), 'WFNFD', call || ' refuses an unknown schedule')
from (values ('select durable.pause_schedule(''q'', ''x'')'), ('select durable.resume_schedule(''q'', ''x'')'),
  ('select durable.trigger_schedule(''q'', ''x'')'), ('select durable.backfill_schedule(''q'', ''x'', at(0), at(1))')) as calls (call);

-- list_schedule_runs

select pg_temp.scheduled('p/2030-01-01T00:00:00Z') \g /dev/null
select durable.backfill_schedule('q', 'p/2030-01-01T00:00:00Z', at(0), at(1)), durable.spawn('q', 'job', '1', '{"idempotency_key": "schedule/p/2031"}')
\g /dev/null
select is(pg_temp.ticks('p'), '0 3600 7200 7200 7200 9000.25', 'a schedule''s runs are only its own');
select is((select array_agg(scheduled_at) from durable.list_schedule_runs('q', 'p', 2, at(7200))), array[at(3600), at(0)],
  'page by page, the latest first');
select is((select scheduled_at from durable.list_schedule_runs('q', 'p', 1, at(9000.25))), at(7200), 'up to a fraction of a second');

select 'it''s / "a" \\ $$ %s -- 🐘 schedule/p/' as name \gset
select durable.create_schedule('q', :'name', '{"task": "job", "every": 60}') \g /dev/null
select is((durable.trigger_schedule('q', :'name')).created, true, 'a name may be any text');
select is((select triggered from durable.list_schedule_runs('q', :'name')), true, 'and its runs are found');

-- apply_schedules, announce_schedules

select durable.drop_schedule('q', schedule) from durable.list_schedules('q') \g /dev/null
select pg_temp.scheduled('mine') \g /dev/null
select is(durable.apply_schedules('q', '[{"schedule": "b", "task": "x", "every": 60}, {"schedule": "a", "task": "x", "cron": "@daily", "overlap": "allow"},
  {"schedule": "b", "task": "y", "every": 60}]'), 2, 'apply_schedules() creates schedules');
select is(durable.announce_schedules('q', '[{"schedule": "x", "task": "x", "every": 60}, {"schedule": "y", "task": "y", "every": 60}]', '{x,y}'), 2,
  'so does announce_schedules()');
select is(durable.apply_schedules('q', '[{"schedule": "b", "task": "y", "every": 60}, {"schedule": "a", "task": "x", "cron": "@daily"}]'), 1,
  'it changes what differs: keys that are left out have their defaults');
select is(durable.apply_schedules('q', '[{"schedule": "a", "task": "x", "cron": "@daily"}]'), 1, 'it deletes those it had applied');
select is(durable.announce_schedules('q', '[]', '{x,z}'), 1, 'announce_schedules() deletes those of tasks that it names');
select results_eq($$ select schedule, source from durable.list_schedules('q') $$,
  $$ values ('a', 'applied'), ('mine', null), ('y', 'declared') $$, 'and all others stay');
select throws_ok($$ select durable.apply_schedules('q', '[{"schedule": "c", "task": "x", "every": 60}, {"schedule": "d"}]') $$, '22023', null,
  'apply_schedules() refuses a bad definition');
select is((pg_temp.schedule('c')), null, 'and applies none then');
select is_empty($$ select schedules from unnest(array['{}', 'null', '[1]', '[{"task": "x", "every": 60}]', '[{"schedule": "", "task": "x", "every": 60}]']) as schedules
  where pg_temp.refusal(format('select durable.apply_schedules(''q'', %L)', schedules)) <> '22023' $$, 'or a list that is none');

-- failures, and get_next_due

select durable.drop_schedule('q', schedule) from durable.list_schedules('q') \g /dev/null
delete from durable.tasks where available_at is not null;
select is(durable.get_next_due('q'), null, 'get_next_due() is null without schedules');
select move_to(0), pg_temp.scheduled('good'), pg_temp.scheduled('bad', '{"every": 60}') \g /dev/null
select is(durable.get_next_due('q', array['unknown']), 60::float8, 'get_next_due() returns the seconds until the next tick, whatever the names');
select durable.spawn('q', 'job') \g /dev/null
select is(durable.get_next_due('q'), 0::float8, 'or less, if a task is due');
update durable.schedules set options = '{"unknown": 1}' where schedule = 'bad';
delete from durable.tasks where available_at is not null;
set client_min_messages = error;
select is(pg_temp.fired(3600), 1, 'a schedule that cannot be handled does not stop the others');
select results_eq($$ select schedule, failed_at, error from durable.list_schedules('q') $$,
  $$ values ('bad', at(3600), 'unknown key "unknown" in options'), ('good', null, null) $$, 'which failed and why is kept');
delete from durable.tasks where available_at is not null;
select is(durable.get_next_due('q'), 1::float8, 'get_next_due() is a second if a tick is overdue');
update durable.schedules set options = '{}' where schedule = 'bad';
select is(pg_temp.fired(3659), 0, 'it is not tried again within a minute');
select is(pg_temp.fired(3660), 2, 'but then');
select is((pg_temp.schedule('bad')).failed_at, null, 'and it is well again');

-- a full queue

select durable.drop_schedule('q', schedule) from durable.list_schedules('q') \g /dev/null
select durable.create_queue('q', '{"max_length": 1}'), move_to(0), pg_temp.scheduled('full'), durable.spawn('q', 'job')
\g /dev/null
select is(pg_temp.fired(3600), 0, 'a tick waits while the queue is full');
select results_eq($$ select next_at, failed_at, error from pg_temp.schedule('full') $$,
  $$ values (at(3600), null::timestamptz, 'queue "q" is full: 1 tasks are ready to be claimed') $$, 'which is no failure');
delete from durable.tasks where available_at is not null;
select is(pg_temp.fired(3601), 1, 'it is handled as soon as there is room');
select is((pg_temp.schedule('full')).error, null, 'and nothing is wrong any more');

-- the queue

select durable.drop_queue('q'), durable.create_queue('q') \g /dev/null
select is_empty($$ select * from durable.list_schedules('q') $$, 'drop_queue() deletes the schedules of a queue');

select * from finish();
rollback;
