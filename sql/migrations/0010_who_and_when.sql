alter table durable.queues
  add column history text collate "C",
  add constraint queues_have_a_full_history_or_none check (history = 'full');

comment on column durable.queues.history is 'How much of what happens to its tasks is kept: full, also each claim and how it was let go, in claim_log; null: what is needed anyway.';

alter table durable.runs
  add column retried_at timestamptz,
  add column retried_by jsonb;

comment on column durable.runs.retried_at is 'When somebody had the task tried again at once; null: nobody had to.';
comment on column durable.runs.retried_by is 'Who: as _caller says, or the task with which it was revived.';

create table durable.claim_log (
  task_id uuid             not null,
  at      timestamptz      not null,
  due_at  timestamptz,
  claim   integer          not null,
  attempt integer          not null,
  queue   text collate "C" not null,
  worker  text collate "C" not null,
  waits   text[] collate "C",
  primary key (queue, task_id, claim)
);

comment on table  durable.claim_log         is 'When tasks were taken, and let go to wait or for others, in queues whose history is full: appended, never changed.';
comment on column durable.claim_log.task_id is 'The task.';
comment on column durable.claim_log.at      is 'When.';
comment on column durable.claim_log.due_at  is 'Taken: since when it could be; let go: from when it can be again by the clock, null: never.';
comment on column durable.claim_log.claim   is 'As tasks.claim is from then on: odd is taken, even let go.';
comment on column durable.claim_log.attempt is 'Which attempt.';
comment on column durable.claim_log.queue   is 'The task''s queue.';
comment on column durable.claim_log.worker  is 'Who has taken it, or let it go.';
comment on column durable.claim_log.waits   is 'For what it was let go: names of checkpoints; null: for nothing, it was released.';

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
