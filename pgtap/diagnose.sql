begin;
\ir _setup.sql
select plan(16);

create function tap.found(subject text default 'q')
returns text
language sql
as $$
  select string_agg(severity || ' ' || code, ', ' order by place)
  from durable.diagnose() with ordinality as finding (severity, code, subject, message, remedy, place)
  where finding.subject = $1;
$$;

-- Lets a worker announce itself, with a task of this name.
create function tap.announced(worker text, name text, version text default null)
returns void
language sql
as $$
  select durable.announce_worker('q', worker, jsonb_build_object('names', array[name], 'version', version));
$$;

select is(found(), null, 'diagnose() finds nothing in a queue without tasks');
select spawned('a'), move_to(59) \g /dev/null
select is(found(), null, 'nor that one waits for less than a minute');
select move_to(60) \g /dev/null
select is(found(), 'error no_worker', 'then no worker runs');
select is((select remedy from durable.diagnose() where code = 'no_worker'),
  $$start a worker that knows them, or: select durable.cancel_tasks('q', '{"name": "job"}')$$, 'and it says what to do');
select announced('w', 'other') \g /dev/null
select is(found(), 'error unknown_name', 'or none that knows its name');
select announced('w2', 'job') \g /dev/null
select is(found(), null, 'until one does');
select claimed('a'), spawned('d', '{"start_timeout": 5}'), durable._defer('q', 'waiter', id('a')), move_to(149) \g /dev/null
select announced('w', 'other'), announced('w2', 'job') \g /dev/null
select is(found(), 'error late_deadlines, error late_work', 'limits that have passed, and work that was deferred');
select move_to(150), announced('w2', 'job') \g /dev/null
select is(found(), 'error late_leases, error late_deadlines, error late_work', 'and leases that have expired');
select durable.run_maintenance('q') \g /dev/null
select is(found(), null, 'are left until maintenance runs');
select move_to(209), announced('w2', 'job') \g /dev/null
select is(found(), 'warning dead_worker', 'a worker that has died');
select durable.remove_worker('q', 'w'), durable.create_queue('q', '{"versions": "gate"}'), spawned('v', '{"version": "7"}') \g /dev/null
select is(found(), 'error no_version', 'a version without workers');
select durable.cancel_tasks('q', '{"all": true}'), durable.create_schedule('q', 's', '{"task": "job", "every": 60}'),
  move_to(539), announced('w2', 'job') \g /dev/null
select is(found(), null, 'a schedule may be late for a while');
select move_to(540), announced('w2', 'job') \g /dev/null
select is(found(), 'error late_schedule', 'but not for long');
select durable.drop_schedule('q', 's'), durable.pause_queue('q'), durable.pause_queue('q', 'job') \g /dev/null
update durable.queues set is_full = true, max_length = 5 where queue = 'q';
select is(found(), 'info queue_paused, info name_paused, warning queue_full', 'what a policy says');
update pg_index set indisvalid = false where indexrelid = 'durable.waits_event_idx'::regclass;
select is(found('durable.waits_event_idx'), 'error invalid_index', 'an index that is invalid');
create role durable_tap_eve;
grant usage on schema durable, tap to durable_tap_eve;
grant execute on function durable.diagnose to durable_tap_eve;
select durable.create_queue('q', '{"roles": ["postgres"]}') \g /dev/null
set local role durable_tap_eve;
select is(found(), null, 'only in queues that the caller may use');
reset role;

select * from finish();
rollback;
