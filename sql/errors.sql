-- The errors that the engine raises on purpose, as a closed set. Callers know them by
-- SQLSTATE, never by text. Class WF is the engine's own, for errors that a caller would
-- catch; a bad argument is Postgres's own 22023.

create or replace function durable.errors()
returns table (code text, name text, meaning text) language sql immutable as $$
  values
    ('22023', 'invalid_argument', 'An argument was refused, before anything was written; the hint says what to pass.'),
    ('42501', 'forbidden',        'The function, or this queue, is not granted to the caller.'),
    ('WFCAN', 'cancelled',        'The task has been cancelled; stop working on it.'),
    ('WFCON', 'conflict',         'The key belongs to another task: an idempotency key, to one with another name or other params; a unique key, to one that is unfinished.'),
    ('WFFIN', 'already_finished', 'The task has reached its final state, which this call cannot change.'),
    ('WFFUL', 'queue_full',       'As many tasks as the queue''s max_length are ready to be claimed; nothing was spawned. Try again later.'),
    ('WFISO', 'wrong_isolation',  'The transaction is stricter than READ COMMITTED: this function could not see there what was just committed.'),
    ('WFLST', 'lease_lost',       'The claim is over: the lease expired and somebody else may own the task; stop working on it.'),
    ('WFNFD', 'not_found',        'There is no such task, or schedule, in this queue.'),
    ('WFQUE', 'unknown_queue',    'There is no such queue.'),
    ('WFVER', 'schema_version',   'The schema and the SDK do not fit each other; migrate, or upgrade the SDK.');
$$;

comment on function durable.errors is
'Returns every error that the engine raises on purpose: SQLSTATE, name, meaning.';

create or replace function durable._refuse_argument(message text, hint text)
returns void language plpgsql as $$
begin
  raise exception using errcode = '22023', message = message, hint = hint;
end;
$$;

-- Raises WFCAN or WFLST for a write under (task_id, claim) that found no row.
create or replace function durable._refuse_claim(queue text, task_id uuid, claim integer)
returns void language plpgsql as $$
declare
  _outcome text := durable._refusal(queue, task_id, claim);
begin
  if _outcome = 'cancelled' then
    raise exception using errcode = 'WFCAN',
      message = format('task %s has been cancelled', task_id),
      hint = 'Stop working on it.';
  end if;
  raise exception using errcode = 'WFLST',
    message = format('claim %s on task %s is over', claim, task_id),
    hint = 'Somebody else may own the task now. Stop working on it.';
end;
$$;

-- Returns why no row has this claim: 'cancelled' or 'lost'. A plain read is enough, since
-- the caller has looked for the row already.
create or replace function durable._refusal(queue text, task_id uuid, claim integer)
returns text language plpgsql as $$
declare
  _queue text collate "C" := queue;
begin
  perform
  from durable.tasks
  where tasks.queue = _queue
    and tasks.task_id = _refusal.task_id
    and tasks.claim = _refusal.claim + 1
    and tasks.state = 'cancelled';
  return case when found then 'cancelled' else 'lost' end;
end;
$$;

create or replace function durable._refuse_unknown_task(queue text, task_id uuid)
returns void language plpgsql as $$
begin
  raise exception using errcode = 'WFNFD',
    message = format('no task %s in queue "%s"', task_id, queue),
    hint = 'Check the queue and the id; finished tasks are deleted after the queue''s keep_tasks.';
end;
$$;
