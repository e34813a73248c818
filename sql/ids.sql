-- Ids are uuid v7, made here because Postgres before 18 has none: 48 bits of
-- milliseconds, 12 bits that count up within a call, 62 random bits. So ids follow
-- the order of spawning, and a child's is greater than its parent's.

-- The millisecond a call's ids start with: now, or just after the parent's.
create or replace function durable._id_milliseconds(at timestamptz, parent uuid default null)
returns bigint
language sql
stable
as $$
  select greatest(
    (date_part('epoch', at) * 1000)::bigint,
    ('x' || translate(left(parent::text, 13), '-', ''))::bit(48)::bigint + 1
  );
$$;


create or replace function durable._uuid7(milliseconds bigint, counter integer default 0)
returns uuid
language sql
volatile
as $$
  select (
    lpad(to_hex(milliseconds * 65536 + (counter / 4096 * 65536 + 7 * 4096 + counter % 4096)), 16, '0')
    || right(gen_random_uuid()::text, 17)
  )::uuid; -- the version, 7, stands before the counter
$$;


-- The lowest id that could have been made at that moment: where a range ends.
create or replace function durable._uuid7_floor(at timestamptz)
returns uuid
language sql
stable
as $$
  select rpad(lpad(to_hex((date_part('epoch', at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
$$;


-- A run's id follows from its task and attempt, so it need not be stored.
create or replace function durable._run_id(task_id uuid, attempt integer)
returns uuid
language sql
immutable
as $$
  select (left(task_id::text, 24) || right(md5(task_id::text || '/' || attempt::text), 12))::uuid;
$$;
