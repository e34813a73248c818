-- Housekeeping is not in the path of a claim. Any worker may do it, about once a
-- second, also when all its slots are full; whoever gets the lock does.

create or replace function durable.keep_house(queue text, quantity integer default 1000)
returns durable.house_kept
language plpgsql
security definer
set search_path = ''
set jit = off
as $$
declare
  _kept durable.house_kept;
begin
  if pg_try_advisory_xact_lock(hashtext('durable.house'), hashtext(queue)) then
    _kept := (
      durable.expire_leases(queue, quantity),
      durable.expire_deadlines(queue, quantity),
      durable.apply_notes(queue, quantity),
      durable.cleanup(queue, quantity),
      durable.prune_events(queue, quantity)
    );
  end if;
  return _kept;
end;
$$;

comment on function durable.keep_house is
'Does all the housekeeping of a queue that is due, at most quantity of each kind, never
waiting for anybody. Returns what it did; nulls when somebody else is at it.';
