-- Forks a task: spawns a new one that begins at a point of the other's history.
--
-- The fork copies the checkpoints that were complete when a given call of the original was
-- made. A checkpoint's `after` counts the checkpoints that were complete at its own call:
--
--   * A checkpoint that may depend on the call was called when more were complete: its
--     `after` is greater and it is not copied, whatever the clocks say.
--   * Of those with a lower `after`, which were called earlier, the first `after` of them to
--     be saved were complete. The others ran beside the call and are run again. Checkpoints
--     saved in one commit were complete together.
--   * A step whose failure the task caught was complete too, and is saved with the next call.
--     So failed steps saved together with the call count as complete when it was made.
--
-- A checkpoint that is copied comes with all those it followed: the fork has no effect
-- without its cause. Tries of a step that has not ended are not copied: a fork counts anew.
--
-- Calls at position 0 come from a worker that does not report overlaps: they are taken to be
-- sequential, in the order in which they were saved.

create or replace function durable.fork_task(queue text, task_id uuid, options jsonb default '{}')
returns durable.spawned_task language plpgsql as $$
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
  if coalesce(options ->> 'partition_key', options ->> 'priority') is not null then
    perform durable._require_lanes(_to);
  end if;
  _origin := durable._known_task(_queue, task_id);
  _new := (1, durable._uuid7(durable._id_microseconds(_now)), _origin.name,
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
  for key share; -- keeps cleanup from deleting it before it is copied
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  perform durable._audit(_queue, 'fork_task', task_id,
    options - array['params', 'headers', 'fingerprint']);
  _history := durable._history_until(_queue, task_id, options);
  perform durable._insert_tasks(_to, array[_new], _now, null);
  perform durable._copy_history(_to, _new.task_id, _history);
  return (_new.task_id, durable._run_id(_new.task_id, 1), 1, true);
end;
$$;

comment on function durable.fork_task is
'Spawns a task with the name, params and options of another one, in any state, and with
copies of its checkpoints, and of the values and stream entries it had published by then.
options, of which only one of before, after and position may be given:

- before: the name of a checkpoint; copies those that were complete when its call was made.
- after: the name of a checkpoint; copies it and those saved before it.
- position: as before, for the call at that position.
- params, queue: instead of the original''s.
- those of spawn except parent_task_id, unique, throttle and debounce; headers are added to the original''s.

Without a point all checkpoints are copied. If a name occurs several times, charge#1 is the
first. Children recorded in copied checkpoints remain children of the original. The fork has
no parent, and no key unless one is given. Its header durable:forked_from is {"task_id",
"by"}, with "queue" if that is another one; spawn removes this header.

Returns the task, as spawn does. Refuses an unknown queue (WFQUE), an unknown task (WFNFD), a
checkpoint that does not exist or is ambiguous and other bad options (22023), and what spawn
refuses. Locks: waits for a transaction that is using the same idempotency key; locks the
original''s row FOR KEY SHARE, which only conflicts with its deletion.';

create or replace function durable._check_fork(options jsonb)
returns void language plpgsql immutable as $$
declare
  _position double precision;
begin
  if options ? 'parent_task_id' then
    perform durable._refuse_argument('parent_task_id in options of a fork', 'A fork has no parent: leave it out.');
  end if;
  if (durable._spawn_options(
    options - array['before', 'after', 'position', 'params', 'queue'])).unique_key is not null
  then
    perform durable._refuse_argument('unique, throttle or debounce in options of a fork',
      'A fork has none of these keys: leave them out.');
  end if;
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
returns durable._spawn_options language plpgsql stable as $$
declare
  _headers jsonb := coalesce(origin.headers, '{}') || coalesce(nullif(options -> 'headers', 'null'), '{}');
  _options durable._spawn_options := durable._spawn_options(
    jsonb_build_object('max_attempts', origin.max_attempts, 'retry', origin.retry,
      'execution_timeout', origin.execution_timeout)
    || (options - array['before', 'after', 'position', 'params', 'queue'])
    || jsonb_build_object('headers', _headers));
begin
  _options.headers := durable._checked_size('headers', coalesce(_options.headers, '{}')
    || jsonb_build_object('durable:forked_from', jsonb_strip_nulls(jsonb_build_object(
      'queue', case when options ->> 'queue' <> origin.queue then origin.queue end, 'task_id', origin.task_id,
      'by', durable._caller()))));
  _options.partition_key := coalesce(_options.partition_key, nullif(origin.partition_key, ''));
  _options.priority := coalesce(_options.priority, origin.priority);
  _options.omitted := origin.omitted
    & durable._omitted('{"start_timeout": null}' || options); -- a fork has no start_timeout by default
  return _options;
end;
$$;

-- Returns the checkpoints that a fork begins with.
create or replace function durable._history_until(queue text, task_id uuid, options jsonb)
returns durable.checkpoints[] language plpgsql as $$
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
returns durable.checkpoints[] language plpgsql as $$
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

-- Finds a checkpoint by name; where a loop has several, charge#1 is the first. With waiting,
-- a wait that has not ended counts too.
create or replace function durable._fork_point(queue text, task_id uuid, name text, waiting boolean)
returns durable.checkpoints language plpgsql as $$
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
returns durable.checkpoints language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _found durable.checkpoints[];
begin
  _found := array(
    select saved
    from durable.checkpoints as saved
    where saved.queue = _queue
      and saved.task_id = _fork_point_at.task_id
      and saved.position = _fork_point_at.position
      and saved.name !~ '^\$(try|retry):'
    order by saved.name
  );
  if cardinality(_found) > 1 then
    perform durable._refuse_argument(
      format('there are several checkpoints at position %s', _fork_point_at.position),
      format('Branches ran side by side. Pass one as before: %s.',
        (select string_agg(saved.name, ', ' order by saved.name) from unnest(_found[1:8]) as saved)));
  elsif cardinality(_found) = 0 then
    perform durable._refuse_point(_queue, task_id, format('no checkpoint at position %s', _fork_point_at.position), '');
  end if;
  return _found[1];
end;
$$;

-- Suggests names, the likeliest first: those that share most pairs of letters with the input.
create or replace function durable._refuse_point(queue text, task_id uuid, message text, said text)
returns void language plpgsql as $$
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

-- Writes everything a fork takes from its original. `after` then counts the fork's own
-- checkpoints, and no claim has saved them. The claim is set to 2, so that the first worker
-- loads the checkpoints, as after any claim but the first.
create or replace function durable._copy_history(
  queue text, task_id uuid, history durable.checkpoints[]
)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.checkpoints (
    task_id, saved_at, claim, attempt, position, after, duration_ms, state, queue, name, value
  )
  select
    _copy_history.task_id, saved.saved_at, 0, 0, saved.position,
    least(saved.after, rank() over (order by saved.after) - 1),
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
