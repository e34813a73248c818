-- Spawns tasks: rows that commit with the caller's transaction.
--
-- A call spawns all of its tasks or none: one bad task refuses the whole call, so that a
-- caller's transaction cannot commit half of it. Lock order: keys, then parents, each
-- ascending. No other session sees a new task's row before the commit.

create or replace function durable.spawn(
  queue text, task text, params jsonb default '{}', options jsonb default '{}'
) returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text := durable._checked_name('task name', task, 100);
  _params jsonb := coalesce(durable._checked_size('params', params), 'null');
  _now timestamptz := durable._now();
  _task_id uuid;
  _has_room boolean := false;
  _in_lane boolean;
begin
  if options = '{}' then -- the usual case, without what only options need
    _task_id := durable._uuid7(durable._id_microseconds(_now));
    loop
      insert into durable.tasks (
        task_id, spawned_at, execution_timeout, max_attempts, queue, name, params, headers, retry,
        available_at, expires_at, omitted, partition_key, priority
      )
      select
        _task_id, _now, known.execution_timeout, case when known.name is null then 5 else known.max_attempts end,
        queues.queue, _name, _params, known.headers, known.retry, _now,
        _now + make_interval(secs => known.start_timeout),
        case when known.name is null then 31 end,
        case when durable._has_lanes(queues) then '' end,
        case when durable._has_lanes(queues) then coalesce(known.priority, 0) end
      from durable.queues
      left join durable.definitions as known
        on known.queue = _queue and known.name = _name and known.latest is not null
      where queues.queue = _queue and (queues.max_length is null or _has_room)
        and (queues.roles is null or durable._may_use(queues.roles))
      returning tasks.partition_key is not null into _in_lane;
      exit when found;
      _has_room := durable._require_room(_queue); -- may also be just created, or opened to the caller
    end loop;
    if _in_lane then
      perform durable._enlist(_queue, array[_task_id]);
    end if;
    insert into durable.tallies (at, tally_id, tasks, kind, queue, name) -- cheaper than _tally
    values (_now, _task_id, 1, 'spawned', _queue, _name);
    if durable._must_notify(_queue, 'work') then
      perform pg_notify('durable_work', _queue);
    end if;
    return row(_task_id, durable._run_id(_task_id, 1), 1, true)::durable.spawned_task;
  end if;
  return durable._spawn_with_options(_queue, _name, _params, options, _now);
end;
$$;

comment on function durable.spawn is
'Spawns a task, in the caller''s transaction. params: any JSON, at most 16 MiB. options:

- max_attempts: null for no limit.
- retry: {"kind": "none" | "fixed" | "exponential", "base_seconds", "factor",
  "max_seconds", "jitter"}.
- headers, identity: objects; the identity, who asks for the task, is kept in the headers.
- idempotency_key: at most one task of the queue has it. With fingerprint, a text or an array
  of texts any of which may match, the fingerprint is compared instead of the params.
- unique: {"key", "on_conflict"}: one task of this name has the key while it is unfinished.
  on_conflict: "return" (the default) returns that task; "reject" refuses the spawn; "replace"
  returns it, too, with the new params, options and time if no worker has ever claimed it.
- throttle: {"key", "period"}: returns the last task of this name with the key, in any state,
  if it was spawned less than period seconds ago.
- debounce: {"key", "delay", "max_wait"}: as unique with replace, until the task is first
  claimed. It may start delay seconds after the last spawn, at most max_wait after the first.
- delay, run_at: seconds until it may start, or the moment, with a time zone; default: now.
- start_timeout, execution_timeout: seconds until its first start, counted from when it may
  start, and from its first start.
- parent_task_id: a live task of the queue.
- deadline: the time by which it must finish, with a time zone; a child''s is never later
  than its parent''s.
- version: of the application that spawns it; it counts if the queue''s policy is gate.
- partition_key: what it belongs to for the queue''s limits, at most 255 bytes; default: nothing.
- priority: from -32768 to 32767; higher ones start first. Both are for queues whose policy has
  limits or priorities.
- defaults: {"partition_key", "priority"}, those of the task, which count if the spawn gives no
  others. In a queue without limits and priorities they are ignored.

Only one of idempotency_key, unique, throttle and debounce may be given, and the last three not
with parent_task_id. Each has keys of its own, at most 255 bytes, which stay as long as their
tasks.

