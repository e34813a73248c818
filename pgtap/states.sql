begin;
\ir _setup.sql
select plan(15);

-- The whole state machine: the effect of each call on a task in each state. The calls of
-- a worker come from the one that held the task last.

create function pg_temp.in_state(state text)
returns text
language plpgsql
as $$
begin
  perform tap.spawned('x', '{"start_timeout": 500, "execution_timeout": 500, "max_attempts": 3,
    "retry": {"kind": "fixed", "base_seconds": 60}}');
  if state <> 'new' then
    perform tap.claimed('x');
  end if;
  case state
    when 'new', 'held' then null;
    when 'given back' then perform tap.released('x');
    when 'asleep' then perform tap.sleeping('x', 100);
    when 'waiting' then perform tap.awaiting('x', 'e');
    when 'between attempts' then perform tap.failed('x');
    when 'completed' then perform tap.completed('x');
    when 'failed' then perform tap.failed('x', '{"retryable": false}');
    when 'cancelled' then perform durable.cancel_task('q', tap.id('x'));
  end case;
  return tap.states('x');
end;
$$;

create function pg_temp.outcome(action text)
returns text
language plpgsql
as $$
begin
  case action
    when 'claim' then perform tap.move_to(0), durable.claim_tasks('q', 'worker', null, 10);
    when 'claim later' then perform tap.move_to(100), durable.claim_tasks('q', 'worker', null, 10);
    when 'release' then perform tap.released('x');
    when 'complete' then perform tap.completed('x');
    when 'fail' then perform tap.failed('x');
    when 'fail for good' then perform tap.failed('x', '{"retryable": false}');
    when 'sleep' then perform tap.sleeping('x', 200);
    when 'sleep no time' then perform tap.sleeping('x', 0);
    when 'await' then perform tap.awaiting('x', 'another');
    when 'emit' then perform durable.emit_event('q', 'e');
    when 'lease runs out' then perform tap.move_to(31), durable.expire_leases('q');
    when 'time runs out' then perform tap.move_to(500), durable.expire_tasks('q');
    when 'cancel' then perform durable.cancel_task('q', tap.id('x'));
    when 'retry' then perform durable.retry_task('q', tap.id('x'));
    when 'clean up' then perform tap.move_to(9e7), durable.cleanup('q');
  end case;
  return tap.states('x');
exception when sqlstate 'WFLST' or sqlstate 'WFCAN' or sqlstate 'WFFIN' then
  return tap.states('x');
end;
$$;

-- Runs one cell of the table, and rolls it back.
create function pg_temp.cell(state text, action text)
returns text
language plpgsql
as $$
declare
  _before text;
  _after text;
begin
  _before := pg_temp.in_state(state);
  _after := pg_temp.outcome(action);
  raise exception using errcode = 'TAP00';
exception when sqlstate 'TAP00' then
  return case when _after = _before then '.' else _after end;
end;
$$;

select is(string_agg(pg_temp.cell(state, action), ' ' order by place), outcomes,
  format('%s: %s', action, outcomes))
from (values
  --                 new       given back held      asleep   waiting  between   completed failed  cancelled
  ('claim',          'running   running   .         .         .         .         .         .         .'),
  ('claim later',    'running   running   .         running   .         running   .         .         .'),
  ('release',        '.         .         pending   .         .         .         .         .         .'),
  ('complete',       '.         .         completed .         .         .         .         .         .'),
  ('fail',           '.         .         sleeping  .         .         .         .         .         .'),
  ('fail for good',  '.         .         failed    .         .         .         .         .         .'),
  ('sleep',          '.         .         sleeping  .         .         .         .         .         .'),
  ('sleep no time',  '.         .         .         .         .         .         .         .         .'),
  ('await',          '.         .         sleeping  .         .         .         .         .         .'),
  ('emit',           '.         .         .         .         pending   .         .         .         .'),
  ('lease runs out', '.         .         pending   .         .         .         .         .         .'),
  ('time runs out',  'cancelled cancelled cancelled cancelled cancelled cancelled .         .         .'),
  ('cancel',         'cancelled cancelled cancelled cancelled cancelled cancelled .         .         .'),
  ('retry',          '.         .         .         .         .         pending   .         pending   pending'),
  ('clean up',       '.         .         .         .         .         .         gone      gone      gone')
) as machine (action, padded)
cross join lateral regexp_replace(padded, ' +', ' ', 'g') as outcomes
cross join lateral unnest(array['new', 'given back', 'held', 'asleep', 'waiting',
  'between attempts', 'completed', 'failed',
  'cancelled']) with ordinality as states (state, place)
group by action, outcomes;

select * from finish();
rollback;
