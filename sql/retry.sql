-- Computes how long a failed task waits for its next attempt.
--
--   {"kind": "none"}                                  no retry: the first failure is final
--   {"kind": "fixed", "base_seconds": 5}              the same delay each time
--   {"kind": "exponential", "base_seconds": 1, "factor": 2, "max_seconds": 300,
--    "jitter": true}                                  base * factor ^ (attempt - 1), capped
--
-- `jitter` subtracts up to half of the delay, at random. A task without a strategy has the
-- exponential one above.

create or replace function durable._checked_retry(retry jsonb)
returns jsonb language plpgsql immutable as $$
begin
  if retry is null or jsonb_typeof(retry) = 'null' then
    return null;
  end if;
  perform durable._checked_keys('retry', retry,
    array['kind', 'base_seconds', 'factor', 'max_seconds', 'jitter']);
  if retry ->> 'kind' is null or retry ->> 'kind' not in ('none', 'fixed', 'exponential') then
    perform durable._refuse_argument('kind in retry is ' || coalesce((retry -> 'kind')::text, 'missing'),
      'Pass "none", "fixed" or "exponential".');
  end if;
  if jsonb_typeof(retry -> 'jitter') not in ('boolean', 'null') then
    perform durable._refuse_argument('jitter in retry must be true or false',
      'Pass true to take off up to half of each delay at random.');
  end if;
  perform durable._number('retry', retry, 'base_seconds', 0);
  perform durable._number('retry', retry, 'factor', 1);
  perform durable._number('retry', retry, 'max_seconds', 0);
  return retry;
end;
$$;

-- Returns the seconds until the next attempt. The exponent is capped before the power is
-- taken, so that attempt 5,000 does not overflow.
create or replace function durable._retry_delay(retry jsonb, attempt integer)
returns double precision language plpgsql volatile as $$
declare
  _retry jsonb := coalesce(retry,
    '{"kind": "exponential", "base_seconds": 1, "factor": 2, "max_seconds": 300, "jitter": true}');
  _base double precision := coalesce((_retry ->> 'base_seconds')::double precision, 1);
  _factor double precision := coalesce((_retry ->> 'factor')::double precision, 2);
  _most double precision := coalesce((_retry ->> 'max_seconds')::double precision, 31536000);
  _exponent double precision := 0;
  _delay double precision;
begin
  if _retry ->> 'kind' = 'exponential' then
    _exponent := least(ln(_factor) * (attempt - 1), 60);
  end if;
  _delay := least(_base * exp(_exponent), _most);
  if coalesce((_retry ->> 'jitter')::boolean, false) then
    _delay := _delay * (0.5 + random() / 2);
  end if;
  return _delay;
end;
$$;

-- Whether another attempt may follow this one.
create or replace function durable._may_retry(retry jsonb, attempt integer, max_attempts integer)
returns boolean language sql immutable as $$
  select coalesce(retry ->> 'kind', '') <> 'none'
    and (max_attempts is null or attempt < max_attempts);
$$;
