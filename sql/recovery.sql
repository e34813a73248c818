-- What time ends: leases and deadlines. Range scans, bounded, skipping what others
-- hold; each row in a sub-transaction of its own, so that one poisoned row cannot
-- stop the others: it is pushed a minute away, with a warning.

create or replace function durable.expire_leases(queue text, quantity integer default 100)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _now timestamptz := durable._now();
  _lost record;
  _expired integer := 0;
  _ended uuid[] := array[]::uuid[];
begin
  for _lost in
    select tasks.task_id, tasks.worker, tasks.lease_expires_at
    from durable.tasks
    where tasks.queue = _queue and tasks.lease_expires_at <= _now
    order by tasks.lease_expires_at
    limit quantity
    for no key update skip locked
  loop
    begin
      perform durable._end_attempt(_queue, _lost.task_id, 'lease_lost', jsonb_build_object(
        'type', '$LeaseExpired',
        'message', format('worker "%s" neither finished nor extended its lease in time', _lost.worker)),
        true);
      if not durable._is_live(_queue, _lost.task_id) then
        _ended := _ended || _lost.task_id;
      end if;
      _expired := _expired + 1;
    exception when others then
      raise warning 'durable: the lost lease of task % cannot be handled: %', _lost.task_id, sqlerrm;
      update durable.tasks set lease_expires_at = _now + make_interval(secs => 60)
      where tasks.queue = _queue and tasks.task_id = _lost.task_id;
    end;
  end loop;
  perform durable._ended(_queue, _ended);
  return _expired;
end;
$$;

comment on function durable.expire_leases is
'Ends at most quantity attempts whose lease has run out, as $LeaseExpired: they count as
attempts, and are retried at once if any is left. Returns how many.';


create or replace function durable.expire_deadlines(queue text, quantity integer default 100)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _now timestamptz := durable._now();
  _late record;
  _ended uuid[] := array[]::uuid[];
begin
  for _late in
    select tasks.task_id, tasks.started_at
    from durable.tasks
    where tasks.queue = _queue and tasks.deadline_at <= _now
    order by tasks.deadline_at
    limit quantity
    for no key update skip locked
  loop
    begin
      if durable._cancel_one(_queue, _late.task_id, jsonb_build_object(
        'type', '$DeadlineExceeded',
        'message', case when _late.started_at is null then 'not started within max_delay'
          else 'not finished within max_duration' end))
      then
        _ended := _ended || _late.task_id;
      end if;
    exception when others then
      raise warning 'durable: the deadline of task % cannot be handled: %', _late.task_id, sqlerrm;
      update durable.tasks set deadline_at = _now + make_interval(secs => 60)
      where tasks.queue = _queue and tasks.task_id = _late.task_id;
    end;
  end loop;
  perform durable._ended(_queue, _ended);
  return cardinality(_ended);
end;
$$;

comment on function durable.expire_deadlines is
'Cancels at most quantity tasks whose max_delay or max_duration has passed, and what
lives below them. Returns how many.';


-- Tasks that have just ended badly, in this transaction. If what follows from that
-- cannot be done, their end still stands, and the rest is left to notes.
create or replace function durable._ended(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
begin
  if task_ids <> '{}' then
    perform durable._finished(queue, task_ids);
    perform durable._cascade(queue, ended.task_id) from unnest(task_ids) as ended (task_id);
  end if;
exception when others then
  raise warning 'durable: what follows from the end of % cannot be done yet: %', task_ids, sqlerrm;
  perform
    durable._leave_note(queue, 'finished', ended.task_id),
    durable._leave_note(queue, 'cascade', ended.task_id)
  from unnest(task_ids) as ended (task_id);
end;
$$;
