-- Queues: namespaces of tasks, how long each keeps what is over, and for whom it is.
--
-- A function is granted for all queues; a queue's roles say whose members may use it.
-- Every public function that is given a queue looks. Inside one `current_user` is the
-- owner, so the caller is whom the session has set as its role, else who logged in. Who
-- may call create_queue may use every queue: it could put itself on the list.

create or replace function durable.create_queue(queue text, policy jsonb default '{}')
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  _queue text collate "C" := queue;
  _now timestamptz := durable._now();
  _keep_tasks double precision;
  _keep_events double precision;
  _roles text[];
  _max_lost_leases integer;
  _versions text;
  _history text;
  _created boolean;
begin
  perform durable._checked_name('queue name', queue, 100);
  perform durable._check_keys('policy', policy, array[
    'keep_tasks', 'keep_events', 'roles', 'max_lost_leases', 'versions', 'history'
  ]);
  _keep_tasks := durable._number('policy', policy, 'keep_tasks', 0);
  _keep_events := durable._number('policy', policy, 'keep_events', 0);
  _roles := durable._checked_roles(policy -> 'roles');
  _max_lost_leases := durable._checked_count('policy', policy, 'max_lost_leases');
  _versions := durable._checked_version_policy(policy -> 'versions');
  _history := durable._checked_history_policy(policy -> 'history');

  insert into durable.queues (queue, created_at, keep_tasks, keep_events)
  values (_queue, _now, 2592000, 2592000)
  on conflict do nothing;
  _created := found;
  if _created then
    perform durable._purge_queue(_queue);
  end if;
  update durable.queues
  set
    keep_tasks = case when policy ? 'keep_tasks' then _keep_tasks else queues.keep_tasks end,
    keep_events = case when policy ? 'keep_events' then _keep_events else queues.keep_events end,
    roles = case when policy ? 'roles' then _roles else queues.roles end,
    max_lost_leases = case when policy ? 'max_lost_leases'
      then _max_lost_leases else queues.max_lost_leases end,
    versions = case when policy ? 'versions' then _versions else queues.versions end,
    history = case when policy ? 'history' then _history else queues.history end
  where queues.queue = _queue
    and policy <> '{}';
  return _created;
end;
$$;

comment on function durable.create_queue is
'Creates a queue, or changes the policy of one that exists; returns whether it was
created. policy: keep_tasks and keep_events, the seconds for which finished tasks and
events are kept (30 days each unless said; null keeps them for ever); roles, the names of
those whose members may use it (null, as unless said: everybody who may call the
functions), which counts from the next call on that sees it; max_lost_leases, after how
many in a row, without anything saved, a task has failed (100 unless said; null: any);
versions, which workers may claim a task: pin, those of the version that started it;
gate, those of the version that spawned it (null, as unless said: any); history, how much
task_history can tell from now on: full, also how each claim began and ended; brief, as
unless said, what follows from what is kept anyway. Refuses an empty or longer than 100
bytes name, unknown keys and unknown roles (22023).';


-- The names of the roles, as the table has them.
create or replace function durable._checked_roles(roles jsonb)
returns text[]
language plpgsql
stable
as $$
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
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  _queue text collate "C" := durable._granted(queue);
begin
  delete from durable.queues where queues.queue = _queue;
  if not found then
    return false;
  end if;
  perform durable._purge_queue(_queue);
  return true;
end;
$$;

comment on function durable.drop_queue is
'Deletes a queue and everything in it, running tasks too: their workers'' writes are
refused from then on, and what lives below them in other queues is cancelled. Returns false
when there is no such queue.';


-- A spawn that was under way while its queue was dropped may leave a task behind, so
-- a new queue of the same name starts by purging too. Everything is held first, in the
-- lock order, since workers go on until it commits.
create or replace function durable._purge_queue(queue text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.events
  where events.queue = _queue order by events.name for update;
  perform from durable.idempotency_keys
  where idempotency_keys.queue = _queue order by idempotency_keys.key for update;
  perform from durable.tasks
  where tasks.queue = _queue order by tasks.task_id for update;
  delete from durable.messages where messages.queue = _queue;
  delete from durable.message_keys where message_keys.queue = _queue;
  delete from durable.mailboxes where mailboxes.queue = _queue;
  perform durable._purge_published(_queue);
  perform durable._part_from_watchers(_queue);
  perform durable._part_from_children(_queue);
  delete from durable.waits where waits.queue = _queue;
  delete from durable.notes where notes.queue = _queue;
  delete from durable.checkpoints where checkpoints.queue = _queue;
  delete from durable.claim_log where claim_log.queue = _queue;
  delete from durable.runs where runs.queue = _queue;
  delete from durable.idempotency_keys where idempotency_keys.queue = _queue;
  delete from durable.tasks where tasks.queue = _queue;
  delete from durable.events where events.queue = _queue;
  delete from durable.versions where versions.queue = _queue;
end;
$$;


-- Whether there is such a queue; refuses who may not use it. What is not there needs no right.
create or replace function durable._has_queue(queue text)
returns boolean
language plpgsql
stable
as $$
declare
  _queue text collate "C" := queue;
  _roles text[];
begin
  select queues.roles into _roles from durable.queues where queues.queue = _queue;
  if not found then
    return false;
  elsif _roles is not null and not durable._may_use(_roles) then
    perform durable._refuse_queue(queue);
  end if;
  return true;
end;
$$;


create or replace function durable._require_queue(queue text)
returns void
language plpgsql
as $$
begin
  if not durable._has_queue(queue) then
    raise exception using errcode = 'WFQUE',
      message = format('no queue "%s"', queue),
      hint = format('Create it: select durable.create_queue(%L).', queue);
  end if;
end;
$$;


-- The queue, there or not: for those that get by without its row. As with names, an
-- assignment costs least.
create or replace function durable._granted(queue text)
returns text
language plpgsql
stable
as $$
begin
  return case when durable._has_queue(queue) then queue else queue end; -- the look refuses
end;
$$;


-- Membership is what Postgres itself asks for when it looks at a grant: inherited. While
-- somebody analyzes or reindexes another's table, that table's functions run in the
-- session of the former, whose rights they are not to use: there UNLISTEN is refused, and
-- everywhere else it does nothing.
create or replace function durable._may_use(roles text[])
returns boolean
language plpgsql
as $$
declare
  _caller name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
  if roles is null then
    return true;
  end if;
  unlisten durable_nobody;
  return exists (
      select from pg_roles
      where pg_roles.rolname = any (roles) and pg_has_role(_caller, pg_roles.oid, 'usage'))
    or has_function_privilege(_caller, 'durable.create_queue(text, jsonb)', 'execute');
end;
$$;


create or replace function durable._refuse_queue(queue text)
returns void
language plpgsql
as $$
begin
  raise exception using errcode = '42501',
    message = format('no right to use the queue "%s"', queue),
    hint = 'Its roles say who may; create_queue() with the policy {"roles": [...]} changes them.';
end;
$$;


create or replace function durable.list_queues()
returns setof text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select queues.queue
  from durable.queues
  where durable._may_use(queues.roles)
  order by queues.queue;
$$;

comment on function durable.list_queues is
'Lists by name the queues that the caller may use.';


create or replace function durable.version()
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select '0.1.1';
$$;

comment on function durable.version is
'The version of the engine. It works with packages of its own major.minor that are as
old or older.';
