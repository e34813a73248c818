-- Unique keys: a spawn that finds a task with its key returns that task and creates none. The
-- options differ in how long a task counts:
--
--   unique    while it is unfinished
--   throttle  for a period from its spawn, even if it has finished
--   debounce  until it starts, and each spawn replaces its params and postpones its start
--
-- A key belongs to a queue, an option and a task name, and leads to the task that was spawned
-- with it last. Nothing releases a key: whether its task still counts is read from the task, so
-- no crash, cancellation or late write can leave a key taken. Once the task does not count, the
-- next spawn gives the key to its own task.
--
-- A spawn locks a key FOR KEY SHARE, which only keeps cleanup from deleting it; to give it to
-- another task or to replace its task, and a retry in any case, FOR NO KEY UPDATE. It reads the
-- task in the next statement, so that it sees what was committed while it waited. A task that
-- may be replaced is locked after its key: it can neither start nor end until the spawn commits.
-- It has no parent, and no worker holds it, so no call that holds a later lock waits for it.

-- Returns the options with the unique key that is given. At most one key may be: whether a task
-- counts for one of two would depend on the order in which they are looked up.
create or replace function durable._with_unique_key(options durable._spawn_options, given jsonb)
returns durable._spawn_options language plpgsql immutable as $$
declare
  _options durable._spawn_options := options;
  _kinds text[] := array(
    select kind
    from unnest(array['unique', 'throttle', 'debounce']) as known (kind)
    where nullif(given -> kind, 'null') is not null);
  _kind text := _kinds[1];
  _key jsonb := given -> _kind;
begin
  if _kind is null then
    return _options;
  elsif cardinality(_kinds) > 1 or options.idempotency_key is not null then
    perform durable._refuse_argument(
      format('%s and %s in options', _kind, coalesce(_kinds[2], 'idempotency_key')),
      'Pass one of idempotency_key, unique, throttle and debounce.');
  elsif options.parent_task_id is not null then
    perform durable._refuse_argument(_kind || ' in options of a child',
      'A child belongs to its parent alone: spawn the task without parent_task_id.');
  end if;
  perform durable._checked_keys(_kind, _key, case _kind
    when 'unique' then array['key', 'on_conflict']
    when 'throttle' then array['key', 'period']
    else array['key', 'delay', 'max_wait'] end);
  if jsonb_typeof(_key -> 'key') is distinct from 'string' then
    perform durable._refuse_argument('key in ' || _kind || ' must be a string',
      'Pass 1 to 255 bytes of text.');
  end if;
  _options.unique_kind := _kind::durable.key_kind;
  _options.unique_key := durable._checked_name('key in ' || _kind, _key ->> 'key', 255);
  _options.period := durable._number('throttle', _key, 'period', 0);
  _options.max_wait := durable._number('debounce', _key, 'max_wait', 0);
  _options.on_conflict := case _kind
    when 'unique' then coalesce(_key ->> 'on_conflict', 'return')
    when 'throttle' then 'return'
    else 'replace' end;
  if _options.on_conflict not in ('return', 'reject', 'replace') then
    perform durable._refuse_argument(
      format('on_conflict in unique is %s', left((_key -> 'on_conflict')::text, 40)),
      'Pass "return", "reject" or "replace".');
  elsif _kind = 'throttle' and _options.period is null then
    perform durable._refuse_argument('throttle has no period',
      'Pass for how many seconds there is at most one task.');
  elsif _kind = 'debounce' then
    if num_nonnulls(options.delay, options.run_at) > 0 then
      perform durable._refuse_argument('debounce and delay or run_at in options',
        'Pass the delay in debounce only.');
    end if;
    _options.delay := least(durable._number('debounce', _key, 'delay', 0), _options.max_wait);
    if nullif(_key -> 'delay', 'null') is null then
      perform durable._refuse_argument('debounce has no delay',
        'Pass how many seconds after the last spawn the task starts.');
    end if;
  end if;
  return _options;
end;
$$;

-- Spawns a task with a unique key. It has no parent.
create or replace function durable._spawn_unique(
  queue text, new durable._new_task, at timestamptz
) returns durable.spawned_task language plpgsql as $$
declare
  _new durable._new_task[];
  _spawned durable.spawned_task;
begin
  perform durable._require_queue(queue);
  _new := durable._reserve_keys(queue, array[new], at);
  perform durable._require_room_for(queue, _new);
  perform durable._insert_tasks(queue, _new, at, null);
  select spawned.task_id, spawned.run_id, spawned.attempt, spawned.created into _spawned
  from durable._spawned(queue, _new) as spawned;
  return _spawned;
