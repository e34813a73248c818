begin;
\ir _setup.sql
select plan(36);

-- Claims, and returns the nicknames of the tasks, oldest first.
create function tap.taken(names text[] default null)
returns text
language sql
as $$
  select coalesce(string_agg(nicknames.nick, ' ' order by claimed.available_at, claimed.task_id), '')
  from durable.claim_tasks('q', 'worker', names, 100) as claimed
  join tap.nicknames using (task_id);
$$;

-- a queue

select started('running'), started('waiting'), awaiting('waiting', 'e'), spawned('ready'),
  spawned('late', '{"start_timeout": 10}')
\g /dev/null
set local durable.caller = '{"identity": {"user": "ada"}}';
select is(durable.pause_queue('q'), true, 'pause_queue() pauses a queue');
reset durable.caller;
select results_eq(
  $$ select paused_at, paused_by from durable.queues where queue = 'q' $$,
  $$ values (at(0), jsonb_build_object('user', current_user, 'identity', '{"user": "ada"}'::jsonb)) $$,
  'and records when, and who did it');
select move_to(1) \g /dev/null
select is(durable.pause_queue('q'), false, 'a second pause changes nothing');
select is((select paused_at from durable.queues where queue = 'q'), at(0), 'it stays paused since the first');
select is(taken(), '', 'a paused queue gives no tasks');
select is(taken(array['job']), '', 'to nobody');
select is(durable.get_next_due('q'), null, 'and no worker waits for one');
select is(completed('running'), 'ok', 'a running task goes on');
select is((select created from durable.spawn('q', 'job')), true, 'spawns are accepted');
select durable.emit_event('q', 'e') \g /dev/null
select is(states('waiting'), 'pending', 'a sleeping task is woken');
select is(taken(), '', 'but waits to be claimed');
select move_to(10) \g /dev/null
select is(durable.expire_tasks('q'), 1, 'deadlines expire');
select is(states('late'), 'cancelled', 'as always');
select durable.spawn('other', 'job') \g /dev/null
select isnt_empty($$ select durable.claim_tasks('other', 'worker') $$, 'other queues are not paused');
select is(durable.resume_queue('q'), true, 'resume_queue() resumes it');
select is(durable.resume_queue('q'), false, 'once');
select is((select num_nonnulls(paused_at, paused_by) from durable.queues where queue = 'q'), 0,
  'and nothing is left of the pause');
select is(durable.get_next_due('q'), 0::double precision, 'its tasks are due');
select is(taken(), 'ready waiting', 'and are claimed, oldest first');

-- a name

select spawned('a', '{}', 'mail'), move_to(11), spawned('b'), move_to(12), spawned('c', '{}', 'mail') \g /dev/null
select is(durable.pause_queue('q', 'mail'), true, 'pause_queue() pauses one name');
select is(durable.pause_queue('q', 'mail'), false, 'once');
select is(durable.pause_queue('q', 'other name'), true, 'and another');
select is(
  (select paused_names -> 'mail' from durable.queues where queue = 'q'),
  jsonb_build_object('at', at(12), 'by', jsonb_build_object('user', current_user)),
  'with when and who');
select is(durable.get_next_due('q', array['mail']), null, 'no worker waits for a paused name');
select is(durable.get_next_due('q', array['job', 'mail']), 0::double precision, 'but for the others');
select results_eq(
  $$ select name from durable.claim_tasks('q', 'worker', array['mail', 'job'], 9, 30,
       array[at(60), at(0)], array[id('a'), id('a')]) $$,
  array['job'], 'each name keeps its own place of the last claim');
select is(taken(), '', 'a paused name gives no tasks');
select durable.pause_queue('q'), durable.resume_queue('q') \g /dev/null
select is(taken(), '', 'it stays paused when its queue is resumed');
select results_eq(
  $$ select is_full, paused_at, paused_names ? 'mail' from durable.queue_stats('q') $$,
  $$ values (false, null::timestamptz, true) $$, 'queue_stats() has the pauses');
select is(durable.resume_queue('q', 'mail'), true, 'resume_queue() resumes a name');
select is(durable.resume_queue('q', 'mail'), false, 'once');
select is(taken(), 'a c', 'its tasks are claimed');
select durable.resume_queue('q', 'other name') \g /dev/null
select is((select paused_names from durable.queues where queue = 'q'), null, 'and nothing is left of the pauses');

select throws_ok($$ select durable.pause_queue('none') $$, 'WFQUE', 'no queue "none"',
  'pause_queue() refuses an unknown queue');
select throws_ok($$ select durable.resume_queue('none') $$, 'WFQUE', 'no queue "none"',
  'so does resume_queue()');
select throws_ok($$ select durable.pause_queue('q', '') $$, '22023', 'task name is empty',
  'pause_queue() refuses a bad name');

select * from finish();
rollback;
