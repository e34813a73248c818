begin;
\ir _setup.sql
select plan(96);

-- Spawns a task with options, and returns its nickname, and "new" if it was created.
create function tap.keyed(nick text, options jsonb, params jsonb default '{}', task text default 'job')
returns text
language plpgsql
as $$
declare
  _spawned durable.spawned_task := durable.spawn('q', task, params, options);
begin
  if _spawned.created then
    perform tap.call_it(nick, _spawned.task_id);
  end if;
  return concat_ws(' ', tap.nick(_spawned.task_id), case when _spawned.created then 'new' end);
end;
$$;

create function tap.params(nick text)
returns jsonb
language sql
as $$
  select params from tap.task(nick);
$$;

-- unique: a task counts while it is unfinished

select is(keyed('a', '{"unique": {"key": "k"}}', '1'), 'a new', 'the first spawn with a key creates a task');
select is(keyed('b', '{"unique": {"key": "k"}}', '2'), 'a', 'the next returns it, also for other params');
select is(params('a'), '1', 'and does not change it');
select is(keyed('c', '{"unique": {"key": "K"}}'), 'c new', 'another key is for another task');
select is(keyed('d', '{"unique": {"key": "k"}}', '1', 'other-job'), 'd new', 'so is the key of another name');
select is(keyed('e', '{"throttle": {"key": "k", "period": 1}}'), 'e new', 'and that of another option');
select is((durable.spawn('other', 'job', '1', '{"unique": {"key": "k"}}')).created, true, 'and of another queue');
select claimed('a') \g /dev/null
select is(keyed('b', '{"unique": {"key": "k"}}'), 'a', 'a running task counts');
select sleeping('a', 10) \g /dev/null
select is(keyed('b', '{"unique": {"key": "k"}}'), 'a', 'a sleeping one too');
select move_to(10), claimed('a'), failed('a', '{"retryable": true}') \g /dev/null
select is(keyed('b', '{"unique": {"key": "k"}}'), 'a', 'and one between two attempts');
select move_to(20), claimed('a') \g /dev/null
select results_eq(
  $$ select attempt, run_id from durable.spawn('q', 'job', '1', '{"unique": {"key": "k"}}') $$,
  $$ values (2, durable._run_id(id('a'), 2)) $$, 'it is returned with its current attempt');
select completed('a') \g /dev/null
select is(keyed('b', '{"unique": {"key": "k"}}'), 'b new', 'a completed task does not count');
select durable.cancel_task('q', id('b')) \g /dev/null
select is(keyed('f', '{"unique": {"key": "k"}, "max_attempts": 1}'), 'f new', 'nor does a cancelled one');
select claimed('f'), failed('f') \g /dev/null
select is(keyed('g', '{"unique": {"key": "k"}}'), 'g new', 'nor a failed one');
select is(detail, '{"unique": "k"}', 'a task''s history shows its key')
from durable.task_history('q', id('g')) where kind = 'spawned';

select throws_ok($$ select keyed('h', '{"unique": {"key": "k", "on_conflict": "reject"}}') $$, 'WFCON',
  format('unique key "k" belongs to task %s of queue "q"', id('g')), 'reject refuses the spawn');
select is(keyed('h', '{"unique": {"key": "new", "on_conflict": "reject"}}'), 'h new', 'of a key that is taken');

-- on_conflict replace

select move_to(100) \g /dev/null
select is(
  keyed('r', '{"unique": {"key": "r", "on_conflict": "replace"}, "headers": {"h": 1}, "start_timeout": 5}', '1'),
  'r new', 'replace creates a task, too');
select move_to(101) \g /dev/null
select is(
  keyed('s', '{"unique": {"key": "r", "on_conflict": "replace"}, "delay": 100, "max_attempts": 2,
    "retry": {"kind": "none"}, "execution_timeout": 7, "start_timeout": 9, "deadline": "2031-01-01T00:00:00Z"}', '2'),
  'r', 'or returns the one that has the key');
select results_eq(
  $$ select params, headers, max_attempts, retry ->> 'kind', execution_timeout, spawned_at, available_at,
       expires_at, deadline, state::text
     from task('r') $$,
  $$ values ('2'::jsonb, null::jsonb, 2, 'none', 7::double precision, at(100), at(201), at(210),
       timestamptz '2031-01-01 00:00:00+00', 'pending') $$,
  'whose params, options and time are replaced');
