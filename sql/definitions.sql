-- Definitions: the options that workers announce for a task's name, so that every spawn of it
-- has the same ones.
--
-- A spawn takes the options that it omits from the definition of the task's name. If nobody
-- has announced the name yet, the task records which options were omitted, and its next claim
-- fills them in before the attempt begins. A worker announces before it claims, so even an
-- attempt whose worker dies at once counts against the announced limit.
--
-- Of several versions of an application, the one that was announced or promoted last counts;
-- a spawn or claim for one version uses that version's own definition if there is one. Without
-- versions the worker that started last counts, which during a rolling deploy may be an old
-- one for a while.

create or replace function durable.announce_definitions(
  queue text, definitions jsonb, version text default null, starts boolean default true
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _version text collate "C" := coalesce(durable._checked_version(to_jsonb(version)), '');
  _now timestamptz := durable._now();
  _ranked_at timestamptz := _now;
  _written integer;
begin
  perform durable._require_queue(_queue);
  perform durable._check_definitions(definitions);
  perform from durable.queues where queues.queue = _queue for no key update; -- one call at a time
  if _version <> '' then
    perform durable._add_version(_queue, _version, _now);
    select coalesce(max(versions.promoted_at), _now) into _ranked_at
    from durable.versions
    where versions.queue = _queue and versions.version = _version;
  end if;
  insert into durable.definitions as known (
    queue, name, version, announced_at, ranked_at, latest,
    max_attempts, start_timeout, execution_timeout, retry, headers, params_schema, priority
  )
  select given.*
  from durable._new_definitions(_queue, _version, definitions, _now, _ranked_at) as given
  where not exists (
    select
    from durable.definitions as same
    where same.queue = given.queue and same.name = given.name and same.version = given.version
      and durable._is_same_definition(same, given)
      and same.announced_at > _now - make_interval(secs => 600)
  )
  order by given.name
  on conflict on constraint definitions_pkey do update
  set
    announced_at = excluded.announced_at,
    ranked_at = case when known.version = '' and durable._is_same_definition(known, excluded)
      then known.ranked_at else excluded.ranked_at end,
    max_attempts = excluded.max_attempts,
    start_timeout = excluded.start_timeout,
    execution_timeout = excluded.execution_timeout,
    retry = excluded.retry,
    headers = excluded.headers,
    params_schema = excluded.params_schema,
    priority = excluded.priority
  where starts or durable._is_same_definition(known, excluded);
  get diagnostics _written = row_count;
  if _written > 0 then
    perform durable._rank_definitions(_queue);
    perform durable._prune_definitions(_queue, _now);
  end if;
  return _written;
end;
$$;

comment on function durable.announce_definitions is
'Announces the tasks that a worker of the queue knows; a worker calls it before its first
claim. definitions: [{"task": name, "options": {...}, "params_schema": a JSON Schema, at most
262,144 bytes}, ...]; options are max_attempts, retry, headers, start_timeout, execution_timeout
and priority, as in spawn. A spawn that omits one of them takes it from here, and so does a task
that was spawned earlier, at its next claim, but not the priority. version: of the application;
one that is new in the queue becomes its latest. starts: false for a worker that repeats its
announcement once an hour; it
then changes nothing that others have announced since.

A definition that nobody has announced for a day is deleted if a newer version''s exists; the
last one of a name, after the queue''s keep_tasks but at least a day. Returns how many were
written. Refuses an unknown queue (WFQUE) and bad arguments (22023). Locks: the queue''s row,
so calls for one queue run one at a time.';

create or replace function durable._check_definitions(definitions jsonb)
returns void language plpgsql as $$
begin
  perform durable._check_tasks(definitions, array['task', 'options', 'params_schema']);
  perform durable._checked_keys('options', given.definition -> 'options',
    array['max_attempts', 'retry', 'headers', 'start_timeout', 'execution_timeout', 'priority'])
  from jsonb_array_elements(definitions) as given (definition)
  where given.definition ? 'options';
  perform durable._refuse_argument(format('params_schema is %s bytes', length(given.schema)),
    'Pass at most 262144 bytes, or leave it out.')
  from (
    select definition ->> 'params_schema' as schema
    from jsonb_array_elements(definitions) as announced (definition)
  ) as given
  where octet_length(given.schema) > 262144;
end;
$$;

-- Returns definitions as rows; if a name occurs twice the last one counts.
create or replace function durable._new_definitions(
  queue text, version text, definitions jsonb, at timestamptz, ranked_at timestamptz
) returns setof durable.definitions language plpgsql as $$
begin
  return query
    select
      _new_definitions.queue collate "C", given.name collate "C", _new_definitions.version collate "C",
      at, _new_definitions.ranked_at, null::boolean,
      (given.options).max_attempts, (given.options).start_timeout, (given.options).execution_timeout,
      (given.options).retry, nullif((given.options).headers, '{}'), given.params_schema,
      (given.options).priority
    from (
      select distinct on (definition ->> 'task')
        definition ->> 'task' as name,
        durable._spawn_options(coalesce(definition -> 'options', '{}')) as options,
        nullif(definition -> 'params_schema', 'null')::json as params_schema
      from jsonb_array_elements(definitions) with ordinality as announced (definition, ordinal)
      order by definition ->> 'task', ordinal desc
    ) as given;
end;
$$;

create or replace function durable._is_same_definition(
  one durable.definitions, other durable.definitions
)
returns boolean language sql immutable as $$
  select (one.max_attempts, one.start_timeout, one.execution_timeout, one.retry, one.headers,
      one.priority, one.params_schema::text)
    is not distinct from (other.max_attempts, other.start_timeout, other.execution_timeout,
      other.retry, other.headers, other.priority, other.params_schema::text);
$$;

-- Marks the definition of each name that was ranked last as the latest, which spawns read. The
-- caller has locked the queue's row, so no other session changes them.
create or replace function durable._rank_definitions(queue text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _last record;
begin
  for _last in
    select distinct on (definitions.name) definitions.name, definitions.version, definitions.latest
    from durable.definitions
    where definitions.queue = _queue
    order by definitions.name, definitions.ranked_at desc, definitions.version desc
  loop
    continue when _last.latest;
    update durable.definitions
    set latest = null
    where definitions.queue = _queue and definitions.name = _last.name and definitions.latest is not null;
    update durable.definitions
    set latest = true
    where definitions.queue = _queue and definitions.name = _last.name and definitions.version = _last.version;
  end loop;
end;
$$;

create or replace function durable._prune_definitions(queue text, at timestamptz)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _keep double precision := (
    select case when queues.keep_tasks is not null then greatest(queues.keep_tasks, 86400) end
    from durable.queues
    where queues.queue = _queue);
begin
  delete from durable.definitions
  where definitions.queue = _queue
    and definitions.announced_at < at - make_interval(secs => case when definitions.latest then _keep else 86400 end);
end;
$$;

-- Returns the definition that counts for a name. version: that of the task, or of the worker
-- that claims it; null or '' for none.
create or replace function durable._definition(queue text, name text, version text)
returns durable.definitions language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _version text collate "C" := version;
  _known durable.definitions;
begin
  if _version <> '' then
    select * into _known
    from durable.definitions
    where definitions.queue = _queue and definitions.name = _name and definitions.version = _version;
    if found then
      return _known;
    end if;
  end if;
  select * into _known
  from durable.definitions
  where definitions.queue = _queue and definitions.name = _name and definitions.latest is not null;
  return _known;
end;
$$;

-- Fills in the options that a spawn omits from the task's definition.
create or replace function durable._with_defaults(
  options durable._spawn_options, known durable.definitions
) returns durable._spawn_options language plpgsql immutable as $$
declare
  _options durable._spawn_options := options;
  _omitted integer := options.omitted;
begin
  if known.name is null then
    return _options;
  end if;
  _options.priority := coalesce(options.priority, known.priority, 0);
  if _omitted is null then
    return _options;
  end if;
  if _omitted & 1 > 0 then
    _options.max_attempts := known.max_attempts;
  end if;
  if _omitted & 2 > 0 then
    _options.retry := known.retry;
  end if;
  if _omitted & 4 > 0 and known.headers is not null then
    _options.headers := known.headers || coalesce(_options.headers, '{}');
  end if;
  if _omitted & 8 > 0 then
    _options.start_timeout := known.start_timeout;
  end if;
  if _omitted & 16 > 0 then
    _options.execution_timeout := known.execution_timeout;
  end if;
  _options.omitted := null;
  return _options;
end;
$$;

-- Leases tasks that the caller has locked, as _lease_by_ctid does, and fills in the options
-- that their spawns omitted. One update does both: another version of the row would cost its
-- params in WAL. It is a function of its own so that claims of other tasks do not pay for it.
create or replace function durable._lease_incomplete(
  queue text, places tid[], waited_since timestamptz[], worker text, at timestamptz,
  lease double precision, version text, known durable.definitions
) returns setof durable.claimed_task language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _expires_at timestamptz := at + make_interval(secs => lease);
  _epoch double precision := extract(epoch from at);
  _random integer := uuid_hash(gen_random_uuid()); -- depends on nothing that is stored
begin
  return query
    update durable.tasks
    set
      worker = _lease_incomplete.worker,
      claim = durable._next_claim(tasks.claim, _random),
      state = 'running',
      available_at = null,
      lease_expires_at = _expires_at,
      expires_at = case
        when tasks.started_at is null then least(to_timestamp(_epoch
          + case when tasks.omitted & 16 > 0 then known.execution_timeout else tasks.execution_timeout end),
          tasks.deadline)
        when tasks.omitted & 16 > 0
          then least(tasks.expires_at, tasks.started_at + make_interval(secs => known.execution_timeout))
        else tasks.expires_at end,
      started_at = coalesce(tasks.started_at, at),
      error = null,
      version = _lease_incomplete.version,
      times_claimed = nullif(
        (durable._claim_ordinal(tasks.claim, tasks.times_claimed) + 1) / 2 + 1, 1),
      max_attempts = case when tasks.omitted & 1 > 0
        then known.max_attempts else tasks.max_attempts end,
      retry = case when tasks.omitted & 2 > 0 then known.retry else tasks.retry end,
      headers = case when tasks.omitted & 4 > 0 and known.headers is not null
        then known.headers || coalesce(tasks.headers, '{}') else tasks.headers end,
      execution_timeout = case when tasks.omitted & 16 > 0
        then known.execution_timeout else tasks.execution_timeout end,
      omitted = null
    from unnest(places, waited_since) as place (ctid, available_at)
    where (tasks.queue = _queue) is true and tasks.ctid = place.ctid
    returning
      tasks.task_id, tasks.claim, tasks.name::text, tasks.attempt, tasks.params, tasks.headers,
      tasks.parent_task_id, tasks.spawned_at, tasks.expires_at, place.available_at, at,
      durable._run_id(tasks.task_id, tasks.attempt);
end;
$$;

-- Removes the tasks that are past a limit of their definition from those that a claim has
-- locked, and makes that limit their deadline, so that expire_tasks cancels them. Updates by
-- ctid: see _lease_by_ctid.
create or replace function durable._pass_over_late(
  queue text, due durable._due, at timestamptz
) returns durable._due language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _start_timeout interval := make_interval(secs => (due.known).start_timeout);
  _execution_timeout interval := make_interval(secs => (due.known).execution_timeout);
begin
  with late as (
    update durable.tasks
    set expires_at = case
      when tasks.started_at is null then tasks.available_at + _start_timeout
      else tasks.started_at + _execution_timeout end
    from unnest(due.places) as place (ctid)
    where (tasks.queue = _queue) is true
      and tasks.ctid = place.ctid
      and case
        when tasks.started_at is null
          then tasks.omitted & 8 > 0 and tasks.available_at + _start_timeout <= at
        else tasks.omitted & 16 > 0 and tasks.started_at + _execution_timeout <= at end
    returning place.ctid
  )
  select array_agg(place.ctid order by place.number), array_agg(place.waited_since order by place.number)
  into due.places, due.waited_since
  from unnest(due.places, due.waited_since) with ordinality as place (ctid, waited_since, number)
  where not exists (select from late where late.ctid = place.ctid);
  return due;
end;
$$;

create or replace function durable.list_definitions(queue text)
returns setof durable.task_definition language plpgsql stable as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._require_queue(_queue);
  return query
    select
      definitions.name::text, nullif(definitions.version, '')::text,
      definitions.latest is not null, definitions.announced_at,
      jsonb_build_object(
        'max_attempts', definitions.max_attempts, 'retry', definitions.retry,
        'headers', definitions.headers, 'start_timeout', definitions.start_timeout,
        'execution_timeout', definitions.execution_timeout, 'priority', definitions.priority),
      definitions.params_schema
    from durable.definitions
    where definitions.queue = _queue
    order by definitions.name, definitions.latest, definitions.ranked_at desc, definitions.version desc;
end;
$$;

comment on function durable.list_definitions is
'Returns the tasks that workers of a queue have announced, by name; of each name the
definition that counts for a spawn comes first. Refuses an unknown queue (WFQUE).';
