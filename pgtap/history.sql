begin;
\ir _setup.sql
select plan(27);

create function tap.told(nick text)
returns text
language sql
as $$
  select string_agg(concat_ws(' ', extract(epoch from at - at(0))::integer, kind, name, attempt, worker), ', ' order by number)
  from durable.task_history('q', id(nick)) with ordinality
    as entry (at, kind, name, attempt, worker, duration_ms, detail, number);
$$;

create function tap.detail(nick text, kind text)
returns jsonb
language sql
as $$
  select detail from durable.task_history('q', id(nick)) as entry where entry.kind = detail.kind;
$$;

select throws_ok(format('select durable.%s(%L, %L)', function, queue, task_id), code, null,
  format('%s() refuses %s', function, what))
from unnest(array['task_history', 'export_history']) as function
cross join (values
  ('nowhere', id('a'), 'WFQUE', 'an unknown queue'),
  ('q', gen_random_uuid(), 'WFNFD', 'an unknown task')
) as refused (queue, task_id, code, what);

-- an attempt fails, a lease is lost, a wait times out, it completes

select spawned('a', '{"retry": {"kind": "fixed", "base_seconds": 10}, "idempotency_key": "k"}') \g /dev/null
select is(told('a'), '0 spawned job', 'a task was spawned');
select is(detail('a', 'spawned'), '{"idempotency_key": "k"}', 'with its key');
select move_to(1), claimed('a', 'w1') \g /dev/null
select is(told('a'), '0 spawned job, 1 started 1, running 1 w1', 'started, and is running');
select is(detail('a', 'running') ->> 'until', '2030-01-01T00:00:31+00:00', 'until its lease expires');
select move_to(2), saved('a', 'one'), move_to(3), failed('a') \g /dev/null
select is(told('a'), '0 spawned job, 1 started 1, 2 step one 1, 3 attempt_failed 1 w1, retrying 2',
  'an attempt has failed, and the next is due');
select is(detail('a', 'attempt_failed') -> 'error' ->> 'type', 'Oops', 'why');
select move_to(13), claimed('a', 'w2'), move_to(44), durable.expire_leases('q'), move_to(45), claimed('a', 'w3'),
  move_to(46), awaiting('a', 'ev', 10) \g /dev/null
select is(told('a'), '0 spawned job, 1 started 1, 2 step one 1, 3 attempt_failed 1 w1, 44 lease_lost 2 w2, waiting $event:ev',
  'a lease was lost, and it waits');
select is(detail('a', 'waiting'), '{"event": "ev", "until": "2030-01-01T00:00:56+00:00"}', 'for an event, with a deadline');
select move_to(60), claimed('a', 'w4') \g /dev/null
select durable.load_checkpoints('q', held('a')) \g /dev/null
select completed('a') \g /dev/null
select is(told('a'), '0 spawned job, 1 started 1, 2 step one 1, 3 attempt_failed 1 w1, 44 lease_lost 2 w2,'
  ' 60 timed_out $event:ev 3, 60 completed 3 w4', 'which timed out, and it has completed');

-- parents, children, forks, ends

select started('p'), (select count(*) from durable.spawn_children('q', id('p'), 1, '[{"name": "$spawn:c", "task": "job"}]')),
  durable.emit_from_task('q', id('p'), 1, '$emit:e', 'e') \g /dev/null
select call_it('c', (detail('p', 'child_spawned') ->> 'task_id')::uuid) \g /dev/null
select is(detail('c', 'spawned'), jsonb_build_object('parent_task_id', id('p')), 'a child has its parent');
select saved('p', '$now', '1'), move_to(61), failed('p', '{"retryable": false}') \g /dev/null
select is(told('p'), '60 spawned job, 60 started 1, 60 event_emitted $emit:e 1, 60 recorded $now 1,'
  ' 60 child_spawned $spawn:c 1, 61 failed 1 worker', 'other kinds of calls are told apart');
select is(detail('c', 'cancelled') -> 'by' ->> 'task_id', id('p')::text, 'a cancelled child records whose end it was');
select durable.retry_task('q', id('p')) \g /dev/null
select is(detail('p', 'attempt_failed') -> 'error' ->> 'type', 'Oops', 'a failure that was retried stays recorded');
select call_it('f', (durable.fork_task('q', id('a'))).task_id) \g /dev/null
select is(told('f'), '61 spawned job, 61 copied $event:ev, 61 copied one', 'a fork shows its copied checkpoints');
select is(detail('f', 'spawned') -> 'forked_from' ->> 'task_id', id('a')::text, 'and whose');

-- for a replay

select is(durable.export_history('q', id('a'))::text, json_build_object('version', 1, 'queue', 'q', 'task_id', id('a'),
  'name', 'job', 'params', '{}'::jsonb, 'headers', '{}'::jsonb, 'attempt', 3, 'checkpoints', json_build_array(
    json_build_object('name', '$event:ev', 'position', 0, 'after', 0, 'state', 'timed_out', 'value', 'null'::json, 'attempt', 3, 'order', 2),
    json_build_object('name', 'one', 'position', 0, 'after', 0, 'state', 'done', 'value', 'null'::json, 'attempt', 1, 'order', 1)))::text,
  'export_history() has everything that a replay needs');
select is(durable.export_history('q', id('c')) ->> 'checkpoints', '[]', 'or nothing');

-- with those of descendants

create function pg_temp.timeline(nick text, depth integer default 2, after timestamptz default null, page_size integer default 100)
returns text
language sql
as $$
  select string_agg(concat_ws(' ', entry.depth, entry.task, entry.kind), ', ' order by place)
  from durable.task_timeline('q', tap.id(nick), depth, after, page_size) with ordinality
    as entry (queue, task_id, depth, parent_task_id, task, at, kind, name, attempt, worker, duration_ms, detail, place);
$$;

select spawned('top', '{}', 'top'), move_to(2000) \g /dev/null
select spawned_below('top', 'mid'), spawned_below('mid', 'low') \g /dev/null
select is(pg_temp.timeline('top'), '0 top spawned, 1 job spawned, 2 job spawned', 'task_timeline() has the descendants');
select is(pg_temp.timeline('top', 1), '0 top spawned, 1 job spawned', 'down to a depth');
select is(pg_temp.timeline('top', 2, null, 1), '0 top spawned, 1 job spawned', 'some of them');
select move_to(2001), durable.cancel_task('q', id('low')) \g /dev/null
select is(pg_temp.timeline('top', 2, at(2000)), '2 job cancelled', 'and entries since a time');
select is((select count(*) from durable.task_timeline('q', id('top')) where parent_task_id = id('mid') and task_id = id('low')),
  2::bigint, 'each with its task');
select throws_ok($$ select durable.task_timeline('q', '00000000-0000-0000-0000-000000000000') $$, 'WFNFD', null,
  'of a known task');

select * from finish();
rollback;
