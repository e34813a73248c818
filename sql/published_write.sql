-- Publishes what a running task reports: values, streams and log lines.
--
-- Only the holder of a task publishes for it. Its worker assigns the numbers: a number that
-- exists was written by an earlier try of the same call, and the fence refuses former claims.
-- So repeating a call adds nothing.

create or replace function durable.publish(
  queue text, published json, checkpoints json default null, completions json default null,
  failures json default null
) returns setof durable.write_outcome language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _held uuid[];
begin
  perform durable._lock_claims(_queue, array[published, checkpoints, completions, failures]);
  _held := durable._publish(_queue, published, durable._now());
  if cardinality(_held) < json_array_length(published) then
    return query select * from durable._unpublished(_queue, published, completions, failures);
  end if;
  if num_nonnulls(checkpoints, completions, failures) > 0 then
    return query
      select written.task_id, written.outcome
      from durable._write(_queue, checkpoints, completions, failures) as written;
  end if;
  if durable._must_notify(_queue, 'published') then
    perform pg_notify('durable_published', task_id::text) from unnest(_held) as held (task_id);
  end if;
end;
$$;

comment on function durable.publish is
'Saves what tasks publish, together with a flush, in one statement. published: [{"task_id",
"claim", "sets": [{"key", "value", "times"}, ...], "entries": [{"stream", "number", "source",
"restarted", "closes", "value"}, ...], "lines": [{"number", "at", "level", "logger", "step",
"message"}, ...]}, ...], one element per task; each part may be left out. A number that exists
already is skipped. Sessions that follow these tasks are notified. If the claim of an element
of published has ended, checkpoints, completions and failures are not written. Returns and
raises as flush does. Locks: the task rows, in ascending order; raises 55P03 after waiting
200 ms for one.';