select is(keyed('s', '{"unique": {"key": "r", "on_conflict": "return"}}', '3'), 'r', 'another spawn with the key');
select is(params('r'), '2', 'decides for itself');
select is(keyed('s', '{"unique": {"key": "r", "on_conflict": "replace"}}', '3'), 'r', 'a task that was not delayed');
select is((task('r')).available_at, at(101), 'may start at once');
select claimed('r') \g /dev/null
select is(keyed('s', '{"unique": {"key": "r", "on_conflict": "replace"}}', '4'), 'r', 'a task that has started');
select released('r') \g /dev/null
select is(keyed('s', '{"unique": {"key": "r", "on_conflict": "replace"}}', '5'), 'r', 'or was released since');
select is(params('r'), '3', 'keeps its params');
select durable.cancel_task('q', id('r')) \g /dev/null
select is(keyed('s', '{"unique": {"key": "r", "on_conflict": "replace"}}', '6'), 's new', 'one that has ended is not replaced');
select durable.announce_definitions('q', '[{"task": "known", "options": {"max_attempts": 9, "start_timeout": 3}}]')
\g /dev/null
select keyed('known', '{"unique": {"key": "k", "on_conflict": "replace"}, "max_attempts": 1}', '1', 'known') \g /dev/null
select keyed('known', '{"unique": {"key": "k", "on_conflict": "replace"}}', '2', 'known') \g /dev/null
select results_eq($$ select max_attempts, expires_at from task('known') $$, $$ values (9, at(104)) $$,
  'omitted options come from the definition');

-- throttle: a task counts for a period

select move_to(200) \g /dev/null
select is(keyed('t', '{"throttle": {"key": "t", "period": 60}}'), 't new', 'throttle creates a task');
select claimed('t'), completed('t'), move_to(259.9) \g /dev/null
select is(keyed('u', '{"throttle": {"key": "t", "period": 60}}'), 't', 'and returns it within the period, though it has ended');
select move_to(260) \g /dev/null
select is(keyed('u', '{"throttle": {"key": "t", "period": 61}}'), 't', 'the period of the call counts');
select is(keyed('u', '{"throttle": {"key": "t", "period": 60}}'), 'u new', 'then creates another');
select is(keyed('v', '{"throttle": {"key": "t", "period": 60}}'), 'u', 'from which the next period counts');
select move_to(320) \g /dev/null
select is(keyed('v', '{"throttle": {"key": "t", "period": 60}}'), 'v new', 'also if it has not started yet');

-- debounce: a task counts until it starts

select move_to(1000) \g /dev/null
select is(keyed('x', '{"debounce": {"key": "x", "delay": 10, "max_wait": 25}}', '1'), 'x new', 'debounce creates a task');
select is((task('x')).available_at, at(1010), 'that starts after the delay');
select move_to(1009) \g /dev/null
select is(keyed('y', '{"debounce": {"key": "x", "delay": 10, "max_wait": 25}}', '2'), 'x', 'and returns it until it starts');
select is((task('x')).available_at, at(1019), 'postponed by the delay');
select move_to(1018) \g /dev/null
select is(keyed('y', '{"debounce": {"key": "x", "delay": 10, "max_wait": 25}}', '3'), 'x', 'again');
select is((task('x')).available_at, at(1025), 'but no longer than max_wait after the first');
select move_to(1026) \g /dev/null
select is(keyed('y', '{"debounce": {"key": "x", "delay": 10, "max_wait": 25}}', '4'), 'x', 'also if that has passed');
select is(params('x'), '4', 'with the last params');
select claimed('x') \g /dev/null
select is(keyed('y', '{"debounce": {"key": "x", "delay": 10}}', '5'), 'y new', 'once it has started there is another');
select is(params('x'), '4', 'and its params stay');
select durable.cancel_task('q', id('y')) \g /dev/null
select is(keyed('z', '{"debounce": {"key": "x", "delay": 10}}'), 'z new', 'a cancelled task does not count');
select move_to(9999), keyed('-', '{"debounce": {"key": "x", "delay": 10}}') \g /dev/null
select is((task('z')).available_at, at(10009), 'without max_wait it may wait for ever');
select keyed('w', '{"debounce": {"key": "w", "delay": 10, "max_wait": 5}}') \g /dev/null
select is((task('w')).available_at, at(10004), 'max_wait bounds the first wait, too');

