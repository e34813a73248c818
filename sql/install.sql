-- Installs the engine into a database that does not have it, in one go:
--
--   psql --single-transaction --set ON_ERROR_STOP=1 --file sql/install.sql
--
-- Nothing but Postgres 15 or later is needed: no extension, no superuser. Whoever
-- runs this owns the engine; its public functions run with that role's rights.

\ir schema.sql
\ir tables.sql
\ir types.sql
\ir functions.sql
