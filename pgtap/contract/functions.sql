begin;
\ir ../_setup.sql
select plan(15);

create temp view functions as
select
  proname as name, oid, prosrc, prosecdef, proconfig, proargnames,
    pg_get_function_arguments(oid) as arguments,
  proname !~ '^_' as public, obj_description(oid, 'pg_proc') as comment, lanname as language
from pg_proc
join (select oid as prolang, lanname from pg_language) as language using (prolang)
where pronamespace = 'durable'::regnamespace;

select is_empty($$ select name from functions where public and not prosecdef $$,
  'a public function runs with its owner''s rights');
select is_empty($$ select name from functions
  where public and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false) $$,
  'and pins its search_path, with a caller''s temporary types last');
select is_empty($$ select name from functions
  where ('enable_seqscan=off' = any (proconfig)) <> ('plan_cache_mode=force_generic_plan' = any (proconfig)) $$,
  'and one that reaches rows pins its plans too');
select is_empty($$ select name from functions where not public and prosecdef $$,
  'a private one has no rights of its own');
select is_empty($$ select name from functions where public and coalesce(length(comment), 0) < 20 $$,
  'a public function has a comment');
select is_empty($$ select name from functions
  where public and split_part(comment, e'\n', 1) !~ '^[a-zA-Z_]+ ?.*\w' $$,
  'that begins with what it does');
select is_empty($$ select name from functions where not public and comment is not null $$,
  'a private one has none');
select is_empty($$ select name from functions group by name having count(*) > 1 $$,
  'no function has an overload');
select results_eq(
  $$ select name::text collate "default" from functions where public and arguments !~ '^queue text'
     order by 1 $$,
  array['diagnose', 'errors', 'find_task', 'list_queues', 'next_fires', 'version'],
  'a public function takes the queue first, unless it concerns none');
select is_empty($$ select name, unnest(proargnames) from functions
  where exists (select from unnest(proargnames) as a where a ~ '^_|^p_') $$,
  'arguments are plain words');
select is_empty($$ select name from functions where prosrc ~* '\mexecute\M(?!'')' $$,
  'no function has SQL in strings');
select is_empty($$ select name from functions where language not in ('sql', 'plpgsql') $$,
  'functions are SQL or PL/pgSQL');
select is_empty(
  $$ select name from functions
     where name <> '_now'
       and prosrc ~* '\m((now|clock_timestamp|statement_timestamp|transaction_timestamp)\s*\(|(current_|local)(timestamp|date|time)\M)' $$,
  'nothing but _now() reads a clock');
select is_empty(
  $$ select name from functions
     where array_length(string_to_array(btrim(prosrc, e'\n'), e'\n'), 1) > 80 $$,
  'no body is longer than 80 lines');
select is_empty(
  $$ select name from functions
     where prosrc ~* '\m(from|join|into|update|delete from)\s+(tasks|runs|checkpoints|events|waits|queues|deferred_work|idempotency_keys|unique_keys|mailboxes|messages|message_keys|task_values|stream_entries|log_lines|schedules|lanes|partitions|worker_sessions|audit)\M' $$,
  'tables are named with their schema');

select * from finish();
rollback;
