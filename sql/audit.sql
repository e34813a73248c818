-- Records who acted: with each task, who cancelled, retried or forked it; and in the table audit
-- every call of an operator's function that changed something.
--
-- The database knows the role. The session may add on whose behalf it acts, in the setting
-- durable.caller, for a transaction (`set local`) or a session: {"identity": {...}}, and
-- {"queue", "task_id"} of the task that acts. This is stored as given, beside the role, which
-- a caller cannot choose.

create or replace function durable._caller()
returns jsonb language plpgsql stable as $$
declare
  _user name := coalesce(nullif(current_setting('role'), 'none'), session_user);
  _said text := current_setting('durable.caller', true);
  _caller jsonb := case when _said <> '' then durable._checked_caller(_said) end;
begin
  return coalesce(_caller, '{}') || jsonb_build_object('user', _user);
end;
$$;

create or replace function durable._checked_caller(said text)
returns jsonb language plpgsql immutable as $$
declare
  _caller jsonb;
begin
  if octet_length(said) > 4000 then
    perform durable._refuse_argument(format('durable.caller is %s bytes long', octet_length(said)),
      'Set at most 4000 bytes.');
  end if;
  begin
    _caller := said::jsonb;
  exception when data_exception then
    perform durable._refuse_argument('durable.caller is no JSON', 'Set {"identity": {...}}.');
  end;
  perform durable._checked_keys('durable.caller', _caller, array['identity', 'queue', 'task_id']);
  if jsonb_typeof(_caller -> 'identity') <> 'object' then
    perform durable._refuse_argument('identity in durable.caller must be a JSON object',
      'Pass who it is, such as {"user": "..."}.');
  elsif jsonb_typeof(_caller -> 'queue') <> 'string'
    or (_caller -> 'task_id')::text !~* '^"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"$'
  then
    perform durable._refuse_argument('queue and task_id in durable.caller are no task''s',
      'Pass the name of its queue, and its id, or leave them out.');
  end if;
  return _caller;
end;
$$;

-- Returns who cancelled a task, as its error says: a caller, a task above it or one of its
-- limits. The engine writes the error of a cancellation; the error of a failure is written by
-- the worker and is not trusted.
create or replace function durable._cancelled_by(error jsonb)
returns jsonb language plpgsql immutable as $$
begin
  return case
    when jsonb_typeof(error -> 'by') = 'object' then error -> 'by'
    when error ? 'by' then jsonb_strip_nulls(
      jsonb_build_object('task_id', error -> 'by', 'queue', error -> 'by_queue'))
    when error ? 'limit' then jsonb_build_object('limit', error -> 'limit')
  end;
end;
$$;

-- Call it after the last refusal that does not raise an error: a call that changed nothing is
-- not recorded.
create or replace function durable._audit(
  queue text, action text, task_id uuid default null, detail jsonb default null
) returns void language plpgsql as $$
declare
  _now timestamptz := durable._now();
begin
  insert into durable.audit (audit_id, at, task_id, queue, action, by, detail)
  values (durable._uuid7(durable._id_microseconds(_now)), _now, task_id, queue, action,
    durable._caller(), nullif(detail, '{}'));
end;
$$;

create or replace function durable._audit_bulk(
  queue text, action text, filter jsonb, progress durable.bulk_progress, reason text default null
) returns void language plpgsql as $$
begin
  if progress.tasks > 0 then
    perform durable._audit(queue, action, null, jsonb_strip_nulls(jsonb_build_object(
      'tasks', progress.tasks, 'busy', nullif(cardinality(progress.busy), 0), 'reason', reason))
      || jsonb_build_object('filter', filter));
  end if;
end;
$$;

create or replace function durable.list_audit(
  queue text default null, filter jsonb default '{}', page_size integer default 100,
  after uuid default null
) returns setof durable.audit_entry language plpgsql stable as $$
declare
  _queue text := durable._checked_queue(queue);
  _wanted jsonb := durable._checked_audit_filter(filter);
  _since uuid := coalesce(
    durable._uuid7_floor(durable._checked_moment('filter', _wanted, 'since')),
    '00000000-0000-0000-0000-000000000000');
  _until uuid := least(
    durable._uuid7_floor(durable._checked_moment('filter', _wanted, 'until')), after,
    'ffffffff-ffff-ffff-ffff-ffffffffffff');
