begin;
\ir _setup.sql
select plan(33);

create function pg_temp.below_in(parent text, nick text, there text default 'other', options jsonb default '{}')
returns uuid
language sql
as $$
  select tap.call_it(nick, spawned.task_id)
  from tap.task(parent) as task
  cross join lateral durable.spawn_children_in(task.queue, task.task_id, task.claim, there,
    jsonb_build_array(jsonb_build_object('name', '$spawn:' || nick, 'task', nick, 'options', options))) as spawned;
$$;

-- Held by a worker of its own queue.
create function pg_temp.taken(nick text)
returns integer
language sql
as $$
  select taken.claim
  from tap.task(nick) as task
  cross join lateral durable.claim_tasks(task.queue, 'worker', array[task.name]) as taken;
$$;

create function pg_temp.done(nick text)
returns text
language sql
as $$
  select outcome
  from tap.task(nick) as task
  cross join lateral durable.complete_tasks(task.queue, tap.held(nick, '{"result": 7}'));
$$;

create function pg_temp.joining_in(nick text, others text)
returns text
language sql
as $$
  select outcome
  from tap.task(nick) as task
  cross join lateral durable.suspend_tasks(task.queue, tap.held(nick, jsonb_build_object('waits',
    jsonb_build_array(jsonb_build_object('name', '$join', 'task_ids', to_jsonb(tap.ids(others)), 'queues',
      (select jsonb_agg((tap.task(other.nick)).queue) from tap.words(others) as other (nick))))))) as outcome;
$$;

-- spawning

select started('p'), pg_temp.below_in('p', 'c') \g /dev/null
select is((select queue || ' ' || parent_queue || ' ' || nick(parent_task_id) from task('c')), 'other q p',
  'a child elsewhere knows where its parent is');
select is((task('p')).child_queues, array['other'], 'and its parent where it reaches');
select pg_temp.below_in('p', 'c2'), pg_temp.below_in('p', 'c3', 'q') \g /dev/null
select is((task('p')).child_queues, array['other'], 'each queue once, its own never');
select is((task('c3')).parent_queue, null, 'a child at home is as any other');
select id('c') as before \gset
select pg_temp.below_in('p', 'c') \g /dev/null
select is(id('c'), :'before', 'a child that is on record is not spawned again');
select throws_ok($$ select pg_temp.below_in('p', 'x', 'nowhere') $$, 'WFQUE', null, 'the queue must be there');
select throws_ok(
  $$ select durable.spawn_children_in('q', id('p'), 7, 'other', '[{"name": "x", "task": "x"}]') $$,
  'WFLST', null, 'and the claim must hold');
select ok(id('c') > id('p'), 'ids ascend across queues');

-- waiting

select is(pg_temp.joining_in('p', 'c c3'), 'suspended', 'a task may wait for tasks of several queues');
select is((select nick(task_id) || ' ' || nick(waiter_task_id) from durable.watches), null,
  'it watches the last of them, at home');
select claimed('c3'), completed('c3') \g /dev/null
select is((select nick(task_id) || ' ' || nick(waiter_task_id) from durable.watches), 'c p',
  'then the one elsewhere');
