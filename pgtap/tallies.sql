begin;
\ir _setup.sql
select plan(27);

-- Runs maintenance, which measures again only after ten seconds.
create function tap.measured() returns text language sql as $$
  update durable.cleanup_cursors set measured_at = null;
  select durable.run_maintenance('q')::text;
$$;
create function tap.totals() returns text language sql as $$
  select string_agg(format('%s %s-%s-%s-%s', name, live, completed, failed, cancelled), ', ')
  from durable.task_totals('q');
$$;

select is_empty($$ select * from durable.task_totals('q') $$, 'a queue without tasks has no totals');
select throws_ok($$ select durable.task_totals('nowhere') $$, 'WFQUE', null,
  'task_totals() refuses an unknown queue');

-- spawning

select spawned('one'), spawned('delayed', '{"delay": 60}', 'mail') \g /dev/null
select durable.spawn_many('q', '[{"task": "mail"}, {"task": "job"}, {"task": "mail"}]') \g /dev/null
select durable.spawn('q', 'job', '{}', '{"idempotency_key": "k"}') from generate_series(1, 2) \g /dev/null
select results_eq($$ select kind::text, name collate "default", tasks from durable.tallies order by 2, 3 $$,
  $$ values ('spawned', 'job', 1), ('spawned', 'job', 1), ('spawned', 'job', 1), ('spawned', 'mail', 1),
       ('spawned', 'mail', 2) $$,
  'a call that spawns tasks writes a tally for each name, and none for a task that exists');
select measured() \g /dev/null
select is_empty($$ select from durable.tallies $$, 'maintenance folds tallies');
select is(totals(), 'job 3-0-0-0, mail 3-0-0-0', 'into totals');
select results_eq($$ select at, name, spawned, completed from durable.queue_throughput('q', at(0), at(60), by_name => true) $$,
  $$ values (at(0), 'job', 3::bigint, 0::bigint), (at(0), 'mail', 3, 0) $$, 'and into minutes');

-- ending

select started('c1'), started('c2'), started('f', '{"max_attempts": 1}'), started('r'), started('l'),
  started('p'), started_below('p', 'p1'), spawned('x') \g /dev/null
select move_to(9), completed('c1 c2'), failed('f'), failed('r'), durable.cancel_task('q', id('p')),
  durable.cancel_task('q', id('x')) \g /dev/null
select move_to(40), durable.expire_leases('q') \g /dev/null
select measured() \g /dev/null
select is(totals(), 'job 5-2-1-3, mail 3-0-0-0', 'tasks that end are subtracted from the live ones');
select results_eq(
  $$ select at, name, spawned, completed, failed, cancelled, retried, lost
     from durable.queue_throughput('q', at(0), at(60)) $$,
  $$ values (at(0), null, 14::bigint, 2::bigint, 1::bigint, 3::bigint, 1::bigint, 1::bigint) $$,
  'a throughput says how they ended, and which attempts did not end them');
select is(results.live, (select count(*) from durable.tasks where queue = 'q' and finished_at is null and name = 'job'),
  'the live ones are those of a count')
from durable.task_totals('q') as results where name = 'job';

-- retrying and deleting

select durable.retry_task('q', id('f')), durable.retry_task('q', id('p')) \g /dev/null
select measured() \g /dev/null
select is(totals(), 'job 8-2-0-1, mail 3-0-0-0', 'retried tasks are live again, with their descendants');
select is((select sum(failed) from durable.queue_throughput('q', at(0), at(60))), 1::numeric,
  'what happened stays in the minutes');
select durable.delete_tasks('q', '{"states": ["cancelled"]}') \g /dev/null
select durable.create_queue('q', '{"keep_tasks": 100}'), move_to(200) \g /dev/null
select measured() \g /dev/null
select is(totals(), 'job 8-0-0-0, mail 3-0-0-0', 'deleted tasks are subtracted, also by cleanup');
select measured() \g /dev/null
select is(totals(), 'job 8-0-0-0, mail 3-0-0-0', 'once');
select is((select sum(completed) from durable.queue_throughput('q', at(0), at(300))), 2::numeric,
  'not from the minutes');

-- when

select spawned('late') \g /dev/null
update durable.cleanup_cursors set measured_at = at(190) where queue = 'q';
select durable.run_maintenance('q') \g /dev/null
select is((select count(*) from durable.tallies), 0::bigint, 'tallies are folded ten seconds after the last ones');
select move_to(209), spawned('later'), durable.run_maintenance('q') \g /dev/null
select is((select count(*) from durable.tallies), 1::bigint, 'not before');
select move_to(100), durable.run_maintenance('q') \g /dev/null
select is((select count(*) from durable.tallies), 0::bigint, 'unless the clock was put back');
select move_to(300) \g /dev/null
insert into durable.tallies (at, tally_id, tasks, kind, queue, name)
values (at(0), id('late'), 1, 'spawned', 'q', 'slow');
select durable.run_maintenance('q') \g /dev/null
select is((select count(*) from durable.tallies), 1::bigint, 'a tally that was committed late');
select move_to(3600), durable.run_maintenance('q') \g /dev/null
select is((select count(*) from durable.tallies), 0::bigint, 'is folded within the hour');
select results_eq($$ select at from durable.queue_throughput('q', at(0), by_name => true) where name = 'slow' $$,
  array[at(0)], 'into its own minute');
select is(durable._fold_tallies('q', '-infinity', 10), 0, 'then nothing is left');
select durable.spawn('q', 'many') from generate_series(1, 5) \g /dev/null
select is(durable._fold_tallies('q', '-infinity', 3), 3, 'a call folds a bounded number');
select is(durable._fold_tallies('q', '-infinity', 3), 2, 'and the next one the rest');

-- recounting

delete from durable.tallies;
update durable.totals set live = -7, completed = 1 where name = 'job';
insert into durable.totals (queue, name, live, completed, failed, cancelled) values ('q', 'gone', 0, 5, 0, 0);
select spawned('unfolded') \g /dev/null
select is((select live from durable.task_totals('q') where name = 'job'), 0::bigint,
  'totals that a crash has falsified are never negative');
select is(durable.recount_totals('q'), 3::bigint, 'recount_totals() corrects those that are wrong');
select measured() \g /dev/null
select results_eq($$ select name, live from durable.task_totals('q') where live > 0 $$,
  $$ select name::text collate "default", count(*) from durable.tasks where queue = 'q' and finished_at is null group by 1 order by 1 $$,
  'also if tallies were left to be folded');
select durable.drop_queue('q'), durable.create_queue('q') \g /dev/null
select is_empty($$ select from durable.tallies where queue = 'q' union all select from durable.totals where queue = 'q'
    union all select from durable.metrics where queue = 'q' union all select from durable.samples where queue = 'q' $$,
  'drop_queue() deletes all of it');

select * from finish();
rollback;
