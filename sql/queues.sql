-- Queues: namespaces of tasks, with their retention, access and failure limits.
--
-- A function is granted for all queues; a queue's roles name those whose members may use it.
-- Every public function that takes a queue checks this. Inside one, `current_user` is the
-- owner, so the caller is the role that the session has set, or else the one that logged in.
-- A role that may call create_queue may use every queue: it could add itself to the list.

create or replace function durable.create_queue(queue text, policy jsonb default '{}')
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _new durable.queues;
  _before jsonb;
  _created boolean;
begin
  perform durable._checked_name('queue name', queue, 100);
  perform durable._checked_keys('policy', policy, array[
    'keep_tasks', 'keep_events', 'roles', 'max_lost_leases', 'versions', 'history', 'max_length',
    'concurrency', 'partition_concurrency', 'rate', 'partition_rate', 'priorities',
    'partition_order', 'ageing', 'keep_audit', 'keep_metrics'
  ]);
  _new.keep_tasks := durable._number('policy', policy, 'keep_tasks', 0);
  _new.keep_events := durable._number('policy', policy, 'keep_events', 0);
  _new.keep_audit := durable._number('policy', policy, 'keep_audit', 0);
  _new.keep_metrics := durable._number('policy', policy, 'keep_metrics', 0);
  _new.roles := durable._checked_roles(policy -> 'roles');
  _new.max_lost_leases := durable._checked_count('policy', policy, 'max_lost_leases');
  _new.versions := durable._checked_version_policy(policy -> 'versions');
  _new.history := durable._checked_history_policy(policy -> 'history');
  _new.max_length := durable._checked_count('policy', policy, 'max_length');
  _new := durable._checked_lane_policy(policy, _new);

  insert into durable.queues (queue, created_at, keep_tasks, keep_events)
  values (_queue, durable._now(), 2592000, 2592000)
  on conflict do nothing;
  _created := found;
  if _created then
    perform durable._purge_queue(_queue);
    insert into durable.cleanup_cursors (queue) values (_queue) on conflict do nothing;
  elsif policy <> '{}' then
    _before := durable._locked_policy(_queue);
  end if;
  update durable.queues
  set
    keep_tasks = case when policy ? 'keep_tasks' then _new.keep_tasks else queues.keep_tasks end,
    keep_events = case when policy ? 'keep_events' then _new.keep_events else queues.keep_events end,
    keep_audit = case when policy ? 'keep_audit' then _new.keep_audit else queues.keep_audit end,
    keep_metrics = case when policy ? 'keep_metrics' then _new.keep_metrics else queues.keep_metrics end,
    roles = case when policy ? 'roles' then _new.roles else queues.roles end,
    max_lost_leases = case when policy ? 'max_lost_leases' then _new.max_lost_leases else queues.max_lost_leases end,
    versions = case when policy ? 'versions' then _new.versions else queues.versions end,
    history = case when policy ? 'history' then _new.history else queues.history end,
    max_length = case when policy ? 'max_length' then _new.max_length else queues.max_length end,
    is_full = case when not policy ? 'max_length' then queues.is_full end
  where queues.queue = _queue
    and policy <> '{}';
  if _new.max_length is not null then
    perform durable._is_full(_queue, _new.max_length);
  end if;
  if policy ?| array['concurrency', 'partition_concurrency', 'rate', 'partition_rate', 'priorities',
    'partition_order', 'ageing']
  then
    perform durable._set_lane_policy(_queue, policy, _new);
  end if;
  if _created or _before <> durable._locked_policy(_queue) then
    perform durable._audit(_queue, 'create_queue', null,
      jsonb_build_object('created', _created, 'policy', policy));
  end if;
  return _created;
end;
$$;

comment on function durable.create_queue is
'Creates a queue, or changes the policy of one that exists, of which keys that are left out
keep their values. policy:

- keep_tasks, keep_events: seconds to keep finished tasks and events; default 30 days;
  null: for ever.
- keep_audit: the same for what list_audit returns; default 90 days.
- keep_metrics: seconds to keep what queue_throughput returns; default 90 days; null: for ever.
- roles: names of the roles whose members may use it; default null: every caller that may
  call the functions. A change counts from the next call that sees it.
- max_lost_leases: a task fails after losing this many leases in a row without saving
  anything; default 100; null: no limit.
- versions: the workers that may claim a task: "pin", those of the version that started it;
  "gate", those of the version that spawned it; default null: any.
