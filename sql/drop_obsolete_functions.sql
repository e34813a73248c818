-- Drops functions that an upgrade made obsolete, once no running call can still need them.
-- durable.leftovers lists them: [{"oid", "seen"}, ...]. A function whose xmin has changed was
-- loaded again since and stays, and so does one that another object depends on.

do $$
declare
  _leftover regprocedure;
begin
  for _leftover in
    select pg_proc.oid
    from json_to_recordset(current_setting('durable.leftovers')::json) as leftover (oid oid, seen text)
    join pg_proc on pg_proc.oid = leftover.oid and pg_proc.xmin::text = leftover.seen
  loop
    begin
      execute format('drop function %s', _leftover);
    exception when dependent_objects_still_exist then
      raise warning 'durable: % is no longer part of it, but something depends on it', _leftover;
    end;
  end loop;
end;
$$;
