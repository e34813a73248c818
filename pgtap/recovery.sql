begin;
\ir _setup.sql
select plan(48);

-- expire_leases

select started('a', '{"retry": {"kind": "fixed", "base_seconds": 99}}'), move_to(1),
  started('once', '{"max_attempts": 1}'), started('none', '{"retry": {"kind": "none"}}'),
    started('kept'),
  started('endless', '{"max_attempts": null}'), started('hurried', '{"max_duration": 20}')
\g /dev/null
select move_to(29), durable.extend_leases('q', held('kept'), 30) \g /dev/null
select is(durable.expire_leases('q'), 0,
  'expire_leases() leaves leases alone that have not run out');
select move_to(30) \g /dev/null
select is(durable.expire_leases('q'), 1, 'a lease is over the moment it said');
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
  'the lost attempt is on record, with its worker');
select move_to(31) \g /dev/null
select is(durable.expire_leases('other'), 0, 'expire_leases() sees no other queue''s leases');
select is(durable.expire_leases('nowhere'), 0, 'an unknown queue has none');
select is(durable.expire_leases('q', 0), 0, 'expire_leases() of none expires none');
select is(durable.expire_leases('q', 3), 3, 'expire_leases() does at most quantity');
select is(durable.expire_leases('q', 3), 1, 'the next call does the rest');
select is(states('once none endless hurried kept'), 'failed failed pending cancelled running',
  'max_attempts 1 and retry none are never started twice; a task with no time left is cancelled');
select is((task('once')).error ->> 'type', '$LeaseExpired', 'a task that fails so says why');
select results_eq(
  $$ select error ->> 'type', error #>> '{cause,type}' from durable.tasks
     where task_id = id('hurried') $$,
  $$ values ('$DeadlineExceeded', '$LeaseExpired') $$, 'so does one that had no time left');

select claimed('a', 'second'), saved('a', 'step') \g /dev/null
select move_to(100) \g /dev/null
select durable.expire_leases('q') \g /dev/null
select is((task('a')).attempt, 3, 'every lost lease is another attempt');
select claimed('a'), released('a') \g /dev/null
select is((task('a')).attempt, 3, 'a release is none');
select is(history('a'), 'step done null', 'what was saved stays saved');

select started('root', '{"max_attempts": 1}'), spawned_below('root', 'child'), started('friend'),
  joining('friend', 'root') \g /dev/null
select move_to(200), durable.expire_leases('q') \g /dev/null
select is(states('root child friend'), 'failed cancelled pending',
  'a task that fails by its lease takes its children with it, and wakes who waits');

-- expire_deadlines: max_delay

select spawned('prompt', '{"max_delay": 10}'), spawned('started', '{"max_delay": 10}'),
  spawned('any') \g /dev/null
select move_to(209.9) \g /dev/null
select is(durable.expire_deadlines('q'), 0, 'expire_deadlines() does nothing before the deadline');
select claimed('started'), move_to(210) \g /dev/null
select is(durable.expire_deadlines('q'), 1,
  'a task that has not started within max_delay is cancelled');
select is(states('prompt started any'), 'cancelled running pending', 'one that has started is not');
select spawned('overdue', '{"max_delay": 0}', 'overdue') \g /dev/null
select is_empty($$ select task_id from durable.claim_tasks('q', 'w', array['overdue']) $$,
  'a task whose deadline has passed is not started, expired or not');
select is((task('prompt')).error,
  '{"type": "$DeadlineExceeded", "message": "not started within max_delay", "limit": "max_delay"}', 'it says why');
select is(completed('started'), 'ok', 'and may take its time');

-- expire_deadlines: max_duration, in every state

select spawned('queued', '{"max_duration": 50}'), started('at-work', '{"max_duration": 50}'),
  started('asleep', '{"max_duration": 50}'), started('waits', '{"max_duration": 50}'),
  started('retries', '{"max_duration": 50, "retry": {"kind": "fixed", "base_seconds": 40}}'),
  started('swift', '{"max_duration": 50}'), started('parent', '{"max_duration": 50}'),
    started_below('parent', 'below')
\g /dev/null
select sleeping('asleep', 999), awaiting('waits', 'never'), failed('retries'), completed('swift'),
  saved('at-work', 's') \g /dev/null
