begin;
\ir _setup.sql
select plan(14);

select results_eq(
  $$ select * from durable.queue_stats('q') $$,
  $$ values ('q', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
       null::timestamptz, null::timestamptz, '{}'::jsonb, null::integer, false, null::timestamptz,
       null::jsonb, '{}'::jsonb) $$,
  'queue_stats() of an empty queue is a row of zeros');

select spawned('p1'), spawned('p2', '{}', 'mail'), started('r'), started('s'), started('w'),
  started('c'),
  started('f', '{"max_attempts": 1}'), started('x'), spawned('cancelled-1'), spawned('cancelled-2')
\g /dev/null
select move_to(5), spawned('p3'), sleeping('s', 60), awaiting('w', 'never'), completed('c'),
  failed('f'),
  failed('x', '{"retryable": true}'), durable.cancel_task('q', id('cancelled-1')),
    durable.cancel_task('q', id('cancelled-2'))
\g /dev/null
update durable.tasks set available_at = at(90) where task_id = id('x');
select results_eq(
  $$ select * from durable.queue_stats('q') $$,
  $$ values ('q', 3::bigint, 1::bigint, 3::bigint, 1::bigint, 1::bigint, 2::bigint, 3::bigint,
       at(0), at(60), '{"job": 2, "mail": 1}'::jsonb, null::integer, false, null::timestamptz,
       null::jsonb, '{}'::jsonb) $$,
  'queue_stats() counts tasks by state, and what is ready by name');
select move_to(60) \g /dev/null
select results_eq(
  $$ select pending, sleeping, ready, oldest_ready_at, next_due_at from durable.queue_stats('q') $$,
  $$ values (3::bigint, 3::bigint, 4::bigint, at(0), at(90)) $$,
  'a sleeping task that is due is ready');
select durable.claim_tasks('q', 'worker', null, 10) \g /dev/null
select results_eq(
  $$ select pending, running, ready, oldest_ready_at, next_due_at, ready_by_name
     from durable.queue_stats('q') $$,
  $$ values (0::bigint, 5::bigint, 0::bigint, null::timestamptz, at(90), '{}'::jsonb) $$,
  'a claimed task is not ready');

select durable.spawn('other', 'job') \g /dev/null
select results_eq(
  $$ select queue, pending, ready from durable.queue_stats('other') $$,
  $$ values ('other', 1::bigint, 1::bigint) $$, 'counts are per queue');
select results_eq(
  $$ select pending, ready, oldest_ready_at, ready_by_name from durable.queue_stats('q') $$,
  $$ values (0::bigint, 0::bigint, null::timestamptz, '{}'::jsonb) $$, 'in each of them');
select results_eq(
  $$ select queue from durable.queue_stats() where queue in ('q', 'other') $$,
  array['other', 'q'], 'queue_stats() of all queues returns a row for each');
select is((select count(*) from durable.queue_stats()), (select count(*)
  from durable.list_queues()),
  'no queue is left out');
select is_empty($$ select * from durable.queue_stats('nowhere') $$, 'an unknown queue has no row');
select is_empty($$ select * from durable.queue_stats('') $$, 'nor has an empty name');

-- more than are counted: of some names, or that wait without a time

select started('w2'), awaiting('w2', 'never') \g /dev/null
select durable.spawn_many('q', (
  select jsonb_agg(jsonb_build_object('task', 'many' || n % 3)) from generate_series(1, 12000) as n)) \g /dev/null
select results_eq($$ select * from durable.queue_stats('q') $$, $$ select * from durable.queue_stats('q', true) $$,
  'more tasks than are counted are known from totals, also which are ready');
update durable.tasks set state = 'sleeping', claim = 2, available_at = null where queue = 'q' and name ~ 'many' \g /dev/null
insert into durable.waits (queue, task_id, name, position, after, event_name)
select queue, task_id, '$event:never', 1, 0, 'never' from durable.tasks where queue = 'q' and name ~ 'many' \g /dev/null
select results_eq($$ select * from durable.queue_stats('q') $$, $$ select * from durable.queue_stats('q', true) $$,
  'and which are asleep');
delete from durable.tallies;
delete from durable.totals;
select cmp_ok((select sleeping from durable.queue_stats('q')), '>=', 10000::bigint, 'without totals it counts to 10,000');
select cmp_ok((select sleeping from durable.queue_stats('q')), '<', 12000::bigint, 'and no further');

select * from finish();
rollback;