begin
  perform durable._check_page_size(page_size);
  return query
    select
      found.audit_id, found.at, found.queue::text, found.action::text, found.task_id, found.by,
      found.detail
    from (
      select _queue
      union all
      select durable._audited_queues() where _queue is null
    ) as known (queue)
    cross join lateral (
      select *
      from durable.audit
      where audit.queue = known.queue collate "C"
        and audit.audit_id >= _since
        and audit.audit_id < _until
        and (_wanted ->> 'action' = audit.action) is not false
        and ((_wanted ->> 'task_id')::uuid = audit.task_id or not _wanted ? 'task_id')
        and (_wanted -> 'user' = audit.by -> 'user') is not false
        and (audit.by -> 'identity' @> (_wanted -> 'identity') or not _wanted ? 'identity')
      order by audit.audit_id desc
      limit page_size
    ) as found
    order by found.audit_id desc
    limit page_size;
end;
$$;

comment on function durable.list_audit is
'Returns what operators have done in a queue (null: in every queue that the caller may use, and in
those that were dropped), the latest first, at most page_size entries; after: the audit_id of the
last one of the previous page. filter, of which all keys must match:

- action: the function, such as "retry_tasks".
- task_id: the task; calls for many tasks have none.
- user: the role; identity: an object that is contained in that of durable.caller.
- since, until: moments with a time zone.

The functions are those that cancel, retry, fork, reschedule or delete tasks, move them to another
version, promote versions, and create, change, pause, resume or drop queues and schedules, as far
as they changed something. Spawns, events and messages, which an application makes all the time,
are not recorded, nor is maintenance. Entries are kept as long as the queue''s keep_audit says, and
of a dropped queue for ever. Refuses a queue that the caller may not use (42501), a bad filter and
page_size (22023).';

create or replace function durable._checked_audit_filter(filter jsonb)
returns jsonb language plpgsql immutable as $$
declare
  _filter jsonb := durable._checked_keys('filter', filter,
    array['action', 'task_id', 'user', 'identity', 'since', 'until']);
begin
  perform durable._refuse_argument(format('%s in filter is no string', given.key),
    'Pass text, or leave it out.')
  from jsonb_each(_filter - 'identity') as given
  where jsonb_typeof(given.value) <> 'string';
  if (_filter ->> 'task_id') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    perform durable._refuse_argument('task_id in filter is not a uuid', 'Pass the id of a task.');
  elsif jsonb_typeof(_filter -> 'identity') <> 'object' then
    perform durable._refuse_argument('identity in filter must be a JSON object',
      'Pass who it is, such as {"user": "..."}.');
  end if;
  return _filter;
end;
$$;

-- Returns the queues that have entries and that the caller may use, or that exist no more.
create or replace function durable._audited_queues()
returns setof text language sql stable as $$
  with recursive known (queue) as (
    (select audit.queue from durable.audit order by audit.queue limit 1)
    union all
    select (
      select audit.queue
      from durable.audit
      where audit.queue > known.queue
      order by audit.queue
      limit 1)
    from known
    where known.queue is not null
  )
  select known.queue
  from known
  left join durable.queues on queues.queue = known.queue
  where known.queue is not null and durable._may_use(queues.roles);
$$;

create or replace function durable._prune_audit(queue text, batch_size integer)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _audit_id uuid;
begin
  for _audit_id in
    select audit.audit_id
    from durable.audit
    where audit.queue = _queue
      and audit.audit_id < (
        select durable._uuid7_floor(durable._now() - make_interval(secs => queues.keep_audit))
        from durable.queues
        where queues.queue = _queue)
    order by audit.audit_id
    limit batch_size
    for update skip locked
  loop
    delete from durable.audit where audit.queue = _queue and audit.audit_id = _audit_id;
  end loop;
end;
$$;
