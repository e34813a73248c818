-- Worker sessions: which workers are alive, what they are, and whether they are stopping.
--
-- A worker announces itself before its first claim and about every ten seconds from then on; when
-- it stops, it removes its session. One that has not been seen for a minute counts as dead, and
-- its session is deleted after an hour. Claims neither read nor write sessions, so no decision
-- about tasks depends on them: they only show what runs.

create or replace function durable._is_alive(seen_at timestamptz, at timestamptz)
returns boolean language sql immutable as $$
  select seen_at > at - interval '60 s';
$$;

create or replace function durable.announce_worker(
  queue text, worker text, about jsonb default '{}'
) returns setof text language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _worker text collate "C" := durable._checked_name('worker', worker, 255);
  _now timestamptz := durable._now();
  _new durable.worker_sessions := durable._checked_session(about);
begin
  perform durable._require_queue(_queue);
  update durable.worker_sessions
  set seen_at = _now, draining = _new.draining
  where worker_sessions.queue = _queue and worker_sessions.worker = _worker;
  if not found then
    if _new.version <> '' then
      perform durable._add_version(_queue, _new.version, _now);
    end if;
    insert into durable.worker_sessions (
      started_at, seen_at, draining, pid, slots, queue, worker, version, host, names
    )
    values (_now, _now, _new.draining, _new.pid, _new.slots, _queue, _worker, _new.version,
      _new.host, _new.names)
    on conflict do nothing;
  end if;
  perform durable._prune_sessions(_queue, _now);
  return query
    select distinct waiting.version
    from durable._waiting_versions(_queue) as waiting
    where waiting.version not in ('', _new.version)
      and not exists (
        select from durable.worker_sessions
        where worker_sessions.queue = _queue
          and worker_sessions.version = waiting.version collate "C"
          and durable._is_alive(worker_sessions.seen_at, _now)
        offset 0);
end;
$$;

comment on function durable.announce_worker is
'Records that a worker is alive. A worker calls it before its first claim, then about every ten
seconds, and remove_worker when it stops; after a minute without a call it counts as dead. worker:
as in claim_tasks. about:

- version: of the application, at most 100 bytes; a new one becomes the latest of the queue.
- names: the tasks that it knows.
- host, pid, slots: where it runs, and how many tasks it runs at once.
- draining: true once it claims no more and only finishes what it has.

Only the first call stores them; later ones change draining. Deletes the sessions of workers that
were last seen an hour ago. Returns the versions that tasks wait for and no live worker has.
Refuses an unknown queue (WFQUE) and bad arguments (22023). Locks: the worker''s own session; tries
those of others with SKIP LOCKED.';

create or replace function durable.remove_worker(queue text, worker text)
returns boolean language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
begin
  delete from durable.worker_sessions
  where worker_sessions.queue = _queue and worker_sessions.worker = remove_worker.worker;
  return found;
end;
$$;

comment on function durable.remove_worker is
'Deletes the session of a worker that stops: see announce_worker. Returns false if it has none.
Refuses a queue that the caller may not use (42501). Locks: the session.';

create or replace function durable._checked_session(about jsonb)
returns durable.worker_sessions language plpgsql immutable as $$
declare
  _about jsonb := durable._checked_keys('about', about,
    array['version', 'names', 'host', 'pid', 'slots', 'draining']);
  _session durable.worker_sessions;
begin
  if jsonb_typeof(_about -> 'names') not in ('array', 'null')
    or jsonb_path_exists(_about, '$.names[*] ? (@.type() != "string")')
  then
    perform durable._refuse_argument('names in about must be an array of names',
      'Pass the names of the tasks that the worker knows.');
  elsif jsonb_typeof(_about -> 'host') not in ('string', 'null') then
    perform durable._refuse_argument('host in about must be a string',
      'Pass 1 to 255 bytes of text.');
  elsif jsonb_typeof(_about -> 'draining') not in ('boolean', 'null') then
    perform durable._refuse_argument('draining in about must be true or false',
      'Pass true once the worker claims no more.');
  end if;
  _session.version := coalesce(durable._checked_version(_about -> 'version'), '');
  _session.names := array(select jsonb_array_elements_text(nullif(_about -> 'names', 'null')));
  _session.host := case when _about ->> 'host' is not null
    then durable._checked_name('host', _about ->> 'host', 255) end;
  _session.pid := durable._checked_count('about', _about, 'pid');
  _session.slots := durable._checked_count('about', _about, 'slots');
  _session.draining := coalesce((_about ->> 'draining')::boolean, false);
  return _session;
end;
$$;

create or replace function durable._prune_sessions(queue text, at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _worker text;
begin
  for _worker in
    select worker_sessions.worker
    from durable.worker_sessions
    where worker_sessions.queue = _queue
      and worker_sessions.seen_at <= at - interval '1 hour'
    for update skip locked
  loop
    delete from durable.worker_sessions
    where worker_sessions.queue = _queue and worker_sessions.worker = _worker collate "C";
  end loop;
end;
$$;

create or replace function durable.list_workers(queue text default null)
returns setof durable.listed_worker language plpgsql stable as $$
begin
  return query
    select
      queues.queue::text, workers.worker::text, workers.version::text, workers.host::text,
      workers.pid, workers.slots, workers.running, workers.first_lease_expires_at,
      workers.started_at, workers.seen_at,
      coalesce(durable._is_alive(workers.seen_at, durable._now()), false),
      coalesce(workers.draining, false)
    from durable.queues
    join durable.workers on workers.queue = queues.queue
    where case
      when list_workers.queue is null then durable._may_use(queues.roles)
      else queues.queue = durable._checked_queue(list_workers.queue) collate "C"
    end
    order by queues.queue, workers.worker;
end;
$$;

comment on function durable.list_workers is
'Returns the workers of a queue (null: of every queue that the caller may use): those that have
announced themselves within the last hour and not stopped since, and those that hold a task.
Counts the running tasks.';
