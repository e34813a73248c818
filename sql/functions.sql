-- Loads all functions and views. PL/pgSQL binds late, so the order inside a group is for the
-- reader. The concepts that they share, of which tables.sql has the full rules:
--
-- State. A task is pending, running, sleeping, or has ended: completed, failed, cancelled.
-- tasks.available_at is set while a worker may claim it, now or later, and
-- tasks.lease_expires_at while a worker runs it.
--
-- Fence. Each claim of a task has a number of its own, odd while the task is held. A worker's
-- write names (queue, task_id, claim) and changes nothing if the row has another number by
-- now. After the lease others may claim the task, but until one does its worker may write.
--
-- Lock order. Events, keys and mailboxes before tasks, parents before children, rows of one
-- kind in ascending order. A call waits only for rows that it was asked to change; all
-- others it tries with SKIP LOCKED.
--
-- Deferred work. Work on a row that could not be locked is written to deferred_work in the
-- same transaction, and maintenance does it. Outside READ COMMITTED a call cannot see what
-- was just committed, so there it always defers.
--
-- Watches. A task that waits for another one sets a watch under a share lock on that row, so
-- that the transaction that ends it waits for this commit and then finds the watch.
--
-- Lanes. In a queue whose policy has limits or priorities, waiting tasks have a partition_key,
-- though it may be empty. They are in an index of their own, and claims find them by the rows of
-- `lanes`. A call that makes such a task claimable calls _enlist, and one that ends its claim _free.
--
-- Volatility. A function that reads rows after locking them is never STABLE: a STABLE body
-- reads with its caller's snapshot, from before the lock.
--
-- settings.sql has the settings of functions, grants.sql the roles that may call them.

-- The clock, errors, ids, checks of arguments, retry strategies
\ir clock.sql
\ir errors.sql
\ir ids.sql
\ir checks.sql
\ir retry.sql

-- Waking: what follows when a task finishes, an event is emitted or work arrives
\ir notify.sql
\ir deferred_work.sql
\ir waking.sql
\ir wait_any.sql

-- For everyone: queues, tasks, events, messages, results
\ir queues.sql
\ir tallies.sql
\ir queue_length.sql
\ir spawn.sql
\ir dedup.sql
\ir audit.sql
\ir cancel.sql
\ir retry_task.sql
\ir reschedule.sql
\ir fork.sql
\ir filter.sql
\ir bulk.sql
\ir results.sql
\ir events.sql
\ir messages.sql
\ir published_read.sql

-- For workers: claim a task, save its checkpoints, suspend it, end it
\ir claims.sql
\ir lanes.sql
\ir lane_claims.sql
\ir lane_turns.sql
\ir partition_order.sql
\ir ageing.sql
\ir limits.sql
\ir claim_log.sql
\ir workers.sql
\ir versions.sql
\ir definitions.sql
\ir attempts.sql
\ir checkpoints.sql
\ir waits.sql
\ir resolve_waits.sql
\ir withdraw_waits.sql
\ir published_write.sql
\ir children.sql
\ir cross_queue.sql

-- Schedules: cron expressions, and tasks that are spawned periodically
\ir cron.sql
\ir schedules.sql
\ir ticks.sql

-- Maintenance: expired leases and deadlines, deferred work, schedules, retention
\ir recovery.sql
\ir lane_maintenance.sql
\ir retention.sql
\ir metrics.sql
\ir maintenance.sql

-- For operators
\ir pause.sql
\ir partitions.sql
\ir stats.sql
\ir views.sql
\ir history.sql
\ir explain.sql
\ir lookup.sql
\ir diagnose.sql

-- Functions of an older version, the settings of functions, the public interface
\ir obsolete_functions.sql
\ir settings.sql
\ir grants.sql
