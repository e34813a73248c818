begin;
\ir _setup.sql
select plan(17);

create function pg_temp.spawn(nicks text, key text, options jsonb default '{}', task text default 'job')
returns void language sql as $$
  select tap.move_to(extract(epoch from durable._now() - tap.at(0)) + 1),
    tap.spawned(nick, jsonb_build_object('partition_key', key) || options, task)
  from tap.words(nicks);
$$;

create function pg_temp.keys(page_size integer default 100, after text default null)
returns text language sql as $$
  select coalesce(string_agg(partition_key, ' '), '') from durable.list_partitions('q', page_size, after);
$$;

create function pg_temp.partition(key text) returns durable.listed_partition language sql as $$
  select listed from durable.list_partitions('q') as listed where partition_key = key;
$$;

select is(pg_temp.keys(), '', 'a queue without limits has no partitions');
select durable.create_queue('q', '{"partition_concurrency": 1}') \g /dev/null
select spawned('none'), pg_temp.spawn('a1 a2', 'a'), pg_temp.spawn('b1', 'b'), pg_temp.spawn('c1', 'c') \g /dev/null
select pg_temp.spawn('d1', 'd', '{"delay": 100}'), pg_temp.spawn('a3', 'a', '{"priority": 2}', 'other'),
  durable.set_partition_limit('q', 'e', '{"concurrency": 5, "rate": {"starts": 2, "period": 3}}') \g /dev/null
select is(pg_temp.keys(), 'a b c d e', 'it lists the keys of waiting tasks, and those with limits');
select is(pg_temp.keys(2) || ',' || pg_temp.keys(2, 'b') || ',' || pg_temp.keys(2, 'd') || ',' || pg_temp.keys(2, 'e'),
  'a b,c d,e,', 'by key, page by page');
select is(pg_temp.partition('a'), row('a', 3, 0, at(1), null, null, null, null, null)::durable.listed_partition,
  'it counts tasks that are due, of all names and priorities');
select is(pg_temp.partition('d'), row('d', 0, 0, null, null, null, null, null, null)::durable.listed_partition,
  'not those that start later');
select is(pg_temp.partition('e'), row('e', 0, 0, null, 5, '{"starts": 2, "period": 3}', null, null, null)::durable.listed_partition,
  'it shows limits of its own');
select nick(task_id) from durable.claim_tasks('q', 'worker', null, 3) \g /dev/null
select is(pg_temp.partition('a'), row('a', 2, 1, at(1), null, null, 'partition_concurrency', null, null)::durable.listed_partition,
  'it says that a partition is full');
select completed('a3'), awaiting('b1', 'e') from durable.claim_tasks('q', 'worker', null, 100) \g /dev/null
select is(pg_temp.partition('b'), row('b', 0, 0, null, null, null, null, null, null)::durable.listed_partition,
  'a partition of which nothing runs is not');
select durable.run_maintenance('q') from generate_series(1, 3) \g /dev/null
select is(pg_temp.keys(), 'a b c d e', 'one whose only task is suspended is listed');
select durable.create_queue('q', '{"partition_concurrency": null, "partition_order": "strict"}') \g /dev/null
select is((pg_temp.partition('b')).blocked_by, id('b1'), 'in strict order it says which task has to end');
select is((pg_temp.partition('b')).blocked, 'partition_order', 'and why');
select is((pg_temp.partition('d')).blocked, null, 'else that one may start');
select durable.create_queue('q', '{"partition_order": null, "partition_rate": {"starts": 1, "period": 50}}') \g /dev/null
select move_to(20), pg_temp.spawn('f1 f2', 'f') \g /dev/null
select durable.claim_tasks('q', 'worker', null, 100) \g /dev/null
select is(pg_temp.partition('f'), row('f', 1, 1, at(22), null, null, 'partition_rate', null, at(72))::durable.listed_partition,
  'it says until when a rate is used up');
select durable.spawn_many('q', jsonb_agg('{"task": "many", "options": {"partition_key": "g"}}'::jsonb))
from generate_series(1, 1100) \g /dev/null
select is((pg_temp.partition('g')).ready, 1000::bigint, 'it counts no more than 1,000');
select throws_ok(format('select durable.list_partitions(%L, %L)', queue, page_size), code, null,
  format('list_partitions() refuses %s', what))
from (values ('none', 1, 'WFQUE', 'an unknown queue'), ('q', 0, '22023', 'an empty page'),
  ('q', 100001, '22023', 'a page that is too long')) as refused (queue, page_size, code, what);

select * from finish();
rollback;
