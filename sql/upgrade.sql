-- Brings an installed engine up to this version. Tables are changed by the
-- migrations that the database has not seen yet (`durable migrate` and
-- `app.migrate()` apply them, in order and in this same transaction, before this
-- file); everything else is simply loaded again. What is left over is dropped by
-- drop_leftovers.sql, in a transaction of its own.

do $$
begin
  perform set_config('durable.upgrade_began', pg_current_xact_id()::text, true);
end;
$$;

\ir functions.sql
