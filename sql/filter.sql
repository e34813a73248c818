-- Filters of tasks, as lists, counts and bulk operations take them.
--
-- A filter is checked as it comes in. Where an index has few candidates for it, these are looked
-- up: ids, children, live tasks by state, failed and cancelled ones, and what the optional indexes
-- on params and headers find. All else is a walk of the primary key, between the bounds that times
-- set: a list from the newest task back, a bulk operation from the oldest on. A call looks at a
-- bounded number of tasks, however few match, and the next one continues from there.

create or replace function durable.list_tasks(
  queue text, filter jsonb default '{}', page_size integer default 100, after uuid default null,
  scan integer default 10000
) returns setof durable.listed_task language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter);
  _before uuid := coalesce(after, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  _matching uuid[];
  _last uuid;
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  perform durable._check_page_size(scan, 'scan');
  select newest.matching, newest.last into _matching, _last
  from durable._newest_matching(
    _queue, durable._narrowed(_queue, _wanted), _before, greatest(page_size, scan), page_size) as newest;
  return query
    select
      task.task_id, task.parent_task_id, task.name::text, task.state::text, task.attempt,
      task.worker::text, task.spawned_at, task.started_at, task.available_at,
      task.finished_at, task.error
    from unnest(_matching) as found (task_id)
    cross join lateral (
      select *
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = found.task_id
      offset 0
    ) as task;
  if cardinality(_matching) < page_size and _last is not null then
    return query
      select _last, null::uuid, null, null, null::integer, null, durable._uuid7_moment(_last),
        null::timestamptz, null::timestamptz, null::timestamptz, null::jsonb;
  end if;
end;
$$;

comment on function durable.list_tasks is
'Returns at most page_size tasks (1 to 100,000) that match a filter, the newest first. after:
the last id of the previous page. It looks at no more than scan tasks (or page_size): if the
page is not full by then and there are more tasks, the last row has only a task_id, and in
spawned_at how far back it has looked. That row is not a match: pass its task_id as after to
continue.

filter: name, states (an array), task_ids (an array), parent_task_id, worker, error_type (of
the last error), headers and params (JSON that they contain), spawned_after, spawned_before,
finished_after, finished_before (times with a time zone; the later end is excluded). All keys
that are given must match; {} matches every task. It does not have to look at other tasks
for ids, a parent, failed or cancelled tasks only, at most 10,000 live ones, or times of
spawning; nor for headers and params of at most 10,000 tasks if there is an index
tasks_headers_idx or tasks_params_idx on durable.tasks, using gin (headers jsonb_path_ops), or
params. Refuses an unknown queue (WFQUE) and a bad filter, page_size or scan (22023).';

create or replace function durable.count_tasks(
  queue text, filter jsonb default '{}', page_size integer default 10000, after uuid default null
) returns durable.task_count language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter);
  _counted durable.task_count;
begin
  perform durable._require_queue(_queue);
  perform durable._check_page_size(page_size);
  select cardinality(walk.matching), walk.last into _counted
  from durable._walk(_queue, _wanted, after, page_size) as walk;
  return _counted;
end;
$$;

comment on function durable.count_tasks is
'Counts the tasks that match a filter, and changes none: which cancel_tasks, retry_tasks or
delete_tasks would then look at. filter: as in list_tasks. It looks at no more than page_size tasks
(1 to 100,000), from after on, the oldest first. Returns how many match, and next, where to
continue, null at the end. Refuses an unknown queue (WFQUE) and a bad filter or page_size (22023).';

-- Returns the filter with the ids of all tasks that may match, if an index has no more than 10,000.
create or replace function durable._narrowed(queue text, wanted durable._task_filter)
returns durable._task_filter language plpgsql stable as $$
declare
  _most integer := 10001;
  _ids uuid[];
begin
  if num_nonnulls(wanted.task_ids, wanted.parent_task_id) = 0 then
    if wanted.states <@ array['pending', 'running', 'sleeping'] then
      _ids := durable._live_ids(queue, wanted.states, _most);
    end if;
    if coalesce(cardinality(_ids), _most) >= _most then
      _ids := durable._search(queue, wanted.params, wanted.headers, _most);
    end if;
    if cardinality(_ids) < _most then
      wanted.task_ids := _ids;
    end if;
  end if;
  return wanted;
end;
$$;

