-- After an upgrade: functions that this version no longer has, or has with other
-- parameters, were not loaded again just now. They are only named here: a call that is
-- under way goes on with its old body, and needs what that calls.

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
