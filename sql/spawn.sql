-- Spawning: a row that commits with the caller's transaction, or not at all.
--
-- All or nothing: one bad task refuses the whole call, since a caller's transaction
-- must not commit half of it. Lock order: keys, then parents, each ascending; a new
-- task's row is seen by nobody before the commit.

create or replace function durable.spawn(
  queue text,
  task text,
  params jsonb default '{}',
  options jsonb default '{}'
)
returns durable.spawned_task
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  _queue text collate "C" := queue;
  _name text := durable._checked_name('task name', task, 100);
  _params jsonb := coalesce(durable._checked_size('params', params), 'null');
  _options durable._spawn_options := durable._spawn_options(options);
  _now timestamptz := durable._now();
  _task_id uuid := durable._uuid7(durable._id_milliseconds(_now, _options.parent_task_id));
  _existing_id uuid;
begin
  if _options.idempotency_key is not null then
    perform durable._require_queue(_queue);
    _existing_id := durable._take_key(_queue, _options.idempotency_key, _task_id, _options.fingerprint[1]);
    if _existing_id is not null then
      return durable._same_task(_queue, (1, _task_id, _name, _params, _options, _existing_id));
    end if;
  end if;
  if _options.parent_task_id is not null then
    perform durable._require_queue(_queue);
    perform durable._hold_parent(_queue, _options.parent_task_id);
    _options.deadline := least(_options.deadline, durable._deadline_of(_queue, _options.parent_task_id));
  end if;
  loop
    insert into durable.tasks (
      task_id, parent_task_id, spawned_at, max_duration, max_attempts, queue, name,
      idempotency_key, params, headers, retry, available_at, deadline_at, complete_by, version
    )
    select
      _task_id, _options.parent_task_id, _now, _options.max_duration, _options.max_attempts, queues.queue,
      _name, _options.idempotency_key, _params, _options.headers, _options.retry, _now,
      least(_now + make_interval(secs => _options.max_delay), _options.deadline), _options.deadline,
      case when queues.versions = 'gate' then _options.version end
    from durable.queues
    where queues.queue = _queue and (queues.roles is null or durable._may_use(queues.roles));
    exit when found;
    perform durable._require_queue(_queue); -- which may be content: it has just come, or opened
  end loop;
  perform durable._knock(_queue, 'work');
  return (_task_id, durable._run_id(_task_id, 1), 1, true);
end;
$$;

comment on function durable.spawn is
'Spawns a task, in the caller''s transaction. options: max_attempts (5; null: no
limit), retry ({"kind": "none" | "fixed" | "exponential", "base_seconds", "factor",
"max_seconds", "jitter"}), headers (an object), identity (an object: who asks;
kept among the headers), idempotency_key, fingerprint (with a key: what is compared
instead of the params, a text, or several of which any may be the one kept), max_delay
and max_duration (seconds until its first start, and from it), parent_task_id, deadline
(the moment by which it is to be finished, with a time zone; a child''s is never later
than its parent''s), version (of the application that spawns it; it counts where the
queue''s policy is gate). Returns the task; created is false when the key was taken by the
same name and params.
Refuses: bad arguments 22023, an unknown queue WFQUE, a key that belongs to another
task WFCON, a parent that is unknown WFNFD or has finished WFFIN.';


create or replace function durable.spawn_many(queue text, tasks jsonb)
returns setof durable.spawned_task
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _new durable._new_task[];
  _parent uuid;
begin
  perform durable._require_queue(_queue);
  perform durable._check_tasks(tasks, array['task', 'params', 'options']);
  _new := durable._reserve_keys(_queue, durable._new_tasks(tasks, _now));
  for _parent in
    select distinct (new.options).parent_task_id
    from unnest(_new) as new
    where new.existing_id is null
    order by 1
  loop
    perform durable._hold_parent(_queue, _parent);
  end loop;
  perform durable._insert_tasks(_queue, _new, _now, null);
  return query
    select spawned.task_id, spawned.run_id, spawned.attempt, spawned.created
    from durable._spawned(_queue, _new) as spawned;
end;
$$;

comment on function durable.spawn_many is
'Spawns tasks, all or none, in the caller''s transaction. tasks: an array of
{"task": name, "params": ..., "options": {...}}, each as in spawn. Returns them in
the order given. Refuses what spawn refuses, for any of them.';


create or replace function durable._check_tasks(tasks jsonb, known text[])
returns void
language plpgsql
immutable
as $$
begin
  if tasks is null or jsonb_typeof(tasks) <> 'array' then
    perform durable._refuse_argument('tasks must be a JSON array',
      'Pass [{"task": "name", "params": {}, "options": {}}, ...].');
  end if;
  perform durable._check_keys('task', task, known)
  from jsonb_array_elements(tasks) as given (task)
  where jsonb_typeof(task) <> 'object' or task - known <> '{}';
  perform durable._checked_name('task name', name, 100)
  from (select distinct task ->> 'task' from jsonb_array_elements(tasks) as given (task)) as names (name);
  perform durable._checked_size('params', task -> 'params')
  from jsonb_array_elements(tasks) as given (task)
  where pg_column_size(task -> 'params') > 16777216;
end;
$$;


-- Checked tasks, with their ids and options. parent: of all of them, whatever their
-- options say.
create or replace function durable._new_tasks(tasks jsonb, at timestamptz, parent uuid default null)
returns durable._new_task[]
language plpgsql
as $$
declare
  _usual durable._spawn_options := durable._spawn_options('{}');
