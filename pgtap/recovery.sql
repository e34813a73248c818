begin;
\ir _setup.sql
select plan(49);

-- expire_leases

select started('a', '{"retry": {"kind": "fixed", "base_seconds": 99}}'), move_to(1),
  started('once', '{"max_attempts": 1}'), started('none', '{"retry": {"kind": "none"}}'),
    started('kept'),
  started('endless', '{"max_attempts": null}'), started('hurried', '{"execution_timeout": 20}')
\g /dev/null
select move_to(29), durable.extend_leases('q', held('kept'), 30) \g /dev/null
select is(durable.expire_leases('q'), 0,
  'expire_leases() leaves alone leases that have not expired');
select move_to(30) \g /dev/null
select is(durable.expire_leases('q'), 1, 'a lease expires exactly at its time');
select results_eq(
  $$ select state::text, claim, attempt, available_at, lease_expires_at, error from durable.tasks
     where task_id = id('a') $$,
  $$ values ('pending', 2, 2, at(30), null::timestamptz, '{"type": "$LeaseExpired",
       "message": "worker \"worker\" neither finished nor extended its lease in time"}'::jsonb) $$,
  'a lost lease counts as an attempt; the next is due at once');
select results_eq(
  $$ select attempt, outcome::text, worker collate "default", error ->> 'type', ended_at
     from durable.runs where task_id = id('a') $$,
  $$ values (1, 'lease_lost', 'worker'::text, '$LeaseExpired', at(30)) $$,
  'the lost attempt is recorded, with its worker');
select move_to(31) \g /dev/null
select is(durable.expire_leases('other'), 0, 'expire_leases() sees no other queue''s leases');
select is(durable.expire_leases('nowhere'), 0, 'an unknown queue has none');
select is(durable.expire_leases('q', 0), 0, 'expire_leases() with batch_size 0 expires none');
select is(durable.expire_leases('q', 3), 3, 'expire_leases() does at most batch_size');
select is(durable.expire_leases('q', 3), 1, 'the next call does the rest');
select is(states('once none endless hurried kept'), 'failed failed pending cancelled running',
  'max_attempts 1 and retry none are never started twice; a task without time left is cancelled');
select is((task('once')).error ->> 'type', '$LeaseExpired', 'the error of a task that fails so says why');
select results_eq(
  $$ select error ->> 'type', error #>> '{cause,type}' from durable.tasks
     where task_id = id('hurried') $$,
  $$ values ('$DeadlineExceeded', '$LeaseExpired') $$, 'so does the error of one without time left');

select claimed('a', 'second'), saved('a', 'step') \g /dev/null
select move_to(100) \g /dev/null
select durable.expire_leases('q') \g /dev/null
select is((task('a')).attempt, 3, 'every lost lease is another attempt');
select claimed('a'), released('a') \g /dev/null
select is((task('a')).attempt, 3, 'a release is none');
select is(history('a'), 'step done null', 'saved checkpoints stay');

select started('root', '{"max_attempts": 1}'), spawned_below('root', 'child'), started('friend'),
  joining('friend', 'root') \g /dev/null
select move_to(200), durable.expire_leases('q') \g /dev/null
select is(states('root child friend'), 'failed cancelled pending',
  'the end of a task that fails by its lease cancels its children and wakes its waiters');

-- expire_tasks: start_timeout

select spawned('prompt', '{"start_timeout": 10}'), spawned('started', '{"start_timeout": 10}'),
  spawned('any') \g /dev/null
select move_to(209.9) \g /dev/null
select is(durable.expire_tasks('q'), 0, 'expire_tasks() does nothing before the deadline');
select claimed('started'), move_to(210) \g /dev/null
select is(durable.expire_tasks('q'), 1,
  'a task that has not started within start_timeout is cancelled');
select is(states('prompt started any'), 'cancelled running pending', 'one that has started is not');
select spawned('overdue', '{"start_timeout": 0}', 'overdue') \g /dev/null
select is_empty($$ select task_id from durable.claim_tasks('q', 'w', array['overdue']) $$,
  'a task whose deadline has passed is not started, expired or not');
select spawned('timely', '{}', 'overdue') \g /dev/null
select results_eq($$ select nick(task_id) from durable.claim_tasks('q', 'w', array['overdue'], 2) $$,
  array['timely'], 'nor is it beside a task of its name that is in time');
select completed('timely') \g /dev/null
select is((task('prompt')).error,
  '{"type": "$DeadlineExceeded", "message": "not started within start_timeout", "limit": "start_timeout"}', 'the error says why');
select is(completed('started'), 'ok', 'and it may take its time');

-- expire_tasks: execution_timeout, in every state

select spawned('queued', '{"execution_timeout": 50}'), started('at-work', '{"execution_timeout": 50}'),
  started('asleep', '{"execution_timeout": 50}'), started('waits', '{"execution_timeout": 50}'),
  started('retries', '{"execution_timeout": 50, "retry": {"kind": "fixed", "base_seconds": 40}}'),
  started('swift', '{"execution_timeout": 50}'), started('parent', '{"execution_timeout": 50}'),
    started_below('parent', 'below')
\g /dev/null
select sleeping('asleep', 999), awaiting('waits', 'never'), failed('retries'), completed('swift'),
  saved('at-work', 's') \g /dev/null
