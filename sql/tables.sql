-- The tables, and the rules they carry.
--
-- One row per task, live or finished. Rows belong to a queue: `queue` leads every
-- key, every statement names it, and it never changes, so a database can be split
-- by queue. Nullable columns that are set exactly while a row belongs in an index
-- (`available_at`, `lease_expires_at`, `deadline_at`) are that index's predicate:
-- finished rows cost a claim nothing. A task that is for one `version` only is in an
-- index of such: it costs the claims of others nothing.
--
-- THE LOCK ORDER. Nobody waits for other people's rows. A call waits only
--   1. for event rows and idempotency keys, in name order, then for mailboxes, by task
--      and topic, holding no task row but FOR KEY SHARE, which only a deletion minds;
--   2. for the task rows it was given, in one pass, ascending by task_id.
-- Everything else (whom a finished task wakes, what a failed one takes with it) is
-- tried with SKIP LOCKED, and what could not be had is left as a row in `notes`.
-- A claim comes last in its transaction.
--
-- THE FENCE. `claim` is odd while a worker holds the task; taking it and letting
-- go of it each add one. A write that belongs to a claim finds its task by
-- (queue, task_id, claim) and nothing else, and holds that row until it commits.

create type durable.task_state as enum (
  'pending',    -- may start now: spawned, woken, released or to be tried again
  'running',    -- a worker holds it; back to pending when the lease is lost
  'sleeping',   -- waits for a time, an event, other tasks, or its next attempt
  'completed',  -- final: run() returned
  'failed',     -- final: the last attempt raised, unless retry_task
  'cancelled'   -- final: somebody, a parent or a deadline ended it, unless retry_task
);

create type durable.run_outcome as enum (
  'failed',      -- the attempt raised
  'lease_lost',  -- its worker was gone
  'cancelled'    -- cut short, and revived later by retry_task
);

create type durable.checkpoint_state as enum (
  'done',      -- the value is what the step returned or the wait brought
  'failed',    -- the value is the error the step raised
  'timed_out'  -- the wait's time ran out first
);

create type durable.note_kind as enum (
  'waiter',    -- look again whether task_id may wake
  'finished',  -- look who waits for task_id
  'event',     -- wake who waits for event_name, from task_id on
  'cascade',       -- cancel what still lives below task_id
  'ended_above',   -- cancel what lives below task_id here: root_task_id ended badly
  'revived_above'  -- revive what root_task_id took with it: it is tried again
);


create table durable.migrations (
  number     integer     primary key,
  name       text        not null,
  applied_at timestamptz not null default clock_timestamp()
);

comment on table  durable.migrations            is 'Which changes of the tables this database has seen.';
comment on column durable.migrations.number     is 'The number its file in sql/migrations starts with; 1 is the first install.';
comment on column durable.migrations.name       is 'The file''s name.';
comment on column durable.migrations.applied_at is 'When.';

insert into durable.migrations (number, name) values (1, 'install');


create table durable.queues (
  queue            text collate "C" primary key,
  created_at       timestamptz      not null,
  keep_tasks       double precision,
  keep_events      double precision,
  tasks_cleaned_to uuid,
  events_pruned_to text collate "C",
  roles            text[] collate "C",
  max_lost_leases  integer default 100,
  versions         text collate "C",
  history          text collate "C",
  constraint queues_keep_tasks_for_a_time  check (keep_tasks >= 0),
  constraint queues_keep_events_for_a_time check (keep_events >= 0),
  constraint queues_have_room_for_a_lost_lease check (max_lost_leases > 0),
  constraint queues_have_a_policy_of_versions check (versions in ('pin', 'gate')),
  constraint queues_have_a_full_history_or_none check (history = 'full')
);

comment on table  durable.queues                  is 'The namespaces of tasks, how long each keeps what is over, and for whom it is.';
comment on column durable.queues.queue            is 'Its name, at most 100 bytes.';
comment on column durable.queues.created_at       is 'When it was created.';
comment on column durable.queues.keep_tasks       is 'Seconds a finished task is kept; null: for ever.';
comment on column durable.queues.keep_events      is 'Seconds an event is kept; null: for ever.';
comment on column durable.queues.tasks_cleaned_to is 'Where the last cleanup ended; the next goes on from there and wraps round.';
comment on column durable.queues.events_pruned_to is 'Where the last pruning of events ended.';
comment on column durable.queues.roles            is 'By name, the roles whose members may use it; null: everybody who may call the functions.';
comment on column durable.queues.max_lost_leases  is 'How many leases in a row a task may lose without having saved anything; null: any.';
comment on column durable.queues.versions         is 'Which workers may claim a task: null, any; pin, of the version that started it; gate, of the version that spawned it.';
comment on column durable.queues.history          is 'How much of what happens to its tasks is kept: full, also each claim and how it was let go, in claim_log; null: what is needed anyway.';

