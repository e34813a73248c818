begin;
\ir _setup.sql
select plan(11);

-- Who is refused a door, and who is then notified, takes a second session: here is
-- what one session can say.

create function pg_temp.doors()
returns text
language sql
as $$
  select coalesce(string_agg(mode || case when granted then '' else ' waiting' end, ', '
    order by mode), 'open')
  from pg_locks
  where locktype = 'advisory' and pid = pg_backend_pid()
    and (classid, objid) in (
      select hashtext('durable.' || door)::bit(32)::bigint::oid, hashtext('q')::bit(32)::bigint::oid
      from unnest(array['work', 'results']) as door);
$$;

select is(pg_temp.doors(), 'open', 'nobody holds a door');
select is(durable.take_door('q'), true, 'take_door() takes the queue''s door');
select is(durable.take_door('other'), true, 'every queue has its own');
select is(pg_temp.doors(), 'ExclusiveLock', 'a door is a lock of the session');
select durable.leave_door('q'), durable.leave_door('other') \g /dev/null
select is(pg_temp.doors(), 'open', 'leave_door() gives it back');
select is(durable.take_door('q', 'work') and durable.take_door('q', 'results'), true,
  'work and results have a door each');
select durable.leave_door('q'), durable.leave_door('q', 'results') \g /dev/null
select throws_ok(format('select durable.take_door(%L, %L)', 'q', door), '22023', 'there is no such door',
  format('there is no door %L', door))
from unnest(array['house', null]) as door;

select spawned('a') \g /dev/null
select is(pg_temp.doors(), 'ShareLock',
  'a spawn keeps the open door from closing until it has committed');
select claimed('a'), completed('a') \g /dev/null
select is(pg_temp.doors(), 'ShareLock, ShareLock', 'so does a completion with the door of results');
select is(durable.take_door('q'), true, 'a session does not stand in its own way');
select durable.leave_door('q') \g /dev/null

select * from finish();
rollback;
