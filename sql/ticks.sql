-- The ticks of schedules, the times at which they are due, and the tasks that they spawn.
--
-- The session that handles a tick locks the schedule's row, spawns the task and sets next_at to
-- the next tick, in one transaction. The task's idempotency key consists of the schedule's name
-- and the tick, so a backfill, or a clock that was set back, does not spawn a second task.
--
-- A tick that has to wait stays due: next_at does not move. So nothing else has to be stored,
-- and nothing can be lost: maintenance looks again once a second.

-- Returns the first tick after a moment; null: there is none.
create or replace function durable._next_tick(schedule durable.schedules, after timestamptz)
returns timestamptz language plpgsql immutable as $$
begin
  if schedule.every is not null then
    return to_timestamp((floor(extract(epoch from after) / schedule.every) + 1) * schedule.every);
  end if;
  return durable._next_fire(durable._parsed_cron(schedule.cron), schedule.time_zone, after);
end;
$$;

-- Returns the ticks after a moment and not after another, at most `most`, in ascending order.
create or replace function durable._ticks(
  schedule durable.schedules, after timestamptz, until timestamptz, most integer
) returns setof timestamptz language plpgsql immutable as $$
declare
  _tick timestamptz := after;
begin
  for _number in 1 .. most loop
    _tick := durable._next_tick(schedule, _tick);
    exit when (_tick <= until) is not true;
    return next _tick;
  end loop;
end;
$$;

create or replace function durable._run_prefix(schedule text)
returns text language sql immutable as $$
  select 'schedule/' || schedule || '/';
$$;

-- Returns the idempotency key of a run: the greater, the later.
create or replace function durable._run_key(schedule text, at timestamptz)
returns text language sql stable as $$
  select durable._run_prefix(schedule)
    || to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    || case when extract(microseconds from at)::integer % 1000000 = 0 then ''
      else to_char(at at time zone 'UTC', '.US') end;
$$;

create or replace function durable._iso_text(at timestamptz)
returns text language sql stable as $$
  select to_jsonb(at at time zone 'UTC') #>> '{}' || 'Z';
$$;

-- Returns the task of a run; spawns it if there is none. The caller has locked the schedule. A
-- known task is not compared: the schedule's params may have changed since.
create or replace function durable._spawn_run(
  schedule durable.schedules, at timestamptz, key text
) returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := schedule.queue;
  _key text collate "C" := key;
  _task_id uuid;
  _attempt integer;
begin
  select idempotency_keys.task_id into _task_id
  from durable.idempotency_keys
  where idempotency_keys.queue = _queue and idempotency_keys.key = _key;
  if not found then
    return durable.spawn(_queue, schedule.task, schedule.params,
      durable._run_options(schedule, at, key));
  end if;
  select tasks.attempt into _attempt
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _task_id;
  return (_task_id, durable._run_id(_task_id, _attempt), _attempt, false);
end;
$$;

-- The jitter depends on the key alone, so a tick that is handled again has the same one.
create or replace function durable._run_options(
  schedule durable.schedules, at timestamptz, key text
) returns jsonb language sql stable as $$
  select schedule.options || jsonb_build_object('idempotency_key', key)
    || case when schedule.options -> 'headers' = 'null' then '{}'
      else jsonb_build_object('headers', coalesce(schedule.options -> 'headers', '{}')
        || jsonb_build_object('durable:schedule', jsonb_build_object(
          'name', schedule.schedule, 'at', durable._iso_text(at)))) end
    || case when schedule.jitter is null then '{}'
      else jsonb_build_object('run_at', durable._iso_text(at + make_interval(
        secs => schedule.jitter * ('x' || left(md5(key), 8))::bit(32)::bigint / 4294967296))) end;
$$;

create or replace function durable.fire_schedules(queue text, batch_size integer default 100)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _now timestamptz := durable._now();
  _due text[] collate "C" := array(
    select schedules.schedule
    from durable.schedules
    where schedules.queue = _queue
      and schedules.next_at <= _now
      and (schedules.failed_at > _now - make_interval(secs => 60)) is not true
      and not durable._is_buffered(schedules)
    order by schedules.next_at
    limit batch_size
    for no key update skip locked);
begin
  return case when _due = '{}' then 0 else durable._fire_all(_queue, _due, _now, batch_size) end;
end;
$$;

comment on function durable.fire_schedules is
'Handles at most batch_size due ticks of schedules: spawns their tasks, as create_schedule says. A
schedule that fails is tried again after a minute, and does not affect the others; one whose
queue is full, at the next call. Returns how many ticks it handled. Locks: tries each
schedule''s row, and a task that it cancels, with SKIP LOCKED; waits for none.';

-- Returns when the next tick of a queue is to be handled; a second later, if one is due that
-- could not be handled yet: maintenance tries once a second. A tick that waits for a task does
-- not count, since maintenance notices the end of that.
create or replace function durable._next_tick_at(queue text, at timestamptz)
returns timestamptz language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _next_at timestamptz;
begin
  select schedules.next_at into _next_at
  from durable.schedules
  where schedules.queue = _queue and schedules.next_at is not null
    and (schedules.next_at > at or not durable._is_buffered(schedules))
  order by schedules.next_at
  limit 1;
  return case when _next_at > at then _next_at
    when _next_at is not null then at + make_interval(secs => 1) end;
end;
$$;

