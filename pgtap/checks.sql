begin;
\ir _setup.sql
select plan(130);

-- every argument that is a name, at its maximum length

create function pg_temp.spawn_child(name text, task text)
returns setof durable.spawned_child
language sql
as $$
  select * from durable.spawn_children('q', tap.id('t'), 1,
    jsonb_build_array(jsonb_build_object('name', name, 'task', task)));
$$;

create function pg_temp.poll(name text, event text)
returns setof durable.wait_outcome
language sql
as $$
  select * from durable.poll_waits('q', tap.held('t', jsonb_build_object('waits',
    jsonb_build_array(jsonb_build_object('name', name, 'event', event, 'seconds', 1)))));
$$;

create temp table arguments (what, call, most) as values
  ('create_queue''s queue',    'select durable.create_queue(%L)', 100),
  ('spawn''s task',            'select durable.spawn(''q'', %L)', 100),
  ('spawn_many''s task',       'select durable.spawn_many(''q'', json_build_array(json_build_object(''task'', %L))::jsonb)', 100),
  ('spawn''s idempotency_key', 'select durable.spawn(''q'', ''job'', ''{}'', jsonb_build_object(''idempotency_key'', %L))', 255),
  ('claim_tasks''s worker',    'select durable.claim_tasks(''q'', %L, array[''nothing''])', 255),
  ('emit_event''s event',      'select durable.emit_event(''q'', %L)', 255),
  ('emit_from_task''s event',  'select durable.emit_from_task(''q'', id(''t''), 1, gen_random_uuid()::text, %L)', 255),
  ('emit_from_task''s name',   'select durable.emit_from_task(''q'', id(''t''), 1, %L, ''e'')', 512),
  ('spawn_children''s name',   'select pg_temp.spawn_child(%L, ''job'')', 512),
  ('spawn_children''s task',   'select pg_temp.spawn_child(gen_random_uuid()::text, %L)', 100),
  ('save_checkpoints''s name', 'select durable.save_checkpoints(''q'', held(''t'', jsonb_build_object(''name'', %L)))', 512),
  ('poll_waits''s name',       'select pg_temp.poll(%L, null)', 512),
  ('poll_waits''s event',      'select pg_temp.poll(gen_random_uuid()::text, %L)', 255);

select started('t') \g /dev/null
select throws_ok(format(call, name), '22023', null, format('%s is refused: %s', what, why))
from arguments
cross join lateral (values
  ('',                              'empty'),
  (' ',                             'blank'),
  (e'new\nline',                    'a control character'),
  (repeat('n', most - 1) || 'é',    'one byte too long, in characters the right length')
) as refused (name, why);
select lives_ok(format(call, name), format('%s may be: %s', what, why))
from arguments
cross join lateral (values
  (repeat('é', (most - 1) / 2) || repeat('n', most - (most - 1) / 2 * 2), 'as long as it gets'),
  ('it''s "a" \ $$ %s {} -- ; 🐘',  'full of quotes')
) as accepted (name, why);

-- sizes

create temp table large as select to_jsonb(repeat('x', 17000000)) as value;
create function pg_temp.too_long(call text)
returns text
language plpgsql
as $$
begin
  execute call using (select value from large);
  return 'ok';
exception when others then
  return sqlstate;
end;
$$;
select is(pg_temp.too_long(call), '22023', format('%s above 16 MiB are refused, also compressed', what))
from (values
  ('params',      'select durable.spawn(''q'', ''job'', $1)'),
  ('params of many', 'select durable.spawn_many(''q'', jsonb_build_array(jsonb_build_object(''task'', ''job'', ''params'', $1)))'),
  ('headers',     'select durable.spawn(''q'', ''job'', ''{}'', jsonb_build_object(''headers'', jsonb_build_object(''h'', $1)))'),
  ('payloads',    'select durable.emit_event(''q'', ''large'', $1)'),
  ('results',     'select durable.complete_tasks(''q'', held(''t'', jsonb_build_object(''result'', $1)))'),
  ('checkpoints', 'select durable.save_checkpoints(''q'', held(''t'', jsonb_build_object(''name'', ''large'', ''value'', $1)))'),
  ('reasons',     'select durable.cancel_task(''q'', id(''t''), left($1 #>> ''{}'', 1001))')
) as calls (what, call);
select is(states('t'), 'running', 'and the task is unaffected');
select started('loud', '{"max_attempts": 1}') \g /dev/null
select is(failed('loud', jsonb_build_object('error', jsonb_build_object(
  'type', 'Oops', 'message', repeat('m', 300000) || 'end', 'traceback', repeat('t', 300000)))), 'ok',
  'a failure is never refused for the size of its error');
