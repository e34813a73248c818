-- Forking: a new task that begins where another one stood.
--
-- It has copies of the checkpoints that were complete when a call of the other was made.
-- A checkpoint's `after` counts those, so what they were follows from it:
--
--   * What the call can have led to was called after more were complete: its `after` is
--     greater, and it stays behind, whatever the clocks say.
--   * Of those with a lower `after`, which were called before the call was, the first so
--     many to be saved were complete. Others ran beside it, and are run again. What one
--     commit has saved was complete together.
--   * A step whose failure the task had caught was complete too, and is saved with the next:
--     what is saved with the call itself is among those that were complete when it was made.
--
-- So is whatever a kept checkpoint itself came after: the fork has no effect without its
-- cause. The tries of a step that is not done are left behind: a fork counts anew.
--
-- Calls at position 0 come from a worker that does not say what overlaps: they are taken
-- one after the other, as they were saved.

create or replace function durable.fork_task(queue text, task_id uuid, options jsonb default '{}')
returns durable.spawned_task
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _to text collate "C";
  _now timestamptz := durable._now();
  _origin durable.tasks;
  _new durable._new_task;
  _history durable.checkpoints[];
begin
  perform durable._require_queue(_queue);
  perform durable._check_fork(options);
  _to := coalesce(options ->> 'queue', queue);
  perform durable._require_queue(_to);
  select * into _origin
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = fork_task.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  _new := (1, durable._uuid7(durable._id_milliseconds(_now)), _origin.name,
    coalesce(options -> 'params', _origin.params), durable._fork_options(_origin, options), null);
  if (_new.options).idempotency_key is not null then
    _new.existing_id := durable._take_key(
      _to, (_new.options).idempotency_key, _new.task_id, (_new.options).fingerprint[1]);
    if _new.existing_id is not null then
      return durable._same_task(_to, _new);
    end if;
  end if;
  perform
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = fork_task.task_id
  for key share; -- cleanup leaves it alone until it is copied
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  _history := durable._renumbered(durable._history_until(_queue, task_id, options));
  perform durable._insert_tasks(_to, array[_new], _now, null);
  perform durable._copy_history(_to, _new.task_id, _history);
  return (_new.task_id, durable._run_id(_new.task_id, 1), 1, true);
end;
$$;

