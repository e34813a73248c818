-- Maintenance: the work that has to be done periodically, outside of claims. Every worker does
-- it, about once a second, also when all its slots are busy. Concurrent calls skip each other's rows, so
-- they neither wait nor do anything twice. No lock decides whose turn it is: another session
-- could hold it. A call holds its rows until it commits, so it does little; a worker whose call
-- reaches its limits calls again at once.

create or replace function durable.run_maintenance(queue text, batch_size integer default 100)
returns durable.maintenance_counts language plpgsql as $$
declare
  _counts durable.maintenance_counts;
begin
  perform durable._forget_versions(durable._checked_queue(queue), batch_size);
  perform durable._update_is_full(queue);
  _counts := (
    durable.expire_leases(queue, batch_size),
    durable.expire_tasks(queue, batch_size * 10),
    durable.apply_deferred_work(queue, batch_size) + durable._leave_lanes(queue, batch_size * 10),
    durable.fire_schedules(queue, batch_size),
    durable.cleanup(queue, batch_size * 10),
    durable.prune_events(queue, batch_size * 10)
  );
  perform durable._prune_lanes(queue, batch_size),
    durable._prune_partitions(queue, batch_size * 10), durable._prune_audit(queue, batch_size * 10),
    durable._measure(queue, batch_size * 100);
  return _counts;
end;
$$;

comment on function durable.run_maintenance is
'Does the maintenance of a queue that is due: expires at most batch_size leases and ten times
as many deadlines, does at most batch_size pieces of deferred work, handles at most batch_size
ticks of schedules, looks for finished tasks and old events to delete among ten times
batch_size of each, deletes as many old entries of audit, counts whether the queue is full
(max_length), and every ten seconds updates its metrics. Returns how many of each it handled.
Refuses a transaction stricter than READ COMMITTED (WFISO). Locks: tries all rows with SKIP
LOCKED; waits for none.';