insert into durable.queues (queue, created_at, keep_tasks, keep_events)
values ('default', clock_timestamp(), 2592000, 2592000);


-- Columns that transitions change stand together, after what is written once and
-- before the result, those that only a claim changes first: an update that stays on
-- its page logs the bytes from the first that changed to the last.
-- Half-full pages leave room for a task's two later versions. There is no CHECK here:
-- Postgres reads its text again at every statement, and five of them made up two fifths
-- of a claim. What they would say is what every test of a transition asserts:
--
--   running = has a lease = claim is odd
--   completed, failed or cancelled = has finished_at
--   available_at only while pending or sleeping
create table durable.tasks (
  task_id          uuid              not null,
  parent_task_id   uuid,
  spawned_at       timestamptz       not null,
  max_duration     double precision,
  max_attempts     integer,
  queue            text collate "C"  not null,
  name             text collate "C"  not null,
  idempotency_key  text collate "C",
  params           jsonb             not null,
  headers          jsonb,
  retry            jsonb,
  attempt          integer           not null default 1,
  worker           text collate "C",
  started_at       timestamptz,
  claim            integer           not null default 0,
  state            durable.task_state not null default 'pending',
  available_at     timestamptz,
  lease_expires_at timestamptz,
  deadline_at      timestamptz,
  finished_at      timestamptz,
  result           jsonb,
  error            jsonb,
  parent_queue     text collate "C",
  child_queues     text[] collate "C",
  complete_by      timestamptz,
  version          text collate "C",
  primary key (queue, task_id)
) with (fillfactor = 50);

comment on table  durable.tasks                  is 'One logical piece of work each, live or finished, with its current attempt.';
comment on column durable.tasks.task_id          is 'A uuid v7: ascending in order of spawning; a child''s is greater than its parent''s.';
comment on column durable.tasks.parent_task_id   is 'The task that spawned it: ends badly, this one is cancelled.';
comment on column durable.tasks.spawned_at       is 'When it was spawned.';
comment on column durable.tasks.max_duration     is 'Seconds it may take from its first start, all attempts and waits included; null: any.';
comment on column durable.tasks.max_attempts     is 'How often it may be started afresh; null: without end.';
comment on column durable.tasks.queue            is 'The queue it belongs to.';
comment on column durable.tasks.name             is 'Which code runs it.';
comment on column durable.tasks.idempotency_key  is 'The key it was spawned with; see idempotency_keys.';
comment on column durable.tasks.params           is 'Its input.';
comment on column durable.tasks.headers          is 'What travels with it: trace context, identity, tags; an object.';
comment on column durable.tasks.retry            is 'How long to wait between attempts; null: the default.';
comment on column durable.tasks.attempt          is 'Which attempt this is, from 1. Sleeping and waiting do not start a new one.';
comment on column durable.tasks.worker           is 'Who holds it, or held it last.';
comment on column durable.tasks.started_at       is 'When it was first claimed.';
comment on column durable.tasks.claim            is 'The fence: odd while held; taking and letting go each add one.';
comment on column durable.tasks.state            is 'Where it stands.';
comment on column durable.tasks.available_at     is 'From when on it may be claimed; null: not by the clock.';
comment on column durable.tasks.lease_expires_at is 'Until then nobody else may take it; after it anybody may.';
comment on column durable.tasks.deadline_at      is 'When it is cancelled if it has not started (max_delay), or not finished (max_duration, complete_by).';
comment on column durable.tasks.finished_at      is 'When it reached its final state.';
comment on column durable.tasks.result           is 'What it returned; null stands for JSON null.';
comment on column durable.tasks.error            is 'Why it failed or was cancelled, or why its last attempt did while it sleeps until the next: type, message, traceback.';
comment on column durable.tasks.parent_queue     is 'Its parent''s queue, if that is another one; null: the same.';
comment on column durable.tasks.child_queues     is 'Other queues in which it has children; null: none.';
comment on column durable.tasks.complete_by      is 'The moment by which it is to be finished, its own or an ancestor''s; null: none. deadline_at is never later.';
comment on column durable.tasks.version          is 'The only version of the application whose workers may claim it; null: any that the queue''s policy lets.';

