-- Installs the engine into a database that does not have it yet:
--
--   psql --single-transaction --set ON_ERROR_STOP=1 --file sql/install.sql
--
-- It needs Postgres 15 or later, no extension and no superuser. The role that runs it owns
-- the engine, and public functions run with that role's rights.

\ir schema.sql
\ir tables.sql
\ir types.sql
\ir functions.sql
