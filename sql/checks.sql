-- Checks arguments as they come in, so that no stored value can make a later claim fail.
-- Every refusal is 22023 with a hint, before anything is written.
--
-- The checks on hot paths are SQL functions that return their argument, so that an
-- assignment inlines them. They call the PL/pgSQL check only for values that look wrong.
create or replace function durable._name_or_refuse(what text, name text, max_bytes integer)
returns text language plpgsql immutable as $$
begin
  if name is null or btrim(name) = '' then
    perform durable._refuse_argument(what || ' is empty',
      format('Pass 1 to %s bytes of text.', max_bytes));
  elsif octet_length(name) > max_bytes then
    perform durable._refuse_argument(
      format('%s is %s bytes long', what, octet_length(name)),
      format('Pass at most %s bytes of text.', max_bytes));
  elsif name ~ '[\x01-\x1f\x7f]' then
    perform durable._refuse_argument(what || ' contains a control character',
      'Pass printable text.');
  end if;
  return name;
end;
$$;

create or replace function durable._checked_name(what text, name text, max_bytes integer)
returns text language sql immutable as $$
  select case
    when octet_length(name) <= max_bytes and name ~ '^[^\x01-\x20\x7f][^\x01-\x1f\x7f]*$' then name
    else durable._name_or_refuse(what, name, max_bytes) end;
$$;

-- The limit is 16 MiB, far below what Postgres refuses. A value that comes compressed from a
-- caller's table is measured as text.
create or replace function durable._size_or_refuse(what text, value jsonb)
returns jsonb language plpgsql stable as $$
declare
  _size integer := case when pg_column_compression(value) is null
    then pg_column_size(value) else octet_length(value::text) end;
begin
  if _size > 16777216 then
    perform durable._refuse_argument(format('%s is %s bytes', what, _size),
      'Pass at most 16777216 bytes; store large data elsewhere and pass where it is.');
  end if;
  return value;
end;
$$;

create or replace function durable._checked_size(what text, value jsonb)
returns jsonb language sql stable as $$
  select case
    when pg_column_compression(value) is null and pg_column_size(value) <= 16777216 then value
    else durable._size_or_refuse(what, value) end;
$$;

-- Checks the sizes of one key in all elements. Callers measure the whole text first and call
-- this only if that is too long.
create or replace function durable._check_sizes(what text, key text, said json)
returns void language plpgsql stable as $$
begin
  perform durable._refuse_argument(format('%s is %s bytes', what, octet_length((own -> key)::text)),
    'Pass at most 16777216 bytes; store large data elsewhere and pass where it is.')
  from json_array_elements(said) as own
  where octet_length((own -> key)::text) > 16777216;
end;
$$;

-- Truncates an error that is too large rather than refuse it. It keeps the end of the text,
-- where a traceback names the cause.
create or replace function durable._bounded_error(error jsonb)
returns jsonb language plpgsql immutable as $$
begin
  if error is null or pg_column_size(error) <= 262144 then
    return error;
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'type', coalesce(left(error ->> 'type', 255), 'Error'),
    'message', durable._end_of(coalesce(error ->> 'message', error::text)),
    'step', left(error ->> 'step', 512),
    'traceback', durable._end_of(error ->> 'traceback')));
end;
$$;

create or replace function durable._end_of(said text)
returns text language sql immutable as $$
  select case when length(said) > 20000 then chr(8230) || right(said, 20000) else said end;
$$;

create or replace function durable._keys_or_refuse(what text, given jsonb, known text[])
returns jsonb language plpgsql immutable as $$
declare
  _unknown text;
begin
  if given is null or jsonb_typeof(given) <> 'object' then
    perform durable._refuse_argument(what || ' must be a JSON object',
      'Known keys: ' || array_to_string(known, ', ') || '.');
  end if;
  select key into _unknown
  from jsonb_object_keys(given) as keys (key)
  where key <> all (known)
  order by key
  limit 1;
  perform durable._refuse_argument(format('unknown key "%s" in %s', _unknown, what),
    'Known keys: ' || array_to_string(known, ', ') || '.');
  return given;
end;
$$;

create or replace function durable._checked_keys(what text, given jsonb, known text[])
returns jsonb language sql immutable as $$
  select case when jsonb_typeof(given) = 'object' and given - known = '{}' then given
    else durable._keys_or_refuse(what, given, known) end;
$$;

-- Returns a number of a JSON object; null if it is absent or JSON null.
create or replace function durable._number(
  what text, given jsonb, key text, minimum double precision
)
returns double precision language plpgsql immutable as $$
declare
  _value jsonb := given -> key;