select results_eq(
  $$ select error ->> 'type', left(error ->> 'message', 2), right(error ->> 'message', 4),
       octet_length(error::text) < 50000 from task('loud') $$,
  $$ values ('Oops', '…m', 'mend', true) $$,
  'of which the end is kept');
select started('odd', '{"max_attempts": 1}') \g /dev/null
select is(failed('odd', jsonb_build_object('error', jsonb_build_object(
  'type', 'Oops', 'message', 'no', 'all I know', repeat('x', 300000)))), 'ok',
  'for an error of any type');
select is((task('odd')).error, '{"type": "Oops", "message": "no"}'::jsonb,
  'a short error is kept as it is');
select is(pg_temp.too_long('select durable.cancel_task(''q'', id(''loud''), left($1 #>> ''{}'', 1000))'), 'ok',
  'a reason may have 1,000 bytes');

-- hostile text goes through a task's whole life unchanged

select 'it''s "a" \\ $$ %s -- 🐘' as name \gset
select durable.create_queue(:'name') \g /dev/null
select (durable.spawn(:'name', :'name', to_jsonb(:'name'::text), jsonb_build_object(
  'idempotency_key', :'name', 'headers',
    jsonb_build_object(:'name', :'name')))).task_id as task_id \gset
select results_eq(
  format('select task_id, name, params #>> %L, headers ->> %L from durable.claim_tasks(%L, %L, array[%L])',
    '{}', :'name', :'name', :'name', :'name'),
  format('values (%L::uuid, %L, %L, %L)', :'task_id', :'name', :'name', :'name'),
  'hostile text is claimed as it was spawned');
select is((durable.await_event(:'name', :'task_id', 1, :'name', :'name')).outcome, 'suspended',
  'waits for an event');
