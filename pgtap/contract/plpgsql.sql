begin;
\ir ../_setup.sql
select plan(2);

select isnt_empty($$ select from pg_extension where extname = 'plpgsql_check' $$,
  'plpgsql_check is here to check');

-- These end on return, in a loop without end.
select is_empty(
  $$ select oid::regprocedure, found.*
     from pg_proc
     cross join lateral plpgsql_check_function(oid, fatal_errors => false,
     extra_warnings => true) as found (line)
     where pronamespace = 'durable'::regnamespace
       and prolang = (select oid from pg_language where lanname = 'plpgsql')
       and not (proname in ('_take_key', '_take_unique_key') and line like 'warning extra:2F005:%control reached end of function%') $$,
  'plpgsql_check finds nothing in any function');

select * from finish();
rollback;
