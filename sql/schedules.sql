-- Schedules: tasks that are spawned periodically, their definitions and what they have spawned.
--
-- ticks.sql spawns the tasks. Lock order: a row of schedules, then keys and tasks. The keys of
-- a schedule's tasks are taken only under the lock of its row, so no other session holds one.

create or replace function durable.create_schedule(queue text, schedule text, definition jsonb)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _change text;
begin
  perform durable._require_queue(_queue);
  perform durable._checked_name('schedule', schedule, 100);
  _change := durable._write_schedule(_queue, schedule, definition, null);
  perform durable._notify_listeners(_queue, 'work');
  if _change <> 'same' then
    perform durable._audit(_queue, 'create_schedule', null,
      jsonb_build_object('schedule', schedule, 'definition', definition - 'params'));
  end if;
  return _change = 'created';
end;
$$;

comment on function durable.create_schedule is
'Creates a schedule, or changes one that exists, of which keys that are left out keep their
values. definition:

- task, params, options: the task to spawn at each tick, as in spawn; without the options
  idempotency_key, fingerprint, unique, throttle, debounce, parent_task_id, deadline, delay and
  run_at.
- cron: an expression as in next_fires; or every: whole seconds between ticks, which are
  multiples of it since 1970 in UTC.
- time_zone: of the cron expression; default UTC.
- catch_up: the ticks to handle if some are more than a minute late: "last", the latest one
  (default); "skip", none; "all"; or a number from 1 to 10,000, that many of the latest. Ticks
  that are at most a minute late are always handled.
- overlap: if the last task has not finished at a tick: "skip" the tick (default);
  "buffer_one", the tick waits for its end, and those that come meanwhile are skipped; "cancel"
  that task and spawn another; or "allow" several.
- jitter: the most seconds by which a task starts late; for each tick a fixed part of it.

The task''s idempotency key is schedule/<schedule>/<tick in UTC>, and its header
durable:schedule has the name and the tick. While the queue is full (WFFUL in spawn) a tick
stays due, until it is late. A new cron expression, interval or time zone takes effect from now
on. Returns whether the schedule was created. Refuses bad definitions (22023)
and an unknown queue (WFQUE). Locks: the schedule''s row.';

-- Creates or changes a schedule; returns 'created', 'changed' or 'same'. Without a source, the
-- definition changes a known schedule; with one, it is complete. It loops if another session
-- creates the schedule meanwhile.
create or replace function durable._write_schedule(
  queue text, schedule text, definition jsonb, source text
) returns text language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _schedule text collate "C" := schedule;
  _known durable.schedules;
  _new durable.schedules;
begin
  loop
    select * into _known
    from durable.schedules
    where schedules.queue = _queue and schedules.schedule = _schedule
    for no key update;
    _new := durable._schedule_with(
      case when source is null then _known end, definition, durable._now());
    _new.source := source;
    if coalesce(_new.options ->> 'partition_key', _new.options ->> 'priority') is not null then
      perform durable._require_lanes(_queue);
    end if;
    if _known.schedule is not null then
      return durable._change_schedule(_known, _new);
    end if;
    insert into durable.schedules (
      created_at, next_at, jitter, every, catch_up, queue, schedule, task, cron, time_zone,
      overlap, source, params, options
    )
    values (
      durable._now(), _new.next_at, _new.jitter, _new.every, _new.catch_up, _queue, _schedule,
      _new.task, _new.cron, _new.time_zone, _new.overlap, _new.source, _new.params, _new.options
    )
    on conflict do nothing;
    exit when found;
  end loop;
  return 'created';
end;
$$;

-- Writes a new definition, if it differs. A due tick stays due if it is one of the new definition
-- too. A tick that is to come is computed again: the rules of the time zone may have changed.
create or replace function durable._change_schedule(
  known durable.schedules, new durable.schedules
) returns text language plpgsql as $$
declare
  _next_at timestamptz := case
    when known.paused_at is not null then null
    when known.next_at <= durable._now()
      and (known.cron, known.every, known.time_zone)
        is not distinct from (new.cron, new.every, new.time_zone)
      then known.next_at
    else new.next_at end;
