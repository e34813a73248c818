-- Checkpoints: what a task has done, written once. First write wins, which can only
-- be the same claim's own, repeated: a former claim is refused by the fence.

create or replace function durable.save_checkpoints(queue text, checkpoints json)
returns setof durable.write_outcome
language sql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._write(queue, checkpoints, null, null) as refused
  right join json_to_recordset(checkpoints) as held (task_id uuid, claim integer)
    on held.task_id = refused.task_id and held.claim is not distinct from refused.claim;
$$;

comment on function durable.save_checkpoints is
'Saves what tasks that a worker holds have done. checkpoints: [{"task_id", "claim",
"name", "value", "state": "done" | "failed", "position", "after", "duration_ms"}, ...].
Returns an outcome for each: ok (also when this claim has saved it before), cancelled,
lost. One refused element does not touch the others.';


create or replace function durable.hold_task(queue text, task_id uuid, claim integer, name text)
returns durable.loaded_checkpoint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _name text collate "C" := name;
  _saved durable.loaded_checkpoint;
begin
  perform durable._hold_or_refuse(_queue, task_id, claim);
  select saved.task_id, saved.name, saved.position, saved.after, saved.state, saved.value
  into _saved
  from durable.checkpoints as saved
  where saved.queue = _queue and saved.task_id = hold_task.task_id and saved.name = _name;
  return _saved;
end;
$$;

comment on function durable.hold_task is
'Keeps a task in its worker''s hands until the transaction ends, whatever becomes of the
lease: nobody else takes it, and who wants to end it waits. Returns the checkpoint of
that name, or nulls. With save_checkpoints as its last call, the transaction does
exactly once whatever else it writes. Refuses a claim that is over: WFCAN, WFLST. Raises
55P03 when somebody holds the task for longer than 200 ms, as a transaction does that is
just committing on a lost connection: begin again.';

-- Returns how many were saved: not those of former claims, nor what this claim has saved
-- before. Locks the tasks on its way, ascending.
create or replace function durable._save(queue text, checkpoints json, at timestamptz)
returns bigint
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _saved bigint;
begin
  insert into durable.checkpoints (
    task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
  )
  select
    new.task_id, at, new.claim, task.attempt, coalesce(new.position, 0), coalesce(new.after, 0),
    coalesce(new.duration_ms, 0), coalesce(new.state, 'done'), _queue,
    case when octet_length(new.name) <= 512 and new.name ~ '^[^\x01-\x20\x7f][^\x01-\x1f\x7f]*$'
      then new.name else durable._checked_name('name of a step', new.name, 512) end,
    coalesce(new.value, 'null')
  from (
    select distinct on (own.task_id, own.name, own.claim) own.*
    from json_to_recordset(checkpoints) as own (
      task_id uuid, claim integer, name text, state durable.checkpoint_state, position integer,
      after integer, duration_ms integer, value json
    )
    order by own.task_id, own.name, own.claim
    offset 0 -- sorted before the first is locked
  ) as new
  cross join lateral (
    select tasks.attempt
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = new.task_id and tasks.claim = new.claim
      and new.claim % 2 = 1
    offset 0
    for no key update
  ) as task
  cross join lateral (
    select count(*) as times
    from durable.checkpoints
    where checkpoints.queue = _queue
      and checkpoints.task_id = new.task_id
      and checkpoints.name = new.name collate "C"
    offset 0
  ) as saved
  where saved.times = 0;
  get diagnostics _saved = row_count;
  return _saved;
end;
$$;


create or replace function durable.load_checkpoints(queue text, tasks json)
returns setof durable.loaded_checkpoint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
begin
  perform durable._settle(_queue, tasks, durable._now());
  return query
    select
      saved.task_id, saved.name::text, saved.position, saved.after, saved.state::text, saved.value
    from json_to_recordset(tasks) as held (task_id uuid)
    cross join lateral (
      select *
      from durable.checkpoints
      where checkpoints.queue = _queue and checkpoints.task_id = held.task_id
      offset 0
    ) as saved;
end;
$$;

comment on function durable.load_checkpoints is
'What tasks that a worker has just claimed have done so far; what they waited for and
what has happened meanwhile is turned into checkpoints first. tasks: [{"task_id",
"claim"}, ...].';