-- Returns the ids of live tasks, at least those in these states; `most` or more: not all of them.
create or replace function durable._live_ids(queue text, states text[], most integer)
returns uuid[] language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _waiting boolean := states && array['pending', 'sleeping'];
begin
  return array(
    (select tasks.task_id from durable.tasks
    where 'running' = any (states) and tasks.queue = _queue and tasks.lease_expires_at is not null
    order by tasks.lease_expires_at
    limit most)
    union
    (select tasks.task_id from durable.tasks
    where _waiting and tasks.queue = _queue
      and tasks.available_at is not null and tasks.partition_key is null
    order by tasks.name, tasks.version, tasks.available_at -- an order of their own index only
    limit most)
    union
    (select tasks.task_id from durable.tasks
    where _waiting and tasks.queue = _queue
      and tasks.available_at is not null and tasks.partition_key is not null
    order by tasks.name, tasks.version, tasks.partition_key
    limit most)
    union
    (select distinct waits.task_id from durable.waits
    where 'sleeping' = any (states) and waits.queue = _queue
    order by waits.task_id
    limit most));
end;
$$;

-- Returns the ids of tasks that contain these params or else headers, from an index that an
-- operator has created; null without one. A value without any scalar would match the whole index.
-- No index serves the condition on the queue, so that the planner can take no other.
create or replace function durable._search(queue text, params jsonb, headers jsonb, most integer)
returns uuid[] language plpgsql stable
set enable_bitmapscan = on as $$
declare
  _queue text collate "C" := queue;
  _scalar jsonpath := jsonpath 'strict $.** ? (@.type() != "object" && @.type() != "array")';
begin
  if params @? _scalar and durable._has_index('tasks_params_idx') then
    return array(
      select tasks.task_id from durable.tasks
      where tasks.params @> _search.params and (tasks.queue = _queue) is true
      limit most);
  elsif headers @? _scalar and durable._has_index('tasks_headers_idx') then
    return array(
      select tasks.task_id from durable.tasks
      where tasks.headers @> _search.headers and (tasks.queue = _queue) is true
      limit most);
  end if;
  return null;
end;
$$;

create or replace function durable._has_index(name text)
returns boolean language sql stable as $$
  select exists (
    select from pg_index
    where pg_index.indexrelid = to_regclass('durable.' || _has_index.name)
      and pg_index.indrelid = 'durable.tasks'::regclass
      and pg_index.indisvalid);
$$;

-- Returns whether only failed and cancelled tasks can match: these have an index.
create or replace function durable._is_of_failed(wanted durable._task_filter)
returns boolean language sql immutable as $$
  select coalesce(wanted.states <@ array['failed', 'cancelled'], false);
$$;

-- Comparing each task with each id would take long where there are many.
create or replace function durable._without_ids(wanted durable._task_filter)
returns durable._task_filter language plpgsql immutable as $$
begin
  wanted.task_ids := null;
  return wanted;
end;
$$;

-- Return the ids between which matching tasks are. A child's id may be later than its spawn: it
-- follows that of its parent, also where the clock was put back since.
create or replace function durable._lowest_id(wanted durable._task_filter)
returns uuid language sql stable as $$
  select durable._uuid7_floor(greatest(wanted.spawned_after, 'epoch'));
$$;

create or replace function durable._highest_id(wanted durable._task_filter)
returns uuid language sql stable as $$
  select case when num_nonnulls(wanted.spawned_before, wanted.finished_before) = 0
    then 'ffffffff-ffff-ffff-ffff-ffffffffffff'
    else durable._uuid7_floor(
      greatest(least(wanted.spawned_before, wanted.finished_before), 'epoch') + make_interval(secs => 10))
  end;
$$;

-- Returns the newest matches among the next `look` tasks before an id, and the last of these
-- unless there were fewer, or a full page was found before. The inner limits bound how many tasks
-- are looked at, the outer one ends the walk early.
create or replace function durable._newest_matching(
  queue text, wanted durable._task_filter, before uuid, look integer, page_size integer
) returns table (matching uuid[], last uuid) language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
  _before uuid := least(before, durable._highest_id(wanted));
  _lowest uuid := durable._lowest_id(wanted);
  _others durable._task_filter := durable._without_ids(wanted);
  _walks boolean := num_nonnulls(wanted.task_ids, wanted.parent_task_id) = 0;
  _of_failed boolean := durable._is_of_failed(wanted);
