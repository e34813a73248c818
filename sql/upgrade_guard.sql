-- Refuses to upgrade an engine of the wrong version, before anything is changed. The settings
-- name versions: durable.upgrade_from the one to upgrade (empty: any), durable.upgrade_oldest
-- the oldest that can be upgraded, and durable.upgrade_to the new one.

do $$
declare
  _found text;
  _from text := current_setting('durable.upgrade_from');
  _oldest text := current_setting('durable.upgrade_oldest');
  _to text := current_setting('durable.upgrade_to');
begin
  if to_regclass('durable.migrations') is null then
    raise exception using errcode = '3F000',
      message = 'durable is not installed in this database',
      hint = 'Install it: durable migrate, or the SQL that durable sql prints.';
  end if;
  lock table durable.migrations in share row exclusive mode;
  _found := durable.version();
  if _from <> '' and _found <> _from then
    raise exception using errcode = '55000',
      message = format('the database has version %s of durable, and this upgrades %s', _found, _from),
      hint = 'Print the SQL again with --from and that version, or without --from.';
  elsif string_to_array(_found, '.')::integer[] < string_to_array(_oldest, '.')::integer[] then
    raise exception using errcode = '55000',
      message = format('the database has version %s of durable, and its tables are older than those of %s', _found, _oldest),
      hint = 'Drop it (drop schema durable cascade) and install this version.';
  elsif string_to_array(_found, '.')::integer[] > string_to_array(_to, '.')::integer[] then
    raise exception using errcode = '55000',
      message = format('the database has version %s of durable, newer than %s', _found, _to),
      hint = 'Leave it as it is.';
  end if;
end;
$$;