begin
  _usual.parent_task_id := parent;
  return array(
    select
      row(
        given.ordinal,
        durable._uuid7(durable._id_milliseconds(at, (chosen.options).parent_task_id),
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
          (given.task -> 'options')
          || case when parent is null then '{}' else jsonb_build_object('parent_task_id', parent) end)
      end as options
      offset 0 -- evaluated once a row
    ) as chosen
    order by given.ordinal
  );
end;
$$;


-- Takes the keys of new tasks, in key order; who finds one taken learns by whom.
create or replace function durable._reserve_keys(queue text, new durable._new_task[])
returns durable._new_task[]
language plpgsql
as $$
declare
  _new durable._new_task[] := new;
  _keyed record;
begin
  for _keyed in
    select
      task.place, task.task_id, (task.options).idempotency_key as key,
      (task.options).fingerprint[1] as fingerprint
    from unnest(new) with ordinality
      as task (ordinal, task_id, name, params, options, existing_id, place)
    where (task.options).idempotency_key is not null
    order by (task.options).idempotency_key collate "C", task.ordinal
  loop
    _new[_keyed.place].existing_id
      := durable._take_key(queue, _keyed.key, _keyed.task_id, _keyed.fingerprint);
  end loop;
  return _new;
end;
$$;


-- Takes a key for a new task. Returns the task that has it already, if one has.
create or replace function durable._take_key(queue text, key text, task_id uuid, fingerprint text)
returns uuid
language plpgsql
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
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
    for key share; -- cleanup leaves the task alone until the caller has heard of it
    if found then
      return _existing_id;
    end if; -- deleted by cleanup since: take it after all
  end loop;
end;
$$;


-- Holds a parent against finishing until the child's row has committed. Shared, so
-- that clients can add children side by side. Null: nothing to hold.
create or replace function durable._hold_parent(queue text, parent uuid)
returns void
language plpgsql
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
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


-- The moment by which a task, and so all below it, is to be finished.
create or replace function durable._deadline_of(queue text, task_id uuid)
returns timestamptz
language plpgsql
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
begin
  return (
    select tasks.complete_by
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _deadline_of.task_id
  );
end;
$$;


-- The caller holds the parents, so that their deadlines are what they are.
-- parent_queue: of their parent, if that is another one.
create or replace function durable._insert_tasks(
  queue text, new durable._new_task[], at timestamptz, parent_queue text
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _parent_queue text collate "C" := coalesce(parent_queue, queue);
begin
  insert into durable.tasks (
    task_id, parent_task_id, spawned_at, max_duration, max_attempts, queue, name,
    idempotency_key, params, headers, retry, available_at, deadline_at, parent_queue,
    complete_by, version
  )
  select
    task.task_id, (task.options).parent_task_id, at, (task.options).max_duration,
    (task.options).max_attempts, _queue, task.name, (task.options).idempotency_key,
    coalesce(task.params, 'null'), (task.options).headers, (task.options).retry, at,
    least(at + make_interval(secs => (task.options).max_delay), latest.moment), parent_queue,
    latest.moment,
    case when (task.options).version is not null and (
      select queues.versions = 'gate' from durable.queues where queues.queue = _queue
    ) then (task.options).version end
  from unnest(new) as task
  left join lateral (
    select tasks.complete_by
    from durable.tasks
    where tasks.queue = _parent_queue and tasks.task_id = (task.options).parent_task_id
    offset 0
  ) as parent on true
  cross join lateral (
    select least((task.options).deadline, parent.complete_by) as moment
  ) as latest
  where task.existing_id is null;
  perform durable._knock(queue, 'work');
end;
$$;


-- What became of new tasks, in the order given.
create or replace function durable._spawned(queue text, new durable._new_task[])
returns table (ordinal integer, task_id uuid, run_id uuid, attempt integer, created boolean)
language plpgsql
as $$
#variable_conflict use_column
begin
  return query
    select task.ordinal, task.task_id, durable._run_id(task.task_id, 1), 1, true
    from unnest(new) as task
    where task.existing_id is null
    union all
    select task.ordinal, existing.*
    from unnest(new) as task
    cross join lateral durable._same_task(queue, task) as existing
    where task.existing_id is not null
    order by 1;
end;
$$;


-- The task that has the key, if it is the one that was meant.
create or replace function durable._same_task(queue text, new durable._new_task)
returns durable.spawned_task
language plpgsql
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
  _task durable.tasks;
begin
  select * into _task
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = new.existing_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, new.existing_id);
  end if;
  if _task.name <> new.name or not durable._same_params(_queue, new, _task.params) then
    raise exception using errcode = 'WFCON',
      message = format('idempotency key "%s" belongs to task %s with %s',
        (new.options).idempotency_key, new.existing_id,
        case when _task.name <> new.name then format('the name "%s"', _task.name)
          else 'other params' end),
      hint = 'Use one key for one name and params.';
  end if;
  return (_task.task_id, durable._run_id(_task.task_id, _task.attempt), _task.attempt, false);
end;
$$;


-- Whether a task that has the key was meant to have these params. Where a fingerprint is
-- given nothing else can say so: then a key that has none is taken for the same, since it
-- dates from before there were any.
create or replace function durable._same_params(queue text, new durable._new_task, params jsonb)
returns boolean
language plpgsql
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := (new.options).idempotency_key;
begin
  if (new.options).fingerprint is null then
    return params = coalesce(new.params, 'null');
  end if;
  return (
    select coalesce(idempotency_keys.fingerprint = any ((new.options).fingerprint), true)
    from durable.idempotency_keys
    where idempotency_keys.queue = _queue and idempotency_keys.key = _key
  );
end;
$$;
