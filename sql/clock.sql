-- Returns the time for every other function. There is no switch to fake it: a test replaces
-- this function in its own database.

create or replace function durable._now()
returns timestamptz language sql volatile as $$
  select clock_timestamp();
$$;
