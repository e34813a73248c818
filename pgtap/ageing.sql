begin;
\ir _setup.sql
select plan(20);

create function pg_temp.after(seconds double precision) returns text language sql as $$
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + seconds);
$$;

create function pg_temp.spawn(nick text, priority integer, key text default 'k')
returns uuid language sql as $$
  select tap.spawned(nick, jsonb_build_object('priority', priority, 'partition_key', key));
$$;

-- The nicknames of the tasks that a worker gets, in the order in which it gets them.
create function pg_temp.claim(batch_size integer default 1) returns text language sql as $$
  select coalesce(string_agg(tap.nick(task_id), ' '), '')
  from durable.claim_tasks('q', 'worker', null, batch_size);
$$;

-- Cancels all tasks, and deletes their lanes.
create function pg_temp.end_all() returns text language sql as $$
  select durable.cancel_tasks('q', '{"all": true}');
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 100);
  select durable.run_maintenance('q')::text;
$$;

-- Spawns a task of priority 2 and claims one, each second. Returns what it got, "h" for these.
create function pg_temp.busy(seconds integer, key text default 'h') returns text language plpgsql as $$
declare
  _got text := '';
  _nick text;
begin
  for i in 1 .. seconds loop
    perform pg_temp.after(1), pg_temp.spawn('high', 2, key);
    perform pg_temp.claim();
    select case priority when 2 then 'h' else tap.nick(task_id) end into _nick
    from durable.tasks where state = 'running';
    _got := _got || coalesce(_nick, '?');
    perform durable.complete_tasks('q', json_agg(json_build_object('task_id', task_id, 'claim', claim)))
    from durable.tasks where state = 'running';
  end loop;
  return _got;
end;
$$;

select durable.create_queue('q', '{"priorities": true}') \g /dev/null
select pg_temp.spawn('l', 0) \g /dev/null
select is(pg_temp.busy(50), repeat('h', 50), 'without ageing a low priority waits for as long as there are others');
select pg_temp.end_all() \g /dev/null

select durable.create_queue('q', '{"ageing": 10}') \g /dev/null
select pg_temp.spawn('l', 0), pg_temp.after(1), pg_temp.spawn('m', 0) \g /dev/null
select is(pg_temp.busy(28), repeat('h', 28), 'a lane rises by one priority in each period');
select is(pg_temp.busy(1), 'l', 'when it is above the others, one of its tasks starts');
select is(pg_temp.busy(29), repeat('h', 29), 'and it is where it was');
select is(pg_temp.busy(1), 'm', 'until it has risen again');
select pg_temp.end_all() \g /dev/null
select pg_temp.spawn('l' || i, 0) from generate_series(1, 4) as i \g /dev/null
select pg_temp.spawn('other', 0, 'o') \g /dev/null
select pg_temp.after(30), pg_temp.spawn('h' || i, 2, 'h') from generate_series(1, 4) as i \g /dev/null
select is((select array_agg(left(nick, 1)) from unnest(string_to_array(pg_temp.claim(4), ' ')) as nick)
  @> array['h', 'h', 'h'], true, 'a batch has one task of the lane that has risen');
select pg_temp.end_all() \g /dev/null

-- All lanes of a priority, and all priorities, in turn

select pg_temp.spawn('a', 0, 'a'), pg_temp.after(1), pg_temp.spawn('b', 0, 'b'), pg_temp.after(1),
  pg_temp.spawn('c', 1, 'c') \g /dev/null
select is(pg_temp.busy(40), repeat('h', 19) || 'c' || repeat('h', 7) || 'ab' || repeat('h', 11),
  'each lane rises by itself, higher priorities sooner');
select pg_temp.end_all() \g /dev/null

-- A lane ages while its partition is full or its rate used up

select durable.create_queue('q', '{"partition_concurrency": 1}') \g /dev/null
select pg_temp.spawn('l', 0, 'h'), pg_temp.spawn('first', 2, 'h') \g /dev/null
select is(pg_temp.claim() || pg_temp.claim(), 'first', 'its partition is full');
select is((select turn_at is null and waits_since is not null from durable.lanes where priority = 0), true,
  'it has no turn, but its age');
select completed('first') \g /dev/null
select is(pg_temp.busy(29), repeat('h', 29), 'others of its partition come first');
select is(pg_temp.busy(1), 'l', 'until it is above them');
select pg_temp.end_all() \g /dev/null
select durable.create_queue('q', '{"partition_concurrency": null, "partition_rate": {"starts": 1, "period": 3}}') \g /dev/null
select pg_temp.spawn('l', 0, 'r'), pg_temp.busy(1, 'r') \g /dev/null
select is(pg_temp.busy(27, 'r'), rpad('', 27, '??h'), 'a rate lets others begin');
select is(pg_temp.busy(3, 'r'), '??l', 'until it is above them');
select pg_temp.end_all(), durable.create_queue('q', '{"partition_rate": null}') \g /dev/null

-- Delayed tasks age from when they are due; no row is written while a lane rises

select tap.spawned('later', '{"priority": 0, "delay": 50}') \g /dev/null
select is(pg_temp.busy(79), repeat('h', 79), 'a delayed task ages when it is due');
select is(pg_temp.busy(1), 'later', 'from then on');
select pg_temp.end_all(), pg_temp.spawn('l', 0), pg_temp.spawn('n', 0) \g /dev/null
select lanes::text as lane from durable.lanes where priority = 0 and turn_at is not null limit 1 \gset
select pg_temp.busy(25) \g /dev/null
select is((select lanes::text from durable.lanes where priority = 0), :'lane', 'its row stays as it is');
select pg_temp.end_all() \g /dev/null

-- It is set and changed while tasks wait

select durable.create_queue('q', '{"ageing": null}') \g /dev/null
select pg_temp.spawn('l', 0) \g /dev/null
select is((select waits_since from durable.lanes where priority = 0), null, 'lanes of other queues have no age');
select pg_temp.busy(5), durable.create_queue('q', '{"ageing": 1}'), durable.run_maintenance('q') \g /dev/null
select is(pg_temp.busy(1), 'l', 'those that waited before age as if they had always aged');
select throws_ok(format('select durable.create_queue(%L, %L)', 'q', policy), '22023', null,
  format('create_queue() refuses %s', policy))
from unnest(array['{"ageing": 0}', '{"ageing": "1"}']) as refused (policy);

select * from finish();
rollback;
