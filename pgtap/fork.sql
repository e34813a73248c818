begin;
\ir _setup.sql
select plan(47);

-- Checkpoints as a worker saves them: name, position, after, and when.
create function tap.called(nick text, name text, "position" integer, after integer, state text default 'done')
returns text
language sql
as $$
  select string_agg(outcome, ' ')
  from durable.save_checkpoints('q', held(nick, jsonb_build_object(
    'name', name, 'position', "position", 'after', after, 'state', state, 'value', name)));
$$;

create function tap.forked(nick text, fork text, options jsonb default '{}')
returns text
language sql
as $$
  select history(fork) from (
    select call_it(fork, (durable.fork_task('q', id(nick), options)).task_id)) as forked (task_id);
$$;

create function tap.kept(nick text, options jsonb)
returns text
language plpgsql
as $$
declare
  _fork uuid := (durable.fork_task('q', id(nick), options)).task_id;
begin
  return (
    select string_agg(name, ' ' order by position, name) from durable.checkpoints where task_id = _fork);
end;
$$;

-- sequential calls

select started('a', '{"max_attempts": 7, "retry": {"kind": "none"}, "execution_timeout": 9, "headers": {"h": 1},
  "idempotency_key": "k"}') \g /dev/null
select called('a', 'one', 1, 0), move_to(1), called('a', 'two', 2, 1), move_to(2),
  called('a', 'three', 3, 2) \g /dev/null
select failed('a') \g /dev/null
select set_config('test.before', everything(), true) \g /dev/null

select throws_ok(format('select durable.fork_task(%L, %L, %L)', queue, task_id, options), code, message,
  format('fork_task() refuses %s', what))
from (values
  ('nowhere', id('a'), '{}', 'WFQUE', null, 'an unknown queue'),
  ('q', id('a'), '{"queue": "nowhere"}', 'WFQUE', null, 'to fork into an unknown queue'),
  ('other', id('a'), '{}', 'WFNFD', null, 'a task of another queue'),
  ('q', gen_random_uuid(), '{}', 'WFNFD', null, 'an unknown task'),
  ('q', id('a'), null, '22023', null, 'no options'),
  ('q', id('a'), '{"befor": "two"}', '22023', null, 'an unknown option'),
  ('q', id('a'), '{"before": "tw"}', '22023', 'no checkpoint "tw"', 'a step there is not'),
  ('q', id('a'), '{"before": 2}', '22023', null, 'a name that is no text'),
  ('q', id('a'), '{"before": "two", "after": "one"}', '22023', null, 'two places'),
  ('q', id('a'), '{"position": 9}', '22023', 'no checkpoint at position 9', 'a position there is not'),
  ('q', id('a'), '{"position": 1.5}', '22023', null, 'half a position'),
  ('q', id('a'), '{"position": null}', '22023', null, 'a position that is null'),
  ('q', id('a'), format('{"parent_task_id": "%s"}', id('a')), '22023', null, 'a parent'),
  ('q', id('a'), '{"max_attempts": 0}', '22023', null, 'options that spawn refuses')
) as refused (queue, task_id, options, code, message, what);
select is(everything(), current_setting('test.before'), 'a call that fork_task() refuses leaves no trace');

select is(forked('a', 'f'), 'one done "one", three done "three", two done "two"',
  'a fork begins at the current point of the original');
select results_eq(
  $$ select name collate "default", params, max_attempts, execution_timeout, retry, headers, idempotency_key, parent_task_id,
       state::text, attempt
     from durable.tasks where task_id = id('f') $$,
  $$ select 'job'::text, '{}'::jsonb, 7, 9::float8, '{"kind": "none"}'::jsonb,
       jsonb_build_object('h', 1, 'durable:forked_from', jsonb_build_object('task_id', id('a'),
         'by', '{"user": "postgres"}'::jsonb)),
       null collate "C", null::uuid, 'pending', 1 $$,
  'with its name, params and options, and a header that names the original');
select is(states('a'), 'failed', 'the original is unchanged');
select is(kept('a', '{"before": "three"}'), 'one two', 'before a step: the steps before it');
select is(kept('a', '{"before": "one"}'), null, 'before the first: none');
select is(kept('a', '{"after": "two"}'), 'one two', 'after a step: with it');
select is(kept('a', '{"position": 2}'), 'one', 'at a position: the steps before it');
select forked('a', 'g', '{"before": "two", "params": {"p": 2}, "headers": {"i": 2}, "max_attempts": null,
  "queue": "other"}') \g /dev/null
select results_eq(
  $$ select queue collate "default", params, max_attempts, headers - 'durable:forked_from'
     from durable.tasks where task_id = id('g') $$,
  $$ values ('other'::text, '{"p": 2}'::jsonb, null::integer, '{"h": 1, "i": 2}'::jsonb) $$,
  'params, options and queue can be replaced');
select is((task('g')).headers -> 'durable:forked_from' #- '{by}', jsonb_build_object('queue', 'q', 'task_id', id('a')),
  'then the header has the queue, too');
