-- Cancels waits that a task's code has given up.
--
-- The wait of a cancelled branch must not go on without it. It would wake the task for
-- nothing, write a checkpoint that a replay takes for another outcome, and take a message
-- from the wait that now needs it. So it is deleted as if it had never existed. A message that
-- it was given meanwhile, which no code has read, is put back.

-- Handles tasks that the caller holds. The latest call comes first, since a message is put back
-- before all others.
create or replace function durable._withdraw_waits(queue text, tasks json)
returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _wait record;
  _state durable.checkpoint_state;
  _payload jsonb;
begin
  if position('"withdrawn"' in tasks::text) = 0 then
    return;
  end if;
  for _wait in
    select own.task_id, task.ordinal, wait.name collate "C" as name, wait.topic
    from json_to_recordset(tasks) as own (task_id uuid, withdrawn json)
    cross join lateral (
      select durable._claim_ordinal(tasks.claim, tasks.times_claimed) as ordinal
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = own.task_id
      offset 0
    ) as task
    cross join lateral json_to_recordset(own.withdrawn) as wait (
      name text, position integer, topic text
    )
    order by own.task_id, wait.position desc, wait.name desc
  loop
    delete from durable.waits
    where waits.queue = _queue and waits.task_id = _wait.task_id and waits.name = _wait.name;
    delete from durable.checkpoints -- if it was resolved under this very claim
    where checkpoints.queue = _queue and checkpoints.task_id = _wait.task_id
      and checkpoints.name = _wait.name and checkpoints.claim = _wait.ordinal
    returning checkpoints.state, checkpoints.value::jsonb into _state, _payload;
    if _wait.topic is not null and _state = 'done' then
      perform durable._return_message(_queue, _wait.task_id, _wait.topic, _payload);
    end if;
  end loop;
end;
$$;

-- Puts a message back before the oldest that has not been received. A concurrent sender holds
-- the mailbox, which this does not lock: one statement reads mailbox and messages in one
-- snapshot.
create or replace function durable._return_message(
  queue text, task_id uuid, topic text, payload jsonb
) returns void language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
  _now timestamptz := durable._now();
begin
  insert into durable.messages (queue, task_id, topic, number, sent_at, payload)
  select _queue, mailboxes.task_id, _topic, coalesce((
      select min(messages.number)
      from durable.messages
      where messages.queue = _queue and messages.task_id = _return_message.task_id
        and messages.topic = _topic), mailboxes.sent + 1) - 1, _now, _return_message.payload
  from durable.mailboxes
  where mailboxes.queue = _queue and mailboxes.task_id = _return_message.task_id
    and mailboxes.topic = _topic;
end;
$$;
