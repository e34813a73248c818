begin;
\ir ../_setup.sql
select plan(9);

-- The API, in full. Who changes it changes this list, and the version.

create temp table surface (call, returns, granted_to) as values
  -- client operator worker
  ('cancel_task(queue text, task_id uuid, reason text DEFAULT NULL::text)',
   'boolean', 'client operator worker'),
  ('reschedule_task(queue text, task_id uuid, run_at timestamp with time zone)',
   'boolean', 'client operator worker'),
  ('reprioritize_task(queue text, task_id uuid, priority integer)',
   'void', 'client operator worker'),
  ('emit_event(queue text, event text, payload jsonb DEFAULT ''null''::jsonb)',
   'boolean', 'client operator worker'),
  ('errors()',
   'TABLE(code text, name text, meaning text)', 'client operator reader worker'),
  ('poll_results(queue text, task_ids uuid[])',
   'SETOF durable.task_result', 'client operator reader worker'),
  ('get_log_lines(queue text, task_id uuid, start integer DEFAULT 0, page_size integer DEFAULT 1000)',
   'SETOF durable.log_line', 'client operator reader worker'),
  ('get_stream(queue text, task_id uuid, stream text, start integer DEFAULT 0, page_size integer DEFAULT 1000)',
   'SETOF durable.stream_entry', 'client operator reader worker'),
  ('get_task_result(queue text, task_id uuid)',
   'SETOF durable.task_result', 'client operator reader worker'),
  ('get_task_results(queue text, task_ids uuid[])',
   'SETOF durable.task_result', 'client operator reader worker'),
  ('get_value(queue text, task_id uuid, key text)',
   'SETOF durable.published_value', 'client operator reader worker'),
  ('unregister_listener(queue text, channel text DEFAULT ''work''::text)',
   'void', 'client operator worker'),
  ('list_definitions(queue text)',
   'SETOF durable.task_definition', 'client operator reader worker'),
  ('list_queues()',
   'SETOF text', 'client operator reader worker'),
  ('send_message(queue text, task_id uuid, topic text, payload jsonb DEFAULT ''null''::jsonb, dedup_key text DEFAULT NULL::text)',
   'boolean', 'client operator worker'),
  ('spawn(queue text, task text, params jsonb DEFAULT ''{}''::jsonb, options jsonb DEFAULT ''{}''::jsonb)',
   'durable.spawned_task', 'client operator worker'),
  ('spawn_many(queue text, tasks jsonb)',
   'SETOF durable.spawned_task', 'client operator worker'),
  ('register_listener(queue text, channel text DEFAULT ''work''::text)',
   'boolean', 'client operator worker'),
  ('version()',
   'text', 'client operator reader worker'),
  ('apply_schedules(queue text, schedules jsonb)',
   'integer', 'client operator worker'),
  ('backfill_schedule(queue text, schedule text, start_at timestamp with time zone, end_at timestamp with time zone)',
   'SETOF durable.spawned_task', 'client operator worker'),
  ('create_schedule(queue text, schedule text, definition jsonb)',
   'boolean', 'client operator worker'),
  ('drop_schedule(queue text, schedule text)',
   'boolean', 'client operator worker'),
  ('list_schedule_runs(queue text, schedule text, page_size integer DEFAULT 100, before timestamp with time zone DEFAULT NULL::timestamp with time zone)',
   'SETOF durable.schedule_run', 'client operator reader worker'),
  ('list_schedules(queue text, page_size integer DEFAULT 1000, after text DEFAULT NULL::text)',
   'SETOF durable.listed_schedule', 'client operator reader worker'),
  ('next_fires(cron text, time_zone text DEFAULT ''UTC''::text, after timestamp with time zone DEFAULT NULL::timestamp with time zone, count integer DEFAULT 5)',
   'SETOF timestamp with time zone', 'client operator reader worker'),
  ('pause_schedule(queue text, schedule text)',
   'boolean', 'client operator worker'),
  ('resume_schedule(queue text, schedule text)',
   'boolean', 'client operator worker'),
  ('trigger_schedule(queue text, schedule text)',
   'durable.spawned_task', 'client operator worker'),
  -- worker
  ('announce_definitions(queue text, definitions jsonb, version text DEFAULT NULL::text, starts boolean DEFAULT true)',
   'integer', 'worker'),
  ('announce_schedules(queue text, schedules jsonb, tasks text[])',
   'integer', 'worker'),
  ('announce_worker(queue text, worker text, about jsonb DEFAULT ''{}''::jsonb)',
   'SETOF text', 'worker'),
  ('remove_worker(queue text, worker text)',
   'boolean', 'worker'),
  ('await_event(queue text, task_id uuid, claim integer, name text, event text, timeout double precision DEFAULT NULL::double precision)',
   'durable.wait_outcome', 'worker'),
  ('await_tasks(queue text, task_id uuid, claim integer, name text, task_ids uuid[], timeout double precision DEFAULT NULL::double precision)',
   'durable.wait_outcome', 'worker'),
  ('claim_tasks(queue text, worker text, names text[] DEFAULT NULL::text[], batch_size integer DEFAULT 1, lease double precision DEFAULT 30, after_at timestamp with time zone[] DEFAULT NULL::timestamp with time zone[], after_ids uuid[] DEFAULT NULL::uuid[], version text DEFAULT NULL::text)',
   'SETOF durable.claimed_task', 'worker'),
  ('complete_tasks(queue text, tasks json)',
   'SETOF durable.write_outcome', 'worker'),
  ('emit_from_task(queue text, task_id uuid, claim integer, name text, event text, payload jsonb DEFAULT ''null''::jsonb, "position" integer DEFAULT 0, after integer DEFAULT 0)',
   'boolean', 'worker'),
  ('extend_leases(queue text, tasks json, lease double precision DEFAULT 30)',
   'SETOF durable.write_outcome', 'worker'),
  ('fail_tasks(queue text, tasks json)',
   'SETOF durable.write_outcome', 'worker'),
  ('flush(queue text, checkpoints json, completions json, failures json)',
   'SETOF durable.write_outcome', 'worker'),
  ('get_next_due(queue text, names text[] DEFAULT NULL::text[], version text DEFAULT NULL::text)',
   'double precision', 'worker'),
  ('lock_task(queue text, task_id uuid, claim integer, name text)',
   'durable.loaded_checkpoint', 'worker'),
  ('list_waiting_names(queue text)',
   'SETOF text', 'worker'),
  ('load_checkpoints(queue text, tasks json)',
   'SETOF durable.loaded_checkpoint', 'worker'),
  ('load_published(queue text, task_id uuid)',
   'SETOF durable.publication', 'worker'),
  ('poll_waits(queue text, tasks json)',
   'SETOF durable.wait_outcome', 'worker'),
  ('recv_message(queue text, task_id uuid, claim integer, name text, topic text, timeout double precision DEFAULT NULL::double precision)',
   'durable.wait_outcome', 'worker'),
  ('publish(queue text, published json, checkpoints json DEFAULT NULL::json, completions json DEFAULT NULL::json, failures json DEFAULT NULL::json)',
   'SETOF durable.write_outcome', 'worker'),
  ('release_tasks(queue text, tasks json)',
   'SETOF durable.write_outcome', 'worker'),
  ('release_unknown(queue text, worker text, known uuid[])',
   'integer', 'worker'),
  ('save_checkpoints(queue text, checkpoints json)',
   'SETOF durable.write_outcome', 'worker'),
  ('send_from_task(queue text, task_id uuid, claim integer, name text, to_queue text, to_task_id uuid, topic text, payload jsonb DEFAULT ''null''::jsonb, dedup_key text DEFAULT NULL::text, "position" integer DEFAULT 0, after integer DEFAULT 0)',
   'boolean', 'worker'),
  ('sleep_until(queue text, task_id uuid, claim integer, name text, until timestamp with time zone)',
   'durable.wait_outcome', 'worker'),
  ('spawn_children(queue text, task_id uuid, claim integer, children jsonb)',
   'SETOF durable.spawned_child', 'worker'),
  ('spawn_children_in(queue text, task_id uuid, claim integer, child_queue text, children jsonb)',
   'SETOF durable.spawned_child', 'worker'),
  ('suspend_tasks(queue text, tasks json)',
   'SETOF durable.wait_outcome', 'worker'),
  -- operator worker
  ('apply_deferred_work(queue text, batch_size integer DEFAULT 100)',
   'integer', 'operator worker'),
  ('cleanup(queue text, batch_size integer DEFAULT 1000)',
   'integer', 'operator worker'),
  ('expire_tasks(queue text, batch_size integer DEFAULT 100)',
   'integer', 'operator worker'),
  ('expire_leases(queue text, batch_size integer DEFAULT 100)',
   'integer', 'operator worker'),
  ('run_maintenance(queue text, batch_size integer DEFAULT 100)',
   'durable.maintenance_counts', 'operator worker'),
  ('fire_schedules(queue text, batch_size integer DEFAULT 100)',
   'integer', 'operator worker'),
  ('prune_events(queue text, batch_size integer DEFAULT 1000)',
   'integer', 'operator worker'),
  -- operator
  ('create_queue(queue text, policy jsonb DEFAULT ''{}''::jsonb)',
   'boolean', 'operator'),
  ('drop_queue(queue text)',
   'boolean', 'operator'),
  ('cancel_tasks(queue text, filter jsonb, page_size integer DEFAULT 1000, after uuid DEFAULT NULL::uuid, reason text DEFAULT NULL::text)',
   'durable.bulk_progress', 'operator'),
  ('delete_tasks(queue text, filter jsonb, page_size integer DEFAULT 1000, after uuid DEFAULT NULL::uuid)',
   'durable.bulk_progress', 'operator'),
  ('export_history(queue text, task_id uuid)',
   'json', 'operator reader'),
  ('fork_task(queue text, task_id uuid, options jsonb DEFAULT ''{}''::jsonb)',
   'durable.spawned_task', 'operator'),
  ('list_children(queue text, task_id uuid, page_size integer DEFAULT 1000, after uuid DEFAULT NULL::uuid)',
   'TABLE(child_queue text, child durable.listed_task)', 'operator reader'),
  ('list_tasks(queue text, filter jsonb DEFAULT ''{}''::jsonb, page_size integer DEFAULT 100, after uuid DEFAULT NULL::uuid, scan integer DEFAULT 10000)',
   'SETOF durable.listed_task', 'operator reader'),
  ('count_tasks(queue text, filter jsonb DEFAULT ''{}''::jsonb, page_size integer DEFAULT 10000, after uuid DEFAULT NULL::uuid)',
   'durable.task_count', 'operator reader'),
  ('retry_tasks(queue text, filter jsonb, page_size integer DEFAULT 1000, after uuid DEFAULT NULL::uuid)',
   'durable.bulk_progress', 'operator'),
  ('task_history(queue text, task_id uuid)',
   'SETOF durable.history_entry', 'operator reader'),
  ('diagnose()',
   'SETOF durable.finding', 'operator reader'),
  ('find_task(task_id uuid)',
   'text', 'operator reader'),
  ('get_task(queue text, task_id uuid)',
   'durable.task_record', 'operator reader'),
  ('list_events(queue text, prefix text DEFAULT ''''::text, page_size integer DEFAULT 100, after text DEFAULT NULL::text, waited_for boolean DEFAULT false)',
   'SETOF durable.listed_event', 'operator reader'),
  ('list_published(queue text, task_id uuid, page_size integer DEFAULT 1000)',
   'SETOF durable.listed_publication', 'operator reader'),
  ('task_timeline(queue text, task_id uuid, depth integer DEFAULT 2, after timestamp with time zone DEFAULT NULL::timestamp with time zone, page_size integer DEFAULT 100)',
   'SETOF durable.timeline_entry', 'operator reader'),
  ('list_audit(queue text DEFAULT NULL::text, filter jsonb DEFAULT ''{}''::jsonb, page_size integer DEFAULT 100, after uuid DEFAULT NULL::uuid)',
   'SETOF durable.audit_entry', 'operator reader'),
  ('list_workers(queue text DEFAULT NULL::text)',
   'SETOF durable.listed_worker', 'operator reader'),
  ('list_versions(queue text DEFAULT NULL::text)',
   'SETOF durable.version_statistics', 'operator reader'),
  ('explain_task(queue text, task_id uuid)',
   'SETOF durable.explanation', 'operator reader'),
  ('pause_queue(queue text, task text DEFAULT NULL::text)',
   'boolean', 'operator'),
  ('resume_queue(queue text, task text DEFAULT NULL::text)',
   'boolean', 'operator'),
  ('promote_version(queue text, version text)',
   'boolean', 'operator'),
  ('set_partition_limit(queue text, partition_key text, limits jsonb)',
   'void', 'operator'),
  ('list_partitions(queue text, page_size integer DEFAULT 100, after text DEFAULT NULL::text)',
   'SETOF durable.listed_partition', 'operator reader'),
  ('set_version(queue text, version text, task_ids uuid[] DEFAULT NULL::uuid[], from_version text DEFAULT NULL::text, batch_size integer DEFAULT 1000)',
   'integer', 'operator'),
  ('queue_stats(queue text DEFAULT NULL::text, exact boolean DEFAULT false)',
   'SETOF durable.queue_statistics', 'operator reader'),
  ('queue_throughput(queue text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, bucket interval DEFAULT ''00:01:00''::interval, by_name boolean DEFAULT false)',
   'SETOF durable.throughput', 'operator reader'),
  ('queue_depth(queue text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, bucket interval DEFAULT ''00:01:00''::interval)',
   'SETOF durable.depth', 'operator reader'),
  ('recount_totals(queue text)',
   'bigint', 'operator'),
  ('task_totals(queue text)',
   'SETOF durable.task_total', 'operator reader'),
  ('retry_task(queue text, task_id uuid, options jsonb DEFAULT ''{}''::jsonb)',
   'durable.spawned_task', 'operator');

create function pg_temp.grantees(acl aclitem[])
returns text
language sql
as $$
  select string_agg(
    case grantee when 0 then 'public' else replace(grantee::regrole::text, 'durable_', '') end, ' '
    order by grantee::regrole::text)
  from aclexplode(acl)
  where grantor <> grantee;
$$;

select set_eq(
  $$ select format('%s(%s)', proname, pg_get_function_arguments(oid)), pg_get_function_result(oid)
     from pg_proc where pronamespace = 'durable'::regnamespace and proname !~ '^_' $$,
  $$ select call, returns from surface $$,
  'the public functions are these, with these arguments and results');
select set_eq(
  $$ select format('%s(%s)', proname, pg_get_function_arguments(oid)), pg_temp.grantees(proacl)
     from pg_proc where pronamespace = 'durable'::regnamespace and proname !~ '^_' $$,
  $$ select call, granted_to from surface $$,
  'they are granted to exactly these roles');
select is_empty(
  $$ select proname, pg_temp.grantees(proacl) from pg_proc
     where pronamespace = 'durable'::regnamespace and proname ~ '^_'
       and (proacl is null or pg_temp.grantees(proacl) is not null)
       and oid <> 'durable._now()'::regprocedure $$,
  'a function whose name begins with _ is granted to nobody');
select is_empty(
  $$ select proname from pg_proc
     where pronamespace = 'durable'::regnamespace and (proacl is null or pg_temp.grantees(proacl) ~ 'public') $$,
  'no function is granted to everybody');
select results_eq(
  $$ select relname::text collate "default", pg_temp.grantees(relacl) from pg_class
     where relnamespace = 'durable'::regnamespace and pg_temp.grantees(relacl) is not null order by 1 $$,
  $$ values ('attempts', 'operator'), ('history', 'operator'), ('task_list', 'operator'), ('waiting', 'operator'),
       ('workers', 'operator') $$,
  'of the tables and views only the views are granted, to operators');
select is_empty(
  $$ select relname, privilege_type from pg_class cross join aclexplode(relacl)
     where relnamespace = 'durable'::regnamespace and grantor <> grantee and privilege_type <> 'SELECT' $$,
  'and only to be read');
select is(pg_temp.grantees(nspacl), 'client operator reader worker', 'the schema is open to the four roles')
from pg_namespace where nspname = 'durable';
select is_empty(
  $$ select rolname from pg_roles
     where rolname in ('durable_client', 'durable_worker', 'durable_operator', 'durable_reader')
       and (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolbypassrls) $$,
  'none of which can log in, or anything else');
select matches(durable.version(), '^\d+\.\d+\.\d+$', 'version() is major.minor.patch');

select * from finish();
rollback;
