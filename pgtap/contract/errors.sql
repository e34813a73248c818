begin;
\ir ../_setup.sql
select plan(4);

-- Codes that are raised, and the function that does: errcode = '...' or a call of
-- _refuse_argument, which has one.
create temp view raised as
select proname, code
from pg_proc
cross join lateral (
  select code[1] from regexp_matches(prosrc, 'errcode\s*=\s*''([^'']*)''', 'g') as code
) as codes (code)
where pronamespace = 'durable'::regnamespace;

select is_empty($$ select * from raised where code not in (select code from durable.errors()) $$,
  'every error that is raised is in the catalogue');
select results_eq(
  $$ select code from durable.errors() where code not in (select code from raised) order by 1 $$,
  array['WFVER'],
  'every error in the catalogue is raised, but the one that is for an SDK to find out');
select is_empty(
  $$ select proname from pg_proc where pronamespace = 'durable'::regnamespace
     and (select count(*) from regexp_matches(prosrc, 'raise\s+exception', 'g'))
       <> (select count(*)
       from regexp_matches(prosrc, 'raise\s+exception\s+using\s+errcode', 'g')) $$,
  'nothing is raised without a code');
select is_empty(
  $$ select proname from pg_proc where pronamespace = 'durable'::regnamespace
     and prosrc ~ 'raise\s+exception' and prosrc !~ 'hint\s*=' $$,
  'or without a hint');

select * from finish();
rollback;