select move_to(230), released('at-work'), move_to(240), claimed('at-work') \g /dev/null
select move_to(259.9), durable.expire_tasks('q') \g /dev/null
select is(states('at-work asleep waits retries parent'),
  'running sleeping sleeping sleeping running',
  'execution_timeout leaves a task alone until it has passed');
select move_to(260) \g /dev/null
select is(durable.expire_tasks('q', 2), 2, 'expire_tasks() does at most batch_size');
select is(durable.expire_tasks('q', 100), 3, 'the next call does the rest');
select is(states('at-work asleep waits retries'), 'cancelled cancelled cancelled cancelled',
  'execution_timeout counts from the first start, sleeps, waits, releases and retries included');
select is(states('queued swift'), 'pending completed',
  'a task that has not started, or has finished, is not affected');
select is(states('parent below'), 'cancelled cancelled', 'a deadline cancels the children too');
select is((task('asleep')).error,
  '{"type": "$DeadlineExceeded", "message": "not finished within execution_timeout", "limit": "execution_timeout"}', 'the error says why');
select is(outcome, 'cancelled', 'the worker gets "cancelled"')
  from durable.complete_tasks('q', held('at-work'));
select is_empty($$ select * from durable.waits where task_id = id('waits') $$,
  'a cancelled task waits for nothing');
select is(durable.expire_tasks('q'), 0, 'a deadline ends a task once');
select is(durable.expire_tasks('other'), 0, 'expire_tasks() sees no other queue');

-- max_lost_leases

select move_to(270) \g /dev/null
select durable.create_queue('q', '{"max_lost_leases": 2}'), started('looping', '{"max_attempts": null}'),
  started('moving', '{"max_attempts": null}') \g /dev/null
select move_to(300), durable.expire_leases('q'), claimed('looping'), claimed('moving') \g /dev/null
select saved('moving', 'step'), move_to(330), durable.expire_leases('q') \g /dev/null
select is(states('looping moving'), 'failed pending',
  'a task that loses one lease after another fails, unless it has saved something meanwhile');
select is((task('looping')).error ->> 'type', '$CrashLoop', 'the error says why');
select is(durable.create_queue('q', '{"max_lost_leases": null}'), false, 'without a limit it continues');

-- bad rows

alter table durable.tasks add constraint poisoned check (name <> 'poisoned' or state in ('pending',
  'running'));
create function pg_temp.poison(nick text, options jsonb default '{}')
returns integer
language sql
as $$
  select tap.claimed(nick) from tap.spawned(nick, options, 'poisoned');
$$;
set client_min_messages = error;

select move_to(300), pg_temp.poison('p1', '{"max_attempts": 1}'),
  started('n1', '{"max_attempts": 1}') \g /dev/null
select started('n2', '{"max_attempts": 1}') \g /dev/null
select move_to(330) \g /dev/null
select is(durable.expire_leases('q'), 2, 'a lease that cannot be handled does not stop the others');
select is(states('p1 n1 n2'), 'running failed failed', 'the bad row is left as it is');
select is((task('p1')).lease_expires_at, at(390), 'and tried again in a minute');
select is(durable.expire_leases('q', 1), 0, 'not before, so it does not block the others');

select spawned('p2', '{"start_timeout": 5}', 'poisoned'), spawned('n3', '{"start_timeout": 5}') \g /dev/null
select move_to(336) \g /dev/null
select is(durable.expire_tasks('q'), 1,
  'a deadline that cannot be handled does not stop the others');
select is(states('p2 n3'), 'pending cancelled', 'the bad row is left as it is');
select is((task('p2')).expires_at, at(396), 'and tried again in a minute');

select move_to(500), started('sick', '{"max_attempts": 1}'), spawned_below('sick', 'infant'),
  started('well', '{"max_attempts": 1}') \g /dev/null
update durable.tasks set name = 'poisoned' where task_id = id('infant');
select move_to(600) \g /dev/null
select lives_ok($$ select durable.expire_leases('q') $$,
  'a child that cannot be cancelled does not stop the others either');
select is(states('sick infant well'), 'failed pending failed', 'its parent and all others expire');
select move_to(700) \g /dev/null
alter table durable.tasks drop constraint poisoned;
select durable.run_maintenance('q') \g /dev/null
select is(states('infant'), 'cancelled', 'it is cancelled once it can be');

-- a snapshot that is too old, as in a SERIALIZABLE caller, is not a bad row

select started('lost'), spawned('due', '{"start_timeout": 5}') \g /dev/null
create or replace function durable._fail_attempt(queue text, task_id uuid, outcome durable.run_outcome, error jsonb, retryable boolean)
returns boolean
language plpgsql
as $$ begin raise serialization_failure; end; $$;
create or replace function durable._end_task(queue text, task_id uuid, state durable.task_state, error jsonb)
returns boolean
language plpgsql
as $$ begin raise serialization_failure; end; $$;
select move_to(800) \g /dev/null
select throws_ok($$ select durable.expire_leases('q') $$, '40001', null, 'expire_leases() raises it to its caller');
select throws_ok($$ select durable.expire_tasks('q') $$, '40001', null, 'so does expire_tasks()');

select * from finish();
rollback;