An option that is given holds, also as null. If max_attempts, retry, start_timeout,
execution_timeout or priority is omitted, the definition that workers have announced for this
name (announce_definitions) provides it, else 5 attempts, no limits and the priority 0. Headers
are added to the announced ones; null means no headers at all. If no worker has announced the
name yet, the first claim after an announcement fills in the omitted options but the priority.

Returns the task; created is false if the key belongs to a task of the same name and params,
or to one that counts for the unique key. Refuses bad arguments, and a partition_key or priority
where they do not count (22023), an unknown queue (WFQUE), a key that belongs to another task
(WFCON), an unknown parent (WFNFD) and a finished one (WFFIN). Refuses a task without a parent
while as many tasks as the queue''s max_length are ready to be claimed (WFFUL). Above a
max_length of 100 it is not exact: one spawn in max_length / 100 counts them, and maintenance
does, so some more tasks get in. Locks: waits for a transaction that is taking the same key; with
replace or debounce, locks a task that has not started, and waits for it; locks the parent''s row
FOR SHARE.';

-- Spawns a task with options. The caller has checked its name and params.
create or replace function durable._spawn_with_options(
  queue text, task text, params jsonb, options jsonb, at timestamptz
) returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _options durable._spawn_options := durable._spawn_options(options);
  _task_id uuid := durable._uuid7(durable._id_microseconds(at, _options.parent_task_id));
  _run_at timestamptz := durable._first_start(_options, at);
  _existing_id uuid;
  _defaults_of text collate "C" := task;
  _has_room boolean := _options.parent_task_id is not null; -- children are exempt
  _in_lane boolean;
begin
  if coalesce(options ->> 'partition_key', options ->> 'priority') is not null then
    perform durable._require_lanes(_queue);
  end if;
  if _options.unique_key is not null then
    return durable._spawn_unique(_queue, (1, _task_id, task, params, _options, null), at);
  elsif _options.idempotency_key is not null then
    _queue := durable._checked_queue(_queue); -- the insert below refuses an unknown queue
    _existing_id := durable._take_key(_queue, _options.idempotency_key, _task_id, _options.fingerprint[1]);
    if _existing_id is not null then
      return durable._same_task(_queue, (1, _task_id, task, params, _options, _existing_id));
    end if;
  end if;
  if _options.parent_task_id is not null then
    perform durable._require_queue(_queue);
    perform durable._hold_parent(_queue, _options.parent_task_id);
    _options.deadline := least(_options.deadline, durable._deadline_of(_queue, _options.parent_task_id));
  end if;
  if _options.version is not null or (options - 'max_attempts') @? '$.* ? (@ == null)' then
    _options := durable._with_defaults(_options, durable._definition(_queue, task, _options.version));
    _defaults_of := null;
  end if; -- else no option but max_attempts is null: the insert merges them, which is cheaper
  loop
    insert into durable.tasks (
      task_id, parent_task_id, spawned_at, execution_timeout, max_attempts, queue, name,
      idempotency_key, params, headers, retry, available_at, expires_at, deadline, version, omitted,
      partition_key, priority
    )
    select
      _task_id, _options.parent_task_id, at, coalesce(_options.execution_timeout, known.execution_timeout),
      case when known.name is null or options ? 'max_attempts'
        then _options.max_attempts else known.max_attempts end,
      queues.queue, task, _options.idempotency_key, params,
      coalesce(known.headers || coalesce(_options.headers, '{}'), _options.headers),
      coalesce(_options.retry, known.retry), _run_at,
      least(_run_at + make_interval(secs => coalesce(_options.start_timeout, known.start_timeout)), _options.deadline),
      _options.deadline, coalesce(case when queues.versions = 'gate' then _options.version end, ''),
      case when known.name is null then _options.omitted end,
      case when durable._has_lanes(queues) then coalesce(_options.partition_key, '') end,
      case when durable._has_lanes(queues) then coalesce(_options.priority, known.priority, 0) end
    from durable.queues
    left join durable.definitions as known
      on known.queue = _queue and known.name = _defaults_of and known.latest is not null
    where queues.queue = _queue and (queues.max_length is null or _has_room)
      and (queues.roles is null or durable._may_use(queues.roles))
    returning tasks.partition_key is not null into _in_lane;
    exit when found;
    _has_room := durable._require_room(_queue); -- may also be just created, or opened to the caller
  end loop;
  if _in_lane then
    perform durable._enlist(_queue, array[_task_id]);
  end if;
  insert into durable.tallies (at, tally_id, tasks, kind, queue, name)
  values (at, _task_id, 1, 'spawned', _queue, task);
  if durable._must_notify(_queue, 'work') then
    perform pg_notify('durable_work', _queue);
  end if;
  return row(_task_id, durable._run_id(_task_id, 1), 1, true)::durable.spawned_task;