begin
  if (_next_at, new.jitter, new.every, new.catch_up, new.task, new.cron, new.time_zone, new.overlap,
      new.source, new.params, new.options)
    is not distinct from (known.next_at, known.jitter, known.every, known.catch_up, known.task,
      known.cron, known.time_zone, known.overlap, known.source, known.params, known.options)
  then
    return 'same';
  end if;
  update durable.schedules
  set
    next_at = _next_at,
    failed_at = null,
    jitter = new.jitter,
    every = new.every,
    catch_up = new.catch_up,
    task = new.task,
    cron = new.cron,
    time_zone = new.time_zone,
    overlap = new.overlap,
    source = new.source,
    error = null,
    params = new.params,
    options = new.options
  where schedules.queue = known.queue and schedules.schedule = known.schedule;
  return 'changed';
end;
$$;

-- Returns a schedule with the keys of a definition, checked, and its next tick. known: null for
-- one with the defaults.
create or replace function durable._schedule_with(
  known durable.schedules, definition jsonb, at timestamptz
) returns durable.schedules language plpgsql as $$
declare
  _new durable.schedules := known;
begin
  definition := durable._checked_keys('definition', definition, array[
    'task', 'params', 'options', 'cron', 'every', 'time_zone', 'catch_up', 'overlap', 'jitter'
  ]);
  if _new.schedule is null then
    _new.catch_up := 1;
  end if;
  _new.task := durable._checked_name('task name', coalesce(definition ->> 'task', _new.task), 100);
  _new.params := durable._checked_size('params',
    coalesce(definition -> 'params', _new.params, '{}'));
  _new.options := durable._checked_schedule_options(
    coalesce(nullif(definition -> 'options', 'null'), _new.options, '{}'));
  _new.overlap := durable._checked_overlap(
    coalesce(definition ->> 'overlap', _new.overlap, 'skip'));
  if definition ? 'catch_up' then
    _new.catch_up := durable._checked_catch_up(definition -> 'catch_up');
  end if;
  if definition ? 'jitter' then
    _new.jitter := nullif(durable._number('definition', definition, 'jitter', 0), 0);
  end if;
  return durable._with_recurrence(_new, definition, at);
end;
$$;

create or replace function durable._with_recurrence(
  schedule durable.schedules, definition jsonb, at timestamptz
) returns durable.schedules language plpgsql as $$
declare
  _new durable.schedules := schedule;
  _zone text collate "C" := coalesce(definition ->> 'time_zone', schedule.time_zone, 'UTC');
begin
  if definition ?| array['cron', 'every'] then
    _new.cron := definition ->> 'cron';
    _new.every := durable._checked_interval(definition);
  end if;
  if num_nonnulls(_new.cron, _new.every) <> 1 then
    perform durable._refuse_argument('a schedule needs either cron or every',
      'Pass {"cron": "0 3 * * *"}, or {"every": 3600}, whole seconds.');
  end if;
  _new.time_zone := case when _zone = schedule.time_zone then _zone
    else durable._checked_time_zone(_zone) end; -- a name is looked up once: that takes long
  _new.next_at := durable._next_tick(_new, at);
  if _new.next_at is null then
    perform durable._refuse_argument(format('no date matches "%s"', left(_new.cron, 100)),
      'Pass a day that the month has.');
  end if;
  return _new;
end;
$$;

create or replace function durable._checked_interval(definition jsonb)
returns integer language plpgsql immutable as $$
declare
  _seconds double precision := durable._number('definition', definition, 'every', 1);
begin
  if _seconds <> floor(_seconds) or _seconds > 2147483647 then
    perform durable._refuse_argument(format('every in definition is %s', _seconds),
      'Pass a whole number of seconds from 1.');
  end if;
  return _seconds;
end;
$$;

-- Returns how many ticks are caught up, as the table stores it.
create or replace function durable._checked_catch_up(catch_up jsonb)
returns integer language plpgsql immutable as $$
begin
  if catch_up in ('"last"', 'null') then
    return 1;
  elsif catch_up = '"skip"' then
    return 0;
  elsif catch_up = '"all"' then
    return null;
  elsif jsonb_typeof(catch_up) = 'number' and catch_up::text ~ '^\d{1,5}$'
    and catch_up::integer between 1 and 10000
  then
    return catch_up::integer;
  end if;
  perform durable._refuse_argument(format('catch_up in definition is %s', left(catch_up::text, 40)),
    'Pass "last", "skip", "all", or a number from 1 to 10000.');
  return null;
