begin;
\ir _setup.sql
select plan(45);

-- cleanup

select durable.create_queue('q', '{"keep_tasks": 100, "keep_events": 100}') \g /dev/null
select started('done', '{"idempotency_key": "k", "retry": {"kind": "fixed", "base_seconds": 0}}'),
  durable.send_message('q', id('done'), 'topic', '1', 'key'), failed('done'),
  claimed('done'), saved('done', 's'), completed('done'),
  started('failed', '{"max_attempts": 1}'), failed('failed'),
  spawned('cancelled'), durable.cancel_task('q', id('cancelled')),
  spawned('pending'), started('running'), started('sleeping'), sleeping('sleeping', 9999)
\g /dev/null
select move_to(50), started('young'), completed('young') \g /dev/null
select move_to(100) \g /dev/null
select is(durable.cleanup('other'), 0, 'cleanup() sees no other queue''s tasks');
select is(durable.cleanup('nowhere'), 0, 'an unknown queue has none');
select is(durable.cleanup('q'), 0, 'cleanup() keeps tasks that are not old enough');
select move_to(100.01) \g /dev/null
select is(durable.cleanup('q'), 3, 'cleanup() deletes finished tasks once they are old enough');
select is(states('done failed cancelled young pending running sleeping'),
  'gone gone gone completed pending running sleeping',
  'it keeps recent and live tasks');
select is(durable.cleanup('q'), 0, 'a second pass finds nothing');
select is_empty(
  $$ select task_id from durable.checkpoints where task_id = id('done')
     union all select task_id from durable.runs where task_id = id('done')
     union all select task_id from durable.idempotency_keys
     union all select task_id from durable.mailboxes
     union all select task_id from durable.messages
     union all select task_id from durable.message_keys $$,
  'its checkpoints, runs, key and messages are deleted with a task');
select move_to(100000), sleeping('running', 200000) \g /dev/null
select is(durable.cleanup('q'), 1, 'cleanup() deletes');
select is(states('pending running sleeping'), 'pending sleeping sleeping',
  'but never a live task, however old');
select move_to(200000), claimed('running'), completed('running') \g /dev/null
select is(durable.cleanup('q'), 0, 'the age of a task counts from its end');
select move_to(200101) \g /dev/null
select is(durable.cleanup('q'), 1, 'not from its start');

-- policy

select started('forever'), completed('forever') \g /dev/null
select durable.create_queue('q', '{"keep_tasks": null}') \g /dev/null
select move_to(9e8) \g /dev/null
select is(durable.cleanup('q'), 0, 'keep_tasks null keeps them for ever');
select durable.create_queue('q', '{"keep_tasks": 0}') \g /dev/null
select is(durable.cleanup('q'), 1, 'keep_tasks 0 deletes them at once');
select durable.create_queue('q', '{"keep_tasks": 100}') \g /dev/null

-- parents and children

select started('parent'), started_below('parent', 'child'),
  started_below('child', 'grandchild') \g /dev/null
select completed('grandchild'), completed('child') \g /dev/null
select move_to(9e8 + 200) \g /dev/null
select is(durable.cleanup('q'), 0, 'a finished child stays while its parent is live');
select is(joining('parent', 'child'), 'resolved', 'so that it can still be joined');
select started_below('parent', 'survivor'), completed('parent') \g /dev/null
select is(durable.cleanup('q'), 0, 'it stays while its parent exists');
select move_to(9e8 + 301) \g /dev/null
select is(durable.cleanup('q'), 3, 'and is deleted with it, and the whole tree');
select is(states('survivor'), 'running', 'a live child outlives its parent');
select is(completed('survivor'), 'ok', 'and can finish');

-- bounded walks

select started('t' || i), completed('t' || i) from generate_series(1, 7) as i \g /dev/null
select move_to(9e8 + 500) \g /dev/null
select is(durable.cleanup('q', 3), 1,
  'cleanup() looks at no more than batch_size tasks, live ones too');
select results_eq(
  $$ select durable.cleanup('q', 3) from generate_series(1, 3) $$, array[3, 3, 1],
  'the next calls continue from there');
select is((select tasks_cleaned_to from durable.cleanup_cursors where queue = 'q'), null,
  'and then start over');
select started('z1'), completed('z1'), move_to(9e8 + 700) \g /dev/null
select is(durable.cleanup('q', 1) + durable.cleanup('q', 1) + durable.cleanup('q',
  1) + durable.cleanup('q', 1), 1,
  'a walk of single steps starts over too');

-- prune_events

