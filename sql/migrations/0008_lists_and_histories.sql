create type durable.listed_task as (
  task_id        uuid,
  parent_task_id uuid,
  name           text,
  state          text,
  attempt        integer,
  worker         text,
  spawned_at     timestamptz,
  started_at     timestamptz,
  available_at   timestamptz,
  finished_at    timestamptz,
  error          jsonb
);

comment on type durable.listed_task is
'A task in a list: where it stands, without what it was given and what it brought.';

create type durable.swept_tasks as (
  tasks integer,
  busy  uuid[],
  next  uuid
);

comment on type durable.swept_tasks is
'How far a call that concerns many tasks has come: how many it has changed; those that
somebody else was at, to be asked for again; where to go on, null at the end.';

create type durable.history_entry as (
  at          timestamptz,
  kind        text,
  name        text,
  attempt     integer,
  worker      text,
  duration_ms integer,
  detail      jsonb
);

comment on type durable.history_entry is
'Something that happened to a task; what has no moment is still going on.';

create type durable._task_filter as (
  name            text,
  states          text[],
  task_ids        uuid[],
  parent_task_id  uuid,
  worker          text,
  error_type      text,
  headers         jsonb,
  params          jsonb,
  spawned_after   timestamptz,
  spawned_before  timestamptz,
  finished_after  timestamptz,
  finished_before timestamptz
);