select is(durable.emit_event(:'name', :'name', to_jsonb(:'name'::text)), true, 'is emitted');
select durable.claim_tasks(:'name', :'name') \g /dev/null
select is(value #>> '{}', :'name', 'comes back')
from durable.load_checkpoints(:'name',
  json_build_array(json_build_object('task_id', :'task_id', 'claim', 3)));
select is(outcome, 'ok', 'and completes')
from durable.complete_tasks(:'name',
  json_build_array(json_build_object('task_id', :'task_id', 'claim', 3, 'result', :'name')));
select is((durable.get_task_result(:'name', :'task_id')).result #>> '{}', :'name',
  'with the right result');
select results_eq($$ select * from durable.list_queues()
  where list_queues like '%🐘%' and list_queues not like '%;%' $$,
  format('values (%L)', :'name'), 'the queue is listed');
select is(durable.drop_queue(:'name'), true, 'and dropped');

-- a caller's columns may have any collation

create collation pg_temp.german (provider = icu, locale = 'de');
create temp table callers (q text collate "POSIX", d text collate pg_temp.german,
  e text collate "C", channel text collate pg_temp.german);
insert into callers values ('q', 'job', 'e', 'work');
select lives_ok(format(call, ''), format('%s takes columns of any collation', what))
from (values
  ('create_queue',    'select durable.create_queue(q || d) from callers'),
  ('spawn',           'select durable.spawn(q, d) from callers'),
  ('spawn_many',      'select durable.spawn_many(q, ''[{"task": "job"}]'') from callers'),
  ('emit_event',      'select durable.emit_event(q, d) from callers'),
  ('claim_tasks',     'select durable.claim_tasks(q, d, array[d]) from callers'),
  ('get_next_due',    'select durable.get_next_due(q, array[d]) from callers'),
  ('list_waiting_names', 'select durable.list_waiting_names(q) from callers'),
  ('release_unknown', 'select durable.release_unknown(q, d, ''{}'') from callers'),
  ('cancel_task',     'select durable.cancel_task(q, id(''t''), d) from callers'),
  ('reschedule_task', 'select durable.reschedule_task(q, id(''t''), now()) from callers'),
  ('retry_task',      'select durable.retry_task(q, id(''t'')) from callers'),
  ('get_task_result', 'select durable.get_task_result(q, id(''t'')) from callers'),
  ('queue_stats',     'select durable.queue_stats(q), durable.list_versions(q) from callers'),
  ('count_tasks',     'select durable.count_tasks(q), durable.task_totals(q), durable.recount_totals(q) from callers'),
  ('queue_throughput', 'select durable.queue_throughput(q), durable.queue_depth(q) from callers'),
  ('run_maintenance',      'select durable.run_maintenance(q) from callers'),
  ('create_schedule', 'select durable.create_schedule(q, d, jsonb_build_object(''task'', d, ''cron'', ''@daily'', ''time_zone'', ''Europe/Vienna'')) from callers'),
  ('trigger_schedule', 'select durable.trigger_schedule(q, d), durable.list_schedule_runs(q, d), durable.list_schedules(q, 10, e) from callers'),
  ('next_fires',      'select durable.next_fires(''0 0 * * '' || left(channel, 0) || ''*'', ''UTC'') from callers'),
  ('register_listener',       'select durable.register_listener(q, channel), durable.unregister_listener(q, channel) from callers'),
  ('await_event',     'select claimed(''t''); select durable.await_event(q, id(''t''), 3, d, e) from callers'),
  ('set_partition_limit', 'select durable.create_queue(e || d, ''{"partition_concurrency": 1}''), durable.set_partition_limit(e || d, d, ''{}''), durable.spawn(e || d, d, ''{}'', ''{"partition_key": "a"}'') from callers'),
  ('reprioritize_task', 'select durable.reprioritize_task(e || d, (durable.spawn(e || d, d)).task_id, 1), durable.list_partitions(e || d, 10, e) from callers'),
  ('claim_tasks of lanes', 'select durable.claim_tasks(e || d, d, array[d]), durable.get_next_due(e || d, array[d]) from callers'),
  ('drop_queue',      'select durable.drop_queue(q || d) from callers')
) as calls (what, call);
select is((durable.spawn(q, d, '{}', jsonb_build_object('idempotency_key', d))).created, true,
  'a key may have any collation')
from callers;
select is((durable.spawn(q, d, '{}', jsonb_build_object('idempotency_key', d))).created, false,
  'and is found again')
from callers;

-- settings of the session do not matter

select started('early'), started('late') \g /dev/null
create temp table claims as select nick, claim(nick), id(nick) from words('early late');
create temp table said (sentence text);
set local search_path = '';
set local timezone = 'America/New_York';
set local datestyle = 'German';
set local intervalstyle = 'iso_8601';
set local enable_indexscan = off;
set local plpgsql.variable_conflict = use_column;
insert into pg_temp.said
select concat_ws(' ', (durable.spawn('q', 'elsewhere', '{}', '{"start_timeout": 86400}')).created,
  (durable.sleep_until('q', id, claim, '$sleep', '2030-03-10 12:00:00+00')).outcome)
from pg_temp.claims where nick = 'early';
insert into pg_temp.said
select (durable.await_event('q', id, claim, '$event', 'never', 70 * 86400)).outcome
  from pg_temp.claims where nick = 'late';
reset search_path;
set local timezone = 'UTC';
reset datestyle;
reset plpgsql.variable_conflict;
\ir _search_path.sql
select results_eq($$ select * from said $$, array['t suspended', 'suspended'],
  'calls work under any search_path, time zone and style');
select results_eq(
  $$ select available_at from durable.tasks where task_id = any (ids('early late')) order by 1 $$,
  $$ values (timestamptz '2030-03-10 12:00:00+00'), (at(70 * 86400)) $$,
  'and mean the same times, also across a change to summer time');
select is((select expires_at from durable.tasks where name = 'elsewhere'), at(86400),
  'a day is 86,400 seconds');

-- checks on hot paths are not calls: Postgres inlines them

create function pg_temp.plan_of_checks()
returns setof text
language plpgsql
as $$
begin
  return query execute 'explain (verbose) select durable._checked_name(''name'', name, 100),
    durable._checked_size(''params'', params), durable._checked_keys(''params'', params, array[name]),
    durable._checked_count(''params'', params, name), durable._checked_queue(queue),
    durable._must_notify(queue, ''work'') from durable.tasks';
end;
$$;
select is_empty(
  $$ select * from pg_temp.plan_of_checks() as line where line ~ 'durable\._(checked|granted|is_to_notify)' $$,
  'checks on hot paths are inlined');

select * from finish();
rollback;