-- Handles schedules that the caller has locked; returns the number of ticks. They share a
-- subtransaction, as in recovery.sql.
create or replace function durable._fire_all(
  queue text, due text[], at timestamptz, batch_size integer
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _most integer := greatest(batch_size / cardinality(due), 1);
  _schedule text collate "C";
  _handled integer := 0;
begin
  begin
    foreach _schedule in array due loop
      _handled := _handled + durable._fire(_queue, _schedule, at, _most);
    end loop;
  exception
  when serialization_failure then
    raise;
  when others then
    _handled := 0;
    foreach _schedule in array due[1:50] loop
      begin
        _handled := _handled + durable._fire(_queue, _schedule, at, _most);
      exception
      when serialization_failure then
        raise;
      when sqlstate 'WFFUL' then -- no failure: the tick waits for room
        update durable.schedules
        set error = sqlerrm
        where schedules.queue = _queue and schedules.schedule = _schedule
          and schedules.error is distinct from sqlerrm;
      when others then
        raise warning 'durable: a tick of schedule "%" cannot be handled: %', _schedule, sqlerrm;
        update durable.schedules
        set failed_at = _fire_all.at, error = sqlerrm
        where schedules.queue = _queue and schedules.schedule = _schedule;
      end;
    end loop;
  end;
  return _handled;
end;
$$;

-- Handles at most `most` due ticks of a schedule; returns how many.
create or replace function durable._fire(
  queue text, schedule text, at timestamptz, most integer
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _schedule text collate "C" := schedule;
  _due durable.schedules;
  _was_buffered boolean;
  _tick timestamptz;
  _may_spawn boolean;
  _spawned durable.spawned_task;
  _handled integer := 0;
begin
  select * into _due
  from durable.schedules
  where schedules.queue = _queue and schedules.schedule = _schedule;
  _was_buffered := durable._was_buffered(_due);
  _tick := case when _was_buffered then _due.next_at else durable._first_tick(_due, at) end;
  while _tick <= at and _handled < most loop
    _may_spawn := durable._make_room(_due);
    exit when _may_spawn is null;
    if _may_spawn then
      _spawned := durable._spawn_run(_due, _tick, durable._run_key(_schedule, _tick));
      _due.last_task_id := _spawned.task_id;
      _due.last_at := _tick;
    end if;
    _tick := durable._next_tick(_due, case when _was_buffered then at else _tick end);
    _handled := _handled + 1;
  end loop;
  update durable.schedules
  set
    next_at = _tick,
    last_at = _due.last_at,
    failed_at = null,
    last_task_id = _due.last_task_id,
    error = null
  where schedules.queue = _queue and schedules.schedule = _schedule;
  return _handled;
end;
$$;

-- Returns the first tick of a due schedule to be handled: of those that are more than a minute
-- late only as many as the policy allows.
create or replace function durable._first_tick(schedule durable.schedules, at timestamptz)
returns timestamptz language plpgsql immutable as $$
declare
  _on_time timestamptz := at - make_interval(secs => 60);
begin
  if schedule.next_at >= _on_time or schedule.catch_up is null then
    return schedule.next_at;
  end if;
  return least(
    durable._next_tick(schedule, _on_time - make_interval(secs => 1e-6)),
    durable._last_tick(schedule, at, schedule.catch_up));
end;
$$;

-- Returns the first of the last `number` due ticks; the first due one, if there are fewer; null
-- for 0. It looks further back, each time twice as far, until it has found enough.
create or replace function durable._last_tick(
  schedule durable.schedules, at timestamptz, number integer
) returns timestamptz language plpgsql immutable as $$
declare
  _until timestamptz := at;
  _seconds double precision := 60;
  _from timestamptz;
  _found timestamptz[] := array[]::timestamptz[];
begin
  loop
    _from := greatest(
      _until - make_interval(secs => _seconds), schedule.next_at - make_interval(secs => 1e-6));
    _found := array(
      select tick.at
      from durable._ticks(schedule, _from, _until, 2147483647) as tick (at)
    ) || _found;
    exit when cardinality(_found) >= number or _from < schedule.next_at;
    _until := _from;
    _seconds := _seconds * 2;
  end loop;
  return case when number > 0 then _found[greatest(cardinality(_found) - number + 1, 1)] end;
end;
$$;

-- Returns whether a due tick waits for the last task.
create or replace function durable._is_buffered(schedule durable.schedules)
returns boolean language sql as $$
  select schedule.overlap = 'buffer_one'
    and durable._is_live(schedule.queue, schedule.last_task_id);
$$;

-- Returns whether a due tick came while the last task had not finished. Then it was not late for
-- lack of a worker, so it is handled, and the ticks that came while it waited are skipped. If
-- the task has been deleted since, catch_up decides.
create or replace function durable._was_buffered(schedule durable.schedules)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := schedule.queue;
begin
  return schedule.overlap = 'buffer_one' and exists (
    select from durable.tasks
    where tasks.queue = _queue and tasks.task_id = schedule.last_task_id
      and (tasks.finished_at > schedule.next_at) is not false);
end;
$$;

-- Applies the policy for a last task that has not finished. Returns whether the tick may spawn a
-- task; null: it stays due, since it waits for that task, or that has to be cancelled and is
-- locked.
create or replace function durable._make_room(schedule durable.schedules)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := schedule.queue;
begin
  if schedule.overlap = 'allow' or not durable._is_live(_queue, schedule.last_task_id) then
    return true;
  elsif schedule.overlap <> 'cancel' then
    return case when schedule.overlap = 'skip' then false end;
  end if;
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = schedule.last_task_id
    and tasks.finished_at is null
  for no key update skip locked;
  if not found then
    return case when not durable._is_live(_queue, schedule.last_task_id) then true end;
  end if;
  perform durable._end_task(_queue, schedule.last_task_id, 'cancelled', jsonb_build_object(
    'type', '$Cancelled', 'message', format('schedule "%s" is due again', schedule.schedule)));
  perform durable._ended(_queue, array[schedule.last_task_id]);
  return true;
end;
$$;
