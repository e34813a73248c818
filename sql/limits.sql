-- The limits of a queue and of its partitions: what a policy may say, and how it is changed.
--
-- A change holds from the next claim on. It locks the row of the partition, or that of the empty
-- key, so that no claim takes a lane's turn away by the old limits, and then gives lanes a turn.

-- Adds the limits and priorities of a policy to the row of a queue.
create or replace function durable._checked_lane_policy(policy jsonb, new durable.queues)
returns durable.queues language plpgsql immutable as $$
begin
  new.concurrency := durable._checked_count('policy', policy, 'concurrency');
  new.partition_concurrency := durable._checked_count('policy', policy, 'partition_concurrency');
  select rate.starts, rate.period into new.rate_starts, new.rate_period
  from durable._checked_rate('policy', policy, 'rate') as rate;
  select rate.starts, rate.period into new.partition_rate_starts, new.partition_rate_period
  from durable._checked_rate('policy', policy, 'partition_rate') as rate;
  if policy -> 'priorities' not in ('true', 'false', 'null') then
    perform durable._refuse_argument(
      'priorities in policy is ' || left((policy -> 'priorities')::text, 40),
      'Pass true where tasks have priorities or partition keys.');
  end if;
  new.priorities := nullif(policy -> 'priorities' = 'true', false);
  if policy -> 'partition_order' not in ('"strict"', 'null') then
    perform durable._refuse_argument(
      'partition_order in policy is ' || left((policy -> 'partition_order')::text, 40),
      'Pass "strict", or null where the tasks of a partition need no order.');
  end if;
  new.partition_order := policy ->> 'partition_order';
  new.ageing := durable._number('policy', policy, 'ageing', 0);
  if new.ageing = 0 then
    perform durable._refuse_argument('ageing in policy is 0',
      'Pass in how many seconds a lane rises by one priority, or null for never.');
  end if;
  return new;
end;
$$;

-- Changes the limits of a queue: those that the policy names. The row of the empty key is locked
-- first, so that no lane loses its turn by the old limits after this has given all a turn.
create or replace function durable._set_lane_policy(queue text, policy jsonb, new durable.queues)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._require_read_committed('create_queue with limits');
  perform durable._lock_partition(_queue, '');
  update durable.queues
  set
    concurrency = case when policy ? 'concurrency' then new.concurrency else queues.concurrency end,
    partition_concurrency = case when policy ? 'partition_concurrency'
      then new.partition_concurrency else queues.partition_concurrency end,
    rate_starts = case when policy ? 'rate' then new.rate_starts else queues.rate_starts end,
    rate_period = case when policy ? 'rate' then new.rate_period else queues.rate_period end,
    partition_rate_starts = case when policy ? 'partition_rate'
      then new.partition_rate_starts else queues.partition_rate_starts end,
    partition_rate_period = case when policy ? 'partition_rate'
      then new.partition_rate_period else queues.partition_rate_period end,
    priorities = case when policy ? 'priorities' then new.priorities else queues.priorities end,
    partition_order = case when policy ? 'partition_order'
      then new.partition_order else queues.partition_order end,
    ageing = case when policy ? 'ageing' then new.ageing else queues.ageing end
  where queues.queue = _queue;
  perform durable._reopen_lanes(_queue, null);
end;
$$;

-- Returns a smallint of a JSON object; null if it is absent or JSON null.
create or replace function durable._checked_priority(options jsonb)
returns smallint language plpgsql immutable as $$
declare
  _priority double precision;
begin
  _priority := durable._number('options', options, 'priority', -32768);
  if _priority <> floor(_priority) or _priority > 32767 then
    perform durable._refuse_argument(format('priority in options is %s', _priority),
      'Pass a whole number from -32768 to 32767; higher ones start first.');
  end if;
  return _priority;
end;
$$;

-- Returns a rate of a JSON object, as it is stored; nulls if it is absent or JSON null.
create or replace function durable._checked_rate(
  what text, given jsonb, key text, out starts integer, out period double precision
) language plpgsql immutable as $$
declare
  _rate jsonb := nullif(given -> key, 'null');
