begin;
\ir _setup.sql
select plan(54);

-- Returns the kinds of reasons, in order.
create function tap.reasons(nick text)
returns text
language sql
as $$
  select string_agg(kind, ' ' order by place)
  from durable.explain_task('q', tap.id(nick)) with ordinality as reason (kind, message, detail, place);
$$;

create function tap.reason(nick text, kind text)
returns durable.explanation
language sql
as $$
  select reason.kind, reason.message, reason.detail
  from durable.explain_task('q', tap.id(nick)) as reason where reason.kind = $2
  limit 1;
$$;

-- Lets a worker announce itself, with a task of this name.
create function tap.announced(name text, version text default null)
returns void
language sql
as $$
  select durable.announce_definitions('q', jsonb_build_array(jsonb_build_object('task', name)));
  select durable.announce_worker('q', 'worker of ' || name,
    jsonb_build_object('names', array[name], 'version', version));
$$;

select announced('job') \g /dev/null

-- ready, running, finished

select spawned('first'), move_to(1), spawned('second'), move_to(3) \g /dev/null
select is(reasons('second'), 'queued', 'a task that can be claimed is queued');
select is(reason('second', 'queued'), (
  'queued',
  'can be claimed since 2030-01-01 00:00:01 UTC; tasks of its name before it: 1; running in the queue: 0',
  jsonb_build_object('since', at(1), 'ahead', 1, 'running', 0))::durable.explanation,
  'behind those before it');
select claimed('first', 'me') \g /dev/null
select is((reason('second', 'queued')).detail - 'since', '{"ahead": 0, "running": 1}', 'beside those that run');
select is(reason('first', 'running'), (
  'running', 'worker "me" runs attempt 1 since 2030-01-01 00:00:03 UTC',
  jsonb_build_object('worker', 'me', 'attempt', 1, 'since', at(3), 'lease_expires_at', at(33)))::durable.explanation,
  'a running task has a worker');
select move_to(33) \g /dev/null
select is(reasons('first'), 'running lease_expired', 'which may have lost its lease');
select completed('first') \g /dev/null
select is(reason('first', 'completed'), (
  'completed', 'completed at 2030-01-01 00:00:33 UTC', jsonb_build_object('finished_at', at(33)))::durable.explanation,
  'a finished task has its state');
select claimed('second'), failed('second', '{"retryable": false}') \g /dev/null
select is(reason('second', 'failed'), (
  'failed', 'failed at 2030-01-01 00:00:33 UTC with Oops',
  jsonb_build_object('finished_at', at(33), 'error', '{"type": "Oops", "message": "no"}'::jsonb))::durable.explanation,
  'with its error');
select spawned('third'), durable.cancel_task('q', id('third'), 'enough') \g /dev/null
select is((reason('third', 'cancelled')).detail -> 'by' ->> 'user', current_user::text, 'or who cancelled it');

-- waits

select started('w'), spawned('child') \g /dev/null
select durable.suspend_tasks('q', held('w', jsonb_build_object('waits', jsonb_build_array(
  '{"name": "$event:e", "event": "e", "position": 1}'::jsonb,
  '{"name": "$recv:t", "topic": "t", "position": 2}'::jsonb,
  '{"name": "$sleep:nap", "seconds": 60, "position": 3}'::jsonb,
  jsonb_build_object('name', '$join', 'task_ids', jsonb_build_array(id('child'), id('first')), 'position', 4),
  jsonb_build_object('name', '$first', 'task_ids', jsonb_build_array(id('child')), 'any_of', true, 'position', 5)))))
\g /dev/null
select is(reasons('w'), 'event message sleep tasks tasks', 'a task waits for each of its waits');
select is((reason('w', 'event')).message, 'waits for the event "e"', 'an event');
select is((reason('w', 'message')).detail, '{"name": "$recv:t", "topic": "t"}', 'a message');
select is((reason('w', 'sleep')).message, 'sleeps until 2030-01-01 00:01:33 UTC', 'a time');
select is((reason('w', 'tasks')).message,
  format('waits for tasks, 1 of 2 have not finished: %s', id('child')), 'tasks');
