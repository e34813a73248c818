begin;
\ir _setup.sql
select plan(45);

-- Claims, and returns the nicknames of the tasks, oldest first.
create function tap.taken(version text, batch_size integer default 100, names text[] default null)
returns text
language sql
as $$
  select coalesce(string_agg(nicknames.nick, ' ' order by claimed.available_at, claimed.task_id), '')
  from durable.claim_tasks('q', 'worker', names, batch_size, 60, version => taken.version) as claimed
  join tap.nicknames using (task_id);
$$;

create function tap.version_of(nick text)
returns text
language sql
as $$
  select nullif(tasks.version::text, '') from durable.tasks where tasks.task_id = id(nick);
$$;

create function tap.announced(version text)
returns setof text
language sql
as $$
  select * from durable.announce_worker('q', 'worker of ' || version,
    jsonb_build_object('version', version));
$$;

create function tap.policy(versions text)
returns boolean
language sql
as $$
  select durable.create_queue('q', jsonb_build_object('versions', versions));
$$;

-- No policy

select spawned('a', '{"version": "1"}', 'a') \g /dev/null
select is(version_of('a'), null, 'without a policy a spawn stores no version');
select is(taken('2'), 'a', 'any worker claims it');
select is(version_of('a'), null, 'and stores none');
select released('a') \g /dev/null

-- pin

select is(policy('pin'), false, 'a policy is changed in place');
select is((select versions from durable.queues where queue = 'q'), 'pin', 'it is stored');
select is(durable.create_queue('q', '{"keep_tasks": 60}'), false, 'another change of the queue keeps it');
select is((select versions from durable.queues where queue = 'q'), 'pin', 'as it was');
select move_to(1), spawned('b', '{"version": "1"}', 'b') \g /dev/null
select is(version_of('b'), null, 'a spawn pins nothing');
select is(taken(null), 'a b', 'a worker without a version claims tasks that are not pinned');
select is(version_of('a'), null, 'and pins nothing');
select released('a b') \g /dev/null
select is(taken('1', 1), 'a', 'the first worker with a version');
select is(version_of('a'), '1', 'pins the tasks that it claims');
select released('a') \g /dev/null
select is(taken('2', 1), 'b', 'another version skips them');
select is(version_of('b'), '2', 'and has its own');
select released('b') \g /dev/null
select is(taken(null), '', 'a worker without a version gets neither');
select is(durable.get_next_due('q'), null, 'nor waits for them');
select is(durable.get_next_due('q', array['a', 'b'], '3'), null, 'nor does a third version');
select is(durable.get_next_due('q', array['a', 'b'], '2'), 0::double precision, 'its own task is due');
select is(durable.get_next_due('q', array['a'], '2'), null, 'if it knows the name');
select is(array(select * from durable.list_waiting_names('q')), array['a', 'b'],
  'list_waiting_names() has all names, whichever version they wait for');
select is(taken('2', 100, array['a']), '', 'names still count');
select is(taken('1'), 'a', 'each version gets its own tasks');
select failed('a') \g /dev/null
select is(version_of('a'), '1', 'a task stays with its version');
select move_to(1000) \g /dev/null
select is(taken('2'), 'b', 'through its attempts');
select is(taken('1'), 'a', 'whichever version asks first');
select released('a b') \g /dev/null

-- a policy that is removed

select policy(null) \g /dev/null
select is(taken('2'), '', 'a pinned task waits for maintenance');
select durable.run_maintenance('q') \g /dev/null
select is(version_of('a'), null, 'which removes the version');
select is(taken('2'), 'a b', 'and any worker claims it');
select released('a b') \g /dev/null

-- gate

select policy('gate'), move_to(1001) \g /dev/null
select is(taken(null, 1), 'a', 'until a version is announced, any worker claims tasks without one');
select released('a') \g /dev/null
select is(array(select announced('1')), array[]::text[],
  'announce_worker() returns no missing version');
select move_to(1002), announced('2') \g /dev/null
select move_to(1003), announced('1') \g /dev/null
select is(
  (select string_agg(version, ' ') from durable.list_versions('q') where latest), '2',
  'the latest version is the one that appeared last, not the one seen last');
select is(taken('1') || taken(null), '', 'only the latest may claim tasks without a version');
select is(taken('2', 1), 'b', 'and it does');
select released('b') \g /dev/null
select spawned('c', '{"version": "1"}'), spawned('d', '{"version": "0"}') \g /dev/null
select is(version_of('c') || version_of('d'), '10', 'a spawn stores its version');
select is(taken('1'), 'c', 'which claims it, latest or not');
select is(taken('2'), 'a b', 'and no other version does');
select released('a b c') \g /dev/null
select is(array(select announced('2')), array['0'],
  'announce_worker() returns a version that nobody runs');
select ok(durable.promote_version('q', '1'), 'promote_version()');
select move_to(1004), durable.set_version('q', null, array[id('a')]) \g /dev/null
select is(taken('1', 1), 'a', 'makes another version the latest');
select is(durable.promote_version('q', '9'), false, 'if it was announced');

-- moving

select is(durable.set_version('q', '2', from_version => '0'), 1, 'set_version() moves the tasks of a version');
select is(taken('2', 100, array['job']), 'd', 'to another');
select results_eq(
  $$ select version, latest, alive, live, running, ready from durable.list_versions('q') $$,
  $$ values ('1'::text, true, true, 2::bigint, 1::bigint, 1::bigint), ('2', false, true, 2, 1, 1) $$,
  'list_versions() counts live, running and ready tasks');
select throws_ok($$ select durable.set_version('q', '2') $$, '22023', null, 'the call must say which tasks');
select throws_ok($$ select durable.create_queue('q', '{"versions": "both"}') $$, '22023', null,
  'there are two policies');

select * from finish();
rollback;
