-- Cron expressions, in any time zone, as Debian's cron understands them.
--
-- An expression has five fields: minute, hour, day of the month, month and day of the week; or
-- six, with the second before them. If both days are restricted, a date matches if either
-- does; if one of them begins with *, it has to match both.
--
-- When the clocks are changed, fires depend on the expression:
--
--   five fields, neither       by the wall clock: for a time that the clock skips, the first
--   minute nor hour with *     moment after the gap; for one that it shows twice, the first
--   all others                 by real time: none in hours that the clock skips, and again in
--                              hours that it repeats
--
-- No expression here depends on the session's time zone, as `interval '1 day'` would.

create or replace function durable._parsed_cron(cron text)
returns durable._cron language plpgsql immutable as $$
declare
  _fields text[] := regexp_split_to_array(
    upper(btrim(durable._cron_of_nickname(cron)) collate "C"), ' +');
  _cron durable._cron;
begin
  if (cardinality(_fields) in (5, 6)) is not true then
    perform durable._refuse_argument(format('"%s" is no cron expression', left(cron, 100)),
      'Pass minute, hour, day of month, month and day of week, as in "0 3 * * *", a second '
      'before them, or one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually.');
  end if;
  _cron.by_wall_clock := cardinality(_fields) = 5
    and concat(_fields[1], ' ', _fields[2]) !~ '(^| )\*';
  if cardinality(_fields) = 5 then
    _fields := array_prepend('0', _fields);
  end if;
  _cron.either_day := concat(_fields[4], ' ', _fields[6]) !~ '(^| )\*';
  _cron.seconds := durable._cron_values('second', _fields[1], 0, 59, '{}');
  _cron.minutes := durable._cron_values('minute', _fields[2], 0, 59, '{}');
  _cron.hours := durable._cron_values('hour', _fields[3], 0, 23, '{}');
  _cron.days := durable._cron_values('day of the month', _fields[4], 1, 31, '{}');
  _cron.months := durable._cron_values('month', _fields[5], 1, 12,
    '{JAN,FEB,MAR,APR,MAY,JUN,JUL,AUG,SEP,OCT,NOV,DEC}');
  _cron.weekdays := durable._cron_values('day of the week', _fields[6], 0, 7,
    '{SUN,MON,TUE,WED,THU,FRI,SAT}');
  return _cron;
end;
$$;

create or replace function durable._cron_of_nickname(cron text)
returns text language sql immutable as $$
  select case lower(btrim(cron) collate "C")
    when '@hourly' then '0 * * * *'
    when '@daily' then '0 0 * * *'
    when '@midnight' then '0 0 * * *'
    when '@weekly' then '0 0 * * 0'
    when '@monthly' then '0 0 1 * *'
    when '@yearly' then '0 0 1 1 *'
    when '@annually' then '0 0 1 1 *'
    else cron
  end;
$$;

-- Returns the values of one field in ascending order. names: words for the values from `low` on.
create or replace function durable._cron_values(
  what text, field text, low integer, high integer, names text[]
) returns integer[] language plpgsql immutable as $$
declare
  _part text;
  _range text[];
  _from integer;
  _to integer;
  _step integer;
  _values integer[] := array[]::integer[];
begin
  foreach _part in array string_to_array(field, ',') loop
    for _number in 1 .. cardinality(names) loop
      _part := replace(_part, names[_number], (low + _number - 1)::text);
    end loop;
    _range := regexp_match(_part, '^(?:(\*)|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,4}))?$');
    _from := coalesce(_range[2]::integer, low);
    _to := coalesce(_range[3]::integer,
      case when _range[1] is null and _range[4] is null then _from else high end);
    _step := coalesce(_range[4]::integer, 1);
    if _range is null or _step = 0 or _from < low or _to > high or _from > _to then
      perform durable._refuse_cron_field(what, field, low, high, names);
    end if;
    _values := _values || array(select generate_series(_from, _to, _step));
  end loop;
  return array(
    select distinct case when what = 'day of the week' then value % 7 else value end
    from unnest(_values) as value
    order by 1);
