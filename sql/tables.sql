-- The tables, and the rules that all functions keep.
--
-- A task is one row, live or finished. Rows belong to a queue: `queue` leads every key, every
-- statement names it, and it never changes, so a database can be split by queue. Nullable
-- columns that are set only while a row belongs in an index (`available_at`,
-- `lease_expires_at`, `expires_at`) are that index's predicate, so finished rows cost a claim
-- nothing. The index of claims has a range for each name and version, so tasks bound to a
-- `version` cost the claims of other versions nothing.
--
-- THE LOCK ORDER. A call waits only for rows that it was given:
--   1. the row of a queue, then schedules, in name order;
--   2. event rows and idempotency keys, in name order, then unique keys, by kind, task name and
--      key, each followed by its task if that is to be replaced, which has not started then and
--      has no parent; then mailboxes, by task and topic. Meanwhile it locks no other task row
--      except FOR KEY SHARE, which conflicts only with a deletion;
--   3. the task rows it was given, in one pass, ascending by task_id.
-- All other rows (tasks that a finished one wakes, descendants of a failed one, lanes and
-- partitions: see lanes.sql) are tried with SKIP LOCKED, and work on a row that is locked is
-- left as a row in `deferred_work`.
-- A claim comes last in its transaction.
--
-- THE FENCE. `claim` is odd while a worker holds the task: a claim draws a random odd number,
-- and its end adds one. A write under a claim finds its task by (queue, task_id, claim) and
-- nothing else, and holds that row until it commits. The numbers are random because a database
-- that has lost its last commits would count to the same number again. `times_claimed` counts,
-- and gives the order in which claims wrote.

create type durable.task_state as enum (
  'pending',    -- may start now: spawned, woken, released or retried
  'running',    -- a worker holds it; back to pending when the lease is lost
  'sleeping',   -- waits for a time, an event, other tasks, or its next attempt
  'completed',  -- final: run() returned
  'failed',     -- final, unless retried: the last attempt raised
  'cancelled'   -- final, unless retried: a caller, a parent or a deadline cancelled it
);

create type durable.run_outcome as enum (
  'failed',      -- the attempt raised
  'lease_lost',  -- its worker disappeared
  'cancelled'    -- it was cancelled, and retry_task revived the task
);

create type durable.checkpoint_state as enum (
  'done',      -- the value is the result of the step or of the wait
  'failed',    -- the value is the error that the step raised
  'timed_out'  -- the wait's timeout came first
);

create type durable.deferred_kind as enum (
  'waiter',    -- check again whether task_id may wake
  'finished',  -- wake the tasks that wait for task_id
  'event',     -- wake the tasks that wait for event_name, from task_id on
  'cascade',   -- cancel task_id and its live descendants: root_task_id (null: task_id) has ended
  'revive',    -- revive what the end of root_task_id cancelled: it was retried
  'partition'  -- look again at the lanes of the partition event_name: a slot of it is free
);

create type durable.key_kind as enum (
  'unique',    -- the key of a task that is unfinished
  'throttle',  -- the key of a task that was spawned within a period
  'debounce'   -- the key of a task that has not started
);

create type durable.tally_kind as enum (
  'spawned',
  'revived',    -- a failed or cancelled task is live again
  'completed',  -- this and the next two: the state in which tasks ended
  'failed',
  'cancelled',
  'retried',    -- an attempt failed, and another one follows
  'lost'        -- a lease expired
);

create table durable.migrations (
  number     integer     primary key,
  name       text        not null,
  applied_at timestamptz not null default clock_timestamp()
);

comment on table  durable.migrations            is 'The migrations that this database has applied.';
comment on column durable.migrations.number     is 'The number at the start of its file''s name in sql/migrations; 1 is the first install.';
comment on column durable.migrations.name       is 'The file''s name.';
comment on column durable.migrations.applied_at is 'When it was applied.';

insert into durable.migrations (number, name) values (1, 'install');

create table durable.queues (
  queue           text collate "C" primary key,
  created_at      timestamptz      not null,
  keep_tasks      double precision,
  keep_events     double precision,
  keep_metrics    double precision default 7776000,
  keep_audit      double precision default 7776000,
  max_lost_leases integer default 100,
  versions        text collate "C",
  history         text collate "C",
  roles           text[] collate "C",
  max_length      integer,
  is_full         boolean,
  paused_at       timestamptz,
  paused_by       jsonb,
  paused_names    jsonb,
  concurrency           integer,
  partition_concurrency integer,
  rate_starts           integer,
  rate_period           double precision,
  partition_rate_starts integer,
  partition_rate_period double precision,
  priorities            boolean,
  partition_order       text collate "C",
  ageing                double precision,
  constraint queues_keep_tasks_for_a_time  check (keep_tasks >= 0),
  constraint queues_keep_events_for_a_time check (keep_events >= 0),
  constraint queues_keep_audit_for_a_time check (keep_audit >= 0),
  constraint queues_keep_metrics_for_a_time check (keep_metrics >= 0),
  constraint queues_have_room_for_a_lost_lease check (max_lost_leases > 0),
  constraint queues_have_a_policy_of_versions check (versions in ('pin', 'gate')),
  constraint queues_have_a_full_history_or_none check (history = 'full'),
  constraint queues_have_room_for_a_task check (max_length > 0),
  constraint queues_have_a_strict_order_or_none check (partition_order = 'strict')
);

