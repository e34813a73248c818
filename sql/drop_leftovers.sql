-- Drops what an upgrade left over, once nobody can be inside a function that calls it:
-- [{"oid", "seen"}, ...] in durable.leftovers. What another upgrade has loaded since, or
-- named itself, looks different by now; what something else depends on stays.

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