-- many: each element as by a call of its own, in order

create temp table many as
select task_id, created, ordinality as place
from durable.spawn_many('q', '[
  {"task": "m", "params": 1, "options": {"unique": {"key": "b"}}},
  {"task": "m", "params": 2, "options": {"unique": {"key": "a"}}},
  {"task": "m", "params": 3, "options": {"unique": {"key": "b", "on_conflict": "replace"}}},
  {"task": "m", "params": 4},
  {"task": "m", "params": 5, "options": {"debounce": {"key": "b", "delay": 60}}},
  {"task": "m", "params": 6, "options": {"debounce": {"key": "b", "delay": 90}}},
  {"task": "m", "params": 7, "options": {"throttle": {"key": "b", "period": 60}}},
  {"task": "m", "params": 8, "options": {"throttle": {"key": "b", "period": 60}}},
  {"task": "m", "params": 9, "options": {"idempotency_key": "b"}}
]') with ordinality;
select results_eq(
  $$ select created, params, available_at from many join durable.tasks using (task_id) order by place $$,
  $$ values (true, '3'::jsonb, at(9999)), (true, '2', at(9999)), (false, '3', at(9999)), (true, '4', at(9999)),
     (true, '6', at(10089)), (false, '6', at(10089)), (true, '7', at(9999)), (false, '7', at(9999)), (true, '9', at(9999)) $$,
  'spawn_many() does what as many calls would');
select throws_ok(
  $$ select durable.spawn_many('q', '[{"task": "n"}, {"task": "n", "options": {"unique": {"key": "n"}}},
       {"task": "n", "options": {"unique": {"key": "n", "on_conflict": "reject"}}}]') $$,
  'WFCON', null, 'a rejected element refuses the whole call');
select is_empty($$ select from durable.tasks where name = 'n' $$, 'which leaves no task');
select is_empty($$ select from durable.unique_keys where name = 'n' $$, 'and no key');

-- refusals

select started('p'), everything() as before \gset
select throws_ok(format('select durable.%s', call), code, null, format('%s refuses %s', split_part(call, '(', 1), what))
from (
  select format('spawn(%L, %L, %L, %L)', 'q', 'job', '{}', options), '22023', options::text
  from (values
    ('{"unique": "k"}'::jsonb), ('{"unique": {}}'), ('{"unique": {"key": null}}'), ('{"unique": {"key": 7}}'),
    ('{"unique": {"key": ""}}'), ('{"unique": {"key": "k", "on_conflict": "fail"}}'), ('{"unique": {"key": "k", "period": 1}}'),
    ('{"throttle": {"key": "k"}}'), ('{"throttle": {"key": "k", "period": -1}}'), ('{"throttle": {"period": 1}}'),
    ('{"debounce": {"key": "k"}}'), ('{"debounce": {"key": "k", "max_wait": 1}}'),
    ('{"debounce": {"key": "k", "delay": "1"}}'), ('{"debounce": {"key": "k", "delay": 1}, "delay": 1}'),
    ('{"debounce": {"key": "k", "delay": 1}, "run_at": "2031-01-01T00:00:00Z"}'),
    ('{"unique": {"key": "k"}, "idempotency_key": "k"}'), ('{"unique": {"key": "k"}, "throttle": {"key": "k", "period": 1}}'),
    (jsonb_build_object('unique', '{"key": "k"}'::jsonb, 'parent_task_id', id('p')))
  ) as bad (options)
  union all
  select format('spawn_children(%L, %L, 1, %L)', 'q', id('p'),
    '[{"name": "$c", "task": "c", "options": {"throttle": {"key": "k", "period": 1}}}]'), '22023', 'a throttled child'
  union all
  select format('fork_task(%L, %L, %L)', 'q', id('p'), '{"unique": {"key": "k"}}'), '22023', 'a unique fork'
  union all
  select format('spawn(%L, %L, %L, %L)', 'nowhere', 'job', '{}', '{"unique": {"key": "k"}}'), 'WFQUE', 'an unknown queue'
) as refused (call, code, what);
select is(everything(), :'before', 'a refused call leaves no trace');
select is(keyed('null', '{"unique": null, "throttle": null, "debounce": null, "idempotency_key": "null"}'), 'null new',
  'an option that is null is not given');