comment on table  durable.queues                 is 'The namespaces of tasks, with their retention, access, limits and pauses.';
comment on column durable.queues.queue           is 'Its name, at most 100 bytes.';
comment on column durable.queues.created_at      is 'When it was created.';
comment on column durable.queues.keep_tasks      is 'Seconds a finished task is kept; null: for ever.';
comment on column durable.queues.keep_events     is 'Seconds an event is kept; null: for ever.';
comment on column durable.queues.keep_metrics    is 'Seconds its metrics are kept; null: for ever.';
comment on column durable.queues.max_lost_leases is 'How many leases in a row a task may lose without having saved anything; null: no limit.';
comment on column durable.queues.versions        is 'Which workers may claim a task: null, any; pin, those of the version that started it; gate, those of the version that spawned it.';
comment on column durable.queues.history         is 'full: claim_log also keeps how each claim began and ended; null: only what is needed anyway.';
comment on column durable.queues.roles           is 'Names of the roles whose members may use it; null: everybody that may call the functions.';
comment on column durable.queues.max_length      is 'A spawn is refused while so many tasks are ready to be claimed; null: no limit.';
comment on column durable.queues.is_full         is 'True: max_length was reached when the ready tasks were last counted; else null.';
comment on column durable.queues.paused_at       is 'Since when no task is claimed; null: not paused.';
comment on column durable.queues.paused_by       is 'The caller that paused it, as _caller returns it.';
comment on column durable.queues.paused_names    is 'The paused task names: {name: {"at", "by"}}; null: none.';
comment on column durable.queues.concurrency           is 'How many of its tasks may run at once; null: no limit.';
comment on column durable.queues.partition_concurrency is 'How many tasks of one partition_key may run at once, unless the partition has a limit of its own; null: no limit.';
comment on column durable.queues.rate_starts           is 'How many attempts may begin in any rate_period seconds; null: no limit.';
comment on column durable.queues.rate_period           is 'See rate_starts.';
comment on column durable.queues.partition_rate_starts is 'How many attempts of one partition_key may begin in any partition_rate_period seconds, unless the partition has a rate of its own; null: no limit.';
comment on column durable.queues.partition_rate_period is 'See partition_rate_starts.';
comment on column durable.queues.priorities            is 'True: its tasks may have priorities and partition keys without any of these limits; else null.';
comment on column durable.queues.partition_order       is 'strict: a task of a partition starts when all before it have ended; null: tasks of a partition do not wait for each other.';
comment on column durable.queues.ageing                is 'Seconds in which a lane of which no task starts rises by one priority; null: never.';
comment on column durable.queues.keep_audit            is 'Seconds an entry of audit is kept; null: for ever.';

insert into durable.queues (queue, created_at, keep_tasks, keep_events)
values ('default', clock_timestamp(), 2592000, 2592000);

create table durable.cleanup_cursors (
  queue            text collate "C" primary key,
  tasks_cleaned_to uuid,
  events_pruned_to text collate "C",
  partitions_pruned_to text collate "C",
  measured_at      timestamptz
);

comment on table  durable.cleanup_cursors                  is 'Where the cleanup of each queue continues. Not in queues: every call reads that row, and each change would leave a dead version of it.';
comment on column durable.cleanup_cursors.queue            is 'The queue.';
comment on column durable.cleanup_cursors.tasks_cleaned_to is 'Where the last cleanup ended; the next one continues from there and starts over at the end.';
comment on column durable.cleanup_cursors.events_pruned_to is 'Where the last pruning of events ended.';
comment on column durable.cleanup_cursors.partitions_pruned_to is 'Where the last pruning of partitions ended.';
comment on column durable.cleanup_cursors.measured_at      is 'When maintenance last folded the queue''s tallies and took a sample of it.';

insert into durable.cleanup_cursors (queue) values ('default');

-- Columns that transitions change stand together, after those that are written once and before
-- the result; those that only a claim changes come first. An update that stays on its page
-- logs the bytes from the first changed one to the last.
-- Half-full pages leave room for a task's two later versions. There is no CHECK: Postgres
-- parses its text again at every statement, and five of them took two fifths of a claim. The
-- tests of every transition assert instead:
--
--   running = has a lease = claim is odd
--   completed, failed or cancelled = has finished_at
--   available_at only while pending or sleeping
create table durable.tasks (
  task_id          uuid              not null,
  parent_task_id   uuid,
  spawned_at       timestamptz       not null,
  execution_timeout double precision,
  deadline         timestamptz,
  max_attempts     integer,
  unique_kind      durable.key_kind,
  queue            text collate "C"  not null,
  name             text collate "C"  not null,
  idempotency_key  text collate "C",
  unique_key       text collate "C",
  parent_queue     text collate "C",
  params           jsonb             not null,
  headers          jsonb,
  retry            jsonb,
  child_queues     text[] collate "C",
  partition_key    text collate "C",
  priority         smallint,
  version          text collate "C"  not null default '',
  omitted          smallint,
  attempt          integer           not null default 1,
  worker           text collate "C",
  started_at       timestamptz,
  times_claimed    integer,
  claim            integer           not null default 0,
  state            durable.task_state not null default 'pending',
  available_at     timestamptz,
  lease_expires_at timestamptz,
  expires_at       timestamptz,
  finished_at      timestamptz,
  result           jsonb,
  error            jsonb,
  primary key (queue, task_id)
) with (fillfactor = 50);

