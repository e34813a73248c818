alter type durable.note_kind add value 'ended_above';
alter type durable.note_kind add value 'revived_above';

alter table durable.tasks
  add column parent_queue text collate "C",
  add column child_queues text[] collate "C";

comment on column durable.tasks.parent_queue is 'Its parent''s queue, if that is another one; null: the same.';
comment on column durable.tasks.child_queues is 'Other queues in which it has children; null: none.';

alter table durable.waits
  add column task_queues text[] collate "C",
  add column any_of boolean;

comment on column durable.waits.task_ids    is 'The tasks it waits for: all of them, unless any_of.';
comment on column durable.waits.task_queues is 'Where each of task_ids is, null: in this queue; null: all of them are.';
comment on column durable.waits.any_of      is 'True: the first of task_ids that finishes ends the wait; each of them is watched.';

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

alter table durable.notes
  add column root_queue text collate "C",
  add column root_task_id uuid,
  add column root_deadline timestamptz;

comment on column durable.notes.root_queue   is 'Where the task is whose end, or revival, reaches into this queue.';
comment on column durable.notes.root_task_id is 'That task.';
comment on column durable.notes.root_deadline is 'By when it was to be finished until it was tried again.';