create index tasks_claimable_idx on durable.tasks (queue, name, available_at, task_id)
  where available_at is not null and version is null;
create index tasks_versioned_idx on durable.tasks (queue, name, version, available_at, task_id)
  where available_at is not null and version is not null;
create index tasks_leased_idx on durable.tasks (queue, lease_expires_at)
  where lease_expires_at is not null;
create index tasks_deadline_idx on durable.tasks (queue, deadline_at)
  where deadline_at is not null;
create index tasks_children_idx on durable.tasks (queue, parent_task_id, task_id)
  where parent_task_id is not null;

comment on index durable.tasks_claimable_idx is 'Read by claim_tasks, name by name, oldest first.';
comment on index durable.tasks_versioned_idx is 'Read by claim_tasks where versions count: whatever waits for others is in nobody''s way.';
comment on index durable.tasks_leased_idx    is 'Read by expire_leases and release_unknown.';
comment on index durable.tasks_deadline_idx  is 'Read by expire_deadlines.';
comment on index durable.tasks_children_idx  is 'Read by every cascade, which goes below finished children too.';


create table durable.runs (
  queue    text collate "C"    not null,
  task_id  uuid                not null,
  attempt  integer             not null,
  outcome  durable.run_outcome not null,
  worker   text collate "C",
  ended_at timestamptz         not null,
  error    jsonb,
  retried_at timestamptz,
  retried_by jsonb,
  primary key (queue, task_id, attempt)
);

comment on table  durable.runs          is 'Attempts that were followed by another one. A task''s last attempt is on its own row.';
comment on column durable.runs.queue    is 'The task''s queue.';
comment on column durable.runs.task_id  is 'The task.';
comment on column durable.runs.attempt  is 'Which attempt, from 1.';
comment on column durable.runs.outcome  is 'How it ended.';
comment on column durable.runs.worker   is 'Who ran it.';
comment on column durable.runs.ended_at is 'When it ended.';
comment on column durable.runs.error    is 'Why: type, message, traceback.';
comment on column durable.runs.retried_at is 'When somebody had the task tried again at once; null: nobody had to.';
comment on column durable.runs.retried_by is 'Who: as _caller says, or the task with which it was revived.';


-- `json`, not `jsonb`: a task must read back exactly what it wrote, and jsonb
-- reorders keys and turns 1e22 into an integer.
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

comment on table  durable.checkpoints             is 'What a task has done so far: written once, never changed.';
comment on column durable.checkpoints.task_id     is 'The task.';
comment on column durable.checkpoints.saved_at    is 'When it was saved.';
comment on column durable.checkpoints.claim       is 'The claim that saved it: the same claim may say so again.';
comment on column durable.checkpoints.attempt     is 'The attempt that saved it.';
comment on column durable.checkpoints.position    is 'How many durable calls the run had made before this one.';
comment on column durable.checkpoints.after       is 'How many checkpoints were complete when this call was made: two calls that overlapped have no order.';
comment on column durable.checkpoints.duration_ms is 'How long the step took, in milliseconds; 0 for waits.';
comment on column durable.checkpoints.state       is 'How it ended.';
comment on column durable.checkpoints.queue       is 'The task''s queue.';
comment on column durable.checkpoints.name        is 'The step''s name; everything that is not a step starts with $ and its kind, like $event:packed.';
comment on column durable.checkpoints.value       is 'What it brought, exactly as written.';


create table durable.events (
  queue      text collate "C" not null,
  name       text collate "C" not null,
  emitted_at timestamptz,
  payload    jsonb,
  primary key (queue, name),
  constraint events_have_a_payload_exactly_when_emitted
    check ((emitted_at is not null) = (payload is not null))
);

comment on table  durable.events            is 'Named facts, written once. A row that was not emitted yet is the place where waiting tasks and the emitter meet.';
comment on column durable.events.queue      is 'The queue whose tasks see it.';
comment on column durable.events.name       is 'Its name, at most 255 bytes.';
comment on column durable.events.emitted_at is 'When it was emitted; null: somebody waits for it.';
comment on column durable.events.payload    is 'What the first emitter said.';