comment on table  durable.tasks                  is 'Tasks, live or finished, each with its current attempt.';
comment on column durable.tasks.task_id          is 'A uuid v7: ascending in order of spawning; a child''s is greater than its parent''s.';
comment on column durable.tasks.parent_task_id   is 'The task that spawned it; if that fails or is cancelled, this one is cancelled.';
comment on column durable.tasks.spawned_at       is 'When it was spawned.';
comment on column durable.tasks.execution_timeout is 'Seconds it may take from its first start, all attempts and waits included; null: no limit.';
comment on column durable.tasks.deadline         is 'The deadline by which it must finish, its own or an ancestor''s; null: none. expires_at is never later.';
comment on column durable.tasks.max_attempts     is 'How many attempts it may have; null: no limit.';
comment on column durable.tasks.unique_kind      is 'What its unique_key is for; null: it has none.';
comment on column durable.tasks.queue            is 'The queue it belongs to.';
comment on column durable.tasks.name             is 'The name of the function that runs it.';
comment on column durable.tasks.idempotency_key  is 'The key it was spawned with; see idempotency_keys.';
comment on column durable.tasks.unique_key       is 'The key it was spawned with, by unique, throttle or debounce; see unique_keys.';
comment on column durable.tasks.parent_queue     is 'Its parent''s queue, if that is another one; null: the same.';
comment on column durable.tasks.params           is 'Its input.';
comment on column durable.tasks.headers          is 'Data that travels with it, an object: trace context, identity, tags.';
comment on column durable.tasks.retry            is 'The retry strategy; null: the default.';
comment on column durable.tasks.child_queues     is 'Other queues in which it has children; null: none.';
comment on column durable.tasks.partition_key    is 'What it belongs to for the limits of its queue, empty: nothing; null: its queue has no lanes.';
comment on column durable.tasks.priority         is 'Higher ones start first; null: its queue has no lanes.';
comment on column durable.tasks.version          is 'The version of the application whose workers alone may claim it; empty: any that the queue''s policy allows.';
comment on column durable.tasks.omitted          is 'The options that its spawn omitted and that no definition has filled in yet; its next claim does. A sum: 1 max_attempts, 2 retry, 4 headers, 8 start_timeout, 16 execution_timeout; null: none.';
comment on column durable.tasks.attempt          is 'The number of the current attempt, from 1. Sleeping and waiting do not start a new one.';
comment on column durable.tasks.worker           is 'The worker that holds it, or held it last.';
comment on column durable.tasks.started_at       is 'When it was first claimed.';
comment on column durable.tasks.times_claimed    is 'How often it was claimed; null: once or never.';
comment on column durable.tasks.claim            is 'The fence: a random odd number while a worker holds it, one more once the claim has ended.';
comment on column durable.tasks.state            is 'Its state.';
comment on column durable.tasks.available_at     is 'The time from which it may be claimed; null: the clock does not make it claimable.';
comment on column durable.tasks.lease_expires_at is 'Until then nobody else may claim it; after it anybody may.';
comment on column durable.tasks.expires_at       is 'When it is cancelled if it has not started (start_timeout) or not finished (execution_timeout, deadline).';
comment on column durable.tasks.finished_at      is 'When it reached its final state.';
comment on column durable.tasks.result           is 'What it returned; null is JSON null.';
comment on column durable.tasks.error            is 'Why it failed or was cancelled, or, while it sleeps until the next attempt, why the last one failed: type, message, traceback.';

create index tasks_claimable_idx on durable.tasks (queue, name, version, available_at, task_id)
  where available_at is not null and partition_key is null;
create index tasks_laned_idx on durable.tasks (
    queue, name, version, partition_key, priority, (started_at is not null and error is null),
    available_at, task_id)
  where available_at is not null and partition_key is not null;
create index tasks_started_idx on durable.tasks (queue, state, partition_key)
  where partition_key is not null and started_at is not null and finished_at is null;
create index tasks_version_idx on durable.tasks (queue, version, task_id)
  where version <> '' and finished_at is null;
create index tasks_leased_idx on durable.tasks (queue, lease_expires_at)
  where lease_expires_at is not null;
create index tasks_expiring_idx on durable.tasks (queue, expires_at)
  where expires_at is not null;
create index tasks_failed_idx on durable.tasks (queue, task_id)
  where state in ('failed', 'cancelled');
create index tasks_children_idx on durable.tasks (queue, parent_task_id, task_id)
  where parent_task_id is not null;

comment on index durable.tasks_claimable_idx is 'Read by claim_tasks and get_next_due: by name and version, oldest first. Tasks bound to other versions are not in the range.';
comment on index durable.tasks_laned_idx     is 'Read by claim_tasks: the tasks of each lane, oldest first. Its expression says whether a task continues its attempt, so that its next claim is no start.';
comment on index durable.tasks_started_idx   is 'Read by claim_tasks: how many tasks of a partition, or of a queue with lanes, are running, and whether a task of a partition has started and not ended.';
comment on index durable.tasks_version_idx   is 'Read by set_version and run_maintenance: the live tasks bound to a version.';
comment on index durable.tasks_leased_idx    is 'Read by expire_leases and release_unknown.';
comment on index durable.tasks_expiring_idx  is 'Read by expire_tasks.';
comment on index durable.tasks_failed_idx    is 'Read by filters that ask only for failed and cancelled tasks. Completed tasks, the many, are not in it, so they pay nothing.';
comment on index durable.tasks_children_idx  is 'Read by every cascade, which also goes below finished children.';

create table durable.runs (
  task_id    uuid                not null,
  ended_at   timestamptz         not null,
  retried_at timestamptz,
  attempt    integer             not null,
  outcome    durable.run_outcome not null,
  queue      text collate "C"    not null,
  worker     text collate "C",
  error      jsonb,
  retried_by jsonb,
  primary key (queue, task_id, attempt)
);

comment on table  durable.runs            is 'Attempts that were followed by another one. A task''s last attempt is on its own row.';
comment on column durable.runs.task_id    is 'The task.';
comment on column durable.runs.ended_at   is 'When it ended.';
comment on column durable.runs.retried_at is 'When a caller retried the task; null: no caller did.';
comment on column durable.runs.attempt    is 'The number of the attempt, from 1.';
comment on column durable.runs.outcome    is 'How it ended.';
comment on column durable.runs.queue      is 'The task''s queue.';
comment on column durable.runs.worker     is 'The worker that ran it.';
comment on column durable.runs.error      is 'Why it ended: type, message, traceback.';
comment on column durable.runs.retried_by is 'The caller, as _caller returns it, or the task with which it was revived.';

-- `json`, not `jsonb`: a task must read exactly what it wrote, and jsonb reorders keys and
-- turns 1e22 into an integer.
create table durable.checkpoints (
  task_id     uuid                     not null,
  saved_at    timestamptz              not null,
  claim       integer                  not null,
  attempt     integer                  not null,
  position    integer                  not null,
  after       integer                  not null,
  duration_ms integer                  not null,
  state       durable.checkpoint_state not null,
  queue       text collate "C"         not null,
  name        text collate "C"         not null,
  value       json,
  primary key (queue, task_id, name)
);