end;
$$;

create or replace function durable._checked_overlap(overlap text)
returns text language plpgsql immutable as $$
begin
  if overlap collate "C" not in ('allow', 'skip', 'buffer_one', 'cancel') then
    perform durable._refuse_argument(format('overlap in definition is "%s"', left(overlap, 40)),
      'Pass "skip", "buffer_one", "cancel" or "allow".');
  end if;
  return overlap;
end;
$$;

-- Returns the options of a spawn, without those that each tick has of its own.
create or replace function durable._checked_schedule_options(options jsonb)
returns jsonb language plpgsql immutable as $$
declare
  _own text[] := array[
    'idempotency_key', 'fingerprint', 'unique', 'throttle', 'debounce', 'parent_task_id',
    'deadline', 'delay', 'run_at'];
begin
  perform durable._spawn_options(options);
  if options ?| _own then
    perform durable._refuse_argument('options in definition are for every tick',
      'Leave out ' || array_to_string(_own, ', ') || '.');
  end if;
  return options;
end;
$$;

create or replace function durable.drop_schedule(queue text, schedule text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _schedule text collate "C" := schedule;
begin
  delete from durable.schedules
  where schedules.queue = _queue and schedules.schedule = _schedule;
  if not found then
    return false;
  end if;
  perform durable._audit(_queue, 'drop_schedule', null, jsonb_build_object('schedule', schedule));
  return true;
end;
$$;

comment on function durable.drop_schedule is
'Deletes a schedule. Tasks that it has spawned stay. Returns false if there is no such schedule.
Locks: the schedule''s row.';

create or replace function durable.apply_schedules(queue text, schedules jsonb)
returns integer language plpgsql as $$
declare
  _changed integer;
begin
  perform durable._require_queue(queue);
  _changed := durable._apply_schedules(queue, schedules, 'applied', null);
  if _changed > 0 then
    perform durable._audit(queue, 'apply_schedules', null,
      jsonb_build_object('schedules', _changed));
  end if;
  return _changed;
end;
$$;

comment on function durable.apply_schedules is
'Makes the schedules of a queue those of a list, all or none. schedules: [{"schedule": name, ...},
...], each a complete definition as in create_schedule: keys that are left out have their
defaults. If a name occurs twice the last one counts. Schedules that an earlier call has applied
and that are not in the list are deleted; those of create_schedule and of workers stay. Returns
how many were created, changed or deleted. Refuses bad definitions (22023) and an unknown queue
(WFQUE). Locks: the queue''s row, so calls for one queue run one at a time; then the rows of the
schedules.';

create or replace function durable.announce_schedules(queue text, schedules jsonb, tasks text[])
returns integer language plpgsql as $$
begin
  perform durable._require_queue(queue);
  return durable._apply_schedules(queue, schedules, 'declared', tasks);
end;
$$;

comment on function durable.announce_schedules is
'Announces the schedules that the code of tasks declares; a worker calls it when it starts.
schedules: as in apply_schedules. tasks: the names of all tasks that the worker knows. Schedules
of these tasks that an earlier call has announced and that are not in the list are deleted; all
others stay. Returns, refuses and locks the same as apply_schedules.';

