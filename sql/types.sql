-- The shapes that functions return. Each has a name, so that no output column
-- shadows a table's, and a client can rely on it.

create type durable.spawned_task as (
  task_id uuid,
  run_id  uuid,
  attempt integer,
  created boolean
);

comment on type durable.spawned_task is
'A task that was spawned, or was there already under the same idempotency key.';

create type durable.task_result as (
  task_id     uuid,
  name        text,
  state       text,
  attempt     integer,
  result      jsonb,
  error       jsonb,
  spawned_at  timestamptz,
  finished_at timestamptz
);

comment on type durable.task_result is
'Where a task stands: result once it completed, error once it failed or was cancelled.';

create type durable.claimed_task as (
  task_id        uuid,
  claim          integer,
  name           text,
  attempt        integer,
  params         jsonb,
  headers        jsonb,
  parent_task_id uuid,
  spawned_at     timestamptz,
  deadline_at    timestamptz,
  available_at   timestamptz,
  claimed_at     timestamptz,
  run_id         uuid
);

comment on type durable.claimed_task is
'A task a worker now holds. A claim above 1 means that it may have checkpoints;
(available_at, task_id) is where it stood in line.';

create type durable.write_outcome as (
  task_id uuid,
  outcome text
);

comment on type durable.write_outcome is
'What became of one element of a worker''s call: ok; busy (somebody holds the row,
say it again); cancelled; lost (another claim, another end, or gone).';

create type durable.loaded_checkpoint as (
  task_id  uuid,
  name     text,
  position integer,
  after    integer,
  state    text,
  value    json
);

comment on type durable.loaded_checkpoint is
'A checkpoint, for replay.';

create type durable.wait_outcome as (
  task_id uuid,
  outcome text,
  name    text,
  state   text,
  value   json
);

comment on type durable.wait_outcome is
'What became of a wait: resolved (with its checkpoint; the task goes on), suspended
(the claim has ended), waiting (registered, not over), or a refusal as in write_outcome.';

create type durable.spawned_child as (
  name    text,
  task_id uuid,
  run_id  uuid,
  attempt integer,
  created boolean
);

comment on type durable.spawned_child is
'A child and the checkpoint that recorded it.';

create type durable.queue_statistics as (
  queue           text,
  pending         bigint,
  running         bigint,
  sleeping        bigint,
  completed       bigint,
  failed          bigint,
  cancelled       bigint,
  ready           bigint,
  oldest_ready_at timestamptz,
  next_due_at     timestamptz,
  ready_by_name   jsonb
);

comment on type durable.queue_statistics is
'What a queue holds. ready: claimable now, also by task name.';

create type durable.house_kept as (
  leases    integer,
  deadlines integer,
  notes     integer,
  tasks     integer,
  events    integer
);

comment on type durable.house_kept is
'How many leases and deadlines expired, notes were applied, and finished tasks and
old events were deleted.';

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

create type durable.version_statistics as (
  queue           text,
  version         text,
  latest          boolean,
  alive           boolean,
  first_seen_at   timestamptz,
  last_seen_at    timestamptz,
  live            bigint,
  running         bigint,
  ready           bigint,
  oldest_ready_at timestamptz
);

comment on type durable.version_statistics is
'A version in a queue: whether new tasks go to it, whether workers of it were seen of
late, and the live tasks that are its own, with those of them claimable now.';

create type durable.publication as (
  kind   text,
  name   text,
  source text,
  times  integer,
  next   integer
);

comment on type durable.publication is
'How much of something a task has published: kind is stream, value or log; times is how
often, from one source if it is a stream; next is the number that comes next.';

create type durable.published_value as (
  state  text,
  value  json,
  set_at timestamptz
);

comment on type durable.published_value is
'Where a task stands, and a value that it has set; without one, nulls.';

create type durable.stream_entry as (
  state      text,
  number     integer,
  value      json,
  closes     boolean,
  step       text,
  attempt    integer,
  restarted  boolean,
  written_at timestamptz
);

comment on type durable.stream_entry is
'Where a task stands, and an entry of one of its streams; if there is none, nulls.';

create type durable.log_line as (
  state     text,
  number    integer,
  logged_at timestamptz,
  level     integer,
  logger    text,
  step      text,
  attempt   integer,
  message   text
);

comment on type durable.log_line is
'Where a task stands, and a line that it has logged; if there is none, nulls.';

-- Private shapes.

create type durable._spawn_options as (
  max_attempts    integer,
  retry           jsonb,
  headers         jsonb,
  idempotency_key text,
  max_delay       double precision,
  max_duration    double precision,
  parent_task_id  uuid,
  deadline        timestamptz,
  version         text,
  fingerprint     text[]
);

create type durable._new_task as (
  ordinal         integer,
  task_id         uuid,
  name            text,
  params          jsonb,
  options         durable._spawn_options,
  existing_id     uuid
);

create type durable._resolution as (
  state durable.checkpoint_state,
  value json
);

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

create type durable._told as (
  at          timestamptz,
  kind        text,
  name        text,
  attempt     integer,
  worker      text,
  duration_ms integer,
  detail      jsonb,
  claim       integer,
  place       integer,
  called      integer
);
