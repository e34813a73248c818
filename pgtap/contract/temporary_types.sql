begin;
\ir ../_setup.sql
select plan(8);

-- A caller may make types of its own, and a session looks for types among the
-- temporary ones first. A function that runs with its owner's rights must not: the
-- check of a domain would run with those rights too. (A function looks when it is
-- first called in a session; so these are the first calls in this one.)

create role tap_trapper in role durable_client, durable_operator;
create schema tap_trap authorization tap_trapper;
grant select, insert, update on all tables in schema tap to public;

create function pg_temp.outcome(statement text)
returns text
language plpgsql
as $$
begin
  execute statement;
  return 'ok';
exception when others then
  return sqlstate || ': ' || sqlerrm;
end;
$$;

set local role tap_trapper;
create function tap_trap.spring(anyelement) returns boolean language plpgsql
as $$ begin raise exception 'sprung as %', current_user; end $$;
create domain pg_temp.text        as pg_catalog.text        check (tap_trap.spring(value));
create domain pg_temp.uuid        as pg_catalog.uuid        check (tap_trap.spring(value));
create domain pg_temp.json        as pg_catalog.json        check (tap_trap.spring(value));
create domain pg_temp.jsonb       as pg_catalog.jsonb       check (tap_trap.spring(value));
create domain pg_temp.timestamptz as pg_catalog.timestamptz check (tap_trap.spring(value));

create temp table tried as
select statement, pg_temp.outcome(statement) as outcome
from (values
  ('select durable.spawn(''q'', ''x'', ''{}'', ''{"start_timeout": 1, "idempotency_key": "k", "headers": {}}'')'::pg_catalog.text),
  ('select durable.spawn_many(''q'', ''[{"task": "x"}]'')'),
  ('select durable.emit_event(''q'', ''e'')'),
  ('select durable.cancel_task(''q'', task_id) from durable.task_list'),
  ('select durable.retry_task(''q'', task_id) from durable.task_list'),
  ('select durable.create_queue(''new'', ''{"keep_tasks": 1}'')'),
  ('select durable.run_maintenance(''q'')'),
  ('select durable.queue_stats(''q'')')
) as statements (statement);
reset role;
drop domain pg_temp.text, pg_temp.uuid, pg_temp.json, pg_temp.jsonb, pg_temp.timestamptz;

select is(outcome, 'ok', 'not trapped: ' || statement) from tried;

select * from finish();
rollback;
