-- The one place time comes from. There is no switch to fake it: a test replaces
-- this function in its own database.

create or replace function durable._now()
returns timestamptz
language sql
volatile
as $$
  select clock_timestamp();
$$;


-- Seconds after a moment; null: never. Immutable, unlike `timestamptz + interval`, since
-- seconds are the same in every time zone: so an update may apply it to a column.
create or replace function durable._later(at timestamptz, seconds double precision)
returns timestamptz
language sql
immutable
as $$
  select at + make_interval(secs => seconds);
$$;
