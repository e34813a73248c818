begin;
\ir _setup.sql
select plan(11);

-- A channel that another session holds, and the notification, need a second session: here is
-- what one session can test.

create function pg_temp.channels()
returns text
language sql
as $$
  select coalesce(string_agg(mode || case when granted then '' else ' waiting' end, ', '
    order by mode), 'open')
  from pg_locks
  where locktype = 'advisory' and pid = pg_backend_pid()
    and (classid, objid) in (
      select hashtext('durable.' || channel)::bit(32)::bigint::oid, hashtext('q')::bit(32)::bigint::oid
      from unnest(array['work', 'results']) as channel);
$$;

select is(pg_temp.channels(), 'open', 'nobody holds a channel');
select is(durable.register_listener('q'), true, 'register_listener() takes the queue''s channel');
select is(durable.register_listener('other'), true, 'every queue has its own');
select is(pg_temp.channels(), 'ExclusiveLock', 'a channel is a lock of the session');
select durable.unregister_listener('q'), durable.unregister_listener('other') \g /dev/null
select is(pg_temp.channels(), 'open', 'unregister_listener() releases it');
select is(durable.register_listener('q', 'work') and durable.register_listener('q', 'results'), true,
  'work and results have a channel each');
select durable.unregister_listener('q'), durable.unregister_listener('q', 'results') \g /dev/null
select throws_ok(format('select durable.register_listener(%L, %L)', 'q', channel), '22023', 'there is no such channel',
  format('there is no channel %L', channel))
from unnest(array['house', null]) as channel;

select spawned('a') \g /dev/null
select is(pg_temp.channels(), 'ShareLock',
  'a spawn keeps the channel from being taken until it has committed');
select claimed('a'), completed('a') \g /dev/null
select is(pg_temp.channels(), 'ShareLock, ShareLock', 'so does a completion with the channel for results');
select is(durable.register_listener('q'), true, 'a session does not block itself');
select durable.unregister_listener('q') \g /dev/null

select * from finish();
rollback;