-- tasks: only schedules of these tasks are deleted; null: of any.
create or replace function durable._apply_schedules(
  queue text, schedules jsonb, source text, tasks text[]
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _source text collate "C" := source;
  _tasks text[] collate "C" := tasks;
  _names text[] collate "C" := array[]::text[];
  _given record;
  _written integer := 0;
  _deleted integer;
begin
  perform durable._check_schedules(schedules);
  perform from durable.queues where queues.queue = _queue for no key update; -- one call at a time
  for _given in
    select distinct on (element.definition ->> 'schedule' collate "C")
      element.definition ->> 'schedule' as name, element.definition - 'schedule' as definition
    from jsonb_array_elements(schedules) with ordinality as element (definition, ordinal)
    order by element.definition ->> 'schedule' collate "C", element.ordinal desc
  loop
    _names := _names || _given.name;
    if durable._write_schedule(_queue, _given.name, _given.definition, _source) <> 'same' then
      _written := _written + 1;
    end if;
  end loop;
  delete from durable.schedules
  where schedules.queue = _queue
    and schedules.source = _source
    and schedules.schedule <> all (_names)
    and (_tasks is null or schedules.task = any (_tasks));
  get diagnostics _deleted = row_count;
  if _written > 0 then
    perform durable._notify_listeners(_queue, 'work');
  end if;
  return _written + _deleted;
end;
$$;

create or replace function durable._check_schedules(schedules jsonb)
returns void language plpgsql immutable as $$
begin
  if schedules is null or jsonb_typeof(schedules) <> 'array' then
    perform durable._refuse_argument('schedules must be a JSON array',
      'Pass [{"schedule": "name", "task": "name", "cron": "0 3 * * *"}, ...].');
  end if;
  perform durable._checked_name('schedule', given.definition ->> 'schedule', 100)
  from jsonb_array_elements(schedules) as given (definition);
end;
$$;

create or replace function durable.pause_schedule(queue text, schedule text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _known durable.schedules := durable._locked_schedule(_queue, schedule);
begin
  update durable.schedules
  set paused_at = durable._now(), next_at = null
  where schedules.queue = _queue and schedules.schedule = _known.schedule
    and schedules.paused_at is null;
  if not found then
    return false;
  end if;
  perform durable._audit(_queue, 'pause_schedule', null, jsonb_build_object('schedule', schedule));
  return true;
end;
$$;

comment on function durable.pause_schedule is
'Pauses a schedule: it spawns nothing until resume_schedule. Returns false if it is paused
already. Refuses an unknown schedule (WFNFD). Locks: the schedule''s row.';

create or replace function durable.resume_schedule(queue text, schedule text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _known durable.schedules := durable._locked_schedule(_queue, schedule);
begin
  update durable.schedules
  set
    paused_at = null,
    next_at = durable._next_tick(_known, durable._now()),
    failed_at = null,
    error = null
  where schedules.queue = _queue and schedules.schedule = _known.schedule
    and schedules.paused_at is not null;
  if not found then
    return false;
  end if;
  perform durable._notify_listeners(_queue, 'work');
  perform durable._audit(_queue, 'resume_schedule', null,
    jsonb_build_object('schedule', schedule));
  return true;
end;
$$;

comment on function durable.resume_schedule is
'Resumes a paused schedule with its next tick. The ticks of the pause are not caught up:
backfill_schedule spawns their tasks. Returns false if it is not paused. Refuses an unknown
schedule (WFNFD). Locks: the schedule''s row.';

create or replace function durable._locked_schedule(queue text, schedule text)
returns durable.schedules language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _schedule text collate "C" := schedule;
  _known durable.schedules;
begin
  select * into _known
  from durable.schedules
  where schedules.queue = _queue and schedules.schedule = _schedule
  for no key update;
  if not found then
    raise exception using errcode = 'WFNFD',
      message = format('no schedule "%s" in queue "%s"', schedule, queue),
      hint = 'list_schedules() lists them; create_schedule() makes one.';
  end if;
  return _known;
end;
$$;

create or replace function durable.trigger_schedule(queue text, schedule text)
returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _known durable.schedules := durable._locked_schedule(_queue, schedule);
  _now timestamptz := durable._now();
  _spawned durable.spawned_task;
begin
  _known.jitter := null;
  _spawned := durable._spawn_run(_known, _now,
    durable._run_key(schedule, _now) || '.' || gen_random_uuid()::text);
  update durable.schedules
  set last_at = _now, last_task_id = _spawned.task_id
  where schedules.queue = _queue and schedules.schedule = _known.schedule;
  perform durable._audit(_queue, 'trigger_schedule', _spawned.task_id,
    jsonb_build_object('schedule', schedule));
  return _spawned;
end;
$$;

comment on function durable.trigger_schedule is
'Spawns a task of a schedule now, also if the schedule is paused or its last task has not
finished. It counts as the last task at the next tick. Returns the task. Refuses an unknown
schedule (WFNFD). Locks: the schedule''s row.';

create or replace function durable.backfill_schedule(
  queue text, schedule text, start_at timestamptz, end_at timestamptz
) returns setof durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _known durable.schedules := durable._locked_schedule(_queue, schedule);
  _tick timestamptz;
  _left integer := 10000;
begin
  for _tick in
    select tick.at
    from durable._ticks(_known, start_at - make_interval(secs => 1e-6),
      least(end_at, durable._now()), _left + 1) as tick (at)
    where tick.at < end_at
  loop
    if _left = 0 then
      perform durable._refuse_argument('there are more than 10,000 ticks in this time',
        'Pass a shorter time.');
    end if;
    _left := _left - 1;
    return next durable._spawn_run(_known, _tick, durable._run_key(schedule, _tick));
  end loop;
  if _left < 10000 then
    perform durable._audit(_queue, 'backfill_schedule', null,
      jsonb_build_object('schedule', schedule, 'start_at', start_at, 'end_at', end_at,
        'tasks', 10000 - _left));
  end if;
end;
$$;

comment on function durable.backfill_schedule is
'Spawns the tasks of a schedule''s past ticks from start_at on and before end_at, all at once and
regardless of overlap. A tick that has a task gets no other. Returns the tasks in the order of
their ticks; created is false for those that existed. Refuses more than 10,000 ticks (22023) and
an unknown schedule (WFNFD). Locks: the schedule''s row.';

create or replace function durable.list_schedules(
  queue text, page_size integer default 1000, after text default null
) returns setof durable.listed_schedule language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _after text collate "C" := coalesce(after, '');
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  return query
    select
      schedules.schedule::text, schedules.task::text, schedules.params, schedules.options,
      schedules.cron::text, schedules.every, schedules.time_zone::text,
      coalesce(case schedules.catch_up when 0 then '"skip"' when 1 then '"last"'
        else to_jsonb(schedules.catch_up) end, '"all"'),
      schedules.overlap::text, schedules.jitter, schedules.source::text, schedules.created_at,
      schedules.paused_at, schedules.next_at, schedules.last_at, schedules.last_task_id,
      schedules.failed_at, schedules.error::text
    from durable.schedules
    where schedules.queue = _queue and schedules.schedule > _after
    order by schedules.schedule
    limit page_size;
end;
$$;

comment on function durable.list_schedules is
'Returns the schedules of a queue by name, at most page_size; after: the last name of the
previous page. Refuses an unknown queue (WFQUE) and a bad page_size (22023).';

create or replace function durable.list_schedule_runs(
  queue text, schedule text, page_size integer default 100, before timestamptz default null
) returns setof durable.schedule_run language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _prefix text collate "C" := durable._run_prefix(schedule);
  _before text collate "C" := coalesce(durable._run_key(schedule, before), _prefix || ':');
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  return query
    select
      durable._run_moment(run.suffix), run.suffix ~ '\.[0-9a-f-]{36}$', run.task_id,
      task.state::text, task.attempt, task.started_at, task.finished_at
    from (
      select
        idempotency_keys.key, idempotency_keys.task_id,
        substr(idempotency_keys.key, length(_prefix) + 1) as suffix
      from durable.idempotency_keys
      where idempotency_keys.queue = _queue
        and idempotency_keys.key > _prefix
        and idempotency_keys.key < _before
        and substr(idempotency_keys.key, length(_prefix) + 1)
          ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ(\.\d{6})?(\.[0-9a-f-]{36})?$' -- not of the schedule "name/2030"
      order by idempotency_keys.key desc
      limit page_size
    ) as run
    cross join lateral (
      select tasks.state, tasks.attempt, tasks.started_at, tasks.finished_at
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = run.task_id
      offset 0
    ) as task
    order by run.key desc;
end;
$$;

comment on function durable.list_schedule_runs is
'Returns the tasks that a schedule has spawned and that have not been deleted, the latest first,
at most page_size; before: only those scheduled before this time, such as the last one of the
previous page. The schedule may have been dropped. Refuses an unknown queue (WFQUE) and a bad
page_size (22023).';

-- Returns the time in a key of _run_key, of which suffix is what follows the prefix.
create or replace function durable._run_moment(suffix text)
returns timestamptz language sql stable as $$
  select left(suffix, 20)::timestamptz
    + make_interval(
      secs => coalesce(('0' || substring(suffix from 'Z(\.\d{6})\.'))::double precision, 0));
$$;