select is((reason('w', 'tasks')).detail, jsonb_build_object('name', '$join', 'unfinished', 1,
  'tasks', jsonb_build_array(jsonb_build_object('task_id', id('child'), 'queue', 'q', 'name', 'job', 'state', 'pending'))),
  'that have not finished');
select durable._defer('q', 'waiter', id('w')) \g /dev/null
select is((reason('w', 'deferred')).detail, '{"kinds": ["waiter"]}', 'work that was deferred for it');
delete from durable.deferred_work;
update durable.events set emitted_at = at(33), payload = '1' where name = 'e';
select is((reason('w', 'event')).message, 'the event "e" was emitted: it is about to be woken', 'an event that was emitted');
select durable._wake_all('q', array[id('w')]) \g /dev/null
select is(reasons('w'), 'queued', 'once woken it waits for nothing else');

-- times

select started('r', '{"retry": {"kind": "fixed", "base_seconds": 10}}'), awaiting('r', 'never', 0.5), move_to(34), claimed('r'),
  durable.load_checkpoints('q', held('r')), failed('r', '{"retryable": true}')
\g /dev/null
select is(reasons('r'), 'retry', 'a task that failed waits for its next attempt');
select is(reason('r', 'retry'), (
  'retry', 'its last attempt failed with Oops; the next one starts at 2030-01-01 00:00:44 UTC',
  jsonb_build_object('until', at(44), 'error', '{"type": "Oops", "message": "no"}'::jsonb))::durable.explanation,
  'with the error');
select spawned('d') \g /dev/null
update durable.tasks set available_at = at(90) where task_id = id('d');
select is(reason('d', 'delayed'), (
  'delayed', 'starts at 2030-01-01 00:01:30 UTC at the earliest', jsonb_build_object('until', at(90)))::durable.explanation,
  'a task that starts later');
update durable.tasks set expires_at = at(60) where task_id = id('d');
select is(reasons('d'), 'delayed expires_first', 'unless its limit comes first');
select is((reason('d', 'expires_first')).detail, jsonb_build_object('limit', 'start_timeout', 'expires_at', at(60)),
  'says which');
select started('g') \g /dev/null
select durable.release_tasks('q', held('g', jsonb_build_object('available_at', at(99)))) \g /dev/null
select is(reasons('g'), 'released', 'a task that was released until later');
select spawned('x', '{"start_timeout": 5}'), move_to(40) \g /dev/null
select is(reasons('x'), 'expired queued', 'a task that is to be cancelled');
select is((reason('x', 'expired')).message,
  'its start_timeout passed at 2030-01-01 00:00:39 UTC: maintenance cancels it', 'by which limit');
select durable.expire_tasks('q') \g /dev/null
select is((reason('x', 'cancelled')).detail -> 'by', '{"limit": "start_timeout"}', 'was cancelled by it');

-- pauses

select spawned('p'), started('running'), durable.pause_queue('q'), durable.pause_queue('q', 'job') \g /dev/null
select is(reasons('p'), 'queue_paused name_paused queued', 'a queue and a name may be paused');
select is(reason('p', 'queue_paused'), (
  'queue_paused', format('its queue has been paused since 2030-01-01 00:00:40 UTC by role %s', current_user),
  jsonb_build_object('since', at(40), 'by', jsonb_build_object('user', current_user)))::durable.explanation,
  'says by whom');
select matches((reason('p', 'name_paused')).message, '^tasks named "job" have been paused since ', 'the name too');
select is(reasons('running'), 'running', 'that does not concern what runs');
select durable.resume_queue('q'), durable.resume_queue('q', 'job'), completed('running') \g /dev/null
select is(reasons('p'), 'queued', 'what is resumed is no reason');

-- workers

select spawned('u', '{}', 'unknown') \g /dev/null
select is(reasons('u'), 'unknown_name queued', 'a name that no worker knows');
select is((reason('u', 'unknown_name')).message, 'no worker knows a task named "unknown"', 'or has known');
select announced('unknown') \g /dev/null
select is(reasons('u'), 'queued', 'or does now');
select move_to(100), announced('job') \g /dev/null
select is((reason('u', 'unknown_name')).detail, jsonb_build_object('name', 'unknown', 'announced_at', at(40)),
  'or for the last minute');
