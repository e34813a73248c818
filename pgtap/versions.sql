begin;
\ir _setup.sql
select plan(45);

-- Who claims what: the nicknames of the tasks, oldest first.
create function tap.taken(version text, quantity integer default 100, names text[] default null)
returns text
language sql
as $$
  select coalesce(string_agg(nicknames.nick, ' ' order by claimed.available_at, claimed.task_id), '')
  from durable.claim_tasks('q', 'worker', names, quantity, 60, version => taken.version) as claimed
  join tap.nicknames using (task_id);
$$;

create function tap.version_of(nick text)
returns text
language sql
as $$
  select tasks.version::text from durable.tasks where tasks.task_id = id(nick);
$$;

create function tap.policy(versions text)
returns boolean
language sql
as $$
  select durable.create_queue('q', jsonb_build_object('versions', versions));
$$;

-- No policy

select spawned('a', '{"version": "1"}', 'a') \g /dev/null
select is(version_of('a'), null, 'where versions do not count a spawn leaves none');
select is(taken('2'), 'a', 'anybody claims it');
select is(version_of('a'), null, 'and leaves none');
select released('a') \g /dev/null

-- pin

select is(policy('pin'), false, 'a policy is changed in place');
select is((select versions from durable.queues where queue = 'q'), 'pin', 'it is kept');
select is(durable.create_queue('q', '{"keep_tasks": 60}'), false, 'another change leaves it alone');
select is((select versions from durable.queues where queue = 'q'), 'pin', 'as it was');
select move_to(1), spawned('b', '{"version": "1"}', 'b') \g /dev/null
select is(version_of('b'), null, 'a spawn pins nothing');
select is(taken(null), 'a b', 'a worker without a version claims what is not pinned');
select is(version_of('a'), null, 'and pins nothing');
select released('a b') \g /dev/null
select is(taken('1', 1), 'a', 'the first that has a version');
select is(version_of('a'), '1', 'pins what it claims');
select released('a') \g /dev/null
select is(taken('2', 1), 'b', 'another passes over it');
select is(version_of('b'), '2', 'and has its own');
select released('b') \g /dev/null
select is(taken(null), '', 'who has none gets neither');
select is(durable.get_next_due('q'), null, 'nor waits for them');
select is(durable.get_next_due('q', array['a', 'b'], '3'), null, 'nor does a third version');
select is(durable.get_next_due('q', array['a', 'b'], '2'), 0::double precision, 'its own is due');
select is(durable.get_next_due('q', array['a'], '2'), null, 'if it knows the name');
select is(array(select * from durable.list_waiting_names('q')), array['a', 'b'],
  'the names of all that waits are listed, whomever it waits for');
select is(taken('2', 100, array['a']), '', 'names count as ever');
select is(taken('1'), 'a', 'each gets its own');
select failed('a') \g /dev/null
select is(version_of('a'), '1', 'a task stays with its version');
select move_to(1000) \g /dev/null
select is(taken('2'), 'b', 'through its attempts');
select is(taken('1'), 'a', 'whoever asks first');
select released('a b') \g /dev/null

-- where versions count no longer

select policy(null) \g /dev/null
select is(taken('2'), '', 'what is pinned waits for housekeeping');
select durable.keep_house('q') \g /dev/null
select is(version_of('a'), null, 'which takes the version off');
select is(taken('2'), 'a b', 'and anybody claims it');
select released('a b') \g /dev/null

-- gate

select policy('gate'), move_to(1001) \g /dev/null
select is(taken(null, 1), 'a', 'until a version is announced, anybody claims what is for none');
select released('a') \g /dev/null
select is(array(select * from durable.announce_version('q', '1')), array[]::text[],
  'announce_version() knows of nobody who is missed');
select move_to(1002), durable.announce_version('q', '2') \g /dev/null
select move_to(1003), durable.announce_version('q', '1') \g /dev/null
select is(
  (select string_agg(version, ' ') from durable.list_versions('q') where latest), '2',
  'the latest is who came last, not who was seen last');
select is(taken('1') || taken(null), '', 'what is for none is for the latest alone');
select is(taken('2', 1), 'b', 'which claims it');
select released('b') \g /dev/null
select spawned('c', '{"version": "1"}'), spawned('d', '{"version": "0"}') \g /dev/null
select is(version_of('c') || version_of('d'), '10', 'a spawn says whose a task is');
select is(taken('1'), 'c', 'who claims it, latest or not');
select is(taken('2'), 'a b', 'and nobody else does');
select released('a b c') \g /dev/null
select is(array(select * from durable.announce_version('q', '2')), array['0'],
  'announce_version() names the version that nobody runs');
select ok(durable.promote_version('q', '1'), 'promote_version()');
select move_to(1004), durable.set_version('q', null, array[id('a')]) \g /dev/null
select is(taken('1', 1), 'a', 'makes another the latest');
select is(durable.promote_version('q', '9'), false, 'of those that were announced');

-- moving

select is(durable.set_version('q', '2', from_version => '0'), 1, 'set_version() moves the tasks of a version');
select is(taken('2', 100, array['job']), 'd', 'to another');
select results_eq(
  $$ select version, latest, alive, live, running, ready from durable.list_versions('q') $$,
  $$ values ('1'::text, true, true, 2::bigint, 1::bigint, 1::bigint), ('2', false, true, 2, 1, 1) $$,
  'list_versions() counts what is live, runs and is ready');
select throws_ok($$ select durable.set_version('q', '2') $$, '22023', null, 'it must be said which');
select throws_ok($$ select durable.create_queue('q', '{"versions": "both"}') $$, '22023', null,
  'there are two policies');

select * from finish();
rollback;
