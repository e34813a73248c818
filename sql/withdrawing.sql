-- Withdrawing: a wait that the task's code has given up.
--
-- A branch that is cancelled waits no more, and its wait must not go on without it: it would
-- wake the task for nothing, end in a checkpoint that a replay takes for another outcome,
-- and take a message from the wait that is for it now. So it is forgotten, as if it had
-- never been. A message that it has been given meanwhile, which nobody has read, is in its
-- place again.

-- Of the tasks whose claims hold, which the caller has locked. The latest call first: what
-- is put back comes before all that has not been received.
create or replace function durable._withdraw(queue text, tasks json)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _given_up record;
begin
  if position('"withdrawn"' in tasks::text) = 0 then
    return;
  end if;
  for _given_up in
    select own.task_id, own.claim, wait.name collate "C" as name, wait.topic
    from json_to_recordset(tasks) as own (task_id uuid, claim integer, withdrawn json)
    cross join lateral (
      select
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = own.task_id and tasks.claim = own.claim
        and own.claim % 2 = 1
      offset 0
    ) as task
    cross join lateral json_to_recordset(own.withdrawn) as wait (name text, position integer, topic text)
    order by own.task_id, wait.position desc, wait.name desc
  loop
    delete from durable.waits
    where waits.queue = _queue and waits.task_id = _given_up.task_id and waits.name = _given_up.name;
    perform durable._take_out(_queue, _given_up.task_id, _given_up.claim, _given_up.name, _given_up.topic);
  end loop;
end;
$$;


-- The checkpoint of a wait that was settled under this very claim after all.
create or replace function durable._take_out(
  queue text, task_id uuid, claim integer, name text, topic text
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _name text collate "C" := name;
  _state durable.checkpoint_state;
  _payload jsonb;
begin
  delete from durable.checkpoints
  where checkpoints.queue = _queue
    and checkpoints.task_id = _take_out.task_id
    and checkpoints.name = _name
    and checkpoints.claim = _take_out.claim
  returning checkpoints.state, checkpoints.value::jsonb into _state, _payload;
  if topic is not null and _state = 'done' then
    perform durable._put_back(_queue, task_id, topic, _payload);
  end if;
end;
$$;


-- Before the oldest that is there, where those stood that have been received. Who sends at
-- the same time has the mailbox, which nobody holds here: one statement sees both as of one
-- moment.
create or replace function durable._put_back(queue text, task_id uuid, topic text, payload jsonb)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _topic text collate "C" := topic;
  _now timestamptz := durable._now();
begin
  insert into durable.messages (queue, task_id, topic, number, sent_at, payload)
  select _queue, mailboxes.task_id, _topic, coalesce(oldest.number, mailboxes.sent + 1) - 1, _now,
    _put_back.payload
  from durable.mailboxes
  left join lateral (
    select messages.number
    from durable.messages
    where messages.queue = _queue
      and messages.task_id = _put_back.task_id
      and messages.topic = _topic
    order by messages.number
    limit 1
  ) as oldest on true
  where mailboxes.queue = _queue
    and mailboxes.task_id = _put_back.task_id
    and mailboxes.topic = _topic;
end;
$$;