end;
$$;

create or replace function durable.spawn_many(queue text, tasks jsonb)
returns setof durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _new durable._new_task[];
begin
  perform durable._require_queue(_queue);
  perform durable._check_tasks(tasks, array['task', 'params', 'options']);
  _new := durable._reserve_keys(_queue, durable._new_tasks(_queue, tasks, _now, null, null), _now);
  perform durable._require_room_for(_queue, _new);
  perform durable._hold_parent(_queue, parent.task_id)
  from (
    select distinct (new.options).parent_task_id from unnest(_new) as new where new.existing_id is null order by 1
  ) as parent (task_id);
  perform durable._insert_tasks(_queue, _new, _now, null);
  return query
    select spawned.task_id, spawned.run_id, spawned.attempt, spawned.created
    from durable._spawned(_queue, _new) as spawned;
end;
$$;

comment on function durable.spawn_many is
'Spawns tasks, all or none, in the caller''s transaction. tasks: an array of
{"task": name, "params": ..., "options": {...}}, each as in spawn. Returns them in the order
given. Of two with one key the second finds the first, as if it were spawned after it. Refuses
the same as spawn, for any of them; a queue that is not full takes them all. Locks: as spawn, keys
before parents, each in ascending order.';

create or replace function durable._check_tasks(tasks jsonb, known text[])
returns void language plpgsql immutable as $$
begin
  if tasks is null or jsonb_typeof(tasks) <> 'array' then
    perform durable._refuse_argument('tasks must be a JSON array',
      'Pass [{"task": "name", "params": {}, "options": {}}, ...].');
  end if;
  perform durable._checked_keys('task', task, known)
  from jsonb_array_elements(tasks) as given (task)
  where jsonb_typeof(task) <> 'object' or task - known <> '{}';
  perform durable._checked_name('task name', name, 100)
  from (select distinct task ->> 'task' from jsonb_array_elements(tasks) as given (task)) as names (name);
  perform durable._checked_size('params', task -> 'params')
  from jsonb_array_elements(tasks) as given (task)
  where pg_column_size(task -> 'params') > 16777216;
end;
$$;

-- Returns checked tasks with their ids and options. parent: of all of them; it overrides the
-- options. headers: the parent's.
create or replace function durable._new_tasks(
  queue text, tasks jsonb, at timestamptz, parent uuid, headers jsonb
) returns durable._new_task[] language plpgsql as $$
declare
  _usual durable._spawn_options := durable._spawn_options(durable._inherited('{}', headers));
  _name text := tasks -> 0 ->> 'task';
begin
  if tasks @? '$[*].options ? (@.partition_key != null || @.priority != null)' then
    perform durable._require_lanes(queue);
  end if;
  if tasks @> jsonb_build_array(jsonb_build_object('task', _name)) and not jsonb_path_exists(tasks,
    '$[*] ? (@.task != $name)', jsonb_build_object('name', _name))
  then -- one name, the usual case: its definition is looked up and merged once
    _usual := durable._with_defaults(_usual, durable._definition(queue, _name, null));
  end if;
  _usual.parent_task_id := parent;
  return array(
    select
      row(
        given.ordinal,
        durable._uuid7(durable._id_microseconds(at, (chosen.options).parent_task_id),
          (given.ordinal - 1)::integer),
        given.task ->> 'task',
        coalesce(given.task -> 'params', '{}'),
        chosen.options,
        null
      )::durable._new_task
    from jsonb_array_elements(tasks) with ordinality as given (task, ordinal)
    cross join lateral (
      select case
        when coalesce(given.task -> 'options', '{}') = '{}' then _usual
        else durable._spawn_options(
          durable._inherited(given.task -> 'options', headers)
          || case when parent is null then '{}' else jsonb_build_object('parent_task_id', parent) end)
      end as options
      offset 0 -- evaluated once a row
    ) as chosen
    order by given.ordinal
  );
end;
$$;

-- Adds the headers of a parent to a child's options. Its own headers and identity override
-- them; headers that are null have none but the identity.
create or replace function durable._inherited(options jsonb, headers jsonb)
returns jsonb language sql immutable as $$
  select case
    when headers is null then options
    when options -> 'headers' = 'null'
      then jsonb_build_object('identity', headers -> 'durable:identity') || options
    else options || jsonb_build_object('headers', headers || coalesce(options -> 'headers', '{}'))
  end;
