begin;
\ir _setup.sql
select plan(36);

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
  'a child in another queue has its parent''s queue');
select is((task('p')).child_queues, array['other'], 'and its parent has the child''s');
select pg_temp.below_in('p', 'c2'), pg_temp.below_in('p', 'c3', 'q') \g /dev/null
select is((task('p')).child_queues, array['other'], 'each queue once, but not its own');
select is((task('c3')).parent_queue, null, 'a child in the same queue has no parent_queue');
select id('c') as before \gset
select pg_temp.below_in('p', 'c') \g /dev/null
select is(id('c'), :'before', 'a recorded child is not spawned again');
select throws_ok($$ select pg_temp.below_in('p', 'x', 'nowhere') $$, 'WFQUE', null, 'the queue must exist');
select throws_ok(
  $$ select durable.spawn_children_in('q', id('p'), 7, 'other', '[{"name": "x", "task": "x"}]') $$,
  'WFLST', null, 'and the claim must hold');
select ok(id('c') > id('p'), 'ids ascend across queues');

-- waiting

select is(pg_temp.joining_in('p', 'c c3'), 'suspended', 'a task may wait for tasks of several queues');
select is((select nick(task_id) || ' ' || nick(waiter_task_id) from durable.watches), null,
  'it watches the last of them, in its own queue');
select claimed('c3'), completed('c3') \g /dev/null
select is((select nick(task_id) || ' ' || nick(waiter_task_id) from durable.watches), 'c p',
  'then the one in the other queue');
select is(states('p'), 'sleeping', 'as long as that one is live');
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
  'a failure cancels descendants in both queues, also below completed ones');
select is((select string_agg(distinct error ->> 'by', ' ') from durable.tasks
  where task_id = any (ids('dd ddd'))), id('r')::text, 'and each records whose end it was');
select durable.retry_task('q', id('r')) \g /dev/null
select is(states('r d dd ddd'), 'pending completed pending pending', 'retry_task() revives exactly these');
select is_empty($$ select * from durable.deferred_work $$, 'without locked rows no work is deferred');

-- work that is done late, or twice

create function pg_temp.defer(queue text, kind durable.deferred_kind, nick text, root text)
returns void
language sql
as $$
  select durable._defer(queue, kind, tap.id(nick), root_queue => 'q', root_task_id => tap.id(root));
$$;

select pg_temp.defer('other', 'cascade', 'r', 'r'), pg_temp.defer('q', 'cascade', 'd', 'r') \g /dev/null
select is(durable.apply_deferred_work('other') + durable.apply_deferred_work('q'), 2, 'work after an end');
select is(states('d dd ddd'), 'completed pending pending', 'do nothing once the task was retried');
select durable.cancel_task('q', id('r')) \g /dev/null
select pg_temp.defer('q', 'revive', 'd', 'r'), durable.apply_deferred_work('q') \g /dev/null
select is(states('dd ddd'), 'cancelled cancelled', 'nor does deferred work for a revival once the task has ended again');

-- deferred work keeps the tasks that it needs from being deleted

select started('old', '{"max_attempts": 1}'), pg_temp.below_in('old', 'young'), failed('old'),
  pg_temp.defer('other', 'cascade', 'old', 'old') \g /dev/null
select durable.create_queue('q', '{"keep_tasks": 1}'), move_to(100), durable.cleanup('q') \g /dev/null
select is(states('old'), 'failed', 'cleanup keeps a task whose end has not reached another queue yet');
select durable.apply_deferred_work('other'), durable.cleanup('q') \g /dev/null
select is(states('old young'), 'gone cancelled', 'until it has');

-- nothing is revived below a task that stays ended in another queue

select started('a'), pg_temp.below_in('a', 'b', 'other', '{"execution_timeout": 5}'), pg_temp.taken('b'),
  pg_temp.below_in('b', 'c', 'q'), durable.cancel_task('q', id('a')),
  durable.retry_task('other', id('b')), pg_temp.taken('b') \g /dev/null
select outcome from durable.fail_tasks('other', tap.held('b', '{"retryable": false}')) \g /dev/null
select durable.retry_task('q', id('a')) \g /dev/null
select is(states('a b c'), 'pending failed cancelled', 'a parent in the other queue that stays failed keeps its child cancelled');
select is((task('c')).error, durable._cancelled_by_parent('q', 'other', id('b')), 'which then records that parent''s end');
select durable.retry_task('other', id('b')) \g /dev/null
select is(states('a b c'), 'pending pending pending', 'and is revived with it');

-- one deadline for a whole tree, and a new one

select durable.create_queue('third') \g /dev/null
select started('late', format('{"deadline": "%s"}', at(200))::jsonb) \g /dev/null
select pg_temp.below_in('late', 'heir'), pg_temp.below_in('late', 'brief', 'other', '{"execution_timeout": 5}'),
  pg_temp.below_in('late', 'hasty', 'other', format('{"deadline": "%s"}', at(150))::jsonb) \g /dev/null
select pg_temp.taken('heir'), pg_temp.taken('brief'), pg_temp.below_in('heir', 'far', 'third'),
  pg_temp.below_in('late', 'home', 'q', '{"execution_timeout": 5}'), claimed('home') \g /dev/null
select is((task('far')).deadline, at(200), 'a deadline is inherited through every queue');
select move_to(105), durable.expire_tasks('other'), durable.expire_tasks('q') \g /dev/null
select move_to(150), durable.expire_tasks('other') \g /dev/null
select is(states('late heir brief hasty far home'), 'running running cancelled cancelled pending cancelled',
  'some are ended by limits of their own earlier');
select move_to(200), durable.expire_tasks('other') \g /dev/null
select is((select error ->> 'by' from durable.tasks where task_id = id('far')), id('heir')::text,
  'it ends a child in its own queue, and the descendants of that child');
select durable.expire_tasks('q') \g /dev/null
select durable.retry_task('q', id('late'), format('{"deadline": "%s"}', at(300))::jsonb) \g /dev/null
select is(states('late heir far'), 'pending pending pending', 'retry_task() revives the tasks that this deadline ended');
select is(states('brief hasty home'), 'cancelled cancelled cancelled', 'not those with a limit of their own, in either queue');
select is((select array_agg(distinct deadline) from durable.tasks where task_id = any (ids('late heir far'))),
  array[at(300)], 'all with the new deadline');
select durable.cancel_task('q', id('late')), durable.retry_task('q', id('late'), '{"deadline": null}') \g /dev/null
select is((select array_agg(deadline) from durable.tasks where task_id = any (ids('late heir far'))),
  array[null, null, null]::timestamptz[], 'or without one, also tasks whose inherited deadline has not passed');

-- a queue is dropped

select started('w'), pg_temp.below_in('w', 'gone'), pg_temp.joining_in('w', 'gone'),
  durable.drop_queue('other'), durable.apply_deferred_work('q') \g /dev/null
select is(states('w'), 'pending', 'a task that waits for a task of a dropped queue is woken');

select durable.create_queue('other'), started('m'), pg_temp.below_in('m', 'n') \g /dev/null
select started('k'), spawned_below('k', 'kk'), claimed('kk'), pg_temp.below_in('kk', 'kkk'), completed('kk') \g /dev/null
select started('o'), pg_temp.below_in('o', 'oo'), completed('o') \g /dev/null
select durable.drop_queue('q'), durable.apply_deferred_work('other') \g /dev/null
select is(states('n kkk'), 'cancelled cancelled', 'the descendants of a dropped queue''s tasks are cancelled');
select is(states('oo'), 'pending', 'but not those of a task that had finished before');

select * from finish();
rollback;
