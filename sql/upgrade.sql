-- Brings an installed engine up to this version. Tables are changed by the
-- migrations that the database has not seen yet (`durable migrate` and
-- `app.migrate()` apply them, in order and in this same transaction, before this
-- file); everything else is simply loaded again.

\ir functions.sql