$$;

-- Takes the keys of new tasks, idempotency keys first, each kind in order; sets existing_id where
-- a key is taken.
create or replace function durable._reserve_keys(
  queue text, new durable._new_task[], at timestamptz
) returns durable._new_task[] language plpgsql as $$
declare
  _new durable._new_task[] := new;
  _keyed record;
begin
  for _keyed in
    select task.place, task.task_id, task.name, task.options
    from unnest(new) with ordinality
      as task (ordinal, task_id, name, params, options, existing_id, place)
    where (task.options).idempotency_key is not null or (task.options).unique_key is not null
    order by (task.options).idempotency_key collate "C", (task.options).unique_kind,
      task.name collate "C", (task.options).unique_key collate "C", task.ordinal
  loop
    _new[_keyed.place].existing_id := case when (_keyed.options).unique_key is null
      then durable._take_key(queue, (_keyed.options).idempotency_key, _keyed.task_id,
        (_keyed.options).fingerprint[1])
      else durable._reserve_unique_key(queue, _keyed.name, _keyed.options, _keyed.task_id, at) end;
  end loop;
  return _new;
end;
$$;

-- Takes a key for a new task. Returns the task that has the key already, if any.
create or replace function durable._take_key(queue text, key text, task_id uuid, fingerprint text)
returns uuid language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := key;
  _existing_id uuid;
begin
  loop
    insert into durable.idempotency_keys (queue, key, task_id, fingerprint)
    values (_queue, _key, task_id, fingerprint)
    on conflict do nothing;
    if found then
      return null;
    end if;
    select idempotency_keys.task_id into _existing_id
    from durable.idempotency_keys
    where idempotency_keys.queue = _queue and idempotency_keys.key = _key
    for key share; -- cleanup keeps the task until the caller has its answer
    if found then
      return _existing_id;
    end if; -- cleanup has just deleted it: try again
  end loop;
end;
$$;

-- Keeps a parent from finishing until the child's row has committed. The lock is shared, so
-- that several clients can add children at once. Does nothing without a parent.
create or replace function durable._hold_parent(queue text, parent uuid)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _state durable.task_state;
begin
  if parent is null then
    return;
  end if;
  select tasks.state into _state
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = parent
  for share;
  if not found then
    perform durable._refuse_unknown_task(_queue, parent);
  elsif _state in ('completed', 'failed', 'cancelled') then
    raise exception using errcode = 'WFFIN',
      message = format('parent task %s is %s', parent, _state),
      hint = 'Only a live task can have children; spawn it without parent_task_id.';
  end if;
end;
$$;

-- Returns the time by which a task, and so its descendants, must finish.
create or replace function durable._deadline_of(queue text, task_id uuid)
returns timestamptz language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return (
    select tasks.deadline
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _deadline_of.task_id
  );
end;
$$;

-- Returns from when on a new task may start: now, if that has passed.
create or replace function durable._first_start(options durable._spawn_options, at timestamptz)
returns timestamptz language sql stable as $$
  select greatest(options.run_at, at + make_interval(secs => coalesce(options.delay, 0)));
$$;

-- Fills in the options that new tasks omit from their definitions.
create or replace function durable._completed(queue text, new durable._new_task[])
returns durable._new_task[] language plpgsql as $$
begin
  perform from unnest(new) as task
  where (task.options).omitted is not null or (task.options).priority is null
  limit 1;
  if not found then
    return new;
  end if;
  return array(
    with known as materialized (
      select asked.name, asked.version, definition
      from (
        select distinct task.name, coalesce((task.options).version, '') as version
        from unnest(new) as task
        where (task.options).omitted is not null or (task.options).priority is null
      ) as asked
      cross join lateral durable._definition(_completed.queue, asked.name, asked.version) as definition
      where definition.name is not null
    )
    select
      row(
        task.ordinal, task.task_id, task.name, task.params,
        case when known.name is null then task.options
          else durable._with_defaults(task.options, known.definition) end,
        task.existing_id
      )::durable._new_task
    from unnest(new) with ordinality
      as task (ordinal, task_id, name, params, options, existing_id, place)
    left join known
      on known.name = task.name and known.version = coalesce((task.options).version, '')
    order by task.place
  );
end;
$$;

