-- Notifies idle workers and waiting clients, but only if one listens.
--
-- NOTIFY takes a database-wide lock at commit and would cost more than half of a spawn. So a
-- listener with nothing to do holds an exclusive advisory lock for its queue, here called a
-- channel, on the connection that listens. A transaction that makes work tries the same lock
-- shared. If it gets the lock, nobody listens, and since it keeps the lock until it commits,
-- nobody can start to listen before the work is visible. If it does not, somebody listens
-- and is notified. This needs no table and no heartbeat: a dead session releases its lock.
--
-- Polling stays the guarantee: where sessions are shared (a transaction pooler, a sharded
-- database) nobody can hold a channel, and nobody is notified. A transaction that has notified
-- cannot be prepared for a two-phase commit; a session that sets durable.notify = off never
-- notifies.

create or replace function durable.register_listener(queue text, channel text default 'work')
returns boolean language plpgsql as $$
begin
  if channel is null or channel collate "C" not in ('work', 'results', 'published') then
    perform durable._refuse_argument('there is no such channel', 'Pass work, results or published.');
  end if;
  return pg_try_advisory_lock(hashtext('durable.' || channel), hashtext(durable._checked_queue(queue)));
end;
$$;

comment on function durable.register_listener is
'Registers this session as a listener: it is notified as long as it holds the lock called
channel. Listen on the channel of the channel:

- work: durable_work, when a task of the queue becomes claimable; payload: the queue.
- results: durable_results, when a task of the queue finishes; payload: the queue.
- published: durable_published, when a task of the queue publishes something; payload: the task''s id.

Returns false if another session holds the channel: poll instead. After it returns true, look
once more before you wait. Refuses any other channel and a queue the caller may not use (22023,
42501). Locks: a session-level advisory lock; it never waits.';

-- Ignores the queue's roles: a caller that has lost the right must still be able to release.
create or replace function durable.unregister_listener(queue text, channel text default 'work')
returns void language plpgsql as $$
begin
  perform pg_advisory_unlock(hashtext('durable.' || channel), hashtext(queue));
end;
$$;

comment on function durable.unregister_listener is
'Releases the channel that register_listener took. Does nothing if this session does not hold it.';

-- Call it after the transaction has taken its last lock.
create or replace function durable._notify_listeners(queue text, channel text)
returns void language plpgsql as $$
begin
  if durable._must_notify(queue, channel) then
    perform pg_notify('durable_' || channel, queue);
  end if;
end;
$$;

-- Whether this session may notify: see the setting durable.notify.
create or replace function durable._notify_enabled()
returns boolean language sql stable as $$
  select coalesce(current_setting('durable.notify', true), '') not in ('off', 'false', 'no', '0');
$$;

-- Whether a listener has to be notified. Frequent callers use this rather than
-- _notify_listeners: it is inlined, where a PL/pgSQL call would be a statement of its own.
create or replace function durable._must_notify(queue text, channel text)
returns boolean language sql volatile as $$
  select durable._notify_enabled()
    and not pg_try_advisory_xact_lock_shared(hashtext('durable.' || channel), hashtext(queue));
$$;
