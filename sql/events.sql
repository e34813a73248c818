-- Events: facts that are written once. The first emitter wins, and wakes the waiting tasks.
--
-- A waiting task inserts a row without a payload and holds it FOR SHARE until its wait has
-- committed. The emitter updates that row, so it waits for those transactions and then reads
-- the waits. Its cost does not grow with the number of waiters: after the first hundred it
-- defers them.

create or replace function durable.emit_event(queue text, event text, payload jsonb default 'null')
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._require_queue(_queue);
  perform durable._checked_name('event name', event, 255);
  perform durable._checked_size('payload', payload);
  if not durable._write_event(_queue, event, payload) then
    return false;
  end if;
  perform durable._wake_waiters(_queue, event);
  return true;
end;
$$;

comment on function durable.emit_event is
'Emits an event, in the caller''s transaction, and wakes every task that waits for it. event:
a name of at most 255 bytes. Returns whether this was the first time: later payloads are
ignored. Refuses an unknown queue (WFQUE) and a bad name or payload (22023). Locks: the
event''s row, until commit, after waiting for other emitters and for tasks that are about to
wait for it; waiting tasks are tried with SKIP LOCKED.';

create or replace function durable._write_event(queue text, event text, payload jsonb)
returns boolean language plpgsql as $$
declare
  _now timestamptz := durable._now();
  _payload jsonb := coalesce(payload, 'null');
begin
  insert into durable.events (queue, name, emitted_at, payload)
  values (queue, event, _now, _payload)
  on conflict on constraint events_pkey do update
  set emitted_at = excluded.emitted_at, payload = excluded.payload
  where events.emitted_at is null;
  return found;
end;
$$;

-- Wakes in the order of ids, so that deferred work can say where to continue.
create or replace function durable._wake_waiters(
  queue text, event text, first uuid default null, most integer default 100
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _event text collate "C" := event;
  _first uuid := coalesce(first, '00000000-0000-0000-0000-000000000000');
  _waiters uuid[];
begin
  if not durable._is_read_committed() then
    perform durable._defer(_queue, 'event', first, _event);
    return;
  end if;
  _waiters := array(
    select distinct waits.task_id
    from durable.waits
    where waits.queue = _queue and waits.event_name = _event and waits.task_id >= _first
    order by waits.task_id
    limit most + 1
  );
  if cardinality(_waiters) > most then
    perform durable._defer(_queue, 'event', _waiters[most + 1], _event);
  end if;
  perform durable._wake_all(_queue, _waiters[1:most]);
end;
$$;