create table durable.waits (
  queue          text collate "C" not null,
  task_id        uuid             not null,
  name           text collate "C" not null,
  position       integer          not null,
  after          integer          not null,
  deadline_at    timestamptz,
  event_name     text collate "C",
  target_task_id uuid,
  task_ids       uuid[],
  watched        integer,
  topic          text collate "C",
  task_queues    text[] collate "C",
  any_of         boolean,
  primary key (queue, task_id, name),
  constraint waits_are_for_one_thing
    check (num_nonnulls(event_name, task_ids, topic) <= 1
      and num_nonnulls(event_name, task_ids, topic, deadline_at) >= 1)
);

comment on table  durable.waits                is 'What tasks wait for. A row stays until its wait is over, with the deadline it got first.';
comment on column durable.waits.queue          is 'The waiting task''s queue.';
comment on column durable.waits.task_id        is 'The waiting task.';
comment on column durable.waits.name           is 'The checkpoint that will end the wait.';
comment on column durable.waits.position       is 'As in checkpoints.';
comment on column durable.waits.after          is 'As in checkpoints.';
comment on column durable.waits.deadline_at    is 'When a sleep is over, or any other wait has timed out; null: never.';
comment on column durable.waits.event_name     is 'The event it waits for.';
comment on column durable.waits.target_task_id is 'The one live task, of those it waits for, whose end looks at this wait.';
comment on column durable.waits.task_ids       is 'The tasks it waits for: all of them, unless any_of.';
comment on column durable.waits.watched        is 'Where in task_ids the target stands: all behind it have finished.';
comment on column durable.waits.topic          is 'The topic of the message it waits for.';
comment on column durable.waits.task_queues    is 'Where each of task_ids is, null: in this queue; null: all of them are.';
comment on column durable.waits.any_of         is 'True: the first of task_ids that finishes ends the wait; each of them is watched.';

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

comment on table  durable.watches                is 'Who looks up when a task ends, beside the one target of a wait: from another queue, or waiting for the first of several. Stays as long as the task.';
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

comment on table  durable.mailboxes         is 'Where who sends to a task and the task that waits for it meet.';
comment on column durable.mailboxes.queue   is 'The receiving task''s queue.';
comment on column durable.mailboxes.task_id is 'The receiving task.';
comment on column durable.mailboxes.topic   is 'What the messages are about, at most 255 bytes.';
comment on column durable.mailboxes.sent    is 'How many have been sent so far; 0: somebody waits for the first.';


create table durable.messages (
  queue   text collate "C" not null,
  task_id uuid             not null,
  topic   text collate "C" not null,
  number  bigint           not null,
  sent_at timestamptz      not null,
  payload jsonb            not null,
  primary key (queue, task_id, topic, number)
);

comment on table  durable.messages         is 'What tasks were sent and have not received yet.';
comment on column durable.messages.queue   is 'The receiving task''s queue.';
comment on column durable.messages.task_id is 'The receiving task.';
comment on column durable.messages.topic   is 'As in mailboxes.';
comment on column durable.messages.number  is 'From 1, in the order in which senders committed: that of receiving.';
comment on column durable.messages.sent_at is 'When it was sent.';
comment on column durable.messages.payload is 'What the sender said.';


create table durable.message_keys (
  queue   text collate "C" not null,
  task_id uuid             not null,
  key     text collate "C" not null,
  primary key (queue, task_id, key)
);

comment on table  durable.message_keys         is 'One message per key, received or not: a key lives as long as its task.';
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

comment on table  durable.idempotency_keys             is 'One task per key. A table of its own, since an index on tasks would be rewritten by every transition.';
comment on column durable.idempotency_keys.queue       is 'The task''s queue.';
comment on column durable.idempotency_keys.key         is 'The key, at most 255 bytes; it lives exactly as long as its task.';
comment on column durable.idempotency_keys.task_id     is 'The task it stands for.';
comment on column durable.idempotency_keys.fingerprint is 'By what its params are told again, where the same ones are stored as other bytes each time; null: by themselves.';


create table durable.notes (
  queue        text collate "C"  not null,
  note_id      uuid              not null,
  kind         durable.note_kind not null,
  task_id      uuid,
  event_name   text collate "C",
  root_queue   text collate "C",
  root_task_id uuid,
  root_deadline timestamptz,
  primary key (queue, note_id)
);

