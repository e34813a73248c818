-- Lists the functions that an upgrade made obsolete: those of another version, or with other
-- parameters, were not loaded again in this transaction. They are not dropped yet, since
-- calls that are running keep their old bodies and need the functions these call.

do $$
declare
  _began xid := nullif(current_setting('durable.upgrade_began', true), '')::xid8::xid;
begin
  perform set_config('durable.leftovers', coalesce(string_agg(pg_proc.oid::text, ','), ''), true)
  from pg_proc
  where pg_proc.pronamespace = 'durable'::regnamespace
    and age(pg_proc.xmin) > age(_began);
end;
$$;
