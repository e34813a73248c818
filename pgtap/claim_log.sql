begin;
\ir _setup.sql
select plan(22);

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

create function tap.logged()
returns bigint
language sql
as $$
  select count(*) from durable.claim_log;
$$;

-- which queues keep it

select started('before'), awaiting('before', 'never') \g /dev/null
select is(logged(), 0::bigint, 'a brief history keeps no claims');
select is(durable.create_queue('q', '{"history": "full"}'), false, 'a full one does');
select is((select history from durable.queues where queue = 'q'), 'full' collate "C", 'it is a policy of the queue');
select throws_ok($$ select durable.create_queue('q', '{"history": "long"}') $$, '22023', null, 'with these two values');
select throws_ok($$ select * from durable.claim_tasks('nowhere', 'w') $$, 'WFQUE', null,
  'an unknown queue has none');
select throws_ok($$ select * from durable.suspend_tasks('nowhere', '[]') $$, 'WFQUE', null, 'nor here');

-- claimed, suspended, woken, released, claimed by the clock

select spawned('a'), move_to(1), claimed('a', 'w1'), move_to(2), awaiting('a', 'ev', 100) \g /dev/null
select is(told('a'),
  '0 spawned job, 1 started 1, 1 claimed 1 w1, 2 suspended $event:ev 1 w1, waiting $event:ev',
  'a claim, and what it was suspended for');
select is(detail('a', 'suspended'), '{"until": "2030-01-01T00:01:42+00:00"}', 'and until when at most');
select is((select outcome from durable.suspend_tasks('q',
  held('a', '{"claim": 1, "waits": [{"name": "$event:ev", "event": "ev", "seconds": 100}]}'))), 'suspended',
  'a repeated suspension is logged once');
select move_to(3), durable.emit_event('q', 'ev'), move_to(4) \g /dev/null
select is(told('a'),
  '0 spawned job, 1 started 1, 1 claimed 1 w1, 2 suspended $event:ev 1 w1, 3 woken $event:ev 1, waiting $event:ev',
  'the wake-up and its cause, before the task is claimed');
select claimed('a', 'w2'), move_to(5), released('a'), move_to(6), claimed('a', 'w3') \g /dev/null
select durable.load_checkpoints('q', held('a')) \g /dev/null
select is(told('a'),
  '0 spawned job, 1 started 1, 1 claimed 1 w1, 2 suspended $event:ev 1 w1, 3 woken $event:ev 1,'
  ' 4 claimed 1 w2, 5 released 1 w2, 6 claimed 1 w3, 6 event $event:ev 1, running 1 w3',
  'every claim and every release');
select durable.sleep_until('q', id('a'), claim('a'), '$sleep:nap', at(10)), move_to(10),
  claimed('a', 'w4') \g /dev/null
select durable.load_checkpoints('q', held('a')) \g /dev/null
select move_to(50), durable.expire_leases('q'),
  claimed('a', 'w5'), completed('a') \g /dev/null
select is(substring(told('a') from '6 suspended.*'),
  '6 suspended $sleep:nap 1 w3, 10 claimed 1 w4, 10 slept $sleep:nap 1, 50 lease_lost 1 w4,'
  ' 50 claimed 2 w5, 50 completed 2 w5',
  'the clock is not a wake-up; the log shows which worker took over from which');

-- of several waits, those that had ended

select spawned('s'), claimed('s'), (select count(*) from durable.suspend_tasks('q', held('s', '{"waits": [
  {"name": "$event:x", "event": "x", "position": 1}, {"name": "$event:y", "event": "y", "position": 2},
  {"name": "$sleep:z", "seconds": 60, "position": 3}]}'))), move_to(60), durable.emit_event('q', 'y') \g /dev/null
select is(detail('s', 'suspended') -> 'waits', '["$event:x", "$event:y", "$sleep:z"]', 'several waits are told apart');
select claimed('s') \g /dev/null
select durable.load_checkpoints('q', held('s')) \g /dev/null
select is((select name from durable.task_history('q', id('s')) where kind = 'woken'), '$event:y', 'one has woken it');

-- a retry is no wake-up

select started('r'), awaiting('r', 'never', 1000), durable.cancel_task('q', id('r')), move_to(70),
  durable.retry_task('q', id('r')), claimed('r') \g /dev/null
select is((select count(*) from durable.task_history('q', id('r')) where kind = 'woken'), 0::bigint,
  'a retried task was not woken');
select is((select string_agg(kind, ' ' order by at, attempt) from durable.task_history('q', id('r')) where kind in ('claimed', 'retried')),
  'claimed retried claimed', 'but claimed again');

-- version policies still apply

select durable.create_queue('q', '{"versions": "gate"}'), durable.announce_worker('q', 'w2', '{"version": "v2"}'),
  durable.announce_worker('q', 'w1', '{"version": "v1"}') \g /dev/null
select durable.promote_version('q', 'v2'), spawned('v') \g /dev/null
select is((select count(*) from durable.claim_tasks('q', 'w', array['job'], 9, 30, version => 'v1')), 0::bigint,
  'a full history does not let another version claim');
select is((select count(*) from durable.claim_tasks('q', 'w', array['job'], 9, 30, version => 'v2')), 1::bigint,
  'only one that may claim');

-- retention

select call_it('f', (durable.fork_task('q', id('a'))).task_id) \g /dev/null
select is((select count(*) from durable.claim_log where task_id = id('f')), 0::bigint,
  'a fork has no log: it was not claimed');
select durable.delete_tasks('q', jsonb_build_object('task_ids', ids('a'))) \g /dev/null
select is((select count(*) from durable.claim_log where task_id = id('a')), 0::bigint, 'the log is deleted with its task');
select durable.create_queue('q', '{"history": "brief", "versions": null}'), set_config('test.logged', logged()::text, true),
  started('b'), awaiting('b', 'never') \g /dev/null
select is(logged(), current_setting('test.logged')::bigint, 'and is no longer written once the policy is brief');
select durable.drop_queue('q') \g /dev/null
select is(logged(), 0::bigint, 'or the queue is dropped');

select * from finish();
rollback;
