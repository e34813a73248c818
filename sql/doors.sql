-- Who is told, and only if somebody idle listens.
--
-- NOTIFY takes a database-wide lock at commit and would cost more than half of all
-- spawns. So it is sent only to a closed door: a worker with nothing to do holds
-- its queue's door, an exclusive advisory lock, on the connection on which it
-- listens; whoever makes work tries the same lock shared. Had: nobody listens, and
-- the lock, held to commit, keeps anyone from falling asleep until this work is
-- visible. Refused: somebody does, and is notified. No table, no heartbeat; a dead
-- worker's session frees its door. Polling stays the truth: where sessions are
-- shared (a transaction pooler, a sharded database) nobody holds a door, and nobody
-- is notified.

create or replace function durable.take_door(queue text, door text default 'work')
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
begin
  if door is null or door collate "C" not in ('work', 'results', 'news') then
    perform durable._refuse_argument('there is no such door', 'Pass work, results or news.');
  end if;
  return pg_try_advisory_lock(hashtext('durable.' || door), hashtext(durable._granted(queue)));
end;
$$;

comment on function durable.take_door is
'Asks to be notified, from now on and as long as this session holds the door, on the
channel durable_work (a task of the queue became claimable), durable_results (one
finished), where the payload is the queue, or durable_news (one has published something),
where it is the task. door: work, results or news. Returns false when
another session holds it: poll. After taking a door, look once more before waiting.
Refuses any other door 22023.';


-- Not a matter of the queue's roles: who has lost the right must still let go.
create or replace function durable.leave_door(queue text, door text default 'work')
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock(hashtext('durable.' || door), hashtext(queue));
end;
$$;

comment on function durable.leave_door is
'Gives back what take_door took.';


-- Called after the last lock of a transaction was taken.
create or replace function durable._knock(queue text, door text)
returns void
language plpgsql
as $$
begin
  if not pg_try_advisory_xact_lock_shared(hashtext('durable.' || door), hashtext(queue)) then
    perform pg_notify('durable_' || door, queue);
  end if;
end;
$$;
