-- Makes ids: uuid v7, which Postgres before 18 does not have. They have 48 bits of
-- milliseconds, 12 bits with the fraction of the millisecond (RFC 9562, 6.2) and 62 random
-- bits. So ids ascend in the order of spawning, and a child's id is greater than its parent's.

-- Returns the microsecond that a call's ids start with: now, or the millisecond after the
-- parent's.
create or replace function durable._id_microseconds(at timestamptz, parent uuid default null)
returns bigint language sql stable as $$
  select greatest(
    (date_part('epoch', at) * 1000000)::bigint,
    (('x' || translate(left(parent::text, 13), '-', ''))::bit(48)::bigint + 1) * 1000
  );
$$;

-- The counter orders the ids of one call: four of them take a microsecond.
create or replace function durable._uuid7(microseconds bigint, counter integer default 0)
returns uuid language sql volatile as $$
  select (
    overlay(
      lpad(to_hex((microseconds * 4 + counter) * 128 / 125), 15, '0') -- 4,096 a millisecond
      placing '7' from 13 for 0) -- the version
    || right(gen_random_uuid()::text, 18)
  )::uuid;
$$;

-- Returns the lowest id that could have been made at a moment: the end of a range.
create or replace function durable._uuid7_floor(at timestamptz)
returns uuid language sql stable as $$
  select rpad(lpad(to_hex(floor(date_part('epoch', at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
$$;

-- Returns the moment of an id, to the millisecond.
create or replace function durable._uuid7_moment(id uuid)
returns timestamptz language sql immutable as $$
  select to_timestamp(('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0);
$$;

-- Derives a run's id from its task and attempt, so that it need not be stored.
create or replace function durable._run_id(task_id uuid, attempt integer)
returns uuid language sql immutable as $$
  select (left(task_id::text, 24) || right(md5(task_id::text || '/' || attempt::text), 12))::uuid;
$$;