comment on table  durable.checkpoints             is 'What tasks have done so far: written once, never changed.';
comment on column durable.checkpoints.task_id     is 'The task.';
comment on column durable.checkpoints.saved_at    is 'When it was saved.';
comment on column durable.checkpoints.claim       is 'The claim that saved it, as _claim_ordinal numbers it.';
comment on column durable.checkpoints.attempt     is 'The attempt that saved it.';
comment on column durable.checkpoints.position    is 'How many durable calls the run had made before this one.';
comment on column durable.checkpoints.after       is 'How many checkpoints were complete when this call was made. Two calls that overlapped have no order.';
comment on column durable.checkpoints.duration_ms is 'How long the step took, in milliseconds; 0 for waits.';
comment on column durable.checkpoints.state       is 'How the call ended.';
comment on column durable.checkpoints.queue       is 'The task''s queue.';
comment on column durable.checkpoints.name        is 'The step''s name; of other calls, $ and the kind, as in $event:packed.';
comment on column durable.checkpoints.value       is 'The value, exactly as written.';

create table durable.events (
  queue      text collate "C" not null,
  name       text collate "C" not null,
  emitted_at timestamptz,
  payload    jsonb,
  primary key (queue, name),
  constraint events_have_a_payload_exactly_when_emitted
    check ((emitted_at is not null) = (payload is not null))
);

comment on table  durable.events            is 'Named facts, written once. Waiting tasks and the emitter synchronize on an event''s row, which may exist before it is emitted.';
comment on column durable.events.queue      is 'The queue whose tasks can wait for it.';
comment on column durable.events.name       is 'Its name, at most 255 bytes.';
comment on column durable.events.emitted_at is 'When it was emitted; null: not yet, a task has waited for it.';
comment on column durable.events.payload    is 'The payload of the first emitter.';

create table durable.waits (
  task_id        uuid             not null,
  target_task_id uuid,
  expires_at     timestamptz,
  position       integer          not null,
  after          integer          not null,
  watched        integer,
  any_of         boolean,
  queue          text collate "C" not null,
  name           text collate "C" not null,
  event_name     text collate "C",
  topic          text collate "C",
  task_ids       uuid[],
  task_queues    text[] collate "C",
  primary key (queue, task_id, name),
  constraint waits_are_for_one_thing
    check (num_nonnulls(event_name, task_ids, topic) <= 1
      and num_nonnulls(event_name, task_ids, topic, expires_at) >= 1)
);

comment on table  durable.waits                is 'What tasks wait for. A row stays until its wait ends, with the deadline it got first.';
comment on column durable.waits.task_id        is 'The waiting task.';
comment on column durable.waits.target_task_id is 'The one live task, of those it waits for, whose end checks this wait.';
comment on column durable.waits.expires_at     is 'When a sleep ends, or any other wait times out; null: never.';
comment on column durable.waits.position       is 'As in checkpoints.';
comment on column durable.waits.after          is 'As in checkpoints.';
comment on column durable.waits.watched        is 'The index of the target in task_ids: all after it have finished.';
comment on column durable.waits.any_of         is 'True: the first of task_ids that finishes ends the wait; all of them are watched.';
comment on column durable.waits.queue          is 'The waiting task''s queue.';
comment on column durable.waits.name           is 'The checkpoint that will end the wait.';
comment on column durable.waits.event_name     is 'The event it waits for.';
comment on column durable.waits.topic          is 'The topic of the message it waits for.';
comment on column durable.waits.task_ids       is 'The tasks it waits for: all of them or, with any_of, one.';
comment on column durable.waits.task_queues    is 'The queue of each of task_ids, null: this one; null: all are in this one.';

create index waits_event_idx on durable.waits (queue, event_name, task_id) where event_name is not null;
create index waits_target_idx on durable.waits (queue, target_task_id) where target_task_id is not null;

comment on index durable.waits_event_idx  is 'Read by emit_event and prune_events.';
comment on index durable.waits_target_idx is 'Read when a task finishes.';

create table durable.watches (
  queue          text collate "C" not null,
  task_id        uuid             not null,
  waiter_queue   text collate "C" not null,
  waiter_task_id uuid             not null,
  primary key (queue, task_id, waiter_queue, waiter_task_id)
);

comment on table  durable.watches                is 'Waiters to check when a task ends, besides the one target of a wait: waiters in other queues, and those that wait for the first of several. Deleted with the task.';
comment on column durable.watches.queue          is 'The watched task''s queue.';
comment on column durable.watches.task_id        is 'The watched task.';
comment on column durable.watches.waiter_queue   is 'The waiting task''s queue.';
comment on column durable.watches.waiter_task_id is 'The waiting task.';

create table durable.mailboxes (
  queue   text collate "C" not null,
  task_id uuid             not null,
  topic   text collate "C" not null,
  sent    bigint           not null default 0,
  primary key (queue, task_id, topic)
);

comment on table  durable.mailboxes         is 'Rows on which the senders to a task and the task itself synchronize, one per topic.';
comment on column durable.mailboxes.queue   is 'The receiving task''s queue.';
comment on column durable.mailboxes.task_id is 'The receiving task.';
comment on column durable.mailboxes.topic   is 'The topic of the messages, at most 255 bytes.';
comment on column durable.mailboxes.sent    is 'How many have been sent so far; 0: the task waits for the first.';

create table durable.messages (
  queue   text collate "C" not null,
  task_id uuid             not null,
  topic   text collate "C" not null,
  number  bigint           not null,
  sent_at timestamptz      not null,
  payload jsonb            not null,
  primary key (queue, task_id, topic, number)
);

comment on table  durable.messages         is 'Messages that tasks have not received yet.';
comment on column durable.messages.queue   is 'The receiving task''s queue.';
comment on column durable.messages.task_id is 'The receiving task.';
comment on column durable.messages.topic   is 'As in mailboxes.';
comment on column durable.messages.number  is 'From 1, in the order in which senders committed and in which they are received.';
comment on column durable.messages.sent_at is 'When it was sent.';
comment on column durable.messages.payload is 'The payload.';

create table durable.message_keys (
  queue   text collate "C" not null,
  task_id uuid             not null,
  key     text collate "C" not null,
  primary key (queue, task_id, key)
);

