-- What comes in is checked when it comes in, so that nothing stored can make a
-- later claim fail. Every refusal is 22023 with a hint, before anything is written.

-- The ones a hot path calls return what they were given: an assignment costs less than
-- a statement.
create or replace function durable._checked_name(what text, name text, max_bytes integer)
returns text
language plpgsql
immutable
as $$
begin
  if octet_length(name) <= max_bytes and name ~ '^[^\x01-\x20\x7f][^\x01-\x1f\x7f]*$' then
    return name;
  elsif name is null or btrim(name) = '' then
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


-- 16 MiB: far above what belongs in a queue, far below what Postgres refuses. What comes
-- compressed out of a caller's table is counted as the text it is.
create or replace function durable._checked_size(what text, value jsonb)
returns jsonb
language plpgsql
stable
as $$
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


-- What a worker says of its tasks is text until it is kept; one look at all of it spares
-- the look at each.
create or replace function durable._check_sizes(what text, key text, said json)
returns void
language plpgsql
stable
as $$
begin
  perform durable._refuse_argument(format('%s is %s bytes', what, octet_length((own -> key)::text)),
    'Pass at most 16777216 bytes; store large data elsewhere and pass where it is.')
  from json_array_elements(said) as own
  where octet_length((own -> key)::text) > 16777216;
end;
$$;


-- A failure is never refused for what it says: where that is too much, the end of it is
-- kept, which is where a traceback says why.
create or replace function durable._bounded_error(error jsonb)
returns jsonb
language plpgsql
immutable
as $$
begin
  if error is null or pg_column_size(error) <= 262144 then
    return error;
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'type', coalesce(left(error ->> 'type', 255), 'Error'),
    'message', durable._end_of(coalesce(error ->> 'message', error::text)),
    'traceback', durable._end_of(error ->> 'traceback')));
end;
$$;


create or replace function durable._end_of(said text)
returns text
language sql
immutable
as $$
  select case when length(said) > 20000 then '…' || right(said, 20000) else said end;
$$;


create or replace function durable._check_keys(what text, given jsonb, known text[])
returns void
language plpgsql
immutable
as $$
declare
  _unknown text;
begin
  if jsonb_typeof(given) = 'object' and given - known = '{}' then
    return;
  elsif given is null or jsonb_typeof(given) <> 'object' then
    perform durable._refuse_argument(what || ' must be a JSON object',
      'Known keys: ' || array_to_string(known, ', ') || '.');
  end if;
  select key into _unknown
  from jsonb_object_keys(given) as keys (key)
  where key <> all (known)
  order by key
  limit 1;
  if found then
    perform durable._refuse_argument(format('unknown key "%s" in %s', _unknown, what),
      'Known keys: ' || array_to_string(known, ', ') || '.');
  end if;
end;
$$;


-- A number out of a JSON object; null when it is absent or JSON null.
create or replace function durable._number(what text, given jsonb, key text, minimum double precision)
returns double precision
language plpgsql
immutable
as $$
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


create or replace function durable._max_attempts(options jsonb)
returns integer
language plpgsql
immutable
as $$
begin
  return durable._checked_count('options', options, 'max_attempts');
end;
$$;


-- How often something may happen; null: any number of times.
create or replace function durable._checked_count(what text, given jsonb, key text)
returns integer
language plpgsql
immutable
as $$
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


-- A moment says which time zone it is in, so that what it means depends on no setting.
create or replace function durable._checked_moment(what text, given jsonb, key text)
returns timestamptz
language plpgsql
immutable
as $$
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
returns durable._spawn_options
language plpgsql
immutable
as $$
declare
  _options durable._spawn_options;
begin
  if options = '{}' then
    _options.max_attempts := 5;
    return _options;
  end if;
  perform durable._check_keys('options', options, array[
    'max_attempts', 'retry', 'headers', 'idempotency_key', 'max_delay', 'max_duration',
    'parent_task_id', 'deadline', 'version', 'identity', 'fingerprint'
  ]);
  _options.max_attempts := case when options ? 'max_attempts'
    then durable._max_attempts(options) else 5 end;
  if options ? 'retry' then
    _options.retry := durable._checked_retry(options -> 'retry');
  end if;
  if options ? 'headers' then
    _options.headers := durable._checked_size('headers', nullif(options -> 'headers', 'null'));
    if jsonb_typeof(_options.headers) <> 'object' then
      perform durable._refuse_argument('headers in options must be a JSON object',
        'Pass an object such as {"trace": "..."}.');
    end if;
    _options.headers := _options.headers - 'durable:forked_from'; -- which is fork_task's to say
  end if;
  if options ? 'identity' then
    _options.headers := durable._with_identity(_options.headers, options -> 'identity');
  end if;
  if jsonb_typeof(options -> 'idempotency_key') not in ('string', 'null') then
    perform durable._refuse_argument('idempotency_key in options must be a string',
      'Pass 1 to 255 bytes of text.');
  elsif options ->> 'idempotency_key' is not null then
    _options.idempotency_key
      := durable._checked_name('idempotency_key', options ->> 'idempotency_key', 255);
  end if;
  if options ? 'fingerprint' then
    _options.fingerprint := durable._checked_fingerprint(options);
  end if;
  if options ?| array['max_delay', 'max_duration'] then
    _options.max_delay := durable._number('options', options, 'max_delay', 0);
    _options.max_duration := durable._number('options', options, 'max_duration', 0);
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
  return _options;
end;
$$;


-- Headers, with who asked under a name that is the engine's own; JSON null: nobody.
create or replace function durable._with_identity(headers jsonb, identity jsonb)
returns jsonb
language plpgsql
immutable
as $$
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


-- What tells params again: one text, or several of which any may.
create or replace function durable._checked_fingerprint(options jsonb)
returns text[]
language plpgsql
immutable
as $$
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