begin
  if _rate is null then
    return;
  end if;
  perform durable._checked_keys(key || ' in ' || what, _rate, array['starts', 'period']);
  starts := durable._checked_count(key, _rate, 'starts');
  period := durable._number(key, _rate, 'period', 0);
  if starts is null or coalesce(period, 0) = 0 then
    perform durable._refuse_argument(format('%s in %s is %s', key, what, left(_rate::text, 40)),
      'Pass {"starts": a whole number from 1, "period": a positive number of seconds}.');
  end if;
end;
$$;

create or replace function durable.set_partition_limit(
  queue text, partition_key text, limits jsonb
) returns void language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _key text collate "C" := durable._checked_name('partition_key', partition_key, 255);
  _limits jsonb := durable._checked_keys('limits', limits, array['concurrency', 'rate']);
  _concurrency integer := durable._checked_count('limits', _limits, 'concurrency');
  _rate record;
begin
  select * into _rate from durable._checked_rate('limits', _limits, 'rate');
  perform durable._require_lanes(_queue);
  perform durable._require_read_committed('set_partition_limit');
  perform durable._lock_partition(_queue, _key);
  update durable.partitions
  set concurrency = _concurrency, rate_starts = _rate.starts, rate_period = _rate.period
  where partitions.queue = _queue and partitions.partition_key = _key;
  perform durable._reopen_lanes(_queue, _key);
  perform durable._audit(_queue, 'set_partition_limit', null,
    jsonb_build_object('partition_key', partition_key, 'limits', limits));
end;
$$;

comment on function durable.set_partition_limit is
'Gives the tasks of a queue with this partition_key limits of their own, in place of the
queue''s partition_concurrency and partition_rate. limits:

- concurrency: how many of them may run at once.
- rate: {"starts": n, "period": seconds}, how many of their attempts may begin in any period.

For a key that is left out, or null, the queue''s policy holds; {} removes the limits. They hold
from the next claim on: running tasks stay. Refuses an unknown queue (WFQUE), a queue without limits
and priorities, bad arguments (22023), and a transaction stricter than READ COMMITTED (WFISO).
Locks: the partition, for which claims then do not wait but pass over it: commit at once.';

-- Gives lanes a turn now, since limits have changed: those of one partition or, if it is null, all.
-- The caller has locked the partition's row, or that of the empty key, FOR UPDATE, so no claim can
-- take a lane's turn: a lane that is locked has one.
create or replace function durable._reopen_lanes(queue text, partition_key text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := partition_key;
  _now timestamptz := durable._now();
  _places tid[];
begin
  if _key is null then
    _places := array(
      select lanes.ctid
      from durable.lanes
      where lanes.queue = _queue and (lanes.turn_at > _now) is not false
      for no key update skip locked);
  else
    _places := array(
      select lanes.ctid
      from durable.lanes
      where lanes.queue = _queue
        and (lanes.partition_key, lanes.name) >= (_key, '') and lanes.partition_key <= _key
        and (lanes.turn_at > _now) is not false
      for no key update skip locked);
  end if;
  update durable.lanes
  set turn_at = _now
  where (lanes.queue = _queue) is true and lanes.ctid = any (_places);
  perform durable._notify_listeners(_queue, 'work');
end;
$$;

-- Locks the row of a partition, which it makes if there is none. The advisory lock is that of
-- claims, so that these do not wait for the row.
create or replace function durable._lock_partition(queue text, partition_key text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _key text collate "C" := partition_key;
begin
  perform pg_advisory_xact_lock(hashtext('durable.partition'), hashtext(_queue || ' ' || _key));
  loop
    insert into durable.partitions (queue, partition_key) values (_queue, _key)
    on conflict do nothing;
    perform from durable.partitions
    where partitions.queue = _queue and partitions.partition_key = _key
    for update;
    exit when found;
  end loop;
end;
$$;