create index notes_task_idx on durable.notes (queue, task_id) where task_id is not null;

comment on table  durable.notes            is 'What a call had to leave undone because others held the rows; nearly always empty.';
comment on column durable.notes.queue      is 'The queue concerned.';
comment on column durable.notes.note_id    is 'A uuid v7.';
comment on column durable.notes.kind       is 'What is to be done.';
comment on column durable.notes.task_id    is 'To which task.';
comment on column durable.notes.event_name is 'Or which event.';
comment on column durable.notes.root_queue   is 'Where the task is whose end, or revival, reaches into this queue.';
comment on column durable.notes.root_task_id is 'That task.';
comment on column durable.notes.root_deadline is 'By when it was to be finished until it was tried again.';
comment on index  durable.notes_task_idx is 'Cleanup asks whether a task that is over still has something to be done for it.';


create table durable.versions (
  queue         text collate "C" not null,
  version       text collate "C" not null,
  first_seen_at timestamptz      not null,
  last_seen_at  timestamptz      not null,
  promoted_at   timestamptz      not null,
  primary key (queue, version)
);

create index versions_latest_idx on durable.versions (queue, promoted_at, version);

comment on table  durable.versions               is 'The versions of the application that workers have announced in a queue.';
comment on column durable.versions.queue         is 'The queue they work on.';
comment on column durable.versions.version       is 'What they say they are, at most 100 bytes.';
comment on column durable.versions.first_seen_at is 'When a worker first said so.';
comment on column durable.versions.last_seen_at  is 'When one last did, to within 10 seconds.';
comment on column durable.versions.promoted_at   is 'Since when it is, or was, the latest: the greatest of a queue is.';
comment on index  durable.versions_latest_idx is 'Read by claims of a queue whose policy is gate: which version is the latest.';


create table durable.task_values (
  task_id uuid             not null,
  set_at  timestamptz      not null,
  times   integer          not null,
  queue   text collate "C" not null,
  key     text collate "C" not null,
  value   json             not null,
  primary key (queue, task_id, key)
) with (fillfactor = 70);

comment on table  durable.task_values         is 'What tasks say of themselves to whoever asks: of each value the last that was set.';
comment on column durable.task_values.task_id is 'The task.';
comment on column durable.task_values.set_at  is 'When it was set.';
comment on column durable.task_values.times   is 'How often the task''s own code had set it: a replay passes over as many.';
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

comment on table  durable.stream_entries            is 'What tasks write for whoever follows them: appended, never changed.';
comment on column durable.stream_entries.task_id    is 'The task.';
comment on column durable.stream_entries.written_at is 'When it was saved.';
comment on column durable.stream_entries.number     is 'Its place in its stream, from 0 upwards.';
comment on column durable.stream_entries.claim      is 'The claim that wrote it: the same claim may say so again.';
comment on column durable.stream_entries.attempt    is 'The attempt that wrote it.';
comment on column durable.stream_entries.restarted  is 'Whether the step that wrote it has begun again, so that what it wrote before is void.';
comment on column durable.stream_entries.queue      is 'The task''s queue.';
comment on column durable.stream_entries.stream     is 'The stream''s name, at most 255 bytes.';
comment on column durable.stream_entries.source     is 'The step whose function wrote it; $stream: and a name, if it was the task''s own code.';
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

comment on table  durable.log_lines           is 'What tasks have logged.';
comment on column durable.log_lines.task_id   is 'The task.';
comment on column durable.log_lines.logged_at is 'When it was logged, by its worker''s reckoning of the database''s clock.';
comment on column durable.log_lines.number    is 'Its place among the task''s lines, from 0.';
comment on column durable.log_lines.claim     is 'The claim that logged it: the same claim may say so again.';
comment on column durable.log_lines.attempt   is 'The attempt that logged it.';
comment on column durable.log_lines.level     is 'How grave it is: 10 for debug, 20 info, 30 warning, 40 error, 50 critical.';
comment on column durable.log_lines.queue     is 'The task''s queue.';
comment on column durable.log_lines.logger    is 'Who said so.';
comment on column durable.log_lines.step      is 'In which step; null: between steps.';
comment on column durable.log_lines.message   is 'What was said, with the traceback if there was one.';


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
