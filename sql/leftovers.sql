-- After an upgrade: functions that this version no longer has, or has with other
-- parameters, were not loaded again just now, and are dropped.

do $$
declare
  _began xid := current_setting('durable.upgrade_began', true)::xid8::xid;
  _leftover regprocedure;
begin
  for _leftover in
    select pg_proc.oid
    from pg_proc
    where pg_proc.pronamespace = 'durable'::regnamespace
      and age(pg_proc.xmin) > age(_began)
  loop
    execute format('drop function %s', _leftover);
  end loop;
end;
$$;