-- The caller has locked the parents, so their deadlines cannot change. parent_queue: the
-- parents' queue if it is another one.
create or replace function durable._insert_tasks(
  queue text, new durable._new_task[], at timestamptz, parent_queue text
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _parent_queue text collate "C" := coalesce(parent_queue, queue);
  _has_lanes boolean := exists (
    select from durable.queues where queues.queue = _queue and durable._has_lanes(queues));
begin
  with spawned as (
    insert into durable.tasks (
      task_id, parent_task_id, spawned_at, execution_timeout, max_attempts, queue, name,
      idempotency_key, params, headers, retry, available_at, expires_at, parent_queue,
      deadline, version, omitted, unique_kind, unique_key, partition_key, priority
    )
    select
      task.task_id, (task.options).parent_task_id, at, (task.options).execution_timeout,
      (task.options).max_attempts, _queue, task.name, (task.options).idempotency_key,
      coalesce(task.params, 'null'), (task.options).headers, (task.options).retry,
      durable._first_start(task.options, at),
      least(durable._first_start(task.options, at)
        + make_interval(secs => (task.options).start_timeout), latest.moment), parent_queue,
      latest.moment,
      case when (task.options).version is not null and (
        select queues.versions = 'gate' from durable.queues where queues.queue = _queue
      ) then (task.options).version else '' end,
      (task.options).omitted, (task.options).unique_kind, (task.options).unique_key,
      case when _has_lanes then coalesce((task.options).partition_key, '') end,
      case when _has_lanes then coalesce((task.options).priority, 0) end
    from unnest(durable._completed(_queue, new)) as task
    left join lateral (
      select tasks.deadline
      from durable.tasks
      where tasks.queue = _parent_queue and tasks.task_id = (task.options).parent_task_id
      offset 0
    ) as parent on true
    cross join lateral (
      select least((task.options).deadline, parent.deadline) as moment
    ) as latest
    where task.existing_id is null
    returning tasks.name
  )
  insert into durable.tallies (at, tally_id, tasks, kind, queue, name)
  select at, gen_random_uuid(), count(*), 'spawned', _queue, spawned.name
  from spawned
  group by spawned.name;
  if _has_lanes then
    perform durable._enlist(_queue, array(
      select task.task_id from unnest(new) as task where task.existing_id is null));
  end if;
  perform durable._notify_listeners(queue, 'work');
end;
$$;

-- Returns the outcome for each new task, in the order given.
create or replace function durable._spawned(queue text, new durable._new_task[])
returns table (ordinal integer, task_id uuid, run_id uuid, attempt integer, created boolean)
language plpgsql as $$
#variable_conflict use_column
begin
  return query
    select task.ordinal, task.task_id, durable._run_id(task.task_id, 1), 1, true
    from unnest(new) as task
    where task.existing_id is null
    union all
    select task.ordinal, existing.*
    from unnest(new) as task
    cross join lateral durable._existing_task(queue, task) as existing
    where task.existing_id is not null
    order by 1;
end;
$$;

-- Returns the task that has the key of a new one.
create or replace function durable._existing_task(queue text, new durable._new_task)
returns durable.spawned_task language plpgsql as $$
begin
  if (new.options).unique_key is null then
    return durable._same_task(queue, new);
  end if;
  return durable._found_task(queue, new);
end;
$$;

-- Returns the task that has the key if its name and params are the same; else raises WFCON. If
-- a fingerprint is given only that is compared, in place of the params.
create or replace function durable._same_task(queue text, new durable._new_task)
returns durable.spawned_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := (new.options).idempotency_key;
  _fingerprints text[] collate "C" := (new.options).fingerprint;
  _task durable.tasks;
begin
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = new.existing_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, new.existing_id);
  end if;
  if _task.name <> new.name
    or _fingerprints is null and _task.params <> coalesce(new.params, 'null')
    or exists (
      select from durable.idempotency_keys
      where idempotency_keys.queue = _queue and idempotency_keys.key = _key
        and idempotency_keys.fingerprint <> all (_fingerprints))
  then
    raise exception using errcode = 'WFCON',
      message = format('idempotency key "%s" belongs to task %s with %s',
        _key, new.existing_id,
        case when _task.name <> new.name then format('the name "%s"', _task.name)
          else 'other params' end),
      hint = 'Use one key for one name and params.';
  end if;
  return (_task.task_id, durable._run_id(_task.task_id, _task.attempt), _task.attempt, false);
end;
$$;