comment on table  durable.message_keys         is 'The dedup_keys of all messages to a task, received or not. They stay as long as the task.';
comment on column durable.message_keys.queue   is 'The receiving task''s queue.';
comment on column durable.message_keys.task_id is 'The receiving task.';
comment on column durable.message_keys.key     is 'The dedup_key of a message that was sent, at most 255 bytes.';

create table durable.idempotency_keys (
  queue       text collate "C" not null,
  key         text collate "C" not null,
  task_id     uuid             not null,
  fingerprint text collate "C",
  primary key (queue, key)
);

comment on table  durable.idempotency_keys             is 'One task per key. A table of its own, because every transition of a task would update an index on tasks.';
comment on column durable.idempotency_keys.queue       is 'The task''s queue.';
comment on column durable.idempotency_keys.key         is 'The key, at most 255 bytes; it stays as long as its task.';
comment on column durable.idempotency_keys.task_id     is 'The task that has the key.';
comment on column durable.idempotency_keys.fingerprint is 'Compared instead of the params, if equal params are stored as other bytes each time; null: the params are compared.';

create table durable.unique_keys (
  queue   text collate "C" not null,
  kind    durable.key_kind not null,
  name    text collate "C" not null,
  key     text collate "C" not null,
  task_id uuid             not null,
  primary key (queue, kind, name, key)
);

comment on table  durable.unique_keys         is 'The last task that was spawned with a key, by unique, throttle or debounce. Whether it still counts is read from the task.';
comment on column durable.unique_keys.queue   is 'The task''s queue.';
comment on column durable.unique_keys.kind    is 'How long a task with the key counts.';
comment on column durable.unique_keys.name    is 'The task''s name.';
comment on column durable.unique_keys.key     is 'The key, at most 255 bytes; it stays as long as its task.';
comment on column durable.unique_keys.task_id is 'The task.';

create table durable.deferred_work (
  work_id       uuid              not null,
  task_id       uuid,
  root_task_id  uuid,
  after_id      uuid,
  root_deadline timestamptz,
  kind          durable.deferred_kind not null,
  queue         text collate "C"  not null,
  event_name    text collate "C",
  root_queue    text collate "C",
  primary key (queue, work_id)
);

create index deferred_work_task_idx on durable.deferred_work (queue, task_id) where task_id is not null;
create index deferred_work_root_idx on durable.deferred_work (queue, root_task_id) where root_task_id is not null;

comment on table  durable.deferred_work               is 'Work that calls deferred because rows were locked; nearly always empty.';
comment on column durable.deferred_work.work_id       is 'A uuid v7.';
comment on column durable.deferred_work.task_id       is 'The task it concerns.';
comment on column durable.deferred_work.root_task_id  is 'The task whose end, or revival, reaches into this queue.';
comment on column durable.deferred_work.after_id      is 'The last of its children that has been handled; null: none.';
comment on column durable.deferred_work.root_deadline is 'The deadline of that task before it was retried.';
comment on column durable.deferred_work.kind          is 'What has to be done.';
comment on column durable.deferred_work.queue         is 'The queue in which it has to be done.';
comment on column durable.deferred_work.event_name    is 'Or the event, or the partition, it concerns.';
comment on column durable.deferred_work.root_queue    is 'The queue of root_task_id.';
comment on index  durable.deferred_work_task_idx is 'Read by cleanup: whether work is deferred for a finished task.';
comment on index  durable.deferred_work_root_idx is 'Read by cleanup: whether descendants of a finished task have still to be cancelled.';

create table durable.partitions (
  queue         text collate "C" not null,
  partition_key text collate "C" not null,
  concurrency   integer,
  rate_starts   integer,
  rate_period   double precision,
  primary key (queue, partition_key)
);

comment on table  durable.partitions               is 'Rows that claims lock while they count what runs: one per partition_key, and one with an empty key for the queue itself. No count is stored. A partition without limits of its own is deleted when it has no tasks.';
comment on column durable.partitions.queue         is 'The queue.';
comment on column durable.partitions.partition_key is 'The key of its tasks, at most 255 bytes; empty: the row of the whole queue.';
comment on column durable.partitions.concurrency   is 'How many of its tasks may run at once; null: as the queue says.';
comment on column durable.partitions.rate_starts   is 'How many of its attempts may begin in any rate_period seconds; null: as the queue says.';
comment on column durable.partitions.rate_period   is 'See rate_starts.';

create table durable.lanes (
  lane_id       uuid             not null,
  turn_at       timestamptz,
  waits_since   timestamptz,
  priority      smallint         not null,
  resumes       boolean          not null,
  queue         text collate "C" not null,
  name          text collate "C" not null,
  version       text collate "C" not null,
  partition_key text collate "C" not null,
  primary key (queue, lane_id)
) with (fillfactor = 50);

create index lanes_turn_idx
  on durable.lanes (queue, name, version, priority, resumes, turn_at, lane_id)
  where turn_at is not null;
create index lanes_waiting_idx
  on durable.lanes (queue, name, version, priority, resumes, waits_since, lane_id)
  where waits_since is not null and turn_at is not null;
create index lanes_partition_idx
  on durable.lanes (queue, partition_key, name, version, priority, resumes)
  where partition_key is not null; -- always: but it can serve no search for a lane_id

comment on table  durable.lanes               is 'Where claims look for tasks, in queues with lanes: at least one row for each name, version, partition, priority and resumes of waiting tasks. Several rows for one lane do no harm.';
comment on column durable.lanes.lane_id       is 'A random uuid.';
comment on column durable.lanes.turn_at       is 'From when a claim may look at it, those that have waited longest first; null: its partition runs as many tasks as it may, or another task comes first there, and the end of one sets the time.';
comment on column durable.lanes.waits_since   is 'Since when none of its tasks has started, to within the queue''s ageing; null: its queue had none.';
comment on column durable.lanes.priority      is 'The priority of its tasks.';
comment on column durable.lanes.resumes       is 'Whether its tasks continue an attempt, as after a wait: rates do not count these.';
comment on column durable.lanes.queue         is 'The queue.';
comment on column durable.lanes.name          is 'The name of its tasks.';
comment on column durable.lanes.version       is 'The version that they are bound to.';
comment on column durable.lanes.partition_key is 'Their partition_key.';
comment on index  durable.lanes_turn_idx      is 'Read by claim_tasks and get_next_due.';
comment on index  durable.lanes_waiting_idx   is 'Read by claim_tasks in queues with ageing: the lanes that have waited longest.';
comment on index  durable.lanes_partition_idx is 'Read when a task becomes claimable, and when a slot of its partition is free.';

