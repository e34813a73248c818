-- Messages to a task, received in the order in which their senders committed.
--
-- A receiver and its senders synchronize on a mailbox, as waiters and emitters do on an
-- event's row: the receiver holds it FOR SHARE until its wait has committed, and a sender
-- increments it and holds it until it commits. So messages are numbered in the order of their
-- commits, and a sender reads the waits after concurrent receivers have committed. A sender
-- locks the receiver's own row only FOR KEY SHARE, which keeps it from being deleted but does
-- not block its worker.
--
-- A message is stored until it is received. The worker that holds the task deletes it in the
-- transaction that writes the checkpoint with its payload.
--
-- Lock order: the receiver's row FOR KEY SHARE, its mailbox, the key, the sender's own row;
-- the receiver's row is then only tried.

create or replace function durable.send_message(
  queue text, task_id uuid, topic text, payload jsonb default 'null', dedup_key text default null
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _number bigint;
begin
  perform durable._require_queue(_queue);
  perform durable._check_message(topic, payload, dedup_key);
  perform durable._check_receiver(_queue, task_id, durable._lock_receiver(_queue, task_id));
  _number := durable._number_message(_queue, task_id, topic, dedup_key);
  if _number is null then
    return false;
  end if;
  perform durable._insert_message(_queue, task_id, topic, _number, payload);
  return true;
end;
$$;

comment on function durable.send_message is
'Sends a message to a live task, in the caller''s transaction, and wakes the task if it waits
for this topic. topic, dedup_key: at most 255 bytes. The messages of a topic are received
once each, in the order in which their senders committed. Returns false, and sends nothing,
if a message with this dedup_key was sent to the task before, on any topic, received or not.
Refuses an unknown queue (WFQUE), an unknown task (WFNFD), a finished one (WFFIN) and bad
arguments (22023). Locks: the mailbox of the topic, until commit, so a second sender waits
for the first; the task''s row FOR KEY SHARE, which only conflicts with its deletion.';

create or replace function durable.send_from_task(
  queue text, task_id uuid, claim integer, name text, to_queue text, to_task_id uuid, topic text,
  payload jsonb default 'null', dedup_key text default null, "position" integer default 0,
  after integer default 0
) returns boolean language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _to text collate "C" := coalesce(( -- the parent's queue is recorded
    select tasks.parent_queue
    from durable.tasks
    where tasks.queue = send_from_task.queue collate "C"
      and tasks.task_id = send_from_task.task_id and tasks.parent_task_id = to_task_id), to_queue);
  _number bigint;
  _state durable.task_state;
  _recorded json;
begin
  perform durable._require_queue(_queue);
  perform durable._require_queue(_to);
  perform durable._checked_name('name of a step', name, 512);
  perform durable._check_message(topic, payload, dedup_key);
  if durable._recorded(_queue, task_id, name) is null then
    _state := durable._lock_receiver(_to, to_task_id);
    if _state not in ('completed', 'failed', 'cancelled') then
      _number := durable._number_message(_to, to_task_id, topic, dedup_key);
    end if;
  end if;
  _recorded := durable._record_once(
    _queue, task_id, claim, name, to_json(_number is not null), position, after);
  if _recorded is not null then
    if _number is not null then
      perform durable._take_back(_to, to_task_id, topic, dedup_key);
    end if;
    return _recorded::text::boolean;
  end if;
  perform durable._check_receiver(_to, to_task_id, _state);
  if _number is not null then
    perform durable._insert_message(_to, to_task_id, topic, _number, payload);
  end if;
  return _number is not null;
end;
$$;

comment on function durable.send_from_task is
'Sends a message from a task that a worker holds, to any task, itself included, and saves the
checkpoint that records it in the same transaction. Arguments are as in send_message; name,
position and after are the checkpoint''s. If to_task_id is the task''s parent, to_queue is
ignored and the parent''s queue is used. Returns what send_message returns, and the same
again when repeated. Refuses what send_message refuses, and a claim that has ended (WFCAN,
WFLST). Locks: as send_message, then the sending task''s row; raises 55P03 after 200 ms.';

create or replace function durable._check_message(topic text, payload jsonb, dedup_key text)
returns void language plpgsql stable as $$
begin
  perform durable._checked_name('topic', topic, 255);
  perform durable._checked_size('payload', payload);
  if dedup_key is not null then
    perform durable._checked_name('dedup_key', dedup_key, 255);
  end if;
end;
$$;

-- Returns the number of a message that is about to be sent, and keeps the mailbox locked until
-- the commit; null if the key was used before.
create or replace function durable._number_message(
  queue text, task_id uuid, topic text, dedup_key text
) returns bigint language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _number bigint;
begin
  insert into durable.mailboxes (queue, task_id, topic, sent)
  values (_queue, task_id, topic, 1)
  on conflict on constraint mailboxes_pkey do update set sent = mailboxes.sent + 1
  returning mailboxes.sent into _number;
  if dedup_key is null then
    return _number;
  end if;
  insert into durable.message_keys (queue, task_id, key)
  values (_queue, task_id, dedup_key)
  on conflict do nothing;
  if found then
    return _number;
  end if;
  perform durable._take_back(_queue, task_id, topic, null);
  return null;
end;
$$;

-- Undoes _number_message, in the same transaction.
create or replace function durable._take_back(queue text, task_id uuid, topic text, dedup_key text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
  _key text collate "C" := dedup_key;
begin
  update durable.mailboxes
  set sent = mailboxes.sent - 1
  where mailboxes.queue = _queue and mailboxes.task_id = _take_back.task_id
    and mailboxes.topic = _topic;
  delete from durable.message_keys
  where message_keys.queue = _queue and message_keys.task_id = _take_back.task_id
    and message_keys.key = _key;
end;
$$;

-- Returns the state of a task, null if there is none. The lock keeps it from being deleted, and
-- from nothing else, until the message has committed.
create or replace function durable._lock_receiver(queue text, task_id uuid)
returns durable.task_state language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _state durable.task_state;
begin
  select tasks.state into _state from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _lock_receiver.task_id
  for key share;
  return _state;
end;
$$;

create or replace function durable._check_receiver(
  queue text, task_id uuid, state durable.task_state
) returns void language plpgsql as $$
begin
  if state is null then
    perform durable._refuse_unknown_task(queue, task_id);
  elsif state in ('completed', 'failed', 'cancelled') then
    raise exception using errcode = 'WFFIN',
      message = format('task %s has finished', task_id),
      hint = 'Only a live task receives messages.';
  end if;
end;
$$;

-- Reads the waits in a statement after the one that locked the mailbox: a receiver that was
-- registering its wait has committed by then.
create or replace function durable._insert_message(
  queue text, task_id uuid, topic text, number bigint, payload jsonb
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
  _now timestamptz := durable._now();
begin
  insert into durable.messages (queue, task_id, topic, number, sent_at, payload)
  values (_queue, task_id, _topic, number, _now, coalesce(payload, 'null'));
  if not durable._is_read_committed() then
    perform durable._defer(_queue, 'waiter', task_id);
    return;
  end if;
  perform from durable.waits
  where waits.queue = _queue and waits.task_id = _insert_message.task_id and waits.topic = _topic;
  if found then
    perform durable._wake_all(_queue, array[task_id]);
  end if;
end;
$$;

-- Locks the mailbox against senders: until the commit nobody sends the task messages of this
-- topic.
create or replace function durable._lock_mailbox(queue text, task_id uuid, topic text)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
begin
  perform from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _lock_mailbox.task_id
  for key share; -- a mailbox is deleted with its task
  if found then
    insert into durable.mailboxes (queue, task_id, topic)
    values (_queue, task_id, _topic)
    on conflict do nothing;
    perform from durable.mailboxes
    where mailboxes.queue = _queue and mailboxes.task_id = _lock_mailbox.task_id
      and mailboxes.topic = _topic
    for share;
  end if;
end;
$$;

-- Turns waits for messages into checkpoints where there is a message or the time is up; returns
-- these. Of several waits for one topic the first call gets the oldest message. The caller has
-- locked the tasks before this statement, so nobody else receives for them.
create or replace function durable._receive_messages(queue text, task_ids uuid[], at timestamptz)
returns durable.checkpoints[] language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _places tid[];
  _messages tid[];
  _received durable.checkpoints[];
begin
  select
    array_agg(wait.ctid),
    array_agg(message.ctid) filter (where message.ctid is not null),
    array_agg(row(
      wait.task_id, at, task.ordinal, task.attempt, wait.position, wait.after, 0,
      case when message.ctid is null then 'timed_out' else 'done' end, _queue, wait.name,
      coalesce(message.payload::json, 'null')
    )::durable.checkpoints)
  into _places, _messages, _received
  from unnest(task_ids) as own (task_id)
  cross join lateral (
    select waits.ctid, waits.*, row_number() over (
      partition by waits.topic order by waits.position, waits.name) as turn
    from durable.waits
    where waits.queue = _queue and waits.task_id = own.task_id and waits.topic is not null
    offset 0
  ) as wait
  cross join lateral (
    select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal, tasks.attempt
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = wait.task_id
    offset 0
  ) as task
  left join lateral (
    select messages.ctid, messages.payload
    from durable.messages
    where messages.queue = _queue and messages.task_id = wait.task_id
      and messages.topic = wait.topic
    order by messages.number
    offset wait.turn - 1
    limit 1
  ) as message on true
  where message.ctid is not null or wait.expires_at <= at;
  if _places is not null then
    insert into durable.checkpoints select * from unnest(_received) on conflict do nothing;
    perform durable._delete_waits(_queue, _places, _messages);
  end if;
  return _received;
end;
$$;
