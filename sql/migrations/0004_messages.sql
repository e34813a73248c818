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


alter table durable.waits
  add column topic text collate "C",
  drop constraint waits_are_for_one_thing,
  add constraint waits_are_for_one_thing
    check (num_nonnulls(event_name, task_ids, topic) <= 1
      and num_nonnulls(event_name, task_ids, topic, deadline_at) >= 1);

comment on column durable.waits.topic is 'The topic of the message it waits for.';
