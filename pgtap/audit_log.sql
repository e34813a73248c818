begin;
\ir _setup.sql
select plan(34);

-- Returns what was recorded since the last call.
create temp table already (audit_id uuid);
create function pg_temp.recorded()
returns text
language plpgsql
as $$
declare
  _said text;
begin
  select string_agg(concat_ws(' ', entry.queue, entry.action, nick, entry.detail), '; ' order by entry.at, entry.action)
  into _said
  from durable.audit as entry
  left join tap.nicknames using (task_id)
  where not exists (select from already where already.audit_id = entry.audit_id);
  insert into already select audit_id from durable.audit;
  return _said;
end;
$$;

select pg_temp.recorded() \g /dev/null

-- each function records a call that changed something, and no other

create function pg_temp.records(call text, said text)
returns setof text
language plpgsql
as $$
begin
  execute 'select ' || call;
  return next is(pg_temp.recorded(), said, format('%s records %s', split_part(call, '(', 1), coalesce(said, 'nothing')));
end;
$$;

select spawned('a'), spawned('b'), spawned('c'), move_to(1) \g /dev/null
select pg_temp.records($$durable.cancel_task('q', id('a'), 'enough')$$, 'q cancel_task a {"reason": "enough"}');
select pg_temp.records($$durable.cancel_task('q', id('a'))$$, null);
select pg_temp.records($$durable.retry_task('q', id('a'), '{"max_attempts": 9, "params": 1}')$$, 'q retry_task a {"max_attempts": 9}');
select pg_temp.records($$durable.fork_task('q', id('a'), '{"params": 1}')$$, 'q fork_task a');
select pg_temp.records($$durable.reschedule_task('q', id('b'), '2030-01-02')$$,
  'q reschedule_task b {"run_at": "2030-01-02T00:00:00+00:00"}');
select pg_temp.records($$durable.cancel_tasks('q', jsonb_build_object('task_ids', ids('a b')), reason => 'all')$$,
  format('q cancel_tasks {"tasks": 2, "filter": {"task_ids": ["%s", "%s"]}, "reason": "all"}', id('a'), id('b')));
select pg_temp.records($$durable.cancel_tasks('q', '{"name": "none"}')$$, null);
select pg_temp.records($$durable.retry_tasks('q', '{"states": ["cancelled"]}')$$,
  'q retry_tasks {"tasks": 2, "filter": {"states": ["cancelled"]}}');
select durable.cancel_task('q', id('b')), pg_temp.recorded() \g /dev/null
select pg_temp.records($$durable.delete_tasks('q', '{"all": true}')$$, 'q delete_tasks {"tasks": 1, "filter": {"all": true}}');
select pg_temp.records($$durable.pause_queue('q', 'job')$$, 'q pause_queue {"task": "job"}');
select pg_temp.records($$durable.pause_queue('q', 'job')$$, null);
select pg_temp.records($$durable.resume_queue('q', 'job')$$, 'q resume_queue {"task": "job"}');
select pg_temp.records($$durable.create_queue('q', '{"keep_tasks": null}')$$,
  'q create_queue {"policy": {"keep_tasks": null}, "created": false}');
select pg_temp.records($$durable.create_queue('q', '{"keep_tasks": null}')$$, null);
select pg_temp.records($$durable.create_queue('q')$$, null);
select pg_temp.records($$durable.create_queue('q', '{"priorities": true, "keep_audit": 60}')$$,
  'q create_queue {"policy": {"keep_audit": 60, "priorities": true}, "created": false}');
select pg_temp.records($$durable.set_partition_limit('q', 'k', '{"concurrency": 1}')$$,
  'q set_partition_limit {"limits": {"concurrency": 1}, "partition_key": "k"}');
select pg_temp.records($$durable.set_version('q', '2', array[id('c')])$$, 'q set_version c {"tasks": 1, "version": "2"}');
select pg_temp.records($$durable.promote_version('q', '2')$$, null);
select durable.announce_worker('q', 'w', '{"version": "2"}') \g /dev/null
select pg_temp.records($$durable.promote_version('q', '2')$$, 'q promote_version {"version": "2"}');
select pg_temp.records($$durable.create_schedule('q', 's', '{"task": "job", "every": 60, "params": 1}')$$,
  'q create_schedule {"schedule": "s", "definition": {"task": "job", "every": 60}}');
select pg_temp.records($$durable.pause_schedule('q', 's') and durable.resume_schedule('q', 's')$$,
  'q pause_schedule {"schedule": "s"}; q resume_schedule {"schedule": "s"}');
select pg_temp.records($$count(*) from durable.backfill_schedule('q', 's', '2029-12-31 23:59', '2030-01-01')$$,
  'q backfill_schedule {"tasks": 1, "end_at": "2030-01-01T00:00:00+00:00", "schedule": "s", "start_at": "2029-12-31T23:59:00+00:00"}');
select move_to(1.5) \g /dev/null
select pg_temp.records($$count(durable.trigger_schedule('q', 's'))$$, 'q trigger_schedule {"schedule": "s"}');
select move_to(1.7) \g /dev/null
select pg_temp.records($$durable.drop_schedule('q', 's')$$, 'q drop_schedule {"schedule": "s"}');
select pg_temp.records($$durable.emit_event('q', 'e') and durable.spawn('q', 'job') is not null$$, null);

-- who, and when

select move_to(60) \g /dev/null
set local durable.caller = '{"identity": {"name": "ada", "team": "ops"}}';
select durable.pause_queue('other') \g /dev/null
reset durable.caller;
select results_eq(
  $$ select at, action, by from durable.list_audit(filter => '{"identity": {"name": "ada"}}') $$,
  $$ values (at(60), 'pause_queue', jsonb_build_object('user', current_user, 'identity',
       '{"name": "ada", "team": "ops"}'::jsonb)) $$,
  'an entry says who acted');
select is((select count(*) from durable.list_audit('other', jsonb_build_object('user', current_user))), 2::bigint,
  'entries are found by the role');
select results_eq(
  $$ select action from durable.list_audit('q', '{"since": "2030-01-01T00:00:01Z", "until": "2030-01-01T00:00:59Z"}', 2) $$,
  array['drop_schedule', 'trigger_schedule'], 'by time, the latest first');
select results_eq(
  $$ select action from durable.list_audit(null, jsonb_build_object('task_id', id('c'), 'action', 'set_version'),
       after => (select max(audit_id::text)::uuid from durable.audit)) $$,
  array['set_version'], 'by task and action, in any queue');

-- for how long

select move_to(60.5), durable.run_maintenance('q') \g /dev/null
select is((select min(at) from durable.audit where queue = 'q'), at(1), 'maintenance deletes what is too old');
select move_to(62), durable.run_maintenance('q') \g /dev/null
select is((select count(*) from durable.audit where queue = 'q'), 0::bigint, 'after the queue''s keep_audit');
select durable.drop_queue('other') \g /dev/null
select is((select action from durable.list_audit() limit 1), 'drop_queue', 'entries outlive their queue');

-- refusals

select throws_ok(format('select durable.list_audit(filter => %L)', filter), '22023', null, 'list_audit() refuses ' || filter)
from unnest(array['{"since": "yesterday"}']) as filter;

select * from finish();
rollback;