end;
$$;

-- Takes a unique key for a new task, as _take_unique_key does, or refuses if it is taken and the
-- spawn is to be rejected then.
create or replace function durable._reserve_unique_key(
  queue text, name text, options durable._spawn_options, task_id uuid, at timestamptz
) returns uuid language plpgsql as $$
declare
  _existing_id uuid := durable._take_unique_key(queue, name, options, task_id, at);
begin
  if _existing_id is not null and options.on_conflict = 'reject' then
    perform durable._refuse_unique_key(queue, _existing_id, options.unique_key);
  end if;
  return _existing_id;
end;
$$;

-- Takes a unique key for a task. Returns the task that has the key and counts, if any.
create or replace function durable._take_unique_key(
  queue text, name text, options durable._spawn_options, task_id uuid, at timestamptz
) returns uuid language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _kind durable.key_kind := options.unique_kind;
  _key text collate "C" := options.unique_key;
  _last uuid;
begin
  loop
    insert into durable.unique_keys (queue, kind, name, key, task_id)
    values (_queue, _kind, _name, _key, task_id)
    on conflict do nothing;
    if found then
      return null;
    end if;
    if options.on_conflict <> 'replace' then
      select unique_keys.task_id into _last
      from durable.unique_keys
      where unique_keys.queue = _queue and unique_keys.kind = _kind
        and unique_keys.name = _name and unique_keys.key = _key
      for key share; -- cleanup keeps the task until the caller has its answer
      if found and durable._counts(_queue, _last, options, at) then
        return _last;
      end if;
    end if;
    select unique_keys.task_id into _last
    from durable.unique_keys
    where unique_keys.queue = _queue and unique_keys.kind = _kind
      and unique_keys.name = _name and unique_keys.key = _key
    for no key update;
    continue when not found; -- cleanup has just deleted it
    if durable._counts(_queue, _last, options, at) then -- also one that was just retried
      return _last;
    end if;
    update durable.unique_keys
    set task_id = _take_unique_key.task_id
    where unique_keys.queue = _queue and unique_keys.kind = _kind
      and unique_keys.name = _name and unique_keys.key = _key;
    return null;
  end loop;
end;
$$;