begin
  return query
    select
      coalesce(array_agg(found.task_id) filter (where found.matches), '{}'),
      (array_agg(found.task_id) filter (where found.place = look and wanted.task_ids is null))[1]
    from (
      select *
      from (
        select walked.task_id, walked.matches, row_number() over () as place
        from (
          (select tasks.task_id, durable._matches(tasks, _others) as matches
          from durable.tasks
          where _walks and not _of_failed
            and tasks.queue = _queue and tasks.task_id < _before and tasks.task_id >= _lowest
          order by tasks.task_id desc
          limit look)
          union all
          (select tasks.task_id, durable._matches(tasks, _others)
          from durable.tasks
          where _walks and _of_failed and tasks.state in ('failed', 'cancelled')
            and tasks.queue = _queue and tasks.task_id < _before and tasks.task_id >= _lowest
          order by tasks.task_id desc
          limit look)
          union all
          (select tasks.task_id, durable._matches(tasks, _others)
          from durable.tasks
          where tasks.queue = _queue and wanted.task_ids is null
            and (tasks.parent_task_id, tasks.task_id) < (wanted.parent_task_id, before) -- as in _children
            and tasks.parent_task_id >= wanted.parent_task_id
          order by tasks.parent_task_id desc, tasks.task_id desc
          limit look)
          union all
          select task.task_id, true
          from (select id from unnest(wanted.task_ids) as id where id < before order by id desc) as given
          cross join lateral (
            select tasks.task_id
            from durable.tasks
            where tasks.queue = _queue and tasks.task_id = given.id and durable._matches(tasks, _others)
            offset 0
          ) as task
        ) as walked
      ) as looked
      where looked.matches or looked.place = look
      limit page_size
    ) as found;
end;
$$;

create or replace function durable._check_page_size(page_size integer, what text default 'page_size')
returns void language plpgsql immutable as $$
begin
  if page_size is null or page_size < 1 or page_size > 100000 then
    perform durable._refuse_argument(format('%s is %s', what, coalesce(page_size::text, 'null')),
      'Pass how many at most, from 1 to 100000.');
  end if;
end;
$$;

-- of_all: whether {} means every task; a call that changes tasks requires {"all": true}.
create or replace function durable._checked_filter(filter jsonb, of_all boolean default true)
returns durable._task_filter language plpgsql stable as $$
declare
  _wanted durable._task_filter;
begin
  perform durable._checked_keys('filter', filter, array[
    'name', 'states', 'task_ids', 'parent_task_id', 'worker', 'error_type', 'headers', 'params',
    'spawned_after', 'spawned_before', 'finished_after', 'finished_before', 'all'
  ]);
  if filter ? 'all' and filter <> '{"all": true}' then
    perform durable._refuse_argument('all in filter stands alone, and is true',
      'Pass {"all": true} for every task, or leave it out.');
  elsif filter = '{}' and not of_all then
    perform durable._refuse_argument('filter is empty', 'Pass {"all": true} for every task.');
  end if;
  _wanted.name := durable._filter_text(filter, 'name');
  _wanted.worker := durable._filter_text(filter, 'worker');
  _wanted.error_type := durable._filter_text(filter, 'error_type');
  _wanted.states := durable._filter_states(filter);
  _wanted.task_ids := durable._filter_ids(filter, 'task_ids');
  _wanted.parent_task_id := (durable._filter_ids(
    jsonb_strip_nulls(jsonb_build_object('parent_task_id', '[]'::jsonb || (filter -> 'parent_task_id'))),
    'parent_task_id'))[1];
  _wanted.headers := filter -> 'headers';
  _wanted.params := filter -> 'params';
  _wanted.spawned_after := durable._filter_moment(filter, 'spawned_after');
  _wanted.spawned_before := durable._filter_moment(filter, 'spawned_before');
  _wanted.finished_after := durable._filter_moment(filter, 'finished_after');
  _wanted.finished_before := durable._filter_moment(filter, 'finished_before');
  return _wanted;
end;
$$;

create or replace function durable._filter_text(filter jsonb, key text)
returns text language plpgsql immutable as $$
begin
  if jsonb_typeof(filter -> key) <> 'string' then
    perform durable._refuse_argument(key || ' in filter must be a string', 'Pass text, or leave it out.');
  end if;
  return filter ->> key;
end;
$$;

create or replace function durable._filter_states(filter jsonb)
returns text[] language plpgsql immutable as $$
declare
  _known text[] := enum_range(null::durable.task_state)::text[];
