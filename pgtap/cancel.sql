begin;
\ir _setup.sql
select plan(36);

-- one task, in every state

select spawned('pending'), started('running'), started('napping'), started('listening'),
  started('retrying', '{"retry": {"kind": "fixed", "base_seconds": 60}}'),
  started('done'), started('broken', '{"max_attempts": 1}')
\g /dev/null
select sleeping('napping', 60), awaiting('listening', 'never'), failed('retrying'),
  completed('done', '7'), failed('broken') \g /dev/null

select is(durable.cancel_task('q', id(nick)), true, format('cancel_task() cancels a %s task', what))
from (values
  ('pending',   'pending'),
  ('running',   'running'),
  ('napping',   'sleeping'),
  ('listening', 'waiting'),
  ('retrying',  'failed task between two attempts, a live')
) as live (nick, what);
select is(states('pending running napping listening retrying'),
  'cancelled cancelled cancelled cancelled cancelled',
  'cancel_task() is immediate');
select results_eq(
  $$ select distinct available_at, lease_expires_at, expires_at, finished_at, error::text,
     claim % 2
     from durable.tasks where state = 'cancelled' $$,
  $$ values (null::timestamptz, null::timestamptz, null::timestamptz, at(0),
       '{"by": {"user": "postgres"}, "type": "$Cancelled", "message": "cancelled"}', 0) $$,
  'a cancelled task is not claimable, not leased, has no deadline and has an error');
select is_empty($$ select * from durable.waits $$, 'a cancelled task has no waits');
select move_to(3600) \g /dev/null
select is_empty($$ select * from durable.claim_tasks('q', 'worker', null, 10) $$,
  'a cancelled task is never claimed again');

select everything() as before \gset
select is(durable.cancel_task('q', id(nick)), false,
  format('cancel_task() says that a %s task had finished', states(nick)))
from unnest(array['running', 'done', 'broken']) as finished (nick);
select is(everything(), :'before', 'cancel_task() leaves a finished task as it is');

select results_eq(
  $$ select attempt, outcome::text from durable.runs where task_id = id('retrying') $$,
     $$ values (1, 'failed') $$,
  'cancelling does not change former attempts');

select spawned('explained') \g /dev/null
select durable.cancel_task('q', id('explained'), 'it''s "over" \ 🐘') \g /dev/null
select is((task('explained')).error - 'by', '{"type": "$Cancelled", "message": "it''s \"over\" \\ 🐘"}',
  'cancel_task() keeps the reason literally');

select throws_ok(format('select durable.cancel_task(%L, %L)', queue, task_id), code, null,
  format('cancel_task() refuses %s', what))
from (values
  ('nowhere', id('done'),        'WFQUE', 'an unknown queue'),
  ('q',       gen_random_uuid(), 'WFNFD', 'an unknown task'),
  ('q',       null,              'WFNFD', 'null for a task'),
  ('other',   id('done'),        'WFNFD', 'a task of another queue')
) as refused (queue, task_id, code, what);

-- the worker's next call

select started('gone'), durable.cancel_task('q', id('gone')) \g /dev/null
select is(outcome, 'cancelled', format('%s of a cancelled task is refused as cancelled', what))
from (
  select 'completion', (durable.complete_tasks('q', held('gone', '{"claim": 1}'))).outcome
  union all
  select 'failure', (durable.fail_tasks('q', held('gone', '{"claim": 1}'))).outcome
  union all
  select 'heartbeat', (durable.extend_leases('q', held('gone', '{"claim": 1}'))).outcome
) as call (what, outcome);
select is(states('gone'), 'cancelled', 'and it stays cancelled');

-- descendants
--
--   root ── done ── below     live task below a completed one
--        ├─ running ── deep ── deeper
--        ├─ own              cancelled by itself, before
--        └─ broken           failed, before

select started('root'), started_below('root', 'done'), started_below('done', 'below'),
  started_below('root', 'running'), spawned_below('running', 'deep'),
    spawned_below('deep', 'deeper'),
  spawned_below('root', 'own'), started_below('root', 'broken', '{"max_attempts": 1}'),
  spawned('stranger'), spawned('elsewhere')
\g /dev/null
select completed('done'), failed('broken'),
  durable.cancel_task('q', id('own'), 'not needed') \g /dev/null
select joining('root', 'running') \g /dev/null
select (task('own')).error as own_error, (task('broken')).error as broken_error \gset
select is(durable.cancel_task('q', id('root')), true,
  'cancel_task() cancels a task that waits for its child');
select is(states('root running deep deeper'), 'cancelled cancelled cancelled cancelled',
  'cancelling reaches every generation');
select is(states('below'), 'cancelled', 'cancelling reaches below a completed child');
select is(states('done broken'), 'completed failed', 'cancelling does not touch a finished child');
select is(states('stranger'), 'pending', 'cancelling does not touch an unrelated task');
select results_eq(
  $$ select distinct error from durable.tasks
     where task_id in (id('running'), id('deep'), id('deeper'), id('below')) $$,
  $$ select jsonb_build_object('type', '$CancelledByParent', 'by', id('root'),
       'message', 'cancelled by parent ' || id('root')) $$,
  'a cascade records whose end it was');
select is((task('own')).error, :'own_error'::jsonb,
  'a child cancelled before keeps its own reason');
select is_empty($$ select * from durable.deferred_work $$,
  'cancelling without locked rows defers nothing');

select started('completing'), spawned_below('completing', 'surviving') \g /dev/null
select completed('completing') \g /dev/null
select is(states('surviving'), 'pending', 'a task that completes leaves its children alone');
select is(durable.cancel_task('q', id('completing')), false,
  'cancel_task() of a completed parent returns false');
select is(states('surviving'), 'pending', 'and its children stay live');

-- tasks that wait for a cancelled task

select started('waiting'), spawned('awaited') \g /dev/null
select joining('waiting', 'awaited') \g /dev/null
select durable.cancel_task('q', id('awaited'), 'changed my mind') \g /dev/null
select is(states('waiting'), 'pending', 'cancelling a task wakes the tasks that wait for it');
select claimed('waiting') \g /dev/null
select results_eq(
  $$ select state, value #>> '{0,state}', value #>> '{0,error,message}'
     from durable.load_checkpoints('q', held('waiting')) $$,
  $$ values ('done', 'cancelled', 'changed my mind') $$,
  'and they learn that it was cancelled, and why');

select * from finish();
rollback;