create table durable.starts (
  start_id      uuid             not null,
  started_at    timestamptz      not null,
  tasks         integer          not null,
  queue         text collate "C" not null,
  partition_key text collate "C" not null,
  primary key (queue, partition_key, started_at, start_id)
);

comment on table  durable.starts               is 'Attempts that have begun, where a rate counts them: one row for each claim and partition, and one for the queue. Deleted when no rate counts them any more.';
comment on column durable.starts.start_id      is 'A random uuid.';
comment on column durable.starts.started_at    is 'When they began.';
comment on column durable.starts.tasks         is 'How many.';
comment on column durable.starts.queue         is 'The queue.';
comment on column durable.starts.partition_key is 'The partition; empty: all of the queue.';

create table durable.versions (
  queue         text collate "C" not null,
  version       text collate "C" not null,
  first_seen_at timestamptz      not null,
  promoted_at   timestamptz      not null,
  primary key (queue, version)
);

create index versions_latest_idx on durable.versions (queue, promoted_at, version);

comment on table  durable.versions               is 'The versions of the application that workers have announced in a queue.';
comment on column durable.versions.queue         is 'The queue that the workers work on.';
comment on column durable.versions.version       is 'Its name, as the workers announce it, at most 100 bytes.';
comment on column durable.versions.first_seen_at is 'When a worker first announced it.';
comment on column durable.versions.promoted_at   is 'When it became the latest: the version of a queue with the greatest value is the latest.';
comment on index  durable.versions_latest_idx is 'Read by claims in a queue whose policy is gate: the latest version.';

create table durable.worker_sessions (
  started_at timestamptz      not null,
  seen_at    timestamptz      not null,
  draining   boolean          not null,
  pid        integer,
  slots      integer,
  queue      text collate "C" not null,
  worker     text collate "C" not null,
  version    text collate "C" not null,
  host       text collate "C",
  names      text[] collate "C" not null,
  primary key (queue, worker)
) with (fillfactor = 50);

comment on table  durable.worker_sessions            is 'The workers that have announced themselves in a queue and not stopped since, for an hour after their last sign of life.';
comment on column durable.worker_sessions.started_at is 'When it first announced itself.';
comment on column durable.worker_sessions.seen_at    is 'When it last did. No index has this column, so that its updates stay on their page.';
comment on column durable.worker_sessions.draining   is 'Whether it claims no more, because it is stopping.';
comment on column durable.worker_sessions.pid        is 'Its process, as its host numbers it; null: unknown.';
comment on column durable.worker_sessions.slots      is 'How many tasks it runs at once, in all its queues; null: unknown.';
comment on column durable.worker_sessions.queue      is 'A queue that it works on.';
comment on column durable.worker_sessions.worker     is 'The name under which it claims.';
comment on column durable.worker_sessions.version    is 'The version of the application; empty: none.';
comment on column durable.worker_sessions.host       is 'The name of its machine; null: unknown.';
comment on column durable.worker_sessions.names      is 'The names of the tasks that it knows.';

create table durable.definitions (
  queue             text collate "C" not null,
  name              text collate "C" not null,
  version           text collate "C" not null,
  announced_at      timestamptz      not null,
  ranked_at         timestamptz      not null,
  latest            boolean,
  max_attempts      integer,
  start_timeout     double precision,
  execution_timeout double precision,
  retry             jsonb,
  headers           jsonb,
  params_schema     json,
  priority          smallint,
  primary key (queue, name, version)
);

create index definitions_latest_idx on durable.definitions (queue, name) where latest is not null;

comment on table  durable.definitions                   is 'The options and the params'' schema that workers announce for the tasks they know; a spawn that omits an option takes it from here.';
comment on column durable.definitions.queue             is 'The queue that the workers work on.';
comment on column durable.definitions.name              is 'The task''s name.';
comment on column durable.definitions.version           is 'The version of the application; empty: none.';
comment on column durable.definitions.announced_at      is 'When a worker last announced it, to within an hour.';
comment on column durable.definitions.ranked_at         is 'As versions.promoted_at; without a version, when its content last changed.';
comment on column durable.definitions.latest            is 'True if it was ranked last of its name, so that spawns use it; else null.';
comment on column durable.definitions.max_attempts      is 'As in tasks.';
comment on column durable.definitions.start_timeout     is 'Seconds a task may wait for its first start; null: no limit.';
comment on column durable.definitions.execution_timeout is 'As in tasks.';
comment on column durable.definitions.retry             is 'As in tasks.';
comment on column durable.definitions.headers           is 'The headers that every task of this name gets, unless its spawn gives others; null: none.';
comment on column durable.definitions.params_schema     is 'The JSON Schema of its params; null: unknown.';
comment on column durable.definitions.priority          is 'The priority of tasks whose spawn gives none; null: 0.';
comment on index  durable.definitions_latest_idx is 'Read by every spawn.';

create table durable.task_values (
  task_id uuid             not null,
  set_at  timestamptz      not null,
  times   integer          not null,
  queue   text collate "C" not null,
  key     text collate "C" not null,
  value   json             not null,
  primary key (queue, task_id, key)
) with (fillfactor = 70);

comment on table  durable.task_values         is 'Values that tasks publish: the last one of each key.';
comment on column durable.task_values.task_id is 'The task.';
comment on column durable.task_values.set_at  is 'When it was set.';
comment on column durable.task_values.times   is 'How often the task''s own code had set it: a replay skips as many.';
comment on column durable.task_values.queue   is 'The task''s queue.';
comment on column durable.task_values.key     is 'Its name, at most 512 bytes.';
comment on column durable.task_values.value   is 'The value, exactly as written.';

