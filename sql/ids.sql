-- Makes ids: uuid v7, which Postgres before 18 does not have. They have 48 bits of
-- milliseconds, 12 bits that count up within a call and 62 random bits. So ids ascend in
-- the order of spawning, and a child's id is greater than its parent's.

-- Returns the millisecond that a call's ids start with: now, or one after the parent's.
create or replace function durable._id_milliseconds(at timestamptz, parent uuid default null)
returns bigint language sql stable as $$
  select greatest(
    (date_part('epoch', at) * 1000)::bigint,
    ('x' || translate(left(parent::text, 13), '-', ''))::bit(48)::bigint + 1
  );
$$;

create or replace function durable._uuid7(milliseconds bigint, counter integer default 0)
returns uuid language sql volatile as $$
  select encode(
    int8send(milliseconds * 65536 + (counter / 4096 * 65536 + 7 * 4096 + counter % 4096))
    || substr(uuid_send(gen_random_uuid()), 9), 'hex'
  )::uuid; -- the version, 7, stands before the counter
$$;

-- Returns the lowest id that could have been made at a moment: the end of a range.
create or replace function durable._uuid7_floor(at timestamptz)
returns uuid language sql stable as $$
  select rpad(lpad(to_hex((date_part('epoch', at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
$$;

-- Derives a run's id from its task and attempt, so that it need not be stored.
create or replace function durable._run_id(task_id uuid, attempt integer)
returns uuid language sql immutable as $$
  select (left(task_id::text, 24) || right(md5(task_id::text || '/' || attempt::text), 12))::uuid;
$$;
