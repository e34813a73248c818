-- Grants the public functions and views; everything that is not listed here is private, and
-- nothing is granted to PUBLIC. Listed functions run with their owner's rights (settings.sql).
--
--   durable_client    spawns, emits, sends, cancels, reads results, manages schedules
--   durable_worker    that, and everything a worker calls
--   durable_operator  reads the views, manages queues, retries
--   durable_reader    calls the functions that change nothing, but for those of workers
--
-- Grant one of them to a login, or single functions. If the installing role may not create
-- roles, they are left out with a notice, and single functions can be granted.
--
-- The owner's default privileges would grant every new object to others. So an install and an
-- upgrade revoke all rights on private objects from everybody, and rights on public ones from
-- PUBLIC, from the four roles and from the grantees of the default privileges. Other grants of
-- public functions, of views and of the schema's usage are an operator's, and stay.

revoke all on schema durable from public;
revoke all on all tables in schema durable from public;
revoke all on all functions in schema durable from public;

do $$
declare
  _revoke text;
begin
  for _revoke in
    with reset as (
      select acl.grantee
      from pg_default_acl
      cross join aclexplode(pg_default_acl.defaclacl) as acl
      where pg_default_acl.defaclrole in (
          current_user::regrole, (select nspowner from pg_namespace where nspname = 'durable'))
      union
      select 0
      union
      select pg_roles.oid
      from pg_roles
      where pg_roles.rolname in
        ('durable_client', 'durable_worker', 'durable_operator', 'durable_reader')
    ),
    object as (
      select 'schema durable' as name, nspowner as owner, nspacl as acl, true as is_public
      from pg_namespace
      where nspname = 'durable'
      union all
      select format('function %s', oid::regprocedure), proowner, proacl, proname !~ '^_'
      from pg_proc
      where pronamespace = 'durable'::regnamespace
      union all
      select format('table %s', oid::regclass), relowner,
        relacl || array(
          select column_acl
          from pg_attribute
          cross join unnest(pg_attribute.attacl) as column_acl
          where pg_attribute.attrelid = pg_class.oid),
        relkind = 'v'
      from pg_class
      where relnamespace = 'durable'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      union all
      select format('type %s', oid::regtype), typowner, typacl, false
      from pg_type
      where typnamespace = 'durable'::regnamespace and typtype in ('c', 'd', 'e', 'r')
    ),
    granted as (
      select distinct
        object.name,
        case when object.name = 'schema durable' and reset.grantee is null then 'create' else 'all' end as privilege,
        case acl.grantee when 0 then 'public' else acl.grantee::regrole::text end as grantee
      from object
      cross join aclexplode(object.acl) as acl
      left join reset using (grantee)
      where acl.grantee not in (object.owner, current_user::regrole)
        and not (object.name like 'type %' and acl.grantee = 0) -- a caller may name a result's type
        and (reset.grantee is not null or not object.is_public
          or acl.privilege_type in ('CREATE', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER', 'REFERENCES'))
    )
    select format('revoke %s on %s from %s cascade',
      granted.privilege, granted.name, string_agg(granted.grantee, ', '))
    from granted
    group by granted.name, granted.privilege
  loop
    execute _revoke;
  end loop;
end;
$$;

do $$
declare
  _role text;
begin
  foreach _role in array array[
    'durable_client', 'durable_worker', 'durable_operator', 'durable_reader']
  loop
    if to_regrole(_role) is null then
      begin
        execute format('create role %I nologin', _role);
      exception when duplicate_object or unique_violation then
        null; -- an install in another database of this server has just created it
      end;
    end if;
  end loop;

  grant usage on schema durable
  to durable_client, durable_worker, durable_operator, durable_reader;

  grant execute on function
    durable.list_queues, durable.list_definitions, durable.errors, durable.version,
    durable.list_schedules, durable.list_schedule_runs, durable.next_fires,
    durable.get_task_result, durable.get_task_results, durable.poll_results,
    durable.get_value, durable.get_stream, durable.get_log_lines, durable.queue_stats,
    durable.list_tasks, durable.list_children, durable.task_history, durable.task_timeline,
    durable.export_history, durable.explain_task, durable.list_versions, durable.list_workers,
    durable.list_audit, durable.find_task, durable.get_task, durable.list_events,
    durable.list_published, durable.list_partitions, durable.diagnose, durable.count_tasks,
    durable.queue_throughput, durable.queue_depth, durable.task_totals
  to durable_reader;

  grant execute on function
    durable.spawn, durable.spawn_many, durable.emit_event, durable.send_message,
    durable.cancel_task, durable.reschedule_task, durable.reprioritize_task, durable.get_task_result, durable.get_task_results, durable.poll_results,
    durable.get_value, durable.get_stream, durable.get_log_lines,
    durable.list_queues, durable.list_definitions, durable.register_listener, durable.unregister_listener, durable.errors, durable.version,
    durable.create_schedule, durable.drop_schedule, durable.apply_schedules, durable.pause_schedule,
    durable.resume_schedule, durable.trigger_schedule, durable.backfill_schedule,
    durable.list_schedules, durable.list_schedule_runs, durable.next_fires
  to durable_client, durable_worker, durable_operator;

  grant execute on function
    durable.claim_tasks, durable.get_next_due, durable.list_waiting_names,
    durable.extend_leases, durable.release_tasks, durable.release_unknown,
    durable.load_checkpoints, durable.lock_task, durable.flush, durable.save_checkpoints,
    durable.complete_tasks, durable.fail_tasks, durable.suspend_tasks, durable.poll_waits,
    durable.sleep_until, durable.await_event, durable.await_tasks, durable.spawn_children,
    durable.spawn_children_in, durable.emit_from_task, durable.send_from_task,
    durable.recv_message, durable.publish, durable.load_published, durable.run_maintenance,
    durable.expire_leases, durable.expire_tasks, durable.apply_deferred_work, durable.cleanup,
    durable.prune_events, durable.fire_schedules, durable.announce_worker,
    durable.remove_worker, durable.announce_definitions, durable.announce_schedules
  to durable_worker;

  grant execute on function
    durable.create_queue, durable.drop_queue, durable.retry_task, durable.queue_stats,
    durable.fork_task, durable.list_tasks, durable.cancel_tasks, durable.retry_tasks,
    durable.delete_tasks, durable.task_history, durable.task_timeline, durable.export_history, durable.list_children,
    durable.run_maintenance, durable.expire_leases, durable.expire_tasks,
    durable.apply_deferred_work, durable.cleanup, durable.prune_events, durable.fire_schedules,
    durable.diagnose, durable.find_task, durable.get_task, durable.list_events, durable.list_published,
    durable.list_audit, durable.list_workers, durable.list_versions, durable.promote_version,
    durable.set_version,
    durable.pause_queue, durable.resume_queue, durable.explain_task, durable.set_partition_limit,
    durable.list_partitions, durable.count_tasks, durable.queue_throughput, durable.queue_depth,
    durable.task_totals, durable.recount_totals
  to durable_operator;

  grant select on durable.attempts, durable.waiting, durable.workers, durable.task_list, durable.history
  to durable_operator;
exception when insufficient_privilege then
  raise notice 'durable: no right to create roles; grant its functions one by one';
end;
$$;
