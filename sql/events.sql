-- Events: facts written once. The first to emit wins, and wakes whoever waits.
--
-- A waiting task leaves a row without a payload, held FOR SHARE until its wait has
-- committed; the emitter updates that row, so it first waits for those under way and
-- then reads the waits. What it costs the emitter does not grow with the waiters:
-- beyond the first hundred it leaves a note.

create or replace function durable.emit_event(queue text, event text, payload jsonb default 'null')
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
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
'Emits an event, in the caller''s transaction, and wakes every task that waits for it.
Returns whether this was the first time: later payloads are ignored. Refuses an
unknown queue WFQUE and a bad name or payload 22023.';


create or replace function durable._write_event(queue text, event text, payload jsonb)
returns boolean
language plpgsql
as $$
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


-- In order of their ids, so that a note can say where to go on.
create or replace function durable._wake_waiters(
  queue text, event text, first uuid default null, most integer default 100
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _event text collate "C" := event;
  _first uuid := coalesce(first, '00000000-0000-0000-0000-000000000000');
  _waiters uuid[];
begin
  if not durable._sees_the_latest() then
    perform durable._leave_note(_queue, 'event', first, _event);
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
    perform durable._leave_note(_queue, 'event', _waiters[most + 1], _event);
  end if;
  perform durable._wake_all(_queue, _waiters[:most]);
end;
$$;


create or replace function durable._is_emitted(queue text, event text)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _event text collate "C" := event;
begin
  perform
  from durable.events
  where events.queue = _queue and events.name = _event and events.emitted_at is not null;
  return found;
end;
$$;