select is((select queue::text from durable.checkpoints where task_id = id('g')), 'other',
  'its checkpoints are copied');

select claimed('f') \g /dev/null
select cmp_ok(claim('f'), '>', 1, 'the first claim of a fork loads the copied checkpoints');
select is((select count(*) from durable.load_checkpoints('q', held('f'))), 3::bigint, 'which are all of them');
select called('f', 'four', 4, 3) \g /dev/null
select is(kept('f', '{"before": "four"}'), 'one two three', 'a fork can be forked');
select is(kept('f', '{"before": "two"}'), 'one', 'also before a copied checkpoint');

select call_it('k', (durable.fork_task('q', id('a'), '{"idempotency_key": "f"}')).task_id) \g /dev/null
select results_eq($$ select task_id, created from durable.fork_task('q', id('a'), '{"idempotency_key": "f"}') $$,
  $$ values (id('k'), false) $$, 'a fork with a key is made once');

-- overlapping calls
--
--   left   one ───── two ─── three
--   right  slow ──────────────────── last

select started('b', '{"retry": {"kind": "fixed", "base_seconds": 0}}'), move_to(10), called('b', 'one', 1, 0),
  move_to(11), called('b', 'two', 3, 1), move_to(12), called('b', 'slow', 2, 0),
  move_to(13), called('b', 'three', 4, 2), move_to(14), called('b', 'last', 5, 3) \g /dev/null
select is(kept('b', '{"before": "three"}'), 'one two', 'a step that ran beside a call is not complete');
select is(kept('b', '{"before": "slow"}'), null, 'nor one that was called with it');
select is(kept('b', '{"before": "last"}'), 'one slow two', 'nor one that was called before and saved after');
select is(kept('b', '{"after": "slow"}'), 'one slow two', 'after: everything that was saved by then');
select failed('b') \g /dev/null
select claimed('b'), move_to(9), called('b', 'again', 6, 5), called('b', 'end', 7, 6) \g /dev/null
select is(kept('b', '{"before": "end"}'), 'one slow two three last again',
  'a clock that was set back changes nothing');

-- failures, waits, tries, repeated names

select started('c'), move_to(20), called('c', 'caught', 1, 0, 'failed'), called('c', 'instead', 2, 1),
  move_to(21), called('c', '$try:often:1.1', 3, 2), called('c', '$retry:often:1.1', 3, 2),
  move_to(22), called('c', 'often', 3, 2), move_to(23), called('c', 'loop', 4, 3), move_to(24),
  called('c', 'loop#2', 5, 4), awaiting('c', 'ev') \g /dev/null
select is(kept('c', '{"before": "instead"}'), 'caught', 'a failure that was caught is complete');
select is(kept('c', '{"before": "often"}'), 'caught instead', 'the tries of a step are not complete before it');
select throws_ok($$ select kept('c', '{"before": "loop"}') $$, '22023', 'there are several checkpoints "loop"',
  'if several have a name, the call must say which');
select is(kept('c', '{"before": "loop#1"}'), 'caught instead often', 'the first');
select is(kept('c', '{"before": "loop#2"}'), 'caught instead often loop', 'or the second');
select is(kept('c', '{"before": "$event:ev"}'), 'caught instead often loop loop#2', 'a fork before a wait');
select throws_ok($$ select kept('c', '{"after": "$event:ev"}') $$, '22023', null, 'which has not ended');

select call_it('h', (durable.fork_task('q', id('c'), '{"before": "loop#2"}')).task_id), claimed('h') \g /dev/null
select called('h', 'more', 5, 4) \g /dev/null
select is(kept('h', '{"before": "more"}'), 'caught instead often loop', 'a fork renumbers its checkpoints');

-- a worker that counts tries as calls

select started('o'), move_to(26), called('o', '$try:often:1.1', 1, 0), move_to(27),
  called('o', 'often', 1, 1), move_to(28), called('o', 'end', 2, 2) \g /dev/null
select call_it('p', (durable.fork_task('q', id('o'), '{"before": "end"}')).task_id), claimed('p') \g /dev/null
select called('p', 'more', 2, 1) \g /dev/null
select is(kept('p', '{"before": "more"}'), 'often', 'a fork renumbers its checkpoints, whatever the original counted');

-- a worker that does not report overlaps

select started('d'), move_to(30), saved('d', 'x'), move_to(31), saved('d', 'y'), move_to(32), saved('d', 'z') \g /dev/null
select is(kept('d', '{"before": "y"}'), 'x', 'calls without a position are taken in order');

-- partition keys and priorities

select throws_ok($$ select durable.fork_task('q', id('d'), '{"priority": 1}') $$, '22023', null,
  'a queue without limits and priorities refuses them');
select is((durable.fork_task('q', id('d'), '{"partition_key": null, "priority": null}')).created, true, 'but not none');

select * from finish();
rollback;