begin
  if not filter ? 'states' then
    return null;
  elsif jsonb_typeof(filter -> 'states') <> 'array'
    or exists (
      select from jsonb_array_elements(filter -> 'states') as given (state)
      where jsonb_typeof(state) <> 'string' or state #>> '{}' <> all (_known))
  then
    perform durable._refuse_argument('states in filter is ' || left((filter -> 'states')::text, 100),
      'Pass an array of ' || array_to_string(_known, ', ') || '.');
  end if;
  return array(select jsonb_array_elements_text(filter -> 'states'));
end;
$$;

create or replace function durable._filter_ids(filter jsonb, key text)
returns uuid[] language plpgsql immutable as $$
begin
  if not filter ? key then
    return null;
  elsif jsonb_typeof(filter -> key) <> 'array'
    or exists (
      select from jsonb_array_elements(filter -> key) as given (id)
      where jsonb_typeof(id) <> 'string'
        or id #>> '{}' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')
  then
    perform durable._refuse_argument(key || ' in filter is no id of a task', 'Pass ids as spawn returns them.');
  end if;
  return array(
    select distinct id::uuid from jsonb_array_elements_text(filter -> key) as given (id) order by 1
  );
end;
$$;

-- Requires a time zone, so that the value does not depend on the session's settings.
create or replace function durable._filter_moment(filter jsonb, key text)
returns timestamptz language plpgsql stable as $$
declare
  _said text := filter ->> key;
  _pattern text := '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$';
begin
  if not filter ? key then
    return null;
  elsif _said ~ _pattern then
    begin
      return _said::timestamptz;
    exception when datetime_field_overflow then
      null;
    end;
  end if;
  perform durable._refuse_argument(format('%s in filter is %s', key, left((filter -> key)::text, 40)),
    'Pass a moment with its time zone, such as "2030-01-31 12:00:00Z".');
  return null;
end;
$$;

create or replace function durable._matches(task durable.tasks, wanted durable._task_filter)
returns boolean language sql stable as $$
  select (wanted.name is null or task.name = wanted.name collate "C")
    and (wanted.states is null or task.state::text = any (wanted.states))
    and (wanted.task_ids is null or task.task_id = any (wanted.task_ids))
    and (wanted.parent_task_id is null or task.parent_task_id = wanted.parent_task_id)
    and (wanted.worker is null or task.worker = wanted.worker collate "C")
    and (wanted.error_type is null or task.error ->> 'type' = wanted.error_type)
    and (wanted.spawned_after is null or task.spawned_at >= wanted.spawned_after)
    and (wanted.spawned_before is null or task.spawned_at < wanted.spawned_before)
    and (wanted.finished_after is null or task.finished_at >= wanted.finished_after)
    and (wanted.finished_before is null or task.finished_at < wanted.finished_before)
    and (wanted.headers is null or task.headers @> wanted.headers)
    and (wanted.params is null or task.params @> wanted.params);
$$;

-- Returns the matches among the next page_size tasks after an id, and the last task that it
-- looked at; null at the end. With ids, given or narrowed down to, each counts as one task, found
-- or not.
create or replace function durable._walk(
  queue text, wanted durable._task_filter, after uuid, page_size integer
) returns table (matching uuid[], last uuid) language plpgsql stable
set enable_sort = off
set enable_bitmapscan = off as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._narrowed(queue, wanted);
  _after uuid := coalesce(after, '00000000-0000-0000-0000-000000000000');
  _lowest uuid := durable._lowest_id(wanted);
  _highest uuid := durable._highest_id(wanted);
  _others durable._task_filter := durable._without_ids(wanted);
  _of_failed boolean := durable._is_of_failed(wanted);
begin
  if _wanted.task_ids is not null then
    return query
      select
        coalesce(array_agg(given.task_id order by given.task_id) filter (where task.task_id is not null), '{}'),
        (array_agg(given.task_id order by given.task_id))[page_size]
      from (
        select id as task_id
        from unnest(_wanted.task_ids) as id
        where id > _after
        order by id
        limit page_size
      ) as given
      left join lateral (
        select tasks.task_id
        from durable.tasks
        where tasks.queue = _queue and tasks.task_id = given.task_id and durable._matches(tasks, _others)
        offset 0
      ) as task on true;
  else
    return query
      select
        coalesce(array_agg(task.task_id) filter (where task.matches), '{}'),
        (array_agg(task.task_id))[page_size]
      from (
        (select tasks.task_id, coalesce(durable._matches(tasks, _others), false) as matches
        from durable.tasks
        where not _of_failed
          and tasks.queue = _queue and tasks.task_id > _after and tasks.task_id >= _lowest
          and tasks.task_id < _highest
        order by tasks.task_id
        limit page_size)
        union all
        (select tasks.task_id, coalesce(durable._matches(tasks, _others), false)
        from durable.tasks
        where _of_failed and tasks.state in ('failed', 'cancelled')
          and tasks.queue = _queue and tasks.task_id > _after and tasks.task_id >= _lowest
          and tasks.task_id < _highest
        order by tasks.task_id
        limit page_size)
      ) as task;
  end if;
end;
$$;