-- Whether a task with the key that is wanted still counts. One that is to be replaced is locked.
-- A key without a task is that of an earlier element of the same call.
create or replace function durable._counts(
  queue text, task_id uuid, options durable._spawn_options, at timestamptz
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _spawned_at timestamptz;
  _finished_at timestamptz;
begin
  if options.on_conflict = 'replace' then
    perform from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _counts.task_id
      and tasks.claim = 0 and tasks.finished_at is null
    for no key update;
    if found then
      return true;
    end if;
  end if;
  select tasks.spawned_at, tasks.finished_at into _spawned_at, _finished_at
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _counts.task_id;
  return not found or case options.unique_kind
    when 'unique' then _finished_at is null
    when 'throttle' then _spawned_at > at - make_interval(secs => options.period)
    else false -- it has started
  end;
end;
$$;

create or replace function durable._refuse_unique_key(queue text, task_id uuid, key text)
returns void language plpgsql as $$
begin
  raise exception using errcode = 'WFCON',
    message = format('unique key "%s" belongs to task %s of queue "%s"', key, task_id, queue),
    hint = 'That task is unfinished: wait until it ends, or cancel it.';
end;
$$;

-- Returns the task that a spawn found with its unique key. If the spawn replaces it and it has
-- never been claimed, it first gets the params, options and time of the new one. The caller has
-- locked it then.
create or replace function durable._found_task(queue text, new durable._new_task)
returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
begin
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = new.existing_id;
  if (new.options).on_conflict = 'replace' and _task.claim = 0 and _task.finished_at is null then
    perform durable._replace_task(_queue, new,
      least(durable._first_start(new.options, durable._now()),
        _task.spawned_at + make_interval(secs => (new.options).max_wait)));
  end if;
  return (_task.task_id, durable._run_id(_task.task_id, _task.attempt), _task.attempt, false);
end;
$$;

create or replace function durable._replace_task(queue text, new durable._new_task, run_at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _key text;
begin
  select tasks.partition_key into _key from durable.tasks
  where tasks.queue = _queue and tasks.task_id = new.existing_id;
  update durable.tasks
  set
    params = coalesce(task.params, 'null'),
    execution_timeout = (task.options).execution_timeout,
    max_attempts = (task.options).max_attempts,
    headers = (task.options).headers,
    retry = (task.options).retry,
    available_at = run_at,
    expires_at = least(
      run_at + make_interval(secs => (task.options).start_timeout), (task.options).deadline),
    deadline = (task.options).deadline,
    version = case when (task.options).version is not null and (
      select queues.versions = 'gate' from durable.queues where queues.queue = _queue
    ) then (task.options).version else '' end,
    omitted = (task.options).omitted,
    partition_key = case when tasks.partition_key is not null
      then coalesce((task.options).partition_key, '') end,
    priority = case when tasks.partition_key is not null then coalesce((task.options).priority, 0) end
  from unnest(durable._completed(_queue, array[new])) as task
  where tasks.queue = _queue and tasks.task_id = new.existing_id;
  if _key is not null then
    perform durable._free(_queue, array[_key]); -- others may come first now
    perform durable._enlist(_queue, array[new.existing_id]);
  end if;
end;
$$;

-- Locks the key by unique of a task that is about to be retried. Gives it back if a later task
-- has it that is finished, and refuses if that is unfinished. Call it before any task row is
-- locked: keys come first in the lock order. The update makes a spawn with an older snapshot
-- fail rather than give the key away.
create or replace function durable._retake_unique_key(queue text, task_id uuid)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C";
  _options durable._spawn_options;
  _last uuid;
begin
  select tasks.name, tasks.unique_kind, tasks.unique_key
  into _name, _options.unique_kind, _options.unique_key
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _retake_unique_key.task_id
    and tasks.unique_kind = 'unique' and tasks.state <> 'completed';
  if not found then
    return;
  end if;
  loop
    update durable.unique_keys
    set task_id = _retake_unique_key.task_id
    where unique_keys.queue = _queue and unique_keys.kind = _options.unique_kind
      and unique_keys.name = _name and unique_keys.key = _options.unique_key
      and unique_keys.task_id = _retake_unique_key.task_id;
    exit when found;
    _last := durable._take_unique_key(_queue, _name, _options, task_id, durable._now());
    exit when _last is null;
    if _last <> task_id then
      perform durable._refuse_unique_key(_queue, _last, _options.unique_key);
    end if;
  end loop;
end;
$$;

-- Returns whether a task may be retried by a call that waits for no row: ok, and its key, if it
-- has one by unique, is locked; busy; or lost, a later task got the key. As in
-- _retake_unique_key, the key is updated, too.
create or replace function durable._try_unique_key(queue text, task durable.tasks)
returns text language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  if task.unique_kind is distinct from 'unique' then
    return 'ok';
  end if;
  perform from durable.unique_keys
  where unique_keys.queue = _queue and unique_keys.kind = task.unique_kind
    and unique_keys.name = task.name and unique_keys.key = task.unique_key
    and unique_keys.task_id = task.task_id
  for no key update skip locked;
  if found then
    update durable.unique_keys
    set task_id = task.task_id
    where unique_keys.queue = _queue and unique_keys.kind = task.unique_kind
      and unique_keys.name = task.name and unique_keys.key = task.unique_key;
    return 'ok';
  end if;
  perform from durable.unique_keys
  where unique_keys.queue = _queue and unique_keys.kind = task.unique_kind
    and unique_keys.name = task.name and unique_keys.key = task.unique_key
    and unique_keys.task_id = task.task_id;
  return case when found then 'busy' else 'lost' end;
end;
$$;

-- Deletes the key of a task that is about to be deleted, unless a later task has it. Returns
-- false if another session is using it.
create or replace function durable._free_unique_key(
  queue text, kind durable.key_kind, name text, key text, task_id uuid
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _key text collate "C" := key;
begin
  perform from durable.unique_keys
  where unique_keys.queue = _queue and unique_keys.kind = _free_unique_key.kind
    and unique_keys.name = _name and unique_keys.key = _key
    and unique_keys.task_id = _free_unique_key.task_id
  for update skip locked;
  if found then
    delete from durable.unique_keys
    where unique_keys.queue = _queue and unique_keys.kind = _free_unique_key.kind
      and unique_keys.name = _name and unique_keys.key = _key;
    return true;
  end if;
  perform from durable.unique_keys
  where unique_keys.queue = _queue and unique_keys.kind = _free_unique_key.kind
    and unique_keys.name = _name and unique_keys.key = _key
    and unique_keys.task_id = _free_unique_key.task_id;
  return not found;
end;
$$;