end;
$$;

create or replace function durable._refuse_cron_field(
  what text, field text, low integer, high integer, names text[]
) returns void language plpgsql immutable as $$
begin
  perform durable._refuse_argument(format('the %s of the cron expression is "%s"', what, field),
    case when field ~ '[#?]|(^|[,\d])(L|W(?!ED))'
      then 'L, W, # and ? are not supported: choose the day in the task, or use several schedules.'
      else format('Pass *, or numbers from %s to %s, ranges such as %s-%s, steps such as */2, and '
        'lists of these%s.', low, high, low, low + 1,
        case when names <> '{}' then format('; %s stands for %s', names[1], low) else '' end)
    end);
end;
$$;

create or replace function durable._cron_has_day(cron durable._cron, day date)
returns boolean language sql immutable as $$
  select extract(month from day)::integer = any (cron.months)
    and case when cron.either_day
      then extract(day from day)::integer = any (cron.days)
        or extract(dow from day)::integer = any (cron.weekdays)
      else extract(day from day)::integer = any (cron.days)
        and extract(dow from day)::integer = any (cron.weekdays)
    end;
$$;

-- Returns the first day that matches, of this one and those of the next 40 years: the longest
-- time from one 29th of February on a given weekday to the next. Null: there is none. Postgres
-- generates the days one by one, as far as they are needed.
create or replace function durable._next_cron_day(cron durable._cron, day date)
returns date language plpgsql immutable as $$
begin
  return (
    select series.day
    from (select _next_cron_day.day + generate_series(0, 366 * 40) as day) as series
    where durable._cron_has_day(cron, series.day)
    limit 1);
end;
$$;

-- Returns the first moment at which a clock in the time zone shows this or, if the clock skips
-- it, the first moment after the gap. The zone has the offset of the day before or that of the
-- day after.
create or replace function durable._first_moment(local timestamp, time_zone text)
returns timestamptz language plpgsql immutable as $$
declare
  _local timestamp := local;
  _moment timestamptz;
  _utc timestamptz := local at time zone 'UTC';
  _offsets interval[] := array[
    ((_utc - interval '24 hours') at time zone time_zone)
      - ((_utc - interval '24 hours') at time zone 'UTC'),
    ((_utc + interval '24 hours') at time zone time_zone)
      - ((_utc + interval '24 hours') at time zone 'UTC')];
begin
  loop
    _moment := _utc - _offsets[1];
    exit when _moment at time zone time_zone = _local;
    _moment := _utc - _offsets[2];
    exit when _moment at time zone time_zone = _local;
    _local := date_trunc('minute', _local) + interval '1 minute';
    _utc := _local at time zone 'UTC';
  end loop;
  return _moment;
end;
$$;

-- Returns the first fire of a day that is later than `after`; null: there is none.
create or replace function durable._next_by_wall_clock(
  cron durable._cron, time_zone text, day date, after timestamptz
) returns timestamptz language plpgsql immutable as $$
declare
  _after timestamp := after at time zone time_zone;
  _hour integer;
  _minute integer;
  _local timestamp;
  _moment timestamptz;
begin
  foreach _hour in array cron.hours loop
    foreach _minute in array cron.minutes loop
      _local := day + make_interval(hours => _hour, mins => _minute);
      continue when _local <= _after; -- a time that was shown, or skipped, has been
      _moment := durable._first_moment(_local, time_zone);
      if _moment > after then
        return _moment;
      end if;
    end loop;
  end loop;
  return null;
end;
$$;

-- Returns the same, by real time.
create or replace function durable._next_by_real_time(
  cron durable._cron, time_zone text, day date, after timestamptz
) returns timestamptz language plpgsql immutable as $$
declare
  _moment timestamptz := greatest(
    durable._first_moment(day, time_zone), date_trunc('second', after) + interval '1 second');
  _local timestamp;
