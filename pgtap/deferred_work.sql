begin;
\ir _setup.sql
select plan(30);

-- Notes are written here as a call leaves them that found a row locked.
create function pg_temp.defer(kind durable.deferred_kind, nick text, event text default null)
returns void
language sql
as $$
  select durable._defer('q', kind, tap.id(nick), event);
$$;

select is(durable.apply_deferred_work('q'), 0, 'apply_deferred_work() does nothing without deferred work');

-- waiter: check again whether it may wake

select started('p'), started('c'), joining('p', 'c'), pg_temp.defer('waiter', 'p') \g /dev/null
select is(durable.apply_deferred_work('other'), 0, 'apply_deferred_work() sees no other queue''s work');
select is(durable.apply_deferred_work('q'), 1, 'apply_deferred_work() returns how many it applied');
select is(states('p'), 'sleeping', 'a waiter whose wait has not ended stays asleep');
select is_empty($$ select * from durable.deferred_work $$, 'work that was done is deleted');
update durable.tasks set state = 'completed', claim = 2, lease_expires_at = null,
  finished_at = at(0), result = '1'
where task_id = id('c');
select pg_temp.defer('waiter', 'p'), durable.apply_deferred_work('q') \g /dev/null
select is(states('p'), 'pending', 'a waiter whose wait has ended wakes');
select claimed('p') \g /dev/null
select is((select value #>> '{0,state}' from durable.load_checkpoints('q', held('p'))), 'completed',
  'and gets the outcome');

select started('e'), awaiting('e', 'quiet') \g /dev/null
update durable.events set emitted_at = at(0), payload = '1' where name = 'quiet';
select pg_temp.defer('waiter', 'e'), durable.apply_deferred_work('q') \g /dev/null
select is(states('e'), 'pending', 'a waiter whose event was emitted wakes');

select pg_temp.defer('waiter', nick) from words('p c') \g /dev/null
select call_it('gone', gen_random_uuid()), pg_temp.defer(kind, 'gone')
from unnest(array['waiter', 'finished',
  'cascade']::durable.deferred_kind[]) as kinds (kind) \g /dev/null
select pg_temp.defer('event', null, 'nobody''s') \g /dev/null
select states('p c') as before \gset
select is(durable.apply_deferred_work('q'), 6,
  'deferred work for a task that is awake, finished or deleted is applied');
select is(states('p c'), :'before', 'and changes nothing');

-- finished: wake the tasks that wait for it

select started('p2'), started('c2'), joining('p2', 'c2') \g /dev/null
update durable.tasks set state = 'cancelled', claim = 2, lease_expires_at = null,
  finished_at = at(0), error = '{}'
where task_id = id('c2');
select pg_temp.defer('finished', 'c2'), durable.apply_deferred_work('q') \g /dev/null
select is(states('p2'), 'pending', 'the deferred work of a finished task wakes the tasks that wait for it');

-- event: wake waiting tasks, from a given one on

select started('w1'), started('w2'), started('w3'), awaiting('w1', 'ev'), awaiting('w2', 'ev'),
  awaiting('w3', 'ev') \g /dev/null
update durable.events set emitted_at = at(0), payload = '1' where name = 'ev';
select nick(max(task_id::text)::uuid) as last from durable.waits where event_name = 'ev' \gset
select pg_temp.defer('event', :'last', 'ev'), durable.apply_deferred_work('q') \g /dev/null
select is((select count(*) from words('w1 w2 w3') where states(nick) = 'pending'), 1::bigint,
  'the deferred work of an event continues with the waiter that it names');
select pg_temp.defer('event', null, 'ev'), durable.apply_deferred_work('q') \g /dev/null
select is(states('w1 w2 w3'), 'pending pending pending', 'or wakes all');

-- cascade: cancel live descendants

select started('r', '{"max_attempts": 1}'), spawned_below('r', 'd'),
  spawned_below('d', 'dd') \g /dev/null
update durable.tasks set state = 'failed', claim = 2, lease_expires_at = null, finished_at = at(0),
  error = '{}'
where task_id = id('r');
select pg_temp.defer('cascade', 'r'), durable.apply_deferred_work('q') \g /dev/null
select is(states('d dd'), 'cancelled cancelled', 'the deferred work of a cascade cancels live descendants');

select durable.retry_task('q', id('r')) \g /dev/null
select is(states('r d dd'), 'pending pending pending', 'which retry_task() revives');
select pg_temp.defer('cascade', 'r'), durable.apply_deferred_work('q') \g /dev/null
select is(states('r d dd'), 'pending pending pending',
  'a cascade that is applied after retry_task() cancels nothing');
select claimed('r'), completed('r'), pg_temp.defer('cascade', 'r'),
  durable.apply_deferred_work('q') \g /dev/null
select is(states('d dd'), 'pending pending', 'nor does one that is applied after the parent has completed');

-- how many

select pg_temp.defer('waiter', 'p') from generate_series(1, 5) \g /dev/null
select is(durable.apply_deferred_work('q', 2), 2, 'apply_deferred_work() applies at most batch_size');
select is(durable.apply_deferred_work('q', 0), 0, 'none with batch_size 0');
select is(durable.apply_deferred_work('q'), 3, 'and the rest later');

-- a cascade wider than one call

select started('wide', '{"max_attempts": 1}') \g /dev/null
select count(*) from durable.spawn_many('q', (
  select jsonb_agg(jsonb_build_object('task', 'leaf', 'options',
    jsonb_build_object('parent_task_id', id('wide'))))
  from generate_series(1, 1200))) \g /dev/null
select failed('wide') \g /dev/null
select is((select count(*) from durable.tasks where name = 'leaf' and state = 'cancelled'),
  1000::bigint,
  'a worker''s call cancels at most a thousand');
select results_eq($$ select kind::text, task_id from durable.deferred_work $$,
  $$ values ('cascade', id('wide')) $$,
  'and defers the rest');
select durable.apply_deferred_work('q') \g /dev/null
select is((select count(*) from durable.tasks where name = 'leaf' and state = 'cancelled'),
  1200::bigint,
  'which cancels them');
select is_empty($$ select * from durable.deferred_work $$, 'and then nothing is left to do');

select started('wide2') \g /dev/null
select count(*) from durable.spawn_many('q', (
  select jsonb_agg(jsonb_build_object('task', 'leaf2', 'options',
    jsonb_build_object('parent_task_id', id('wide2'))))
  from generate_series(1, 1200))) \g /dev/null
select durable.cancel_task('q', id('wide2')) \g /dev/null
select is((select count(*) from durable.tasks where name = 'leaf2' and state = 'cancelled'),
  1200::bigint,
  'cancel_task() cancels all at once, up to 10,000');

-- work that cannot be done

alter table durable.tasks add constraint poisoned check (name <> 'poisoned' or state = 'pending');
set client_min_messages = error;
select spawned('dead'), durable.cancel_task('q', id('dead')) \g /dev/null
insert into durable.tasks (queue, task_id, parent_task_id, name, params, spawned_at, available_at)
values ('q', durable._uuid7(1900000000001000), id('dead'), 'poisoned', '{}', at(0), at(0));
select pg_temp.defer('cascade', 'dead'), started('p3'), started('c3'),
  joining('p3', 'c3') \g /dev/null
update durable.tasks set state = 'completed', claim = 2, lease_expires_at = null,
  finished_at = at(0), result = '1'
where task_id = id('c3');
select pg_temp.defer('waiter', 'p3') \g /dev/null
select is(durable.apply_deferred_work('q'), 1, 'work that cannot be done does not stop the others');
select is(states('p3'), 'pending', 'they are applied');
select results_eq($$ select kind::text, task_id from durable.deferred_work $$,
  $$ values ('cascade', id('dead')) $$, 'and it is kept');
alter table durable.tasks drop constraint poisoned;
select is(durable.apply_deferred_work('q'), 1, 'until it can be applied');
select is_empty($$ select * from durable.tasks where name = 'poisoned' and state = 'pending' $$,
  'and then it is');

select * from finish();
rollback;
