-- What a running task does to the world of tasks: spawning children and emitting
-- events. Each commits together with the checkpoint that records it, under the
-- task's claim: a crash never doubles it, a former claim is refused.

create or replace function durable.spawn_children(queue text, task_id uuid, claim integer, children jsonb)
returns setof durable.spawned_child
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
    select * from durable._spawn_children(queue, task_id, claim, queue, children);
end;
$$;

comment on function durable.spawn_children is
'Spawns children of a task that a worker holds, each with the checkpoint that records
it; a child whose checkpoint is there already is returned, not spawned again. children:
[{"name": the checkpoint''s, "task", "params", "options", "position", "after"}, ...].
Refuses a claim that is over (WFCAN, WFLST), and what spawn refuses.';


-- In the parent's own queue, or in another.
create or replace function durable._spawn_children(
  queue text, task_id uuid, claim integer, child_queue text, children jsonb
)
returns setof durable.spawned_child
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _there text collate "C" := child_queue;
  _now timestamptz := durable._now();
  _new durable._new_task[];
begin
  perform durable._require_queue(_queue);
  if _there <> _queue then
    perform durable._require_queue(_there);
  end if;
  perform durable._check_tasks(children,
    array['name', 'task', 'params', 'options', 'position', 'after']);
  perform durable._checked_name('name of a child', child ->> 'name', 512)
  from jsonb_array_elements(children) as child;
  perform durable._refuse_argument(format('two children are named "%s"', twice.name),
    'Pass a name of its own for each.')
  from (
    select child ->> 'name' as name
    from jsonb_array_elements(children) as child
    group by 1
    having count(*) > 1
  ) as twice;
  _new := durable._new_tasks(children, _now, task_id);
  _new := durable._reserve_keys(_there, durable._unrecorded(_queue, task_id, children, _new));
  perform durable._hold_or_refuse(_queue, task_id, claim);
  _new := durable._unrecorded(_queue, task_id, children, _new);
  perform durable._insert_tasks(_there, _new, _now, nullif(_queue, _there));
  perform durable._record_children(_queue, task_id, claim, _there, children, _new, _now);
  if _there <> _queue then
    perform durable._reach_into(_queue, task_id, _there);
  end if;
  return query
    select
      child ->> 'name', (saved.value ->> 'task_id')::uuid, (saved.value ->> 'run_id')::uuid,
      (saved.value ->> 'attempt')::integer, (saved.value ->> 'created')::boolean
    from jsonb_array_elements(children) with ordinality as given (child, ordinal)
    cross join lateral (
      select checkpoints.value
      from durable.checkpoints
      where checkpoints.queue = _queue
        and checkpoints.task_id = _spawn_children.task_id
        and checkpoints.name = (child ->> 'name') collate "C"
      offset 0
    ) as saved
    order by given.ordinal;
end;
$$;


-- Without the children that an earlier call has recorded: they are what they were,
-- whatever has become of them and their keys.
create or replace function durable._unrecorded(
  queue text, task_id uuid, children jsonb, new durable._new_task[]
)
returns durable._new_task[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    select task
    from unnest(new) as task
    cross join lateral (
      select count(*) as times
      from durable.checkpoints
      where checkpoints.queue = _queue
        and checkpoints.task_id = _unrecorded.task_id
        and checkpoints.name = (children -> (task.ordinal - 1) ->> 'name') collate "C"
      offset 0
    ) as saved
    where saved.times = 0
    order by task.ordinal
  );
end;
$$;


create or replace function durable._record_children(
  queue text, task_id uuid, claim integer, child_queue text, children jsonb,
  new durable._new_task[], at timestamptz
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _attempt integer;
begin
  select tasks.attempt into _attempt
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _record_children.task_id;
  insert into durable.checkpoints (
    task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
  )
  select
    _record_children.task_id, at, _record_children.claim, _attempt,
    coalesce((child ->> 'position')::integer, 0), coalesce((child ->> 'after')::integer, 0), 0,
    'done', _queue, child ->> 'name',
    json_strip_nulls(json_build_object('task_id', spawned.task_id, 'run_id', spawned.run_id,
      'attempt', spawned.attempt, 'created', spawned.created,
      'queue', nullif(child_queue, _queue)))
  from jsonb_array_elements(children) with ordinality as given (child, ordinal)
  join durable._spawned(child_queue, new) as spawned using (ordinal)
  on conflict do nothing;
end;
$$;


create or replace function durable.emit_from_task(
  queue text,
  task_id uuid,
  claim integer,
  name text,
  event text,
  payload jsonb default 'null',
  "position" integer default 0,
  after integer default 0
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _first boolean;
  _recorded json;
begin
  perform durable._require_queue(_queue);
  perform durable._checked_name('name of a step', name, 512);
  perform durable._checked_name('event name', event, 255);
  perform durable._checked_size('payload', payload);
  if durable._recorded(_queue, task_id, name) is null then
    _first := durable._write_event(_queue, event, payload);
  end if;
  _recorded := durable._record_once(_queue, task_id, claim, name, to_json(_first), position, after);
  if _recorded is not null then
    return _recorded::text::boolean;
  elsif _first then
    perform durable._wake_waiters(_queue, event);
  end if;
  return _first;
end;
$$;

comment on function durable.emit_from_task is
'emit_event by a task that a worker holds, with the checkpoint that records it; says
the same again when it is repeated. Refuses a claim that is over: WFCAN, WFLST.';


-- What a task has done is recorded under its claim, once: returns what an earlier call has
-- recorded, or null if that is this one. The caller has looked before (_recorded), and has
-- written what comes before a task's row in the lock order.
create or replace function durable._record_once(
  queue text, task_id uuid, claim integer, name text, value json, "position" integer, after integer
)
returns json
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _recorded json;
begin
  perform durable._hold_or_refuse(_queue, task_id, claim);
  _recorded := durable._recorded(_queue, task_id, name);
  if _recorded is null then
    insert into durable.checkpoints (
      task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
    )
    select
      tasks.task_id, _now, tasks.claim, tasks.attempt, _record_once.position, _record_once.after, 0,
      'done', _queue, _record_once.name, _record_once.value
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _record_once.task_id;
  end if;
  return _recorded;
end;
$$;


-- Looked for before the event or the message is written, which may be gone since, and
-- again under the lock.
create or replace function durable._recorded(queue text, task_id uuid, name text)
returns json
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
begin
  return (
    select checkpoints.value
    from durable.checkpoints
    where checkpoints.queue = _queue
      and checkpoints.task_id = _recorded.task_id
      and checkpoints.name = _name
  );
end;
$$;
