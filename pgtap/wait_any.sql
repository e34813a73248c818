begin;
\ir _setup.sql
select plan(19);

create function pg_temp.racing(nick text, others text, said jsonb default '{}', name text default '$first')
returns text
language sql
as $$
  select outcome
  from durable.suspend_tasks('q', tap.held(nick, jsonb_build_object('waits', jsonb_build_array(
    jsonb_build_object('name', name, 'any_of', true, 'task_ids', to_jsonb(tap.ids(others))) || said))));
$$;

create function pg_temp.winner(nick text)
returns text
language sql
as $$
  select tap.nick((value ->> 'task_id')::uuid) || ' ' || (value ->> 'state')
  from durable.load_checkpoints('q', tap.held(nick)) where name = '$first';
$$;

-- any of them ends the wait

select started('p'), started_below('p', 'a'), started_below('p', 'b'), started_below('p', 'c') \g /dev/null
select is(pg_temp.racing('p', 'a b c'), 'suspended', 'a task may wait for the first of three');
select is((select count(*) from durable.watches where waiter_task_id = id('p')), 3::bigint,
  'it watches each of them');
select is((select target_task_id from durable.waits where task_id = id('p')), null, 'and no task has more watches than the others');
select move_to(5), completed('b', '1') \g /dev/null
select is(states('p'), 'pending', 'the first end wakes it');
select move_to(6), failed('a', '{"retryable": false}') \g /dev/null
select claimed('p') \g /dev/null
select is(pg_temp.winner('p'), 'b completed', 'its value is the first one, whatever has ended since');
select is_empty($$ select * from durable.waits $$, 'and its wait has ended');
select completed('c') \g /dev/null
select is(states('p'), 'running', 'later ends wake nobody');

-- every way to end

select started('f'), started('broken', '{"max_attempts": 1}'), started('slow') \g /dev/null
select pg_temp.racing('f', 'slow broken') \g /dev/null
select failed('broken') \g /dev/null
select is(states('f'), 'pending', 'a failure is an end');
select claimed('f') \g /dev/null
select is(pg_temp.winner('f'), 'broken failed', 'and may be first');

-- finished already, at the same time, or gone

select started('t'), started('x'), started('y') \g /dev/null
select completed('x y') \g /dev/null
select is(pg_temp.racing('t', 'slow y x'), 'resolved', 'a task does not wait if one has finished');
select is(pg_temp.winner('t'), 'y completed', 'of those that ended at the same time, the one given first is the value');
select started('g'), call_it('gone', gen_random_uuid()) \g /dev/null
select is(pg_temp.racing('g', 'gone x'), 'resolved', 'nor does it wait for a task that does not exist');
select is(pg_temp.winner('g'), 'x completed', 'which comes last');

-- timeouts, and retries

select started('i') \g /dev/null
select is(pg_temp.racing('i', 'slow', '{"seconds": 30}'), 'suspended', 'it may have a timeout');
select move_to(36), claimed('i') \g /dev/null
select results_eq($$ select state, value::text from durable.load_checkpoints('q', held('i')) $$,
  $$ values ('timed_out', 'null') $$, 'which is recorded');

select started('r'), started('phoenix', '{"max_attempts": 1}') \g /dev/null
select pg_temp.racing('r', 'phoenix'), pg_temp.racing('r', 'slow', '{}', '$second') \g /dev/null
update durable.tasks set state = 'failed', claim = 2, lease_expires_at = null, finished_at = at(36), error = '{}'
where task_id = id('phoenix');
select durable._defer('q', 'waiter', id('r')), durable.retry_task('q', id('phoenix')),
  durable.apply_deferred_work('q') \g /dev/null
select is(states('r'), 'sleeping', 'a task that was retried has not finished');
select claimed('phoenix'), completed('phoenix') \g /dev/null
select is(states('r'), 'pending', 'and is still watched');

-- an end that is still deferred, as outside READ COMMITTED

select started('l'), started('left') \g /dev/null
select pg_temp.racing('l', 'left') \g /dev/null
update durable.tasks set state = 'completed', claim = 2, lease_expires_at = null, finished_at = at(36)
where task_id = id('left');
select durable._defer('q', 'finished', id('left')) \g /dev/null
select is((durable.delete_tasks('q', jsonb_build_object('task_ids', ids('left')))).tasks, 0,
  'a task is not deleted before its deferred work is done, since the watches are deleted with it');
select durable.apply_deferred_work('q') \g /dev/null
select is(states('l'), 'pending', 'so the waiting task is woken');

select * from finish();
rollback;
