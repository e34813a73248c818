-- Which tasks: a filter, as lists and the calls that concern many tasks take it.
--
-- What it says is checked when it comes in. No index is kept for it: a list walks the
-- primary key from the newest task back, a change from the oldest on, so many tasks a
-- call, and the caller says where to go on.

create or replace function durable.list_tasks(
  queue text, filter jsonb default '{}', quantity integer default 100, after uuid default null
)
returns setof durable.listed_task
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _wanted durable._task_filter := durable._checked_filter(filter);
begin
  perform durable._require_queue(_queue);
  perform durable._check_quantity(quantity);
  return query
    select
      tasks.task_id, tasks.parent_task_id, tasks.name::text, tasks.state::text, tasks.attempt,
      tasks.worker::text, tasks.spawned_at, tasks.started_at, tasks.available_at,
      tasks.finished_at, tasks.error
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id < coalesce(after, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      and durable._matches(tasks, _wanted)
    order by tasks.task_id desc
    limit quantity;
end;
$$;

comment on function durable.list_tasks is
'At most quantity tasks, the newest first; after is the last id of the page before. filter:
name, states (an array), task_ids (an array), parent_task_id, worker, error_type (of its
last error), headers and params (what they contain), spawned_after, spawned_before,
finished_after, finished_before (moments with a time zone; the later end is excluded); all
that are given must hold, and {} is every task. Refuses an unknown queue WFQUE and a bad
filter 22023.';


create or replace function durable._check_quantity(quantity integer)
returns void
language plpgsql
immutable
as $$
begin
  if quantity is null or quantity < 1 or quantity > 100000 then
    perform durable._refuse_argument('quantity is ' || coalesce(quantity::text, 'null'),
      'Pass how many tasks at most, from 1 to 100000.');
  end if;
end;
$$;


-- of_all: whoever changes tasks says so if all of them are meant.
create or replace function durable._checked_filter(filter jsonb, of_all boolean default true)
returns durable._task_filter
language plpgsql
stable
as $$
declare
  _wanted durable._task_filter;
begin
  perform durable._check_keys('filter', filter, array[
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
returns text
language plpgsql
immutable
as $$
begin
  if jsonb_typeof(filter -> key) <> 'string' then
    perform durable._refuse_argument(key || ' in filter must be a string', 'Pass text, or leave it out.');
  end if;
  return filter ->> key;
end;
$$;


create or replace function durable._filter_states(filter jsonb)
returns text[]
language plpgsql
immutable
as $$
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
returns uuid[]
language plpgsql
immutable
as $$
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


-- With its zone: what it means is not to depend on who asks.
create or replace function durable._filter_moment(filter jsonb, key text)
returns timestamptz
language plpgsql
stable
as $$
declare
  _said text := filter ->> key;
  _pattern text := '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$';
begin
  if not filter ? key then
    return null;
  elsif _said ~ _pattern then
    return _said::timestamptz;
  end if;
  perform durable._refuse_argument(format('%s in filter is %s', key, left((filter -> key)::text, 40)),
    'Pass a moment with its time zone, such as "2030-01-31 12:00:00Z".');
  return null;
exception when datetime_field_overflow then
  perform durable._refuse_argument(format('%s in filter is %s', key, left(_said, 40)),
    'Pass a moment with its time zone, such as "2030-01-31 12:00:00Z".');
  return null;
end;
$$;


create or replace function durable._matches(task durable.tasks, wanted durable._task_filter)
returns boolean
language sql
stable
as $$
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


-- Those that match of the next so many tasks behind `after`, and the last that was looked
-- at; no last one: that was the end. An id is a step of its own, found or not.
create or replace function durable._walk(
  queue text, wanted durable._task_filter, after uuid, quantity integer
)
returns table (matching uuid[], last uuid)
language plpgsql
stable
set enable_sort = off
set enable_bitmapscan = off
as $$
declare
  _queue text collate "C" := queue;
  _after uuid := coalesce(after, '00000000-0000-0000-0000-000000000000');
begin
  if wanted.task_ids is not null then
    return query
      select
        coalesce(array_agg(given.task_id order by given.task_id) filter (where task.task_id is not null), '{}'),
        (array_agg(given.task_id order by given.task_id))[quantity]
      from (
        select id as task_id
        from unnest(wanted.task_ids) as id
        where id > _after
        order by id
        limit quantity
      ) as given
      left join lateral (
        select tasks.task_id
        from durable.tasks
        where tasks.queue = _queue and tasks.task_id = given.task_id and durable._matches(tasks, wanted)
        offset 0
      ) as task on true;
  else
    return query
      select
        coalesce(array_agg(task.task_id) filter (where task.matches), '{}'),
        (array_agg(task.task_id))[quantity]
      from (
        select tasks.task_id, coalesce(durable._matches(tasks, wanted), false) as matches
        from durable.tasks
        where tasks.queue = _queue and tasks.task_id > _after
        order by tasks.task_id
        limit quantity
      ) as task;
  end if;
end;
$$;
