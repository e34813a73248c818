-- Creates the schema `durable`, which holds everything: dropping it removes the engine. The
-- schema may exist already if it is empty, so that a DBA can create it for a role that may not.

do $$
begin
  if to_regclass('durable.migrations') is not null then
    raise exception using errcode = '42P06',
      message = 'durable is installed in this database already',
      hint = 'Upgrade it: durable migrate, or the SQL that durable migrate --dump-sql prints.';
  end if;
  if current_setting('server_encoding') <> 'UTF8' then
    raise exception using errcode = '22023',
      message = format('durable needs a database with encoding UTF8, and "%s" has %s',
        current_database(), current_setting('server_encoding')),
      hint = 'Create one: create database ... encoding ''UTF8'' template template0.';
  end if;
  if to_regnamespace('durable') is null then
    create schema durable;
  end if;
  if pg_has_role((select nspowner from pg_namespace where nspname = 'durable'), 'usage') then
    comment on schema durable is
'Durable execution on Postgres alone: tasks whose every step survives a crash. Call the
functions; the tables are private, the views are for operators.';
  end if;
end;
$$;