begin
  if _value is null or jsonb_typeof(_value) = 'null' then
    return null;
  end if;
  if jsonb_typeof(_value) <> 'number'
    or _value::numeric < minimum::numeric or _value::numeric > 1e10
  then
    perform durable._refuse_argument(
      format('%s in %s is %s', key, what, left(_value::text, 40)),
      format('Pass a number from %s to 1e10.', minimum));
  end if;
  return _value::double precision;
end;
$$;

-- Returns a count of at least 1; null means no limit.
create or replace function durable._count_or_refuse(what text, given jsonb, key text)
returns integer language plpgsql immutable as $$
declare
  _count double precision := durable._number(what, given, key, 1);
begin
  if _count <> floor(_count) or _count > 2147483647 then
    perform durable._refuse_argument(format('%s in %s is %s', key, what, _count),
      'Pass a whole number from 1, or null for no limit.');
  end if;
  return _count;
end;
$$;

create or replace function durable._checked_count(what text, given jsonb, key text)
returns integer language sql immutable as $$
  select case when given ->> key ~ '^[1-9]\d{0,8}$' and jsonb_typeof(given -> key) = 'number'
    then (given ->> key)::integer else durable._count_or_refuse(what, given, key) end;
$$;

-- Requires a time zone, so that the value does not depend on the session's settings.
create or replace function durable._checked_moment(what text, given jsonb, key text)
returns timestamptz language plpgsql immutable as $$
declare
  _moment text := given ->> key;
begin
  if _moment is null then
    return null;
  elsif jsonb_typeof(given -> key) = 'string' and _moment ~
    '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d(:?\d\d)?)$'
    and _moment::timestamptz < '9999-12-30 00:00:00+00' -- in any time zone a year of four digits
  then
    return _moment::timestamptz;
  end if;
  perform durable._refuse_argument(format('%s in %s is %s', key, what, left(_moment, 40)),
    'Pass a moment with its time zone, such as "2030-12-31T23:59:59Z".');
  return null;
exception when datetime_field_overflow or invalid_datetime_format or invalid_time_zone_displacement_value then
  perform durable._refuse_argument(format('%s in %s is %s', key, what, left(_moment, 40)),
    'Pass a moment that there is, such as "2030-12-31T23:59:59Z".');
  return null;
end;
$$;

create or replace function durable._spawn_options(options jsonb)
returns durable._spawn_options language plpgsql immutable as $$
declare
  _options durable._spawn_options;
begin
  options := durable._checked_keys('options', options, array[
    'max_attempts', 'retry', 'headers', 'idempotency_key', 'start_timeout', 'execution_timeout',
    'parent_task_id', 'deadline', 'version', 'identity', 'fingerprint', 'delay', 'run_at',
    'partition_key', 'priority', 'defaults', 'unique', 'throttle', 'debounce'
  ]);
  _options.omitted := durable._omitted(options);
  _options.max_attempts := case when options ? 'max_attempts'
    then durable._checked_count('options', options, 'max_attempts') else 5 end;
  if options ? 'headers' then
    _options.headers := durable._checked_size('headers', nullif(options -> 'headers', 'null'));
    if jsonb_typeof(_options.headers) <> 'object' then
      perform durable._refuse_argument('headers in options must be a JSON object',
        'Pass an object such as {"trace": "..."}.');
    end if;
    _options.headers := _options.headers - 'durable:forked_from'; -- only fork_task sets it
  end if;
  if options ->> 'idempotency_key' is not null then
    if jsonb_typeof(options -> 'idempotency_key') <> 'string' then
      perform durable._refuse_argument('idempotency_key in options must be a string',
        'Pass 1 to 255 bytes of text.');
    end if;
    _options.idempotency_key := durable._checked_name('idempotency_key', options ->> 'idempotency_key', 255);
  end if;
  if not options ?| array['retry', 'identity', 'fingerprint', 'start_timeout', 'execution_timeout',
    'parent_task_id', 'deadline', 'version', 'delay', 'run_at', 'partition_key', 'priority',
    'defaults', 'unique', 'throttle', 'debounce']
  then
    return _options; -- the usual case
  end if;
  if options ? 'retry' then
    _options.retry := durable._checked_retry(options -> 'retry');
  end if;
  if options ? 'identity' then
    _options.headers := durable._with_identity(_options.headers, options -> 'identity');
  end if;
  if options ? 'fingerprint' then
    _options.fingerprint := durable._checked_fingerprint(options);
  end if;
  if options ?| array['start_timeout', 'execution_timeout'] then
    _options.start_timeout := durable._number('options', options, 'start_timeout', 0);
    _options.execution_timeout := durable._number('options', options, 'execution_timeout', 0);
  end if;
  if options ? 'parent_task_id' then
    if options ->> 'parent_task_id' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
      perform durable._refuse_argument('parent_task_id in options is not a uuid',
        'Pass the task_id of a live task of this queue.');
    end if;
    _options.parent_task_id := (options ->> 'parent_task_id')::uuid;
  end if;
  if options ? 'deadline' then
    _options.deadline := durable._checked_moment('options', options, 'deadline');
  end if;
  if options ? 'version' then
    _options.version := durable._checked_version(options -> 'version');
  end if;
  if options ?| array['delay', 'run_at'] then
    _options.delay := durable._number('options', options, 'delay', 0);
    _options.run_at := durable._checked_moment('options', options, 'run_at');
    if num_nonnulls(_options.delay, _options.run_at) > 1 then
      perform durable._refuse_argument('delay and run_at in options', 'Pass one of them.');
    end if;
    perform durable._check_run_at(_options.run_at, _options.deadline);
  end if;
  if options ?| array['partition_key', 'priority', 'defaults'] then
    _options := durable._with_lane(_options, options);
  end if;
  if options ?| array['unique', 'throttle', 'debounce'] then
    _options := durable._with_unique_key(_options, options);
  end if;
  return _options;