create table durable.stream_entries (
  task_id    uuid             not null,
  written_at timestamptz      not null,
  number     integer          not null,
  claim      integer          not null,
  attempt    integer          not null,
  restarted  boolean          not null,
  queue      text collate "C" not null,
  stream     text collate "C" not null,
  source     text collate "C" not null,
  value      json,
  primary key (queue, task_id, stream, number)
);

comment on table  durable.stream_entries            is 'Entries that tasks publish to streams: appended, never changed.';
comment on column durable.stream_entries.task_id    is 'The task.';
comment on column durable.stream_entries.written_at is 'When it was saved.';
comment on column durable.stream_entries.number     is 'Its position in its stream, from 0.';
comment on column durable.stream_entries.claim      is 'The claim that wrote it, as _claim_ordinal numbers it.';
comment on column durable.stream_entries.attempt    is 'The attempt that wrote it.';
comment on column durable.stream_entries.restarted  is 'Whether the step that wrote it had started again, so that its earlier entries are void.';
comment on column durable.stream_entries.queue      is 'The task''s queue.';
comment on column durable.stream_entries.stream     is 'The stream''s name, at most 255 bytes.';
comment on column durable.stream_entries.source     is 'The step whose function wrote it; $stream: and the stream''s name, if the task''s own code did.';
comment on column durable.stream_entries.value      is 'The value, exactly as written; null closes the stream.';

create table durable.log_lines (
  task_id   uuid             not null,
  logged_at timestamptz      not null,
  number    integer          not null,
  claim     integer          not null,
  attempt   integer          not null,
  level     integer          not null,
  queue     text collate "C" not null,
  logger    text collate "C" not null,
  step      text collate "C",
  message   text collate "C" not null,
  primary key (queue, task_id, number)
);

comment on table  durable.log_lines           is 'Lines that tasks have logged.';
comment on column durable.log_lines.task_id   is 'The task.';
comment on column durable.log_lines.logged_at is 'When it was logged, by its worker''s estimate of the database''s clock.';
comment on column durable.log_lines.number    is 'Its position among the task''s lines, from 0.';
comment on column durable.log_lines.claim     is 'The claim that logged it, as _claim_ordinal numbers it.';
comment on column durable.log_lines.attempt   is 'The attempt that logged it.';
comment on column durable.log_lines.level     is 'Its level: 10 debug, 20 info, 30 warning, 40 error, 50 critical.';
comment on column durable.log_lines.queue     is 'The task''s queue.';
comment on column durable.log_lines.logger    is 'The logger''s name.';
comment on column durable.log_lines.step      is 'The step that logged it; null: between steps.';
comment on column durable.log_lines.message   is 'The message, with the traceback if there was one.';

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

comment on table  durable.claim_log         is 'Beginnings and ends of claims, in queues whose history is full, except those that end an attempt: appended, never changed.';
comment on column durable.claim_log.task_id is 'The task.';
comment on column durable.claim_log.at      is 'When the claim began or ended.';
comment on column durable.claim_log.due_at  is 'Begun: since when the task was claimable; ended: from when the clock makes it claimable again, null: never.';
comment on column durable.claim_log.claim   is 'The claim, as _claim_ordinal numbers it from then on: odd when it begins, even when it ends.';
comment on column durable.claim_log.attempt is 'The attempt.';
comment on column durable.claim_log.queue   is 'The task''s queue.';
comment on column durable.claim_log.worker  is 'The worker that claimed or released it.';
comment on column durable.claim_log.waits   is 'What it was suspended for: names of checkpoints; null: nothing, it was released.';

create table durable.audit (
  audit_id uuid             not null,
  at       timestamptz      not null,
  task_id  uuid,
  queue    text collate "C" not null,
  action   text collate "C" not null,
  by       jsonb            not null,
  detail   jsonb,
  primary key (queue, audit_id)
);

comment on table  durable.audit          is 'What operators have done: one row for each call that changed something. A queue''s rows outlive it.';
comment on column durable.audit.audit_id is 'A uuid v7.';
comment on column durable.audit.at       is 'When it was done.';
comment on column durable.audit.task_id  is 'The task that it concerned; null: none, or several.';
comment on column durable.audit.queue    is 'The queue that it concerned.';
comment on column durable.audit.action   is 'The function that was called.';
comment on column durable.audit.by       is 'The caller, as _caller returns it.';
comment on column durable.audit.detail   is 'What it was called with, without params, and how many tasks it changed; null: nothing.';
create unlogged table durable.tallies (
  at       timestamptz        not null,
  tally_id uuid               not null,
  tasks    integer            not null,
  kind     durable.tally_kind not null,
  queue    text collate "C"   not null,
  name     text collate "C"   not null,
  waits    double precision[],
  runs     double precision[],
  primary key (queue, at, tally_id)
);

comment on table  durable.tallies          is 'Numbers of tasks that were spawned or have ended, until maintenance folds them into metrics and totals: appended, never changed. Unlogged, so that they cost no WAL: a crash loses those of the last seconds, and a standby cannot read them.';
comment on column durable.tallies.at       is 'When it was.';
comment on column durable.tallies.tally_id is 'The task, if spawn wrote it; else a random uuid.';
comment on column durable.tallies.tasks    is 'How many tasks; negative: so many were deleted from this state, or revived.';
comment on column durable.tallies.kind     is 'What happened to them.';
comment on column durable.tallies.queue    is 'Their queue.';
comment on column durable.tallies.name     is 'Their name.';
comment on column durable.tallies.waits    is 'Seconds from the spawn to the first start of those that ended in their first attempt; null: none.';
comment on column durable.tallies.runs     is 'Seconds from the first start to the end, waits included; null: none has completed or failed.';

create table durable.metrics (
  at        timestamptz      not null,
  spawned   integer          not null,
  completed integer          not null,
  failed    integer          not null,
  cancelled integer          not null,
  retried   integer          not null,
  lost      integer          not null,
  queue     text collate "C" not null,
  name      text collate "C" not null,
  waits     integer[]        not null,
  runs      integer[]        not null,
  primary key (queue, at, name)
) with (fillfactor = 70);