begin
  loop
    _local := _moment at time zone time_zone;
    if _local::date <> day then
      return null;
    elsif extract(hour from _local)::integer <> all (cron.hours) then
      _moment := _moment + (date_trunc('hour', _local) + interval '1 hour' - _local);
    elsif extract(minute from _local)::integer <> all (cron.minutes) then
      _moment := _moment + (date_trunc('minute', _local) + interval '1 minute' - _local);
    elsif extract(second from _local)::integer <> all (cron.seconds) then
      _moment := _moment + interval '1 second';
    else
      exit;
    end if;
  end loop;
  return _moment;
end;
$$;

-- Returns the first fire of a cron expression that is later than `after`; null: there is none.
create or replace function durable._next_fire(
  cron durable._cron, time_zone text, after timestamptz
) returns timestamptz language plpgsql immutable as $$
declare
  _day date := (after at time zone time_zone)::date;
  _moment timestamptz;
begin
  loop
    _day := durable._next_cron_day(cron, _day);
    exit when _day is null;
    _moment := case when cron.by_wall_clock
      then durable._next_by_wall_clock(cron, time_zone, _day, after)
      else durable._next_by_real_time(cron, time_zone, _day, after) end;
    exit when _moment is not null;
    _day := _day + 1;
  end loop;
  return _moment;
end;
$$;

-- Returns the time zone. `at time zone` also takes abbreviations, and reads an unknown name with a
-- number, such as "Mars/Base1", as an offset. So only for usual names is it enough; all others are
-- looked up in the list of Postgres's files, which takes 40 ms.
create or replace function durable._checked_time_zone(time_zone text)
returns text language plpgsql stable as $$
declare
  _name text;
begin
  if time_zone = 'UTC' then
    return time_zone;
  elsif time_zone ~ '^[A-Z][a-z_]+(/[A-Z][A-Za-z_-]+)+$' then
    begin
      perform to_timestamp(0) at time zone time_zone;
      return time_zone;
    exception when invalid_parameter_value then
      null; -- refused below, with what may be meant
    end;
  end if;
  select zone.name into _name
  from pg_timezone_names as zone
  where lower(zone.name collate "C") = lower(time_zone collate "C")
  limit 1;
  if _name is distinct from time_zone or time_zone is null then
    perform durable._refuse_argument(format('there is no time zone "%s"', left(time_zone, 100)),
      case when _name is null then 'Pass a name such as "Europe/Vienna", or "UTC".'
        else format('Pass "%s".', _name) end);
  end if;
  return time_zone;
end;
$$;

create or replace function durable.next_fires(
  cron text, time_zone text default 'UTC', after timestamptz default null, count integer default 5
) returns setof timestamptz language plpgsql stable as $$
declare
  _cron durable._cron := durable._parsed_cron(cron);
  _zone text := durable._checked_time_zone(time_zone);
  _moment timestamptz := coalesce(after, durable._now());
begin
  if (count between 1 and 10000) is not true then
    perform durable._refuse_argument(format('count is %s', count),
      'Pass a number from 1 to 10000.');
  end if;
  for _number in 1 .. count loop
    _moment := durable._next_fire(_cron, _zone, _moment);
    exit when _moment is null;
    return next _moment;
  end loop;
end;
$$;

comment on function durable.next_fires is
'Returns the next times at which a cron expression fires in a time zone after a moment (null:
now), in ascending order. cron: minute, hour, day of month, month and day of week, as in
Debian''s cron, or six fields with the second first; names of months and days; @hourly, @daily,
@midnight, @weekly, @monthly, @yearly and @annually. L, W, # and ? are not supported. A date
has to match the day of the month or that of the week; if either begins with *, both.

When the clocks are changed, fixed times (five fields, neither minute nor hour begins with *)
fire once: a time that is skipped, at the first moment after the gap; a time that comes twice,
at the first of the two. All other expressions fire by real time. Returns nothing if no date of
the next 40 years matches. Refuses bad expressions, unknown time zones and a count that is not
from 1 to 10,000 (22023).';
