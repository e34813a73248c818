-- The helpers, and pgTAP wherever it was installed.
select set_config('search_path', 'tap, ' || quote_ident(nspname), true) as search_path
from pg_extension
join pg_namespace on pg_namespace.oid = extnamespace
where extname = 'pgtap' \gset