- history: "full", task_history also shows how each claim began and ended from now on;
  default "brief".
- max_length: while so many tasks are ready to be claimed, spawns are refused (WFFUL), except
  those of children; default null: no limit. It is not exact: see spawn.
- concurrency: how many of its tasks may run at once, on all workers; default null: no limit.
- partition_concurrency: the same, of each partition_key; set_partition_limit overrides it.
- rate: {"starts": n, "period": seconds}, how many attempts may begin in any period; default null:
  no limit. Waits do not begin an attempt.
- partition_rate: the same, of each partition_key; set_partition_limit overrides it.
- priorities: true, tasks may have priorities and partition keys without any of these limits.
- partition_order: "strict", the tasks of a partition start in the order in which they are due,
  whatever their names, versions and priorities, and each when the one before it has ended, not
  when that sleeps or waits; default null: no order. Partitions then start in order of the
  priority of their next task.
- ageing: the seconds in which the tasks of one name, partition and priority rise by one priority,
  while they could be claimed and none of them starts. Then one starts, and they are where they
  were; default null: tasks of a low priority wait as long as there are others. It counts in queues
  with one of the six policies before it.

A queue with one of these six starts tasks of a higher priority first, and of one priority,
those of the partition that has waited longest. New limits hold from the next claim on: what
is running stays. If all six are taken away, waiting tasks lose their keys and priorities,
1,000 in each maintenance.

Returns whether it was created. Refuses an empty name or one longer than 100 bytes, unknown
keys, unknown roles and bad values (22023), and new limits in a transaction stricter than READ
COMMITTED (WFISO). Locks: the queue''s row and, if limits change, what claims lock to count;
claims then do not wait, but start nothing: commit at once.';

-- Locks a queue's row, and returns it without the column that maintenance changes.
create or replace function durable._locked_policy(queue text)
returns jsonb language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _policy jsonb;
begin
  select to_jsonb(queues) - 'is_full' into _policy
  from durable.queues
  where queues.queue = _queue
  for no key update;
  return _policy;
end;
$$;

-- Returns the names of the roles, as the table stores them.
create or replace function durable._checked_roles(roles jsonb)
returns text[] language plpgsql stable as $$
declare
  _unknown text;
begin
  if roles is null or roles = 'null' then
    return null;
  elsif jsonb_typeof(roles) <> 'array' or roles = '[]'
    or exists (select from jsonb_array_elements(roles) as role where jsonb_typeof(role) <> 'string')
  then
    perform durable._refuse_argument('roles in policy must be an array of names',
      'Pass the names of roles, or null for everybody.');
  end if;
  select name into _unknown
  from jsonb_array_elements_text(roles) as name
  where not exists (select from pg_roles where rolname = name)
  order by name collate "C"
  limit 1;
  if found then
    perform durable._refuse_argument(format('no role "%s"', _unknown),
      'Create it first: a queue is for roles that exist.');
  end if;
  return array(select jsonb_array_elements_text(roles));
end;
$$;

