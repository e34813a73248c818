-- Spawns children and emits events on behalf of a running task. Each effect commits together
-- with the checkpoint that records it, under the task's claim: a crash never doubles it, and
-- a former claim is refused.

create or replace function durable.spawn_children(
  queue text, task_id uuid, claim integer, children jsonb
)
returns setof durable.spawned_child language plpgsql as $$
begin
  return query
    select * from durable._spawn_children(queue, task_id, claim, queue, children);
end;
$$;

comment on function durable.spawn_children is
'Spawns children of a task that a worker holds, each with the checkpoint that records it. A
child whose checkpoint exists already is returned, not spawned again. children: [{"name": the
checkpoint''s, "task", "params", "options", "position", "after"}, ...]. A child inherits the
headers and the identity of its parent, which its own override; headers that are null are not
inherited, nor is an identity if null is given. Refuses a claim that
has ended (WFCAN, WFLST), two children of one name (22023), and what spawn refuses. Locks:
idempotency keys in ascending order, then the task''s row; raises 55P03 after waiting 200 ms
for one.';

-- Spawns into the parent's own queue, or into another.
create or replace function durable._spawn_children(
  queue text, task_id uuid, claim integer, child_queue text, children jsonb
) returns setof durable.spawned_child language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _there text collate "C" := child_queue;
  _now timestamptz := durable._now();
  _headers jsonb;
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
  select tasks.headers into _headers
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _spawn_children.task_id;
  _new := durable._new_tasks(_there, children, _now, task_id, _headers);
  _new := durable._reserve_keys(_there, durable._unrecorded(_queue, task_id, children, _new), _now);
  perform durable._hold_or_refuse(_queue, task_id, claim);
  _new := durable._unrecorded(_queue, task_id, children, _new);
  perform durable._insert_tasks(_there, _new, _now, nullif(_queue, _there));
  perform durable._record_children(_queue, task_id, _there, children, _new, _now);
  if _there <> _queue then
    perform durable._record_child_queue(_queue, task_id, _there);
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

-- Removes the children that an earlier call has recorded: these do not change, whatever has
-- happened to them and their keys.
create or replace function durable._unrecorded(
  queue text, task_id uuid, children jsonb, new durable._new_task[]
) returns durable._new_task[] language plpgsql as $$
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
  queue text, task_id uuid, child_queue text, children jsonb, new durable._new_task[],
  at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.checkpoints (
    task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
  )
  select
    _record_children.task_id, at, parent.ordinal, parent.attempt,
    coalesce((child ->> 'position')::integer, 0), coalesce((child ->> 'after')::integer, 0), 0,
    'done', _queue, child ->> 'name',
    json_strip_nulls(json_build_object('task_id', spawned.task_id, 'run_id', spawned.run_id,
      'attempt', spawned.attempt, 'created', spawned.created, 'queue', nullif(child_queue, _queue)))
  from jsonb_array_elements(children) with ordinality as given (child, ordinal)
  join durable._spawned(child_queue, new) as spawned using (ordinal)
  cross join (
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _record_children.task_id
    offset 0
  ) as parent
  on conflict do nothing;
end;
$$;

create or replace function durable.emit_from_task(
  queue text, task_id uuid, claim integer, name text, event text, payload jsonb default 'null',
  "position" integer default 0, after integer default 0
) returns boolean language plpgsql as $$
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
'Emits an event from a task that a worker holds, and saves the checkpoint that records it in
the same transaction. Returns what emit_event returns, and the same again when repeated.
Refuses what emit_event refuses, and a claim that has ended (WFCAN, WFLST). Locks: the
event''s row, then the task''s; raises 55P03 after waiting 200 ms for one.';

-- Records an effect under the task's claim, once. Returns the value that an earlier call has
-- recorded, or null if this call does. The caller has looked before (_recorded), and has
-- written the rows that precede a task's row in the lock order.
create or replace function durable._record_once(
  queue text, task_id uuid, claim integer, name text, value json, "position" integer, after integer
) returns json language plpgsql as $$
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
      tasks.task_id, _now, durable._claim_ordinal(tasks.claim, tasks.times_claimed), tasks.attempt, _record_once.position, _record_once.after, 0,
      'done', _queue, _record_once.name, _record_once.value
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _record_once.task_id;
  end if;
  return _recorded;
end;
$$;

-- Read before the event or message is written, which may have been deleted since, and again
-- under the lock.
create or replace function durable._recorded(queue text, task_id uuid, name text)
returns json language plpgsql as $$
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

create or replace function durable.list_children(
  queue text, task_id uuid, page_size integer default 1000, after uuid default null
) returns table (child_queue text, child durable.listed_task) language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _after uuid := coalesce(after, '00000000-0000-0000-0000-000000000000');
  _homes text[] collate "C";
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  _homes := _queue || (durable._known_task(_queue, task_id)).child_queues;
  return query
    select queues.queue::text, found.child
    from unnest(_homes) as home (queue)
    join durable.queues on queues.queue = home.queue
    cross join lateral (
      select (
        tasks.task_id, tasks.parent_task_id, tasks.name, tasks.state, tasks.attempt, tasks.worker,
        tasks.spawned_at, tasks.started_at, tasks.available_at, tasks.finished_at, tasks.error
      )::durable.listed_task as child
      from durable.tasks
      where tasks.queue = queues.queue
        and (tasks.parent_task_id, tasks.task_id) > (list_children.task_id, _after) -- as in _children
        and tasks.parent_task_id <= list_children.task_id
        and coalesce(tasks.parent_queue, tasks.queue) = _queue
      order by tasks.parent_task_id, tasks.task_id
      limit page_size
    ) as found
    where queues.roles is null or durable._may_use(queues.roles)
    order by (found.child).task_id
    limit page_size;
end;
$$;

comment on function durable.list_children is
'Returns the children of a task, finished ones too, in the order in which they were spawned:
the queue of each, which may be another, and its row as in list_tasks. At most page_size rows;
after: the last id of the previous page. Children in queues that the caller may not use are
left out. Refuses an unknown queue (WFQUE), an unknown task (WFNFD) and a bad page_size
(22023).';
