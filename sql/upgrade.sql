-- Brings an installed engine up to this version. Before this file, `durable migrate` and
-- `app.migrate()` apply the migrations that the database has not seen, in order and in the
-- same transaction; they change the tables. This file loads everything else again.
-- drop_obsolete_functions.sql drops obsolete functions in a later transaction.

do $$
begin
  perform set_config('durable.upgrade_began', pg_current_xact_id()::text, true);
end;
$$;

\ir functions.sql
