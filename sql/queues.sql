-- Queues: namespaces of tasks, and how long each keeps what is over.

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
  _created boolean;
begin
  perform durable._checked_name('queue name', queue, 100);
  perform durable._check_keys('policy', policy, array['keep_tasks', 'keep_events']);
  _keep_tasks := durable._number('policy', policy, 'keep_tasks', 0);
  _keep_events := durable._number('policy', policy, 'keep_events', 0);

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
    keep_events = case when policy ? 'keep_events' then _keep_events else queues.keep_events end
  where queues.queue = _queue
    and policy <> '{}';
  return _created;
end;
$$;

comment on function durable.create_queue is
'Creates a queue, or changes the policy of one that exists; returns whether it was
created. policy: keep_tasks and keep_events, the seconds for which finished tasks and
events are kept (30 days each unless said; null keeps them for ever). Refuses an
empty or longer than 100 bytes name, and unknown keys (22023).';


create or replace function durable.drop_queue(queue text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  _queue text collate "C" := queue;
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
refused from then on. Returns false when there is no such queue.';


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
  delete from durable.waits where waits.queue = _queue;
  delete from durable.notes where notes.queue = _queue;
  delete from durable.checkpoints where checkpoints.queue = _queue;
  delete from durable.runs where runs.queue = _queue;
  delete from durable.idempotency_keys where idempotency_keys.queue = _queue;
  delete from durable.tasks where tasks.queue = _queue;
  delete from durable.events where events.queue = _queue;
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
  order by queues.queue;
$$;

comment on function durable.list_queues is
'Lists the queues by name.';


create or replace function durable._require_queue(queue text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.queues where queues.queue = _queue;
  if not found then
    raise exception using errcode = 'WFQUE',
      message = format('no queue "%s"', queue),
      hint = format('Create it: select durable.create_queue(%L).', queue);
  end if;
end;
$$;


create or replace function durable.version()
returns text
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select '0.1.0';
$$;

comment on function durable.version is
'The version of the engine. An SDK works with engines of its own major.minor.';
