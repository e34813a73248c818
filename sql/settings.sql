-- Applies the settings that functions share.
--
-- Every public function runs with its owner's rights, so it sets its own search_path. An
-- empty one would look up a caller's temporary types before Postgres's own.
--
-- No plan may depend on statistics or on the size of a call's arguments: rows are found by
-- key or by ctid, which is right for empty and for full tables. So public functions switch
-- off sequential scans, bitmap scans and sorts, and use the generic plan, which is made once
-- a session; otherwise Postgres would plan every call by the length of its arrays. All have
-- the same settings, because a private function is planned by its first caller, whichever
-- that is. A setting costs about 0.3 us a call, so functions that read single rows by key in
-- one statement, or that people call once, have none.
--
-- A worker's writes wait at most 200 ms for a row that another session has locked.

do $$
declare
  _unpinned text[] := array[
    'spawn', 'get_task_result', 'poll_results', 'unregister_listener', 'create_queue', 'drop_queue',
    'list_queues', 'list_definitions', 'queue_stats', 'recount_totals', 'errors', 'version'];
  _pinned text[] := array[ -- private functions that an unpinned one calls
    '_enlist', '_take_key', '_same_task', '_spawn_unique', '_hold_parent', '_deadline_of', '_waiting_versions',
    '_forget_versions', '_change_fingerprint', '_require_room', '_is_full', '_quick_counts', '_version_counts',
    '_current_totals'];
  _impatient text[] := array[
    'save_checkpoints', 'flush', 'complete_tasks', 'fail_tasks', 'lock_task', 'load_checkpoints',
    'suspend_tasks', 'poll_waits', 'sleep_until', 'await_event', 'await_tasks', 'release_tasks',
    'spawn_children', 'spawn_children_in', 'emit_from_task', 'send_from_task', 'recv_message', 'publish'];
  _alter text;
begin
  for _alter in
    select format('alter function %s %s', signature, concat_ws(' ',
      case when is_public then 'security definer set search_path = pg_catalog, pg_temp' end,
      case when name = any (_impatient) then $set$set lock_timeout = '200ms'$set$ end,
      case when name = any (_pinned) or is_public and name <> all (_unpinned)
        then 'set enable_seqscan = off set plan_cache_mode = force_generic_plan'
          ' set enable_bitmapscan = off set enable_sort = off set jit = off' end))
    from (
      select oid::regprocedure as signature, proname as name, proname !~ '^_' as is_public
      from pg_proc
      where pronamespace = 'durable'::regnamespace
        and pg_has_role(proowner, 'usage') -- not a function of somebody else
        and oid <> all (string_to_array(current_setting('durable.leftovers'), ',')::oid[])
    ) as function
    where is_public or name = any (_pinned)
  loop
    execute _alter;
  end loop;
end;
$$;