create or replace function durable.drop_queue(queue text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
begin
  perform durable._require_read_committed('drop_queue');
  delete from durable.queues where queues.queue = _queue;
  if not found then
    return false;
  end if;
  perform durable._purge_queue(_queue);
  perform durable._audit(_queue, 'drop_queue');
  return true;
end;
$$;

comment on function durable.drop_queue is
'Deletes a queue and everything in it, running tasks too: the next writes of their workers
are refused, and their live descendants in other queues are cancelled. Returns false if
there is no such queue. Refuses a transaction stricter than READ COMMITTED, which could not
see a task of another queue that has just begun to wait for one of this queue (WFISO).
Locks: all events, idempotency keys, unique keys and tasks of the queue, in this order; waits
for each.';

-- Also runs when a queue is created, because a spawn that ran while a queue of this name was
-- dropped may have left a task. Everything is locked first, in the lock order, since workers
-- continue until this commits.
create or replace function durable._purge_queue(queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.lanes -- first: a spawn holds its lane while it waits for others
  where lanes.queue = _queue order by lanes.lane_id for update;
  perform from durable.events
  where events.queue = _queue order by events.name for update;
  perform from durable.idempotency_keys
  where idempotency_keys.queue = _queue order by idempotency_keys.key for update;
  perform from durable.unique_keys
  where unique_keys.queue = _queue
  order by unique_keys.kind, unique_keys.name, unique_keys.key
  for update;
  perform from durable.tasks
  where tasks.queue = _queue order by tasks.task_id for update;
  perform durable._release_watchers(_queue);
  perform durable._end_children_of_queue(_queue);
  delete from durable.messages where messages.queue = _queue;
  delete from durable.message_keys where message_keys.queue = _queue;
  delete from durable.mailboxes where mailboxes.queue = _queue;
  delete from durable.task_values where task_values.queue = _queue;
  delete from durable.stream_entries where stream_entries.queue = _queue;
  delete from durable.log_lines where log_lines.queue = _queue;
  delete from durable.cleanup_cursors where cleanup_cursors.queue = _queue;
  delete from durable.waits where waits.queue = _queue;
  delete from durable.deferred_work where deferred_work.queue = _queue;
  delete from durable.checkpoints where checkpoints.queue = _queue;
  delete from durable.claim_log where claim_log.queue = _queue;
  delete from durable.runs where runs.queue = _queue;
  delete from durable.idempotency_keys where idempotency_keys.queue = _queue;
  delete from durable.unique_keys where unique_keys.queue = _queue;
  delete from durable.tasks where tasks.queue = _queue;
  delete from durable.events where events.queue = _queue;
  delete from durable.lanes where lanes.queue = _queue;
  delete from durable.partitions where partitions.queue = _queue;
  delete from durable.starts where starts.queue = _queue;
  delete from durable.versions where versions.queue = _queue;
  delete from durable.worker_sessions where worker_sessions.queue = _queue;
  delete from durable.definitions where definitions.queue = _queue;
  delete from durable.schedules where schedules.queue = _queue;
  delete from durable.tallies where tallies.queue = _queue;
  delete from durable.metrics where metrics.queue = _queue;
  delete from durable.totals where totals.queue = _queue;
  delete from durable.samples where samples.queue = _queue;
end;
$$;

-- Returns the queue. Refuses a caller that may not use it (42501), and, if it must exist, a queue
-- that does not (WFQUE).
create or replace function durable._queue_or_refuse(queue text, must_exist boolean)
returns text language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _roles text[];
begin
  select queues.roles into _roles from durable.queues where queues.queue = _queue;
  if must_exist and not found then
    raise exception using errcode = 'WFQUE',
      message = format('no queue "%s"', queue),
      hint = format('Create it: select durable.create_queue(%L).', queue);
  elsif _roles is not null and not durable._may_use(_roles) then
    perform durable._refuse_queue(queue);
  end if;
  return queue;
end;
$$;

create or replace function durable._require_queue(queue text)
returns void language plpgsql as $$
begin
  perform durable._queue_or_refuse(queue, true);
end;
$$;

-- For functions that do not need the queue's row. An assignment inlines it.
create or replace function durable._checked_queue(queue text)
returns text language sql stable as $$
  select durable._queue_or_refuse(queue, false);
$$;

-- Membership is what Postgres itself checks for a grant: inherited. While a role analyzes or
-- reindexes another's table, that table's functions run in the session of the former, whose
-- rights they must not use. DEALLOCATE is refused in such a context, before Postgres looks
-- for the statement, which does not exist. UNLISTEN is refused there too, but it would keep a
-- transaction from being prepared.
create or replace function durable._may_use(roles text[])
returns boolean language plpgsql as $$
declare
  _caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
  if roles is null then
    return true;
  end if;
  begin
    deallocate durable_nobody;
  exception when invalid_sql_statement_name then
    null;
  end;
  return exists (
      select from pg_roles
      where pg_roles.rolname = any (roles) and pg_has_role(_caller, pg_roles.oid, 'usage'))
    or has_function_privilege(_caller, 'durable.create_queue(text, jsonb)', 'execute');
end;
$$;

create or replace function durable._refuse_queue(queue text)
returns void language plpgsql as $$
begin
  raise exception using errcode = '42501',
    message = format('no right to use the queue "%s"', queue),
    hint = 'Its roles say who may; create_queue() with the policy {"roles": [...]} changes them.';
end;
$$;

create or replace function durable.list_queues()
returns setof text language sql stable as $$
  select queues.queue
  from durable.queues
  where durable._may_use(queues.roles)
  order by queues.queue;
$$;

comment on function durable.list_queues is
'Returns the names of the queues that the caller may use, in ascending order.';

create or replace function durable.version()
returns text language sql immutable as $$
  select '0.2.0';
$$;

comment on function durable.version is
'Returns the version of the engine. It works with packages of the same major.minor that are
as old or older.';
