alter table durable.queues
  add column max_lost_leases integer default 100,
  add column versions text collate "C",
  add constraint queues_have_room_for_a_lost_lease check (max_lost_leases > 0),
  add constraint queues_have_a_policy_of_versions check (versions in ('pin', 'gate'));

comment on column durable.queues.max_lost_leases is 'How many leases in a row a task may lose without having saved anything; null: any.';
comment on column durable.queues.versions is 'Which workers may claim a task: null, any; pin, of the version that started it; gate, of the version that spawned it.';

alter table durable.tasks
  add column complete_by timestamptz,
  add column version text collate "C";

comment on column durable.tasks.deadline_at is 'When it is cancelled if it has not started (max_delay), or not finished (max_duration, complete_by).';
comment on column durable.tasks.complete_by is 'The moment by which it is to be finished, its own or an ancestor''s; null: none. deadline_at is never later.';
comment on column durable.tasks.version is 'The only version of the application whose workers may claim it; null: any that the queue''s policy lets.';

drop index durable.tasks_claimable_idx;
create index tasks_claimable_idx on durable.tasks (queue, name, available_at, task_id)
  where available_at is not null and version is null;
create index tasks_versioned_idx on durable.tasks (queue, name, version, available_at, task_id)
  where available_at is not null and version is not null;

comment on index durable.tasks_claimable_idx is 'Read by claim_tasks, name by name, oldest first.';
comment on index durable.tasks_versioned_idx is 'Read by claim_tasks where versions count: whatever waits for others is in nobody''s way.';

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

alter type durable._spawn_options add attribute deadline timestamptz;
alter type durable._spawn_options add attribute version text;

-- They take a version too.
drop function durable.claim_tasks(
  text, text, text[], integer, double precision, timestamptz[], uuid[]);
drop function durable.get_next_due(text, text[]);
