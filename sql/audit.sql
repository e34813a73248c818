-- Records who acted on a task: cancelled, retried or forked it.
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
