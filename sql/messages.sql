-- Messages: what one task is told, in the order in which it was told.
--
-- A mailbox is the place where a task that waits for a topic and those who send to it
-- meet, as an event's row is: the receiver holds it FOR SHARE until its wait has
-- committed, a sender counts it up until it commits. So messages are numbered in the
-- order of their commits, a sender reads the waits after those that were under way, and
-- nobody holds the receiver's own row against its worker: a sender's FOR KEY SHARE keeps
-- no more from it than being deleted.
--
-- A message is there until it is received, which is done by who holds the task: it is
-- deleted together with the write of the checkpoint that has its payload.
--
-- Lock order: the receiver's row against deletion, its mailbox, the key, the sender's own
-- row; the receiver's row is only tried.

create or replace function durable.send_message(
  queue text, task_id uuid, topic text, payload jsonb default 'null', dedup_key text default null
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _number bigint;
begin
  perform durable._require_queue(_queue);
  perform durable._check_message(topic, payload, dedup_key);
  if not durable._receives(_queue, task_id) then
    perform durable._refuse_message(_queue, task_id);
  end if;
  _number := durable._number_message(_queue, task_id, topic, dedup_key);
  if _number is null then
    return false;
  end if;
  perform durable._post(_queue, task_id, topic, _number, payload);
  return true;
end;
$$;

comment on function durable.send_message is
'Sends a live task a message, in the caller''s transaction, and wakes it if it waits for
one of this topic. A topic''s messages are received once each, in the order in which
their senders committed: of two who send to it at once, the second waits for the first.
Returns false when a message with this dedup_key was sent to the task before, on
whatever topic, received or not: then nothing is sent. Refuses an unknown queue WFQUE,
an unknown task WFNFD, one that has finished WFFIN, bad arguments 22023.';


create or replace function durable.send_from_task(
  queue text,
  task_id uuid,
  claim integer,
  name text,
  to_queue text,
  to_task_id uuid,
  topic text,
  payload jsonb default 'null',
  dedup_key text default null,
  "position" integer default 0,
  after integer default 0
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := queue;
  _to text collate "C" := durable._where(queue, task_id, to_queue, to_task_id);
  _number bigint;
  _receives boolean;
  _recorded json;
begin
  perform durable._require_queue(_queue);
  perform durable._require_queue(_to);
  perform durable._checked_name('name of a step', name, 512);
  perform durable._check_message(topic, payload, dedup_key);
  if durable._recorded(_queue, task_id, name) is null then
    _receives := durable._receives(_to, to_task_id);
    if _receives then
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
  elsif not _receives then
    perform durable._refuse_message(_to, to_task_id);
  elsif _number is not null then
    perform durable._post(_to, to_task_id, topic, _number, payload);
  end if;
  return _number is not null;
end;
$$;

comment on function durable.send_from_task is
'send_message by a task that a worker holds, to itself too, with the checkpoint that
records it; says the same again when it is repeated. Its parent is found in whichever
queue it is. Refuses what send_message refuses, and a claim that is over: WFCAN, WFLST.';


-- A task knows where its parent is; of others it says so.
create or replace function durable._where(queue text, task_id uuid, to_queue text, to_task_id uuid)
returns text
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  return coalesce((
    select tasks.parent_queue
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _where.task_id and tasks.parent_task_id = to_task_id
  ), to_queue);
end;
$$;


create or replace function durable.recv_message(
  queue text, task_id uuid, claim integer, name text, topic text,
  timeout double precision default null
)
returns durable.wait_outcome
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return durable._await_one(queue, task_id, claim,
    json_build_object('name', name, 'topic', topic,
      'seconds', case when topic is not null then timeout end));
end;
$$;

comment on function durable.recv_message is
'Suspends a task until it is sent a message of this topic, or for timeout seconds, and
ends its claim; resolved, with the payload, if one is there already: the oldest, which
no other wait gets then. Refuses a claim that is over: WFCAN, WFLST.';


create or replace function durable._check_message(topic text, payload jsonb, dedup_key text)
returns void
language plpgsql
stable
as $$
begin
  perform durable._checked_name('topic', topic, 255);
  perform durable._checked_size('payload', payload);
  if dedup_key is not null then
    perform durable._checked_name('dedup_key', dedup_key, 255);
  end if;
end;
$$;


-- The number of a message that is about to be sent, under the mailbox's lock from here
-- to the commit; null if its key says that it was sent before.
create or replace function durable._number_message(queue text, task_id uuid, topic text, dedup_key text)
returns bigint
language plpgsql
as $$
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


-- Undoes _number_message, in its transaction.
create or replace function durable._take_back(queue text, task_id uuid, topic text, dedup_key text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
  _key text collate "C" := dedup_key;
begin
  update durable.mailboxes
  set sent = mailboxes.sent - 1
  where mailboxes.queue = _queue
    and mailboxes.task_id = _take_back.task_id
    and mailboxes.topic = _topic;
  delete from durable.message_keys
  where message_keys.queue = _queue
    and message_keys.task_id = _take_back.task_id
    and message_keys.key = _key;
end;
$$;


-- Whether a task is live. It is kept from being deleted, and from nothing else, until the
-- message is in.
create or replace function durable._receives(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _state durable.task_state;
begin
  select tasks.state into _state
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _receives.task_id
  for key share;
  return found and _state not in ('completed', 'failed', 'cancelled');
end;
$$;


create or replace function durable._refuse_message(queue text, task_id uuid)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks where tasks.queue = _queue and tasks.task_id = _refuse_message.task_id;
  if not found then
    perform durable._refuse_unknown_task(_queue, task_id);
  end if;
  raise exception using errcode = 'WFFIN',
    message = format('task %s has finished', task_id),
    hint = 'Only a live task receives messages.';
end;
$$;


-- The waits are read in a statement after the one that took the mailbox: a receiver
-- that was just registering has committed by then.
create or replace function durable._post(queue text, task_id uuid, topic text, number bigint, payload jsonb)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
  _now timestamptz := durable._now();
begin
  insert into durable.messages (queue, task_id, topic, number, sent_at, payload)
  values (_queue, task_id, _topic, number, _now, coalesce(payload, 'null'));
  if not durable._sees_the_latest() then
    perform durable._leave_note(_queue, 'waiter', task_id);
    return;
  end if;
  perform
  from durable.waits
  where waits.queue = _queue and waits.task_id = _post.task_id and waits.topic = _topic;
  if found then
    perform durable._wake_all(_queue, array[task_id]);
  end if;
end;
$$;


-- Where a receiver and those who send to it meet: from here to the commit nobody sends it
-- messages of this topic.
create or replace function durable._meet_senders(queue text, task_id uuid, topic text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue and tasks.task_id = _meet_senders.task_id
  for key share; -- a mailbox goes with its task
  if found then
    insert into durable.mailboxes (queue, task_id, topic)
    values (_queue, task_id, _topic)
    on conflict do nothing;
    perform
    from durable.mailboxes
    where mailboxes.queue = _queue
      and mailboxes.task_id = _meet_senders.task_id
      and mailboxes.topic = _topic
    for share;
  end if;
end;
$$;


create or replace function durable._has_message(queue text, task_id uuid, topic text)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
begin
  perform
  from durable.messages
  where messages.queue = _queue
    and messages.task_id = _has_message.task_id
    and messages.topic = _topic
  limit 1;
  return found;
end;
$$;


-- Turns the waits for messages of tasks that the caller holds into checkpoints, where
-- there is a message, or no time left: of several waits for one topic the first call's
-- gets the oldest. Read here, after the tasks were locked: nobody else receives.
create or replace function durable._receive(queue text, task_ids uuid[], at timestamptz)
returns void
language plpgsql
as $$
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
      wait.task_id, at, task.claim, task.attempt, wait.position, wait.after, 0,
      case when message.ctid is null then 'timed_out' else 'done' end, _queue, wait.name,
      coalesce(message.payload::json, 'null')
    )::durable.checkpoints)
  into _places, _messages, _received
  from (
    select
      registered.*,
      row_number() over (
        partition by registered.task_id, registered.topic
        order by registered.position, registered.name
      ) as turn
    from (select distinct held.task_id from unnest(task_ids) as held (task_id)) as own
    cross join lateral (
      select waits.ctid, waits.*
      from durable.waits
      where waits.queue = _queue and waits.task_id = own.task_id and waits.topic is not null
      offset 0
    ) as registered
  ) as wait
  cross join lateral (
    select tasks.claim, tasks.attempt
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = wait.task_id
    offset 0
  ) as task
  left join lateral (
    select messages.ctid, messages.payload
    from durable.messages
    where messages.queue = _queue
      and messages.task_id = wait.task_id
      and messages.topic = wait.topic
    order by messages.number
    offset wait.turn - 1
    limit 1
  ) as message on true
  where message.ctid is not null or wait.deadline_at <= at;
  if _places is not null then
    insert into durable.checkpoints select * from unnest(_received) on conflict do nothing;
    perform durable._forget_messages(_queue, _messages);
    perform durable._forget_waits(_queue, _places);
  end if;
end;
$$;


-- As in _take: without an index to walk, by place is the one way.
create or replace function durable._forget_messages(queue text, places tid[])
returns void
language plpgsql
set enable_indexscan = off
set enable_bitmapscan = off
as $$
declare
  _queue text collate "C" := queue;
begin
  delete from durable.messages where messages.queue = _queue and messages.ctid = any (places);
end;
$$;


-- What was sent to tasks that the caller is deleting. A mailbox was there before the
-- first message, or key.
create or replace function durable._delete_mail(queue text, task_ids uuid[])
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _id uuid;
begin
  for _id in
    select distinct mailbox.task_id
    from unnest(task_ids) as deleted (task_id)
    cross join lateral (
      select mailboxes.task_id
      from durable.mailboxes
      where mailboxes.queue = _queue and mailboxes.task_id = deleted.task_id
      offset 0
    ) as mailbox
  loop
    delete from durable.messages where messages.queue = _queue and messages.task_id = _id;
    delete from durable.message_keys where message_keys.queue = _queue and message_keys.task_id = _id;
    delete from durable.mailboxes where mailboxes.queue = _queue and mailboxes.task_id = _id;
  end loop;
end;
$$;
