-- Checkpoints: what a task has done, written once. The first write wins; a second one can only
-- be a repetition under the same claim, since the fence refuses former claims.

create or replace function durable.save_checkpoints(queue text, checkpoints json)
returns setof durable.write_outcome language sql as $$
  select held.task_id, coalesce(refused.outcome, 'ok')
  from durable._write(queue, checkpoints, null, null) as refused
  right join json_to_recordset(checkpoints) as held (task_id uuid, claim integer)
    on held.task_id = refused.task_id and held.claim is not distinct from refused.claim;
$$;

comment on function durable.save_checkpoints is
'Saves checkpoints of tasks that a worker holds. checkpoints: [{"task_id", "claim", "name",
"value", "state": "done" | "failed", "position", "after", "duration_ms"}, ...]. Returns an
outcome for each: ok, also if the same claim has saved it before; cancelled; lost. A refused
element does not affect the others. Locks: the task rows, in ascending order; raises 55P03
after waiting 200 ms for one.';

create or replace function durable.lock_task(queue text, task_id uuid, claim integer, name text)
returns durable.loaded_checkpoint language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _name text collate "C" := name;
  _saved durable.loaded_checkpoint;
begin
  perform durable._hold_or_refuse(_queue, task_id, claim);
  select saved.task_id, saved.name, saved.position, saved.after, saved.state, saved.value
  into _saved
  from durable.checkpoints as saved
  where saved.queue = _queue and saved.task_id = lock_task.task_id and saved.name = _name;
  return _saved;
end;
$$;

comment on function durable.lock_task is
'Keeps a task with its worker until the transaction ends, whatever happens to the lease:
nobody else can claim or end it meanwhile. Returns the checkpoint of that name, or nulls. If
save_checkpoints is the last call of the transaction, everything else that it writes is
committed exactly once. Refuses a claim that has ended (WFCAN, WFLST). Locks: the task''s
row, until the transaction ends; raises 55P03 after waiting 200 ms for it, for example while
a transaction on a lost connection commits: begin again.';

-- Returns how many were saved, without those of former claims and those that this claim has
-- saved before. Locks the tasks as it goes, in ascending order.
create or replace function durable._save(queue text, checkpoints json, at timestamptz)
returns bigint language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _saved bigint;
begin
  insert into durable.checkpoints (
    task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
  )
  select
    new.task_id, at, task.ordinal, task.attempt, coalesce(new.position, 0), coalesce(new.after, 0),
    coalesce(new.duration_ms, 0), coalesce(new.state, 'done'), _queue,
    durable._checked_name('name of a step', new.name, 512),
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
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt
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
returns setof durable.loaded_checkpoint language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
begin
  perform durable._resolve_ended_waits(_queue, tasks, durable._now());
  perform
  from json_to_recordset(tasks) as held (task_id uuid)
  cross join lateral (
    select
    from durable.checkpoints
    where checkpoints.queue = _queue and checkpoints.task_id = held.task_id
      and checkpoints.name >= '$try:' and checkpoints.name < '$try;'
    limit 1
  ) as tried;
  if found then
    return query select * from durable._load_with_latest_tries(_queue, tasks);
    return;
  end if;
  return query
    select
      saved.task_id, saved.name::text, saved.position, saved.after, saved.state::text, saved.value
    from json_to_recordset(tasks) as held (task_id uuid)
    cross join lateral (
      select -- the sort keys come first, where Postgres finds them without reading the rest
        own.saved_at, own.claim, own.position, age(own.xmin) as transactions_ago,
        own.after, own.state, own.task_id, own.name, own.value
      from durable.checkpoints as own
      where own.queue = _queue and own.task_id = held.task_id
      -- by transaction where the clock gave the same time
      order by own.claim, own.saved_at, transactions_ago desc, own.position
      offset 0
    ) as saved;
end;
$$;

comment on function durable.load_checkpoints is
'Returns the checkpoints of tasks that a worker has just claimed, after turning waits that
have ended into checkpoints. tasks: [{"task_id", "claim"}, ...]. The checkpoints of a task
come in the order in which they were saved; of the tries of a step, and the pauses between
them, only the last. Locks: the rows of tasks that have waits, in ascending order; raises
55P03 after waiting 200 ms for one.';

-- Loads checkpoints where steps were tried again: the names before, between and after those of
-- tries and pauses, and of these the last ones.
create or replace function durable._load_with_latest_tries(queue text, tasks json)
returns setof durable.loaded_checkpoint language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _greatest text collate "C" := repeat(chr(1114111), 128); -- no name of 512 bytes is greater
begin
  return query
    select
      saved.task_id, saved.name::text, saved.position, saved.after, saved.state::text, saved.value
    from json_to_recordset(tasks) as held (task_id uuid)
    cross join lateral (
      select own.*
      from (
        values ('', '$retry:'), ('$retry;', '$try:'), ('$try;', _greatest)
        union all
        select latest.name, latest.name from durable._latest_tries(_queue, held.task_id) as latest (name)
      ) as range (first, last)
      cross join lateral (
        select *, age(checkpoints.xmin) as transactions_ago
        from durable.checkpoints
        where checkpoints.queue = _queue and checkpoints.task_id = held.task_id
          and checkpoints.name >= range.first collate "C" and checkpoints.name <= range.last collate "C"
        offset 0
      ) as own
      order by own.claim, own.saved_at, own.transactions_ago desc, own.position
      offset 0
    ) as saved;
end;
$$;

-- Returns the names of each step's last failed try in each attempt, and of the pause after it.
-- Tries are numbered from 1, so the last is found by doubling and bisection: loading a step
-- that was tried a thousand times costs about as much as one that was tried twice. Other names
-- that begin like a step's tries are skipped: a worker saves no such names.
create or replace function durable._latest_tries(queue text, task_id uuid)
returns setof text language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := '$try:';
  _tries text;
  _last integer;
  _next integer;
begin
  loop
    select checkpoints.name into _name
    from durable.checkpoints
    where checkpoints.queue = _queue and checkpoints.task_id = _latest_tries.task_id
      and checkpoints.name > _name and checkpoints.name < '$try;'
    order by checkpoints.name
    limit 1;
    exit when not found;
    _tries := regexp_replace(_name, '^\$try:(.*)\.\d+$', '\1');
    _last := 1;
    _next := 2;
    while durable._recorded(_queue, task_id, format('$try:%s.%s', _tries, _next)) is not null loop
      _last := _next;
      _next := _next * 2;
    end loop;
    while _next - _last > 1 loop
      if durable._recorded(_queue, task_id, format('$try:%s.%s', _tries, (_last + _next) / 2)) is not null then
        _last := (_last + _next) / 2;
      else
        _next := (_last + _next) / 2;
      end if;
    end loop;
    return next format('$try:%s.%s', _tries, _last);
    return next format('$retry:%s.%s', _tries, _last);
    _name := format('$try:%s/', _tries); -- "/" follows "."
  end loop;
end;
$$;