end;
$$;

-- Adds partition_key and priority, from defaults if they are not given. Null, where it is given,
-- is no partition, and the priority 0.
create or replace function durable._with_lane(
  known durable._spawn_options, options jsonb
) returns durable._spawn_options language plpgsql immutable as $$
declare
  _options durable._spawn_options := known;
  _given jsonb := durable._checked_keys('defaults in options',
    coalesce(nullif(options -> 'defaults', 'null'), '{}'), array['partition_key', 'priority']) || options;
begin
  if _given ? 'partition_key' then
    if jsonb_typeof(_given -> 'partition_key') not in ('string', 'null') then
      perform durable._refuse_argument('partition_key in options must be a string',
        'Pass 1 to 255 bytes of text.');
    end if;
    _options.partition_key := case when _given ->> 'partition_key' is null then ''
      else durable._checked_name('partition_key', _given ->> 'partition_key', 255) end;
  end if;
  if _given ? 'priority' then
    _options.priority := coalesce(durable._checked_priority(_given), 0);
  end if;
  return _options;
end;
$$;

-- Returns the options that the task's definition has to fill in, as in tasks.omitted. An
-- option that is null counts as given. Headers are added to the definition's, unless null.
create or replace function durable._omitted(options jsonb)
returns smallint language sql immutable as $$
  select nullif(
    case when options ? 'max_attempts' then 0 else 1 end
    | case when options ? 'retry' then 0 else 2 end
    | case when options -> 'headers' = 'null' then 0 else 4 end
    | case when options ? 'start_timeout' then 0 else 8 end
    | case when options ? 'execution_timeout' then 0 else 16 end, 0)::smallint;
$$;

-- Adds the identity to the headers under a reserved name; JSON null removes it.
create or replace function durable._with_identity(headers jsonb, identity jsonb)
returns jsonb language plpgsql immutable as $$
begin
  if jsonb_typeof(identity) not in ('object', 'null') then
    perform durable._refuse_argument('identity in options must be a JSON object',
      'Pass who asks for the task, such as {"user": "..."}.');
  elsif jsonb_typeof(identity) = 'null' then
    return nullif(headers - 'durable:identity', '{}');
  end if;
  return durable._checked_size('headers',
    coalesce(headers, '{}') || jsonb_build_object('durable:identity', identity));
end;
$$;

-- Returns the fingerprints to compare instead of params: any of several may match.
create or replace function durable._checked_fingerprint(options jsonb)
returns text[] language plpgsql immutable as $$
declare
  _given jsonb := options -> 'fingerprint';
  _fingerprint text[];
begin
  if jsonb_typeof(_given) = 'null' then
    return null;
  elsif jsonb_typeof(_given) = 'string' then
    _given := jsonb_build_array(_given);
  end if;
  if jsonb_typeof(_given) <> 'array' or jsonb_path_exists(_given, '$[*] ? (@.type() <> "string")') then
    perform durable._refuse_argument('fingerprint in options must be a string',
      'Pass 1 to 255 bytes of text, or an array of such texts.');
  elsif options ->> 'idempotency_key' is null then
    perform durable._refuse_argument('fingerprint in options stands without an idempotency_key',
      'Pass both, or none.');
  end if;
  _fingerprint := array(
    select durable._checked_name('fingerprint', given.text, 255)
    from jsonb_array_elements_text(_given) with ordinality as given (text, ordinal)
    order by given.ordinal
  );
  return nullif(_fingerprint, '{}');
end;
$$;