select move_to(230), released('at-work'), move_to(240), claimed('at-work') \g /dev/null
select move_to(259.9), durable.expire_deadlines('q') \g /dev/null
select is(states('at-work asleep waits retries parent'),
  'running sleeping sleeping sleeping running',
  'max_duration leaves a task alone until it is over');
select move_to(260) \g /dev/null
select is(durable.expire_deadlines('q', 2), 2, 'expire_deadlines() does at most quantity');
select is(durable.expire_deadlines('q', 100), 3, 'the next call does the rest');
select is(states('at-work asleep waits retries'), 'cancelled cancelled cancelled cancelled',
  'max_duration counts from the first start, sleeps, waits, releases and retries included');
select is(states('queued swift'), 'pending completed',
  'a task that has not started, or has finished, is not concerned');
select is(states('parent below'), 'cancelled cancelled', 'a deadline takes the children with it');
select is((task('asleep')).error,
  '{"type": "$DeadlineExceeded", "message": "not finished within max_duration", "limit": "max_duration"}', 'it says why');
select is(outcome, 'cancelled', 'the worker is told')
  from durable.complete_tasks('q', held('at-work'));
select is_empty($$ select * from durable.waits where task_id = id('waits') $$,
  'who is cancelled waits for nothing');
select is(durable.expire_deadlines('q'), 0, 'a deadline ends a task once');
select is(durable.expire_deadlines('other'), 0, 'expire_deadlines() sees no other queue');

-- max_lost_leases

select move_to(270) \g /dev/null
select durable.create_queue('q', '{"max_lost_leases": 2}'), started('looping', '{"max_attempts": null}'),
  started('moving', '{"max_attempts": null}') \g /dev/null
select move_to(300), durable.expire_leases('q'), claimed('looping'), claimed('moving') \g /dev/null
select saved('moving', 'step'), move_to(330), durable.expire_leases('q') \g /dev/null
select is(states('looping moving'), 'failed pending',
  'a task that loses one lease after the other has failed, unless it has saved something meanwhile');
select is((task('looping')).error ->> 'type', '$CrashLoop', 'it says why');
select is(durable.create_queue('q', '{"max_lost_leases": null}'), false, 'without a limit it goes on');

-- poisoned rows

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
select is(states('p1 n1 n2'), 'running failed failed', 'the poisoned one is left as it is');
select is((task('p1')).lease_expires_at, at(390), 'and looked at again in a minute');
select is(durable.expire_leases('q', 1), 0, 'not before, so it cannot block the head of the line');

select spawned('p2', '{"max_delay": 5}', 'poisoned'), spawned('n3', '{"max_delay": 5}') \g /dev/null
select move_to(336) \g /dev/null
select is(durable.expire_deadlines('q'), 1,
  'a deadline that cannot be handled does not stop the others');
select is(states('p2 n3'), 'pending cancelled', 'the poisoned one is left as it is');
select is((task('p2')).deadline_at, at(396), 'and looked at again in a minute');

select move_to(500), started('sick', '{"max_attempts": 1}'), spawned_below('sick', 'infant'),
  started('well', '{"max_attempts": 1}') \g /dev/null
update durable.tasks set name = 'poisoned' where task_id = id('infant');
select move_to(600) \g /dev/null
select lives_ok($$ select durable.expire_leases('q') $$,
  'a child that cannot be cancelled stops nobody either');
select is(states('sick infant well'), 'failed pending failed', 'its parent and all others expire');
select move_to(700) \g /dev/null
alter table durable.tasks drop constraint poisoned;
select durable.keep_house('q') \g /dev/null
select is(states('infant'), 'cancelled', 'once it can be, it is');

-- a snapshot that is too old, as a SERIALIZABLE caller may have it, is no poison

select started('lost'), spawned('due', '{"max_delay": 5}') \g /dev/null
create or replace function durable._end_attempt(queue text, task_id uuid, outcome durable.run_outcome, error jsonb, retryable boolean)
returns void
language plpgsql
as $$ begin raise serialization_failure; end; $$;
create or replace function durable._cancel_one(queue text, task_id uuid, error jsonb)
returns boolean
language plpgsql
as $$ begin raise serialization_failure; end; $$;
select move_to(800) \g /dev/null
select throws_ok($$ select durable.expire_leases('q') $$, '40001', null, 'expire_leases() says so to its caller');
select throws_ok($$ select durable.expire_deadlines('q') $$, '40001', null, 'so does expire_deadlines()');

select * from finish();
rollback;
