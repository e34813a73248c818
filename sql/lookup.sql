-- Looks up single tasks, events and what a task has published, for operators. Every call reads a
-- bounded number of rows.

create or replace function durable.find_task(task_id uuid)
returns text language plpgsql stable as $$
declare
  _queue text;
begin
  select found.queue into _queue
  from (
    select queues.queue, queues.roles
    from durable.queues
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = queues.queue and tasks.task_id = find_task.task_id
      offset 0
    ) as task
    offset 0 -- so that only the queue of the task is checked
  ) as found
  where durable._may_use(found.roles)
  limit 1;
  return _queue;
end;
$$;

comment on function durable.find_task is
'Returns the queue of a task; null if there is no such task, or none in a queue that the caller
may use. Looks into one queue after the other.';

create or replace function durable.get_task(queue text, task_id uuid)
returns durable.task_record language plpgsql stable as $$
declare
  _task durable.tasks := durable._known_task(queue, task_id);
begin
  return (
    _task.queue::text, _task.task_id, _task.name::text, _task.state::text, _task.attempt,
    _task.max_attempts, _task.worker::text, nullif(_task.version, '')::text,
    _task.parent_task_id,
    case when _task.parent_task_id is not null
      then coalesce(_task.parent_queue, _task.queue)::text end,
    _task.idempotency_key::text, _task.unique_kind::text, _task.unique_key::text,
    nullif(_task.partition_key, '')::text, _task.priority, _task.params, _task.headers,
    case when _task.state = 'completed' then coalesce(_task.result, 'null') end, _task.error,
    _task.retry, _task.spawned_at, _task.available_at, _task.started_at, _task.lease_expires_at,
    _task.expires_at, _task.deadline, _task.finished_at);
end;
$$;

comment on function durable.get_task is
'Returns all that is known of a task but its history. Refuses an unknown queue (WFQUE) and an
unknown task (WFNFD).';

create or replace function durable.list_events(
  queue text, prefix text default '', page_size integer default 100, after text default null,
  waited_for boolean default false
) returns setof durable.listed_event language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _prefix text collate "C" := coalesce(prefix, '');
  _end text collate "C" := _prefix || chr(1114111); -- no character is greater
  _name text collate "C" := greatest(_prefix, after collate "C");
  _is_first boolean := after is null or _name <> after;
  _left integer := page_size;
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  while _left > 0 loop
    _name := case when waited_for
      then durable._next_awaited_event(_queue, _name, _is_first)
      else durable._next_event(_queue, _name, _is_first) end;
    exit when _name is null or _name >= _end;
    _is_first := false;
    _left := _left - 1;
    return query
      select
        _name::text, event.emitted_at, event.payload,
        (select count(*)
        from (
          select
          from durable.waits
          where waits.queue = _queue and waits.event_name = _name
          limit 1000
        ) as waiting)
      from (values (true)) as one
      left join lateral (
        select events.emitted_at, events.payload
        from durable.events
        where events.queue = _queue and events.name = _name
        offset 0
      ) as event on true;
  end loop;
end;
$$;

comment on function durable.list_events is
'Returns the events of a queue by name, at most page_size: those that were emitted, with their
payloads, and those that tasks have waited for. prefix: only names that begin with it; after: the
last name of the previous page. waited_for: true, only events that tasks are waiting for. waiting
is how many wait, at most 1,000. Refuses an unknown queue (WFQUE) and a bad page_size (22023).';

create or replace function durable._next_event(queue text, name text, inclusive boolean)
returns text language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
begin
  return (
    select events.name
    from durable.events
    where events.queue = _queue and events.name >= _name and (inclusive or events.name > _name)
    order by events.name
    limit 1);
end;
$$;

create or replace function durable._next_awaited_event(queue text, name text, inclusive boolean)
returns text language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _task_id uuid := uuid '00000000-0000-0000-0000-000000000000';
begin
  if not inclusive then
    _task_id := uuid 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  end if;
  return (
    select waits.event_name
    from durable.waits
    where waits.queue = _queue
      and waits.event_name is not null
      and (waits.event_name, waits.task_id) > (_name, _task_id)
    order by waits.event_name, waits.task_id
    limit 1);
end;
$$;

create or replace function durable.list_published(
  queue text, task_id uuid, page_size integer default 1000
) returns setof durable.listed_publication language plpgsql stable as $$
declare
  _queue text collate "C" := (durable._known_task(queue, task_id)).queue;
  _stream text collate "C" := '';
begin
  perform durable._check_page_size(page_size);
  return query
    select 'value', task_values.key::text, null::integer, task_values.set_at, null::boolean
    from durable.task_values
    where task_values.queue = _queue and task_values.task_id = list_published.task_id
    order by task_values.key
    limit page_size;
  for _ in 1..page_size loop
    select stream_entries.stream into _stream
    from durable.stream_entries
    where stream_entries.queue = _queue and stream_entries.task_id = list_published.task_id
      and stream_entries.stream > _stream
    order by stream_entries.stream
    limit 1;
    exit when not found;
    return query
      select 'stream', _stream::text,
        stream_entries.number + case when stream_entries.value is null then 0 else 1 end,
        stream_entries.written_at, stream_entries.value is null
      from durable.stream_entries
      where stream_entries.queue = _queue and stream_entries.task_id = list_published.task_id
        and stream_entries.stream = _stream
      order by stream_entries.number desc
      limit 1;
  end loop;
end;
$$;

comment on function durable.list_published is
'Returns what a task has published, without the values: for get_value the keys, for get_stream the
streams; at most page_size of each. Refuses an unknown queue (WFQUE), an unknown task (WFNFD) and
a bad page_size (22023).';