select is(states('p'), 'sleeping', 'as long as that lives');
select pg_temp.taken('c'), pg_temp.done('c') \g /dev/null
select is(states('p'), 'pending', 'whose end wakes it');
select claimed('p') \g /dev/null
select is((select value #>> '{0,result}' from durable.load_checkpoints('q', held('p')) where name = '$join'), '7',
  'and brings its result');

-- ending

select started('r', '{"max_attempts": 1}'), pg_temp.below_in('r', 'd'), pg_temp.taken('d'),
  pg_temp.below_in('d', 'dd', 'q'), claimed('dd'), pg_temp.below_in('dd', 'ddd') \g /dev/null
select pg_temp.done('d') \g /dev/null
select failed('r') \g /dev/null
select is(states('d dd ddd'), 'completed cancelled cancelled',
  'a failure reaches what lives below it, there and back, also below what has completed');
select is((select string_agg(distinct error ->> 'by', ' ') from durable.tasks
  where task_id = any (ids('dd ddd'))), id('r')::text, 'and each knows whose it was');
select durable.retry_task('q', id('r')) \g /dev/null
select is(states('r d dd ddd'), 'pending completed pending pending', 'retry_task() revives exactly these');
select is_empty($$ select * from durable.notes $$, 'with nobody in the way nothing is left for later');

-- notes come late, and twice

create function pg_temp.note(queue text, kind durable.note_kind, nick text, root text)
returns void
language sql
as $$
  select durable._leave_again((queue, null, kind, tap.id(nick), null, 'q', tap.id(root), null)::durable.notes);
$$;

select pg_temp.note('other', 'ended_above', 'r', 'r'), pg_temp.note('q', 'ended_above', 'd', 'r') \g /dev/null
select is(durable.apply_notes('other') + durable.apply_notes('q'), 2, 'notes on an end');
select is(states('d dd ddd'), 'completed pending pending', 'do nothing when that is over');
select durable.cancel_task('q', id('r')) \g /dev/null
select pg_temp.note('q', 'revived_above', 'd', 'r'), durable.apply_notes('q') \g /dev/null
select is(states('dd ddd'), 'cancelled cancelled', 'nor does one on a revival that is');

-- what is left to a note keeps those through whom it is found

select started('old', '{"max_attempts": 1}'), pg_temp.below_in('old', 'young'), failed('old'),
  pg_temp.note('other', 'ended_above', 'old', 'old') \g /dev/null
select durable.create_queue('q', '{"keep_tasks": 1}'), move_to(100), durable.cleanup('q') \g /dev/null
select is(states('old'), 'failed', 'cleanup leaves a task whose end has yet to reach another queue');
select durable.apply_notes('other'), durable.cleanup('q') \g /dev/null
select is(states('old young'), 'gone cancelled', 'until it has');

-- one deadline for all of them, and a new one

select durable.create_queue('third') \g /dev/null
select started('late', format('{"deadline": "%s"}', at(200))::jsonb) \g /dev/null
select pg_temp.below_in('late', 'heir'), pg_temp.below_in('late', 'brief', 'other', '{"max_duration": 5}'),
  pg_temp.below_in('late', 'hasty', 'other', format('{"deadline": "%s"}', at(150))::jsonb) \g /dev/null
select pg_temp.taken('heir'), pg_temp.taken('brief'), pg_temp.below_in('heir', 'far', 'third'),
  pg_temp.below_in('late', 'home', 'q', '{"max_duration": 5}'), claimed('home') \g /dev/null
select is((task('far')).complete_by, at(200), 'a deadline goes down through every queue');
select move_to(105), durable.expire_deadlines('other'), durable.expire_deadlines('q') \g /dev/null
select move_to(150), durable.expire_deadlines('other') \g /dev/null
select is(states('late heir brief hasty far home'), 'running running cancelled cancelled pending cancelled',
  'their own limits end some before');
select move_to(200), durable.expire_deadlines('other') \g /dev/null
select is((select error ->> 'by' from durable.tasks where task_id = id('far')), id('heir')::text,
  'it ends a child in its own queue, and by that what is below it');
select durable.expire_deadlines('q') \g /dev/null
select durable.retry_task('q', id('late'), format('{"deadline": "%s"}', at(300))::jsonb) \g /dev/null
select is(states('late heir far'), 'pending pending pending', 'retry_task() revives what that deadline has ended');
select is(states('brief hasty home'), 'cancelled cancelled cancelled', 'not what had a limit of its own, here or there');
select is((select array_agg(distinct complete_by) from durable.tasks where task_id = any (ids('late heir far'))),
  array[at(300)], 'with the new deadline for all of them');
select durable.cancel_task('q', id('late')), durable.retry_task('q', id('late'), '{"deadline": null}') \g /dev/null
select is((select array_agg(complete_by) from durable.tasks where task_id = any (ids('late heir far'))),
  array[null, null, null]::timestamptz[], 'or none, also for those who had inherited one that has not passed');

-- a queue goes

select started('w'), pg_temp.below_in('w', 'gone'), pg_temp.joining_in('w', 'gone'),
  durable.drop_queue('other'), durable.apply_notes('q') \g /dev/null
select is(states('w'), 'pending', 'who waits for a task of a queue that is dropped waits no more');

select durable.create_queue('other'), started('m'), pg_temp.below_in('m', 'n') \g /dev/null
select started('k'), spawned_below('k', 'kk'), claimed('kk'), pg_temp.below_in('kk', 'kkk'), completed('kk') \g /dev/null
select started('o'), pg_temp.below_in('o', 'oo'), completed('o') \g /dev/null
select durable.drop_queue('q'), durable.apply_notes('other') \g /dev/null
select is(states('n kkk'), 'cancelled cancelled', 'what lives below the tasks of a queue that is dropped ends with them');
select is(states('oo'), 'pending', 'not below one that was over before');

select * from finish();
rollback;