comment on table  durable.metrics           is 'What happened to tasks in each minute, and after two days in each hour; kept for keep_metrics of the queue.';
comment on column durable.metrics.at        is 'The beginning of the minute, or of the hour.';
comment on column durable.metrics.spawned   is 'How many tasks were spawned.';
comment on column durable.metrics.completed is 'How many completed.';
comment on column durable.metrics.failed    is 'How many failed for good.';
comment on column durable.metrics.cancelled is 'How many were cancelled.';
comment on column durable.metrics.retried   is 'How many attempts failed and were followed by another one.';
comment on column durable.metrics.lost      is 'How many leases expired.';
comment on column durable.metrics.queue     is 'The queue.';
comment on column durable.metrics.name      is 'The name of the tasks.';
comment on column durable.metrics.waits     is 'How many waits of tallies lie in each of the buckets that _latency_bounds separates.';
comment on column durable.metrics.runs      is 'The same of runs.';

create table durable.totals (
  live      bigint           not null,
  completed bigint           not null,
  failed    bigint           not null,
  cancelled bigint           not null,
  queue     text collate "C" not null,
  name      text collate "C" not null,
  primary key (queue, name)
) with (fillfactor = 50);

comment on table  durable.totals           is 'How many tasks of a name there are, as tallies say: spawned, ended, revived and deleted ones. After a crash they may be wrong by what the tallies lost, until recount_totals.';
comment on column durable.totals.live      is 'How many have not ended.';
comment on column durable.totals.completed is 'How many have completed and are not deleted.';
comment on column durable.totals.failed    is 'How many have failed and are not deleted.';
comment on column durable.totals.cancelled is 'How many were cancelled and are not deleted.';
comment on column durable.totals.queue     is 'The queue.';
comment on column durable.totals.name      is 'The name of the tasks.';

create table durable.samples (
  at              timestamptz      not null,
  oldest_ready_at timestamptz,
  pending         integer          not null,
  running         integer          not null,
  sleeping        integer          not null,
  ready           integer          not null,
  queue           text collate "C" not null,
  primary key (queue, at)
);

comment on table  durable.samples                 is 'How many live tasks a queue had, about every ten seconds while it had any; kept for two days.';
comment on column durable.samples.at              is 'When they were counted.';
comment on column durable.samples.oldest_ready_at is 'Since when the oldest ready one was ready; null: none was.';
comment on column durable.samples.pending         is 'How many were pending; see _quick_counts.';
comment on column durable.samples.running         is 'How many were running.';
comment on column durable.samples.sleeping        is 'How many were sleeping.';
comment on column durable.samples.ready           is 'How many could be claimed.';
comment on column durable.samples.queue           is 'The queue.';

create table durable.schedules (
  created_at   timestamptz      not null,
  next_at      timestamptz,
  paused_at    timestamptz,
  last_at      timestamptz,
  failed_at    timestamptz,
  last_task_id uuid,
  jitter       double precision,
  every        integer,
  catch_up     integer,
  queue        text collate "C" not null,
  schedule     text collate "C" not null,
  task         text collate "C" not null,
  cron         text collate "C",
  time_zone    text collate "C" not null,
  overlap      text collate "C" not null,
  source       text collate "C",
  error        text collate "C",
  params       jsonb            not null,
  options      jsonb            not null,
  primary key (queue, schedule),
  constraint schedules_have_a_cron_or_an_interval check (num_nonnulls(cron, every) = 1),
  constraint schedules_have_a_policy_of_overlap check (overlap in ('allow', 'skip', 'buffer_one', 'cancel')),
  constraint schedules_have_a_known_source check (source in ('applied', 'declared')),
  constraint schedules_are_paused_or_due check ((paused_at is null) = (next_at is not null))
);

create index schedules_next_idx on durable.schedules (queue, next_at) where next_at is not null;
create index schedules_source_idx on durable.schedules (queue, source) where source is not null;

comment on table  durable.schedules              is 'Tasks to be spawned periodically. A time at which one is due is a tick.';
comment on column durable.schedules.created_at   is 'When it was created.';
comment on column durable.schedules.next_at      is 'The next tick to be handled; it has passed if that waits. Null: paused.';
comment on column durable.schedules.paused_at    is 'When it was paused; null: it is not.';
comment on column durable.schedules.last_at      is 'The tick of last_task_id, or when it was triggered; null: no task yet.';
comment on column durable.schedules.failed_at    is 'When next_at failed; it is tried again after a minute. Null: it has not.';
comment on column durable.schedules.last_task_id is 'The task that it has spawned last.';
comment on column durable.schedules.jitter       is 'Seconds by which tasks start late at most, a fixed part of it for each tick; null: none.';
comment on column durable.schedules.every        is 'Seconds between ticks, which are multiples of it since 1970 in UTC; null: it has a cron expression.';
comment on column durable.schedules.catch_up     is 'How many of the due ticks are handled if the first of them is more than a minute old, the latest ones; null: all.';
comment on column durable.schedules.queue        is 'The queue of its tasks.';
comment on column durable.schedules.schedule     is 'Its name, at most 100 bytes.';
comment on column durable.schedules.task         is 'The name of its tasks.';
comment on column durable.schedules.cron         is 'The cron expression; null: it has an interval.';
comment on column durable.schedules.time_zone    is 'The time zone of the cron expression.';
comment on column durable.schedules.overlap      is 'What happens at a tick if last_task_id has not finished: allow, spawn another; skip the tick; buffer_one, the tick waits; cancel it, and spawn another.';
comment on column durable.schedules.source       is 'applied, by apply_schedules; declared, by announce_schedules; null: by create_schedule.';
comment on column durable.schedules.error        is 'Why it failed at failed_at or, without that, that the queue is full.';
comment on column durable.schedules.params       is 'The params of its tasks.';
comment on column durable.schedules.options      is 'The options of its tasks, as in spawn.';
comment on index  durable.schedules_next_idx   is 'Read by fire_schedules and get_next_due.';
comment on index  durable.schedules_source_idx is 'Read by apply_schedules and announce_schedules: which to delete.';