-- retries: a task gets its key back, unless a later one is unfinished

select keyed('1', '{"unique": {"key": "u"}}'), durable.cancel_task('q', id('1')) \g /dev/null
select is((durable.retry_task('q', id('1'))).attempt, 2, 'retry_task() retries a task whose key nobody took');
select is(keyed('2', '{"unique": {"key": "u"}}'), '1', 'which counts again');
select durable.cancel_task('q', id('1')), keyed('2', '{"unique": {"key": "u"}}') \g /dev/null
select throws_ok(format('select durable.retry_task(%L, %L)', 'q', id('1')), 'WFCON',
  format('unique key "u" belongs to task %s of queue "q"', id('2')), 'it refuses one whose key an unfinished task has');
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('1')))).tasks, 0, 'retry_tasks() leaves it');
select is((durable.retry_task('q', id('1'), '{"spawn_new": true}')).created, true, 'a new task in its place has no key');
select durable.cancel_task('q', id('2')) \g /dev/null
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('1')))).tasks, 0,
  'retry_tasks() leaves it, though the later one has ended');
select is((durable.retry_task('q', id('1'))).attempt, 3, 'retry_task() gives it the key back');
select is(keyed('3', '{"unique": {"key": "u"}}'), '1', 'so that it counts');
select throws_ok(format('select durable.retry_task(%L, %L)', 'q', id('2')), 'WFCON', null, 'and not the later one');
select durable.cancel_task('q', id('1')) \g /dev/null
select is((durable.retry_tasks('q', jsonb_build_object('task_ids', ids('1')))).tasks, 1,
  'retry_tasks() retries the last task that had the key');
select claimed('1'), completed('1') \g /dev/null
select throws_ok(format('select durable.retry_task(%L, %L)', 'q', id('1')), 'WFFIN', null,
  'a completed task is still refused');

-- deletion: a key stays as long as its task

select keyed('4', '{"unique": {"key": "o"}}'), durable.cancel_task('q', id('4')),
  keyed('5', '{"unique": {"key": "o"}}') \g /dev/null
select is((durable.delete_tasks('q', jsonb_build_object('task_ids', ids('4')))).tasks, 1, 'a task is deleted');
select is(keyed('6', '{"unique": {"key": "o"}}'), '5', 'but not the key that a later one has');
select durable.cancel_task('q', id('5')), durable.create_queue('q', '{"keep_tasks": 60}'), move_to(11000) \g /dev/null
select cmp_ok(durable.cleanup('q'), '>', 1, 'cleanup() deletes finished tasks');
select is_empty(
  $$ select from durable.unique_keys
     where queue = 'q' and not exists (
       select from durable.tasks where tasks.queue = 'q' and tasks.task_id = unique_keys.task_id) $$,
  'with their keys');
select is(keyed('7', '{"throttle": {"key": "t", "period": 1e9}}'), 'v', 'a task that is kept counts');
select durable.drop_queue('q') \g /dev/null
select is_empty($$ select from durable.unique_keys where queue = 'q' $$, 'drop_queue() deletes all keys');

-- beside the limits of a queue

select durable.create_queue('lim', '{"priorities": true}'), durable.create_queue('full', '{"max_length": 1}') \g /dev/null
select durable.spawn('lim', 'job', '1', '{"unique": {"key": "k", "on_conflict": "replace"}, "partition_key": "a"}'),
  durable.spawn('lim', 'job', '2', '{"unique": {"key": "k", "on_conflict": "replace"}, "partition_key": "b", "priority": 7}'),
  durable.spawn('full', 'job') \g /dev/null
select is((select format('%s %s %s', params, partition_key, priority) from durable.tasks where queue = 'lim'), '2 b 7',
  'a task that is replaced gets the partition and priority of the new one');
select is((select params from durable.claim_tasks('lim', 'worker', array['job'])), '2', 'and is found in its new lane');
select throws_ok(format('select durable.spawn(%L, %L, %L, %L)', 'full', 'job', '{}', options), 'WFFUL', null,
  format('a full queue takes no %s', options))
from unnest(array['{"unique": {"key": "k"}}', '{"debounce": {"key": "k", "delay": 9}}']) as given (options);

select * from finish();
rollback;
