-- Finds the helpers, and pgTAP in whatever schema it is installed.
select set_config('search_path', 'tap, ' || quote_ident(nspname), true) as search_path
from pg_extension
join pg_namespace on pg_namespace.oid = extnamespace
where extname = 'pgtap' \gset
