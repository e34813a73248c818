-- Housekeeping is not in the path of a claim. Any worker may do it, about once a
-- second, also when all its slots are full; whoever gets the lock does. It holds rows
-- until it commits, so it does little at a time; who sees it do all it may comes again.

create or replace function durable.keep_house(queue text, quantity integer default 100)
returns durable.house_kept
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _kept durable.house_kept;
begin
  if pg_try_advisory_xact_lock(hashtext('durable.house'), hashtext(durable._granted(queue))) then
    perform durable._forget_versions(queue, quantity);
    _kept := (
      durable.expire_leases(queue, quantity),
      durable.expire_deadlines(queue, quantity),
      durable.apply_notes(queue, quantity),
      durable.cleanup(queue, quantity * 10),
      durable.prune_events(queue, quantity * 10)
    );
  end if;
  return _kept;
end;
$$;

comment on function durable.keep_house is
'Does the housekeeping of a queue that is due, never waiting for anybody: at most
quantity leases, deadlines and notes, and a look at ten times as many finished tasks and
events. Returns what it did; nulls when somebody else is at it.';
