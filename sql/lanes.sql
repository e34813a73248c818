-- Lanes: the order and the limits of tasks, in queues whose policy has any: concurrency, rates,
-- priorities, partition keys, the order of partitions.
--
-- A lane is the waiting tasks of one name, version, partition key and priority. The tasks of a
-- queue with lanes are in no other index than that of their lane, and the statements of a queue
-- without lanes are what they would be if there were none. What keeps this correct:
--
-- 1. What runs is counted in the rows of `tasks`, and what has begun in `starts`, by the claim
--    that wants to start more. No counter is stored, so none can be wrong after a crash.
-- 2. A claim that starts a task of a partition holds the partition's row FOR NO KEY UPDATE from
--    before it counts until it commits. So does one of a queue with a limit of its own, with the
--    row of the empty key.
-- 3. A lane with waiting tasks has a row in `lanes`. A call that makes a task claimable locks
--    a row of its lane FOR KEY SHARE, or inserts one (_enlist). A claim that wants to delete a
--    row, or let it wait for a later task, needs it FOR UPDATE, and looks for tasks again in the
--    next statement. So a spawn in a long transaction neither waits nor makes others wait.
-- 4. A lane whose partition is full has no turn (turn_at is null). A call that ends a task of
--    that partition locks the partition's row FOR KEY SHARE and gives its lanes a turn (_free).
--    A claim that takes the turn away needs that row FOR UPDATE, and counts again. If _free
--    cannot lock a row, maintenance repeats its work.
-- 5. Lanes take turns: that which has been served is put at the end, unless all that wait were
--    looked at. A partition with many tasks delays the others by one round.
--
-- ageing.sql says when lanes of a low priority come first, and partition_order.sql which task of a
-- partition may start, where the order is strict.
--
-- The lock order: claims lock the row of the empty key, rows of lanes, rows of partitions, and
-- tasks, all with SKIP LOCKED, and wait for none. An advisory lock, which they only try, keeps two
-- from inserting the same partition.

create or replace function durable._has_lanes(policy durable.queues)
returns boolean language sql immutable as $$
  select num_nonnulls(policy.concurrency, policy.partition_concurrency, policy.rate_starts,
    policy.partition_rate_starts, policy.priorities, policy.partition_order) > 0;
$$;

create or replace function durable._require_lanes(queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.queues where queues.queue = _queue and durable._has_lanes(queues);
  if not found then
    perform durable._require_queue(_queue);
    perform durable._refuse_argument(
      format('the queue "%s" has neither limits nor priorities', queue),
      'Give it a policy first, for instance {"priorities": true}; create_queue() lists them.');
  end if;
end;
$$;

-- Makes claims look for tasks that the caller has just made claimable, now or later. Does nothing
-- for tasks without lanes. Outside READ COMMITTED a locked row may be out of date, which would
-- be an error: there it always inserts. takes_turn: a lane without a turn does not do.
create or replace function durable._enlist(
  queue text, task_ids uuid[], takes_turn boolean default false
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _looks boolean := durable._is_read_committed();
  _now timestamptz := durable._now();
begin
  insert into durable.lanes (
    lane_id, turn_at, waits_since, priority, resumes, queue, name, version, partition_key)
  select
    gen_random_uuid(), lane.due_at,
    case when (select queues.ageing from durable.queues where queues.queue = _queue) is not null
      then lane.due_at end,
    lane.priority, lane.resumes, _queue, lane.name, lane.version, lane.partition_key
  from (
    select
      task.name, task.version, task.partition_key, task.priority, task.resumes,
      min(task.available_at) as due_at
    from unnest(task_ids) as own (task_id)
    cross join lateral (
      select
        tasks.name, tasks.version, tasks.partition_key, tasks.priority, tasks.available_at,
        tasks.started_at is not null and tasks.error is null as resumes
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = own.task_id
        and tasks.partition_key is not null and tasks.available_at is not null
      offset 0
    ) as task
    group by task.name, task.version, task.partition_key, task.priority, task.resumes
  ) as lane
  left join lateral (
    select true as held
    from durable.lanes
    where _looks
      and lanes.queue = _queue
      and lanes.partition_key = lane.partition_key
      and lanes.name = lane.name
      and lanes.version = lane.version
      and lanes.priority = lane.priority
      and lanes.resumes = lane.resumes
      and (lanes.turn_at is null and not takes_turn
        or lanes.turn_at <= greatest(lane.due_at, _now))
    limit 1
    for key share skip locked
  ) as known on true
  where known.held is null;
end;
$$;

-- Gives the lanes of partitions a turn again, since a task of them has just ended, or left its
-- worker, in this transaction. Tasks without a key have no partition.
create or replace function durable._free(queue text, partition_keys text[])
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _keys text[] := array(
    select distinct freed.key collate "C"
    from unnest(partition_keys) as freed (key)
    where freed.key <> ''
    order by 1);
  _held text[] := array[]::text[];
  _sure boolean := durable._is_read_committed();
begin
  if _sure then
    _held := array(
      select held.partition_key
      from unnest(_keys) as own (key)
      cross join lateral (
        select partitions.partition_key
        from durable.partitions
        where partitions.queue = _queue and partitions.partition_key = own.key collate "C"
        offset 0
        for key share skip locked
      ) as held
    );
    perform durable._give_turns(_queue, _held);
  end if;
  perform durable._defer(_queue, 'partition', null, missed.key)
  from (
    select own.key
    from unnest(_held) as own (key)
    cross join lateral (
      select
      from durable.lanes
      where lanes.queue = _queue
        and (lanes.partition_key, lanes.name) >= (own.key collate "C", '')
        and lanes.partition_key <= own.key collate "C"
        and lanes.turn_at is null
      limit 1
    ) as locked_lane
    union all
    select own.key
    from unnest(_keys) as own (key)
    left join lateral (
      select true as is_locked
      from durable.partitions
      where partitions.queue = _queue and partitions.partition_key = own.key collate "C"
      offset 0
    ) as partition on true
    where own.key <> all (_held) and (partition.is_locked or not _sure)
  ) as missed;
  if _held <> '{}' or exists (
    select from durable.queues where queues.queue = _queue and queues.concurrency is not null)
  then
    perform durable._notify_listeners(_queue, 'work');
  end if;
end;
$$;

-- Gives those lanes of partitions a turn that have none and are not locked. A range, as in
-- _children, here and where else all lanes of a partition are read: only one index can serve it.
-- Updates by ctid: see _lease_by_ctid.
create or replace function durable._give_turns(queue text, partition_keys text[])
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[] := array(
    select lane.ctid
    from unnest(partition_keys) as own (key)
    cross join lateral (
      select lanes.ctid
      from durable.lanes
      where lanes.queue = _queue
        and (lanes.partition_key, lanes.name) >= (own.key collate "C", '')
        and lanes.partition_key <= own.key collate "C"
        and lanes.turn_at is null
      offset 0
      for no key update skip locked
    ) as lane
  );
begin
  update durable.lanes
  set turn_at = durable._now()
  where (lanes.queue = _queue) is true and lanes.ctid = any (_places);
end;
$$;
