begin;
\ir _setup.sql
select plan(66);

create role tap_visitor;
create role tap_client in role durable_client;
create role tap_worker in role durable_worker;
create role tap_operator in role durable_operator;

grant select, insert, update on all tables in schema tap to public;

-- The result of a statement in another role: ok, or the SQLSTATE.
create function pg_temp.try(role text, statement text)
returns text
language plpgsql
set search_path from current
as $$
begin
  perform set_config('role', role, true);
  execute statement;
  perform set_config('role', 'none', true);
  return 'ok';
exception when others then
  return sqlstate;
end;
$$;

-- one function, granted by name

select is(pg_temp.try('tap_visitor', $$ select durable.spawn('q', 'x') $$), '42501',
  'nothing is granted to PUBLIC');
grant usage on schema durable to tap_visitor;
select is(pg_temp.try('tap_visitor', $$ select durable.spawn('q', 'x') $$), '42501',
  'not even with usage of the schema');
grant execute on function durable.spawn to tap_visitor;
select is(pg_temp.try('tap_visitor', $$ select * from durable.spawn('q', 'x', '{}') $$), 'ok',
  'a role that was granted spawn() can spawn');
select is(
  pg_temp.try('tap_visitor', $$ select *
    from durable.spawn('q', 'x', '{}', '{"idempotency_key": "k", "max_attempts": 2,
    "retry": {"kind": "fixed"}, "headers": {}, "start_timeout": 1, "execution_timeout": 1}') $$), 'ok',
  'with all its options');
select is(pg_temp.try('tap_visitor', $$ select * from durable.spawn('none', 'x') $$), 'WFQUE',
  'and gets its typed errors');
select is(pg_temp.try('tap_visitor', statement), '42501', format('but cannot %s', what))
from (values
  ('read a table',           'select * from durable.tasks'),
  ('write a table',          'insert into durable.events (queue, name) values (''q'', ''x'')'),
  ('read a view',            'select * from durable.task_list'),
  ('call another function',  'select durable.emit_event(''q'', ''x'')'),
  ('call a private one',     'select durable._insert_tasks(''q'', ''{}'', now(), null)'),
  ('move the clock',         'create or replace function durable._now() returns timestamptz language sql as ''select now()''')
) as refused (what, statement);

-- the roles

select started('t'), spawned('u'), started('dead', '{"max_attempts": 1}'),
  failed('dead') \g /dev/null
select is(pg_temp.try(role, statement), outcome,
  format('%s %s: %s', role, case outcome when 'ok' then 'can' else 'cannot' end, what))
from (values
  ('tap_client',   'ok',    'select durable.spawn_many(''q'', ''[{"task": "x"}]'')'),
  ('tap_client',   'ok',    'select durable.emit_event(''q'', ''e'')'),
  ('tap_client',   'ok',    'select durable.cancel_task(''q'', tap.id(''u''))'),
  ('tap_client',   'ok',    'select * from durable.get_task_result(''q'', tap.id(''u''))'),
  ('tap_client',   'ok',    'select durable.list_queues(), durable.version()'),
  ('tap_client',   'ok',    'select * from durable.errors()'),
  ('tap_client',   'ok',    'select durable.register_listener(''q'', ''results''), durable.unregister_listener(''q'', ''results'')'),
  ('tap_client',   'ok',    'select durable.create_schedule(''q'', ''s'', ''{"task": "x", "every": 60}''), durable.trigger_schedule(''q'', ''s'')'),
  ('tap_client',   '42501', 'select durable.fire_schedules(''q'')'),
  ('tap_client',   '42501', 'select durable.claim_tasks(''q'', ''w'')'),
  ('tap_client',   '42501', 'select durable.complete_tasks(''q'', ''[]'')'),
  ('tap_client',   '42501', 'select durable.create_queue(''x'')'),
  ('tap_client',   '42501', 'select durable.retry_task(''q'', tap.id(''dead''))'),
  ('tap_client',   '42501', 'select * from durable.tasks'),
  ('tap_client',   '42501', 'select * from durable.task_list'),
  ('tap_worker',   'ok',    'select durable.spawn(''q'', ''x'')'),
  ('tap_worker',   'ok',    format('select durable.save_checkpoints(''q'', %L)', held('t', '{"name": "s"}'))),
  ('tap_worker',   'ok',    format('select durable.load_checkpoints(''q'', %L)', held('t'))),
  ('tap_worker',   'ok',    format('select durable.await_event(''q'', %L, 1, ''w'', ''never'')', id('t'))),
  ('tap_worker',   'ok',    'select durable.claim_tasks(''q'', ''w'', null, 9)'),
  ('tap_worker',   'ok',    'select durable.get_next_due(''q''), durable.list_waiting_names(''q'')'),
  ('tap_worker',   'ok',    'select durable.run_maintenance(''q'')'),
  ('tap_worker',   '42501', 'select durable.drop_queue(''q'')'),
  ('tap_worker',   '42501', 'select * from durable.tasks'),
  ('tap_operator', 'ok',    'select durable.create_queue(''x''), durable.drop_queue(''x'')'),
  ('tap_operator', 'ok',    'select durable.retry_task(''q'', tap.id(''dead''))'),
  ('tap_operator', 'ok',    'select * from durable.queue_stats()'),
  ('tap_operator', 'ok',    'select * from durable.attempts'),
  ('tap_operator', 'ok',    'select * from durable.waiting'),
  ('tap_operator', 'ok',    'select * from durable.workers'),
  ('tap_operator', 'ok',    'select * from durable.task_list'),
  ('tap_operator', 'ok',    'select * from durable.history'),
  ('tap_operator', '42501', 'select durable.claim_tasks(''q'', ''w'')'),
  ('tap_operator', '42501', 'select * from durable.tasks'),
  ('tap_operator', '42501', 'update durable.task_list set worker = null')
) as roles (role, outcome, statement)
cross join lateral regexp_replace(statement, '''[^'']*-[^'']*''', '...', 'g') as what;

-- a queue for some roles only

create role tap_shop in role durable_client;
create role tap_mail in role durable_client;
create role tap_postman in role tap_mail;
create role tap_heir noinherit in role tap_mail;
grant usage on schema durable to tap_heir;
grant execute on function durable.spawn to tap_heir;
select durable.create_queue('mail', '{"roles": ["tap_mail"]}') \g /dev/null
select is(pg_temp.try(role, statement), outcome, format('%s: %s: %s', role, outcome, statement))
from (values
  ('tap_mail',     'ok',    'select durable.spawn(''mail'', ''x'')'),
  ('tap_postman',  'ok',    'select durable.spawn(''mail'', ''x'')'),
  ('tap_heir',     '42501', 'select durable.spawn(''mail'', ''x'')'),
  ('tap_shop',     '42501', 'select durable.spawn(''mail'', ''x'')'),
  ('tap_shop',     'ok',    'select durable.spawn(''q'', ''x'')'),
  ('tap_shop',     'WFQUE', 'select durable.spawn(''none'', ''x'')'),
  ('tap_worker',   '42501', 'select durable.claim_tasks(''mail'', ''w'')'),
  ('tap_worker',   '42501', 'select durable.flush(''mail'', null, null, null)'),
  ('tap_operator', 'ok',    'select durable.queue_stats(''mail''), durable.cleanup(''mail'')')
) as calls (role, outcome, statement);

create function pg_temp.listed(role text)
returns text
language plpgsql
set search_path from current
as $$
declare
  _listed text;
begin
  perform set_config('role', role, true);
  select string_agg(list_queues, ' ') into _listed
  from durable.list_queues() where list_queues in ('mail', 'q');
  perform set_config('role', 'none', true);
  return _listed;
end;
$$;
select is(pg_temp.listed(role), listed, format('%s is shown: %s', role, listed))
from (values ('tap_shop', 'q'), ('tap_mail', 'mail q'), ('tap_operator', 'mail q')) as shown (role, listed);

select throws_ok($$ set local role tap_shop; select durable.spawn('mail', 'x') $$, '42501',
  'no right to use the queue "mail"', 'the refusal names the queue');
select durable.create_queue('mail', '{"keep_tasks": 1}') \g /dev/null
select is(pg_temp.try('tap_shop', $$ select durable.spawn('mail', 'x') $$), '42501',
  'another policy leaves the roles unchanged');
select durable.create_queue('mail', '{"roles": null}') \g /dev/null
select is(pg_temp.try('tap_shop', $$ select durable.spawn('mail', 'x') $$), 'ok',
  'roles can be revoked, from the next call on');
select durable.create_queue('mail', '{"roles": ["tap_mail", "tap_shop"]}') \g /dev/null
drop owned by tap_shop;
drop role tap_shop;
select is(pg_temp.try(role, $$ select durable.spawn('mail', 'x') $$), outcome,
  format('with a listed role gone, %s is told %s', role, outcome))
from (values ('tap_mail', 'ok'), ('tap_client', '42501')) as remaining (role, outcome);

-- an application's own function: the session's role counts, not the function's owner

create function tap.welcome() returns void language sql security definer
  begin atomic select durable.spawn('mail', 'x'); end;
alter function tap.welcome owner to tap_mail;
grant usage on schema tap to tap_mail;
select is(pg_temp.try('tap_client', 'select tap.welcome()'), '42501',
  'a function owned by a role with access does not give access to others');
select is(pg_temp.try('tap_postman', 'select tap.welcome()'), 'ok', 'and its owner has access');

-- functions run with the owner's rights, and only with those

create schema tap_trap authorization tap_visitor;
select is(
  pg_temp.try('tap_visitor', $$
    create function tap_trap.octet_length(text) returns integer language plpgsql as 'begin raise sqlstate ''TRAP0''; end';
    set local search_path = tap_trap, pg_catalog;
    select durable.spawn('q', 'x') $$),
  'ok', 'a caller''s search_path does not lead a function to the caller''s own');

select * from finish();
rollback;