comment on function durable.fork_task is
'Spawns a task with the name, params and options of another one, in whatever state that
is, and with copies of its checkpoints: all there are; with before, those that were
complete when the call of that checkpoint was made; with after, that one and those saved
before it; with position, as before the call at that position. With them go the values
and the entries of streams that it had published by then. options: one of before,
after, position; params; queue; and those of spawn but for parent_task_id, headers being
added to. Children recorded in what is copied are the other''s. Without a key and a
parent; its header durable:forked_from says whose fork it is, {"task_id", "by"}, with
"queue" if that is another; spawn leaves out such a header. Refuses an unknown queue WFQUE, an unknown task WFNFD, a checkpoint there is not, one of several of a name that is
not said (charge#1, charge#2) and other bad options 22023, and what spawn refuses.';


create or replace function durable._check_fork(options jsonb)
returns void
language plpgsql
immutable
as $$
declare
  _position double precision;
begin
  if options ? 'parent_task_id' then
    perform durable._refuse_argument('parent_task_id in options of a fork', 'A fork has no parent: leave it out.');
  end if;
  perform durable._spawn_options(options - array['before', 'after', 'position', 'params', 'queue']);
  perform durable._refuse_argument(key || ' in options must be a string', 'Pass text, or leave it out.')
  from unnest(array['before', 'after', 'queue']) as known (key)
  where jsonb_typeof(options -> key) <> 'string';
  if num_nonnulls(options -> 'before', options -> 'after', options -> 'position') > 1 then
    perform durable._refuse_argument('a fork at several places', 'Pass one of before, after and position.');
  end if;
  perform durable._checked_size('params', options -> 'params');
  _position := durable._number('options', options, 'position', 1);
  if _position <> floor(_position) or _position > 2147483647 or options -> 'position' = 'null' then
    perform durable._refuse_argument('position in options is ' || left((options -> 'position')::text, 40),
      'Pass the position of a checkpoint, a whole number from 1.');
  end if;
end;
$$;


create or replace function durable._fork_options(origin durable.tasks, options jsonb)
returns durable._spawn_options
language plpgsql
stable
as $$
declare
  _headers jsonb := coalesce(origin.headers, '{}') || coalesce(nullif(options -> 'headers', 'null'), '{}');
  _options durable._spawn_options := durable._spawn_options(
    jsonb_build_object('max_attempts', origin.max_attempts, 'retry', origin.retry,
      'max_duration', origin.max_duration)
    || (options - array['before', 'after', 'position', 'params', 'queue'])
    || jsonb_build_object('headers', _headers));
begin
  _options.headers := durable._checked_size('headers', coalesce(_options.headers, '{}')
    || jsonb_build_object('durable:forked_from', jsonb_strip_nulls(jsonb_build_object(
      'queue', case when options ->> 'queue' <> origin.queue then origin.queue end, 'task_id', origin.task_id,
      'by', durable._caller()))));
  return _options;
end;
$$;


-- What a fork begins with.
create or replace function durable._history_until(queue text, task_id uuid, options jsonb)
returns durable.checkpoints[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _point durable.checkpoints;
begin
  if options ?| array['before', 'position'] then
    _point := case when options ? 'before'
      then durable._fork_point(_queue, task_id, options ->> 'before', true)
      else durable._fork_point_at(_queue, task_id, (options ->> 'position')::integer) end;
    return durable._complete_before(_queue, _point);
  elsif options ? 'after' then
    _point := durable._fork_point(_queue, task_id, options ->> 'after', false);
  end if;
  return array(
    select saved
    from durable.checkpoints as saved
    where saved.queue = _queue
      and saved.task_id = _history_until.task_id
      and saved.name !~ '^\$(try|retry):'
      and (_point.name is null
        or (saved.claim, saved.saved_at, saved.after, saved.position)
          <= (_point.claim, _point.saved_at, _point.after, _point.position))
  );
end;
$$;


create or replace function durable._complete_before(queue text, point durable.checkpoints)
returns durable.checkpoints[]
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  return array(
    with known as (
      select
        saved,
        saved.state = 'failed' and saved.claim = point.claim and saved.saved_at = point.saved_at
          and saved.position < point.position and saved.after < point.after as was_caught
      from durable.checkpoints as saved
      where saved.queue = _queue and saved.task_id = point.task_id
        and saved.name !~ '^\$(try|retry):'
    ),
    ranked as (
      select
        known.saved, known.was_caught,
        count(*) filter (where (known.saved).after < point.after)
          over (order by (known.saved).claim, (known.saved).saved_at
            range between unbounded preceding and current row exclude group) as before,
        count(*) filter (where known.was_caught) over () as caught
      from known
    )
    select ranked.saved
    from ranked
    where case
      when point.position = 0
        then ((ranked.saved).claim, (ranked.saved).saved_at) < (point.claim, point.saved_at)
      else ranked.was_caught
        or (ranked.saved).after < point.after and ranked.before + ranked.caught < point.after
    end
  );
end;
$$;


-- A name is a checkpoint's, and where a loop has several, charge#1 is the first. What is
-- waited for has its place, too, but is not over.
create or replace function durable._fork_point(queue text, task_id uuid, name text, waiting boolean)
returns durable.checkpoints
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _point durable.checkpoints;
begin
  select * into _point
  from durable.checkpoints
  where checkpoints.queue = _queue and checkpoints.task_id = _fork_point.task_id and checkpoints.name = _name;
  if found then
    if durable._recorded(_queue, task_id, name || '#2') is not null then
      perform durable._refuse_argument(format('there are several checkpoints "%s"', name),
        format('Pass "%s#1" for the first, "%s#2" for the next.', name, name));
    end if;
    return _point;
  end if;
  if name like '%#1' then
    select * into _point
    from durable.checkpoints
    where checkpoints.queue = _queue and checkpoints.task_id = _fork_point.task_id
      and checkpoints.name = left(_name, -2);
  end if;
  if _point.name is null and waiting then
    select waits.task_id, timestamptz 'infinity', 2147483647, waits.position, waits.after, waits.queue, waits.name
    into _point.task_id, _point.saved_at, _point.claim, _point.position, _point.after, _point.queue, _point.name
    from durable.waits
    where waits.queue = _queue and waits.task_id = _fork_point.task_id and waits.name = _name;
  end if;
  if _point.name is null then
    perform durable._refuse_point(_queue, task_id, format('no checkpoint "%s"', name), name);
  end if;
  return _point;
end;
$$;


create or replace function durable._fork_point_at(queue text, task_id uuid, "position" integer)
returns durable.checkpoints
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _names text[];
begin
  _names := array(
    select saved.name
    from durable.checkpoints as saved
    where saved.queue = _queue
      and saved.task_id = _fork_point_at.task_id
      and saved.position = _fork_point_at.position
      and saved.name !~ '^\$(try|retry):'
    order by saved.name
  );
  if cardinality(_names) > 1 then
    perform durable._refuse_argument(
      format('there are several checkpoints at position %s', _fork_point_at.position),
      format('Branches ran side by side. Pass one as before: %s.', array_to_string(_names[:8], ', ')));
  elsif _names = '{}' then
    perform durable._refuse_point(_queue, task_id, format('no checkpoint at position %s', _fork_point_at.position), '');
  end if;
  return (
    select saved
    from durable.checkpoints as saved
    where saved.queue = _queue and saved.task_id = _fork_point_at.task_id and saved.name = _names[1] collate "C"
  );
end;
$$;


-- The likeliest first: those that share most pairs of letters with what was said.
create or replace function durable._refuse_point(queue text, task_id uuid, message text, said text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _names text;
begin
  select string_agg(known.label, ', ' order by known.alike desc, known.position, known.name) into _names
  from (
    select
      saved.name, saved.position, format('%s (%s)', saved.name, saved.position) as label,
      (select count(*) from generate_series(1, length(said) - 1) as place (i)
       where position(lower(substr(said, place.i, 2)) in lower(saved.name)) > 0) as alike
    from durable.checkpoints as saved
    where saved.queue = _queue and saved.task_id = _refuse_point.task_id
      and saved.name !~ '^\$(try|retry):'
    order by alike desc, saved.position, saved.name
    limit 8
  ) as known;
  perform durable._refuse_argument(message, coalesce(
    'With their positions, there are: ' || _names || '. Say none to fork where the task stands.',
    'The task has none yet. Say none to fork where the task stands.'));
end;
$$;


-- As the fork counts: `after` is of what it has, no claim of its own has saved any of it.
create or replace function durable._renumbered(history durable.checkpoints[])
returns durable.checkpoints[]
language plpgsql
immutable
as $$
begin
  return array(
    select row(
      saved.task_id, saved.saved_at, 0, 0, saved.position,
      least(saved.after, rank() over (order by saved.after) - 1),
      saved.duration_ms, saved.state, saved.queue, saved.name, saved.value
    )::durable.checkpoints
    from unnest(history) as saved
  );
end;
$$;


-- All that a fork has of its origin is written here: each row still says whose it was. The
-- claim is raised, so that the first to hold the fork loads it, as any but a first does.
create or replace function durable._copy_history(queue text, task_id uuid, history durable.checkpoints[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.checkpoints (
    task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
  )
  select
    _copy_history.task_id, saved.saved_at, saved.claim, saved.attempt, saved.position, saved.after,
    saved.duration_ms, saved.state, _queue, saved.name, saved.value
  from unnest(history) as saved;
  if cardinality(history) > 0 then
    perform durable._copy_published(_queue, task_id, history);
  end if;
  update durable.tasks
  set claim = 2
  where tasks.queue = _queue and tasks.task_id = _copy_history.task_id;
end;
$$;
