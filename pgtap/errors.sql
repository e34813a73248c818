begin;
\ir _setup.sql
select plan(9);

select results_eq(
  $$ select code, name from durable.errors() order by code $$,
  $$ values ('22023', 'invalid_argument'), ('42501', 'forbidden'), ('WFCAN', 'cancelled'), ('WFCON', 'conflict'),
     ('WFFIN', 'already_finished'), ('WFFUL', 'queue_full'),
       ('WFISO', 'wrong_isolation'), ('WFLST', 'lease_lost'), ('WFNFD', 'not_found'), ('WFQUE', 'unknown_queue'),
         ('WFVER', 'schema_version') $$,
  'errors() is a closed set');
select is_empty($$ select * from durable.errors() where meaning !~ '^[A-Z].*\.$' $$,
  'every meaning is a sentence');

-- each has a hint

create function pg_temp.refusal(statement text)
returns text
language plpgsql
as $$
declare
  _code text;
  _message text;
  _hint text;
begin
  execute statement;
  return 'nothing raised';
exception when others then
  get stacked diagnostics _code = returned_sqlstate, _message = message_text,
    _hint = pg_exception_hint;
  return concat_ws(' | ', _code, replace(_message, tap.id('a')::text, 'A'),
    replace(_hint, tap.id('a')::text, 'A'));
end;
$$;

select started('a', '{"idempotency_key": "k"}'), completed('a') \g /dev/null
select is(pg_temp.refusal(statement), refusal, 'the refusal of ' || statement)
from (values
  ('select durable.spawn(''none'', ''job'')',
   'WFQUE | no queue "none" | Create it: select durable.create_queue(''none'').'),
  ('select durable.spawn(''q'', '''')',
   '22023 | task name is empty | Pass 1 to 100 bytes of text.'),
  ('select durable.spawn(''q'', ''job'', ''{}'', ''{"retries": 3}'')',
   '22023 | unknown key "retries" in options | Known keys: max_attempts, retry, headers, idempotency_key, start_timeout, execution_timeout, parent_task_id, deadline, version, identity, fingerprint, delay, run_at, partition_key, priority, defaults, unique, throttle, debounce.'),
  ('select durable.spawn(''q'', ''other'', ''{}'', ''{"idempotency_key": "k"}'')',
   'WFCON | idempotency key "k" belongs to task A with the name "job" | Use one key for one name and params.'),
  ('select durable.retry_task(''q'', id(''a''))',
   'WFFIN | task A is completed | Only a failed or cancelled task can be tried again, or one that sleeps until its next attempt.'),
  ('select durable.cancel_task(''other'', id(''a''))',
   'WFNFD | no task A in queue "other" | Check the queue and the id; finished tasks are deleted after the queue''s keep_tasks.'),
  ('select durable.sleep_until(''q'', id(''a''), 1, ''s'', now())',
   'WFLST | claim 1 on task A is over | Somebody else may own the task now. Stop working on it.')
) as refusals (statement, refusal);

select * from finish();
rollback;