select durable.emit_event('q', 'old'), durable.emit_event('q', 'awaited'),
  durable.emit_event('other', 'old') \g /dev/null
select started('w'), awaiting('w', 'not yet') \g /dev/null
select started('c'), awaiting('c', 'given up'), durable.cancel_task('q', id('c')) \g /dev/null
select move_to(9e8 + 799) \g /dev/null
select is(durable.prune_events('q'), 1,
  'prune_events() deletes the row of an event for which no task waits any more');
select is((select string_agg(name, ', ' order by name) from durable.events where queue = 'q'),
  'awaited, not yet, old',
  'keeps the row if a task waits, and events that are not old enough');
select started('l'), started('l2') \g /dev/null
select durable.poll_waits('q',
  held('l', '{"waits": [{"name": "$event:awaited", "event": "later"}]}')) \g /dev/null
insert into durable.waits (queue, task_id, name, position, after, event_name)
values ('q', id('l2'), '$event:awaited', 0, 0, 'awaited');
select move_to(9e8 + 800) \g /dev/null
select is(durable.prune_events('q'), 1, 'prune_events() deletes events once they are old enough');
select is((select string_agg(name, ', ' order by name) from durable.events where queue = 'q'),
  'awaited, later, not yet',
  'but none for which a task waits');
select is((select string_agg(name, ', ') from durable.events where queue = 'other'), 'old',
  'and none of another queue');
select is(durable.emit_event('q', 'not yet', '1'), true,
  'an event whose row was kept can be emitted');
select is(states('w'), 'pending', 'and wakes the waiting tasks: pruning loses no wake-up');
select move_to(9e8 + 2000) \g /dev/null
select is(durable.prune_events('q'), 0, 'an event stays until the task that it woke has read it');
select claimed('w') \g /dev/null
select is((select value::text from durable.load_checkpoints('q', held('w'))), '1',
  'however long that takes');
select is(durable.prune_events('q'), 1, 'then it is deleted');
select is(durable.emit_event('q', 'old', '2'), true, 'a pruned event can be emitted again');
select started('done'), durable.poll_waits('q',
  held('done', '{"waits": [{"name": "$event:left", "event": "left"}]}')), completed('done') \g /dev/null
select is(durable.prune_events('q'), 1,
  'a finished task waits for nothing, even if its waits are left');

select durable.create_queue('q', '{"keep_events": null}') \g /dev/null
select move_to(18e8) \g /dev/null
select is(durable.prune_events('q'), 0, 'keep_events null keeps them for ever');
select durable.create_queue('q', '{"keep_events": 0}') \g /dev/null
select is(durable.prune_events('q'), 1, 'keep_events 0 deletes them at once');
select is(durable.prune_events('nowhere'), 0, 'an unknown queue has none');

select durable.emit_event('q', 'e' || i) from generate_series(1, 7) as i \g /dev/null
select results_eq(
  $$ select durable.prune_events('q', 3) from generate_series(1, 4) $$, array[2, 3, 2, 0],
  'prune_events() looks at no more than batch_size events, continues from there, and starts over');

-- tasks in use are not deleted

select started('revived', '{"max_attempts": 1}'), failed('revived'),
  move_to(18e8 + 500) \g /dev/null
select durable.retry_task('q', id('revived')) \g /dev/null
select durable.cleanup('q') \g /dev/null
select is(states('revived'), 'pending',
  'a task that was retried is not deleted for its former end');
select claimed('revived'), completed('revived'), move_to(18e8 + 1000) \g /dev/null
select started('joiner'), joining('joiner', 'revived') \g /dev/null
select durable.cleanup('q') \g /dev/null
select is(history('joiner') like '$join done%completed%', true,
  'the outcome of a join is kept by the task that joined');

-- keys

select started('guardian'), spawned_below('guardian', 'ward', '{"idempotency_key": "ward"}'),
  durable.cancel_task('q', id('ward')), move_to(18e8 + 2000) \g /dev/null
select durable.cleanup('q') \g /dev/null
select is(states('ward'), 'cancelled', 'a finished child with a key stays while its parent is live');
select results_eq($$ select task_id, created
  from durable.spawn('q', 'job', '{}', '{"idempotency_key": "ward"}') $$,
  $$ values (id('ward'), false) $$, 'and so does its key');
select completed('guardian'), move_to(18e8 + 3000) \g /dev/null
select is(durable.cleanup('q'), 2, 'until both can be deleted');
select is_empty($$ select from durable.idempotency_keys where key = 'ward' $$,
  'and the key with them');

select * from finish();
rollback;