select move_to(159) \g /dev/null
select is(reasons('u'), 'unknown_name queued', 'a worker is alive for a minute');
select move_to(160) \g /dev/null
select is(reasons('u'), 'no_worker queued', 'and then none is');
select spawned('never', '{}', 'never known') \g /dev/null
select is(reasons('never'), 'no_worker unknown_name queued', 'a name that has never been known');

-- versions

select announced('unknown'), announced('new', '1'), durable.create_queue('q', '{"versions": "gate"}') \g /dev/null
select is(reasons('u'), 'queued', 'the latest version may claim it');
select move_to(220), announced('unknown') \g /dev/null
select is((reason('u', 'no_version')).message,
  'only workers of version "1" may claim it, and none is alive; one was last seen at 2030-01-01 00:02:40 UTC',
  'but must be alive');
select spawned('v', '{"version": "2"}', 'unknown') \g /dev/null
select is((reason('v', 'no_version')).message,
  'only workers of version "2" may claim it, and none is alive', 'and that which it is bound to');
select durable.create_queue('q', '{"versions": null}') \g /dev/null
select is(reasons('v'), 'queued', 'unless versions do not count');

-- bounds and refusals

insert into durable.tasks (queue, task_id, spawned_at, name, params, available_at)
select 'q', gen_random_uuid(), at(0), 'many', '{}', at(0) from generate_series(1, 1001);
select announced('many'), spawned('m', '{}', 'many') \g /dev/null
select matches((reason('m', 'queued')).message, 'before it: 1,000 or more;', 'counts have a bound');
select throws_ok($$ select durable.explain_task('none', gen_random_uuid()) $$, 'WFQUE', 'no queue "none"',
  'explain_task() refuses an unknown queue');
select throws_ok($$ select durable.explain_task('q', '00000000-0000-0000-0000-000000000000') $$, 'WFNFD', null,
  'and an unknown task');

-- limits

select announced('lim'), durable.create_queue('q', '{"priorities": true}') \g /dev/null
select spawned('holder', '{"partition_key": "a"}', 'lim') \g /dev/null
select durable.claim_tasks('q', 'worker', array['lim']) \g /dev/null
select spawned('waits', '{"partition_key": "a"}', 'lim'),
  durable.create_queue('q', '{"concurrency": 1}') \g /dev/null
select is(reasons('waits'), 'concurrency queued', 'a queue is at its limit');
select is((reason('waits', 'concurrency')).detail, '{"concurrency": 1}', 'which is told');
select durable.create_queue('q', '{"concurrency": null, "partition_concurrency": 1}') \g /dev/null
select is(reasons('waits'), 'partition_concurrency queued', 'a partition is at its limit');
select is((reason('waits', 'partition_concurrency')).detail,
  jsonb_build_object('partition_key', 'a', 'running', jsonb_build_array(id('holder'))), 'with those that run');
select spawned('other', '{"partition_key": "b"}', 'lim') \g /dev/null
select is(reasons('other'), 'queued', 'another partition is not');
select durable.create_queue('q', '{"partition_concurrency": null, "partition_rate": {"starts": 1, "period": 60}}') \g /dev/null
select durable.claim_tasks('q', 'worker', array['lim'], 9) \g /dev/null
select move_to(extract(epoch from durable._now() - at(0)) + 1) \g /dev/null
select spawned('next', '{"partition_key": "b"}', 'lim'), move_to(extract(epoch from durable._now() - at(0)) + 1),
  spawned('after', '{"partition_key": "b"}', 'lim') \g /dev/null
select is(reasons('next'), 'partition_rate queued', 'or its rate');
select is((reason('next', 'partition_rate')).detail,
  jsonb_build_object('partition_key', 'b', 'until', durable._now() + interval '58 s'), 'with when it opens');
select is((reason('after', 'queued')).detail ->> 'ahead', '1', 'and how many are before it in its lane');
select durable.create_queue('q', '{"partition_rate": null, "rate": {"starts": 1, "period": 60}}') \g /dev/null
select is(reasons('next'), 'queued', 'a rate counts from its beginning');

select * from finish();
rollback;
