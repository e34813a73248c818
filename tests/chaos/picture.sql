-- Everything a queue holds that does not depend on who did it, when, and how often; and
-- nothing of what belongs to nobody. Ids and moments are left out of what was saved.
-- An event that was not emitted is no more than the place to wait for it.

select
  'task' as kind, name, params::text as of_what, state::text, result::text as value,
  jsonb_build_object(
    'error', error is not null, 'parent', parent_task_id is not null,
    'key', idempotency_key, 'held', claim %% 2 = 1, 'leased', lease_expires_at is not null,
    'available', available_at is not null, 'finished', finished_at is not null
  )::text as details
from durable.tasks
where queue = %(queue)s

union all
select
  'checkpoint', regexp_replace(checkpoints.name, %(varies)s, '', 'g'), params::text,
  checkpoints.state::text, regexp_replace(value::text, %(varies)s, '', 'g'), position::text
from durable.checkpoints
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select
  'event', regexp_replace(name, %(varies)s, '', 'g'), null, null, payload::text, null
from durable.events
where queue = %(queue)s and emitted_at is not null

union all
select 'key', key, params::text, null, null, tasks.name
from durable.idempotency_keys
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select 'unique key', key, params::text, kind::text, null, unique_keys.name
from durable.unique_keys
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select 'wait', name, event_name, null, null, null
from durable.waits
where queue = %(queue)s

union all
select 'message', topic, params::text, number::text, payload::text, null
from durable.messages
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select 'mailbox', topic, params::text, sent::text, null, null
from durable.mailboxes
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select 'message key', key, params::text, null, null, null
from durable.message_keys
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select 'deferred', kind::text, event_name, null, null, null
from durable.deferred_work
where queue = %(queue)s

union all
select 'run of nobody', null, null, outcome::text, null, null
from durable.runs
where queue = %(queue)s
  and not exists (
    select from durable.tasks
    where tasks.queue = runs.queue and tasks.task_id = runs.task_id)

union all
select 'value', key, params::text, null, value::text, times::text
from durable.task_values
left join durable.tasks using (queue, task_id)
where queue = %(queue)s

union all
select 'entry', stream, params::text, null, value::text,
  row_number() over (partition by queue, task_id, stream order by number)::text
from durable.stream_entries as entry
left join durable.tasks using (queue, task_id)
where queue = %(queue)s
  -- what a step wrote before it began again is void
  and not exists (
    select from durable.stream_entries as later
    where later.queue = entry.queue and later.task_id = entry.task_id
      and later.stream = entry.stream and later.source = entry.source
      and later.number > entry.number and later.restarted)

union all -- lines of code that runs again come again
select distinct 'line', null, params::text, null, message, null
from durable.log_lines
left join durable.tasks using (queue, task_id)
where queue = %(queue)s
