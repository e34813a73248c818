-- The public surface, in full. Nothing is granted to everybody; what is not listed
-- here is private. What is listed runs with the owner's rights, so it sets
-- `search_path = pg_catalog, pg_temp`: with an empty one a caller's temporary types
-- would come before Postgres's own.
--
--   durable_client    spawns, emits, sends, cancels, reads results
--   durable_worker    that, and everything a worker calls
--   durable_operator  reads the views, keeps queues, retries
--
-- Grant one of them to a login, or single functions. Where whoever installs may not
-- create roles they are left out, with a notice, and single functions can be granted.

revoke all on schema durable from public;
revoke all on all tables in schema durable from public;
revoke all on all functions in schema durable from public;

do $$
declare
  _role text;
begin
  foreach _role in array array['durable_client', 'durable_worker', 'durable_operator'] loop
    if to_regrole(_role) is null then
      begin
        case _role
          when 'durable_client' then create role durable_client nologin;
          when 'durable_worker' then create role durable_worker nologin;
          when 'durable_operator' then create role durable_operator nologin;
        end case;
      exception when duplicate_object or unique_violation then
        null; -- it is being installed in another database of this server, too
      end;
    end if;
  end loop;

  grant usage on schema durable to durable_client, durable_worker, durable_operator;

  grant execute on function
    durable.spawn, durable.spawn_many, durable.emit_event, durable.send_message,
    durable.cancel_task, durable.get_task_result, durable.get_task_results, durable.get_endings,
    durable.get_value, durable.get_stream, durable.get_log_lines,
    durable.list_queues, durable.take_door, durable.leave_door, durable.errors, durable.version
  to durable_client, durable_worker, durable_operator;

  grant execute on function
    durable.claim_tasks, durable.get_next_due, durable.list_waiting_names,
    durable.extend_leases, durable.release_tasks, durable.release_unknown,
    durable.load_checkpoints, durable.hold_task, durable.flush, durable.save_checkpoints,
    durable.complete_tasks, durable.fail_tasks, durable.suspend_tasks, durable.poll_waits,
    durable.sleep_until, durable.await_event, durable.await_tasks, durable.spawn_children,
    durable.spawn_children_in, durable.emit_from_task, durable.send_from_task,
    durable.recv_message, durable.publish, durable.load_published, durable.keep_house,
    durable.expire_leases, durable.expire_deadlines, durable.apply_notes, durable.cleanup,
    durable.prune_events, durable.announce_version
  to durable_worker;

  grant execute on function
    durable.create_queue, durable.drop_queue, durable.retry_task, durable.queue_stats,
    durable.fork_task, durable.list_tasks, durable.cancel_tasks, durable.retry_tasks,
    durable.delete_tasks, durable.task_history, durable.export_history, durable.list_children,
    durable.keep_house, durable.expire_leases, durable.expire_deadlines,
    durable.apply_notes, durable.cleanup, durable.prune_events,
    durable.list_versions, durable.promote_version, durable.set_version
  to durable_operator;

  grant select on durable.attempts, durable.waiting, durable.workers, durable.task_list, durable.history
  to durable_operator;
exception when insufficient_privilege then
  raise notice 'durable: no right to create roles; grant its functions one by one';
end;
$$;
