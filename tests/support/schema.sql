-- What an installed engine consists of, one line per fact: types, tables, their rules and
-- comments, views, public functions and who may call them. The same on every version of
-- Postgres, so without what is printed differently there: bodies and view definitions.

with ours as (
  select oid from pg_namespace where nspname = 'durable'
),
lines (part, object, place, line) as (
  select
    1, type.typname, value.enumsortorder::integer,
    format('enum      %s: %s', type.typname, value.enumlabel)
  from ours
  join pg_type as type on type.typnamespace = ours.oid
  join pg_enum as value on value.enumtypid = type.oid

  union all
  select
    case class.relkind when 'c' then 2 when 'r' then 3 else 6 end, class.relname, attnum,
    format('%-9s %s.%s %s%s%s%s',
      case class.relkind when 'c' then 'type' when 'r' then 'table' else 'view' end,
      class.relname, attname, format_type(atttypid, atttypmod),
      case when collname <> 'default' then format(' collate "%s"', collname) end,
      case when attnotnull then ' not null' end,
      ' default ' || pg_get_expr(adbin, adrelid))
  from ours
  join pg_class as class on class.relnamespace = ours.oid and class.relkind in ('c', 'r', 'v')
  join pg_attribute on attrelid = class.oid and attnum > 0 and not attisdropped
  left join pg_collation on pg_collation.oid = attcollation
  left join pg_attrdef on adrelid = class.oid and adnum = attnum

  union all
  select 3, class.relname, 1000, format('table     %s with (%s)', class.relname, array_to_string(reloptions, ', '))
  from ours
  join pg_class as class on class.relnamespace = ours.oid
  where class.relkind = 'r' and reloptions is not null

  union all
  select 4, conname, 0, format('rule      %s %s: %s', class.relname, conname, pg_get_constraintdef(pg_constraint.oid))
  from ours
  join pg_constraint on connamespace = ours.oid and contype <> 'n'
  join pg_class as class on class.oid = conrelid

  union all
  select 5, class.relname, 0, format('index     %s', pg_get_indexdef(class.oid))
  from ours
  join pg_class as class on class.relnamespace = ours.oid and class.relkind = 'i'

  union all
  select
    7, proname, 0,
    format('function  %s(%s) returns %s, %s',
      proname, pg_get_function_arguments(pg_proc.oid), pg_get_function_result(pg_proc.oid),
      concat_ws(', ', lanname, provolatile::text,
        case when prosecdef then 'security definer' end, array_to_string(proconfig, ', ')))
  from ours
  join pg_proc on pronamespace = ours.oid and not starts_with(proname, '_')
  join pg_language on pg_language.oid = prolang

  union all
  select 8, grantee::regrole::text, 0, format('grant     %s on %s to %s', privilege_type, object, grantee::regrole)
  from (
    select proname::text as object, proacl as acl from ours join pg_proc on pronamespace = ours.oid
    union all
    select relname::text, relacl from ours join pg_class on relnamespace = ours.oid
    union all
    select 'the schema', nspacl from ours join pg_namespace using (oid)
  ) as granted
  cross join lateral aclexplode(granted.acl) as right_of
  where grantee::regrole::text like 'durable%'

  union all
  select
    9, identity, 0,
    format('comment   %s %s: %s', identified.type, identity, regexp_replace(description, '\s+', ' ', 'g'))
  from pg_description
  cross join lateral pg_identify_object(classoid, objoid, objsubid) as identified
  where identified.type <> 'function'
    and (identity like 'durable.%' or identified.type = 'schema' and identity = 'durable')
)
select line
from lines
order by part, object collate "C", place, line collate "C";