-- Publishes for the claims that hold, whose tasks the caller has locked; returns these tasks.
create or replace function durable._publish(queue text, published json, at timestamptz)
returns uuid[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _held uuid[];
  _claims integer[];
  _attempts integer[];
  _sets json[];
  _entries json[];
  _lines json[];
begin
  select
    array_agg(own.task_id), array_agg(task.ordinal), array_agg(task.attempt),
    array_agg(own.sets), array_agg(own.entries), array_agg(own.lines)
  into _held, _claims, _attempts, _sets, _entries, _lines
  from json_to_recordset(published) as own (
    task_id uuid, claim integer, sets json, entries json, lines json
  )
  cross join lateral (
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
      and own.claim % 2 = 1
    offset 0
  ) as task;
  if num_nonnulls(variadic _sets || _entries || _lines) > 0 then
    perform durable._write_published(_queue, _held, _claims, _attempts, _sets, _entries, _lines, at);
  end if;
  return coalesce(_held, '{}');
end;
$$;

create or replace function durable._write_published(
  queue text, task_ids uuid[], claims integer[], attempts integer[], sets json[], entries json[],
  lines json[], at timestamptz
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  insert into durable.task_values (task_id, set_at, times, queue, key, value)
  select
    own.task_id, at, coalesce(new.times, 0), _queue,
    durable._checked_name('name of a value', new.key, 512),
    durable._checked_entry('a value', new.value)
  from unnest(task_ids, sets) as own (task_id, sets)
  cross join lateral json_to_recordset(own.sets) as new (key text, value json, times integer)
  on conflict on constraint task_values_pkey do update
  set set_at = excluded.set_at, times = excluded.times, value = excluded.value
  where task_values.times <= excluded.times; -- a call that was believed lost may arrive late
  insert into durable.stream_entries (
    task_id, written_at, number, claim, attempt, restarted, queue, stream, source, value
  )
  select
    own.task_id, at, new.number, own.claim, own.attempt, coalesce(new.restarted, false), _queue,
    durable._checked_name('name of a stream', new.stream, 255),
    durable._checked_name('source of an entry', coalesce(new.source, '$stream:' || new.stream), 512),
    case when new.closes then null else durable._checked_entry('entry of a stream', new.value) end
  from unnest(task_ids, claims, attempts, entries) as own (task_id, claim, attempt, entries)
  cross join lateral json_to_recordset(own.entries) as new (
    stream text, number integer, source text, restarted boolean, closes boolean, value json
  )
  on conflict do nothing;
  insert into durable.log_lines (
    task_id, logged_at, number, claim, attempt, level, queue, logger, step, message
  )
  select
    own.task_id, new.at, new.number, own.claim, own.attempt, new.level, _queue, new.logger, new.step,
    durable._end_of(new.message)
  from unnest(task_ids, claims, attempts, lines) as own (task_id, claim, attempt, lines)
  cross join lateral json_to_recordset(own.lines) as new (
    number integer, at timestamptz, level integer, logger text, step text, message text
  )
  on conflict do nothing;
end;
$$;

create or replace function durable._checked_entry(what text, value json)
returns json language plpgsql immutable as $$
begin
  if octet_length(value::text) > 16777216 then
    perform durable._refuse_argument(format('%s is %s bytes', what, octet_length(value::text)),
      'Pass at most 16777216 bytes; store large data elsewhere and pass where it is.');
  end if;
  return coalesce(value, 'null');
end;
$$;

-- Returns the refused claims. Those that end in the same call are left out: if it is repeated,
-- it has published the first time.
create or replace function durable._unpublished(
  queue text, published json, completions json, failures json
) returns setof durable.write_outcome language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  return query
    select own.task_id, durable._refusal(_queue, own.task_id, own.claim)
    from (
      select said.task_id, said.claim
      from json_to_recordset(published) as said (task_id uuid, claim integer)
      except
      select ended.task_id, ended.claim
      from unnest(array[completions, failures]) as part
      cross join lateral json_to_recordset(part) as ended (task_id uuid, claim integer)
    ) as own
    where not durable._hold(_queue, own.task_id, own.claim);
end;
$$;

create or replace function durable.load_published(queue text, task_id uuid)
returns setof durable.publication language plpgsql stable as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
  _task_id uuid := task_id;
begin
  return query
    select 'stream', said.stream::text, said.source::text, said.times::integer, (said.last + 1)::integer
    from (
      select stream_entries.stream, stream_entries.source, count(*) as times, max(stream_entries.number) as last
      from durable.stream_entries
      where stream_entries.queue = _queue and stream_entries.task_id = _task_id
      group by stream_entries.stream, stream_entries.source
    ) as said
    union all
    select 'value', task_values.key::text, null, task_values.times, null
    from durable.task_values
    where task_values.queue = _queue and task_values.task_id = _task_id
    union all
    select 'log', null, null, (max(log_lines.number) + 1)::integer, (max(log_lines.number) + 1)::integer
    from durable.log_lines
    where log_lines.queue = _queue and log_lines.task_id = _task_id
    having count(*) > 0;
end;
$$;

comment on function durable.load_published is
'Returns how much a task that a worker has claimed again has published so far, so that publish
can continue its numbers and a replay can skip what was published before.';

-- Copies what the original of a fork had published at the point of the fork: entries written
-- by the copied steps, and everything that the task's own code had published by the time of
-- the last copied checkpoint, since it is saved with the next checkpoint or earlier. A replay
-- skips as many as were copied and publishes the rest anew. Of a value only the last version
-- is stored: if that was set later, nothing is copied and the replay sets it.
create or replace function durable._copy_published(
  queue text, task_id uuid, history durable.checkpoints[]
)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _from text collate "C" := history[1].queue;
  _origin uuid := history[1].task_id;
  _names text[] collate "C";
  _until timestamptz;
begin
  select array_agg(saved.name), max(saved.saved_at) into _names, _until
  from unnest(history) as saved;
  insert into durable.stream_entries (
    task_id, written_at, number, claim, attempt, restarted, queue, stream, source, value
  )
  select
    _copy_published.task_id, entry.written_at,
    row_number() over (partition by entry.stream order by entry.number) - 1,
    0, 0, entry.restarted, _queue, entry.stream, entry.source, entry.value
  from durable.stream_entries as entry
  where entry.queue = _from
    and entry.task_id = _origin
    and case
      when entry.source like '$stream:%' then entry.written_at <= _until
      else entry.source = any (_names)
    end;
  insert into durable.task_values (task_id, set_at, times, queue, key, value)
  select _copy_published.task_id, known.set_at, known.times, _queue, known.key, known.value
  from durable.task_values as known
  where known.queue = _from and known.task_id = _origin and known.set_at <= _until;
end;
$$;
