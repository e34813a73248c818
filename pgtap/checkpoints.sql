begin;
\ir _setup.sql
select plan(49);

-- save_checkpoints

select started('a'), started('b'), move_to(7) \g /dev/null
select results_eq(
  $$ select nick(task_id), outcome from durable.save_checkpoints('q', held('a b',
       '{"name": "charge", "value": {"id": 1}, "position": 3, "after": 2, "duration_ms": 40}'))
       order by 1 $$,
  $$ values ('a', 'ok'), ('b', 'ok') $$,
  'save_checkpoints() saves for many tasks at once');
select results_eq(
  $$ select saved_at, claim, attempt, position, after, duration_ms, state::text,
     name collate "default", value::text
     from durable.checkpoints where task_id = id('a') $$,
  $$ values (at(7), 1, 1, 3, 2, 40, 'done', 'charge'::text, '{"id": 1}') $$,
  'a checkpoint has its position, its duration, and the claim that saved it');
select is((task('a')).claim, 1, 'saving does not end the claim');

select results_eq(
  $$ select outcome
     from durable.save_checkpoints('q', held('a', '{"name": "charge", "value": "other"}')) $$,
  array['ok'], 'a save whose answer was lost may be repeated');
select is(history('a'), 'charge done {"id": 1}', 'and the first write wins');

select saved('a', 'little') \g /dev/null
select results_eq(
  $$ select position, after, duration_ms, state::text, value::text from durable.checkpoints
     where name = 'little' $$,
  $$ values (0, 0, 0, 'done', 'null') $$,
  'everything but a checkpoint''s name is optional');
select durable.save_checkpoints('q',
  held('a', '{"name": "flop", "state": "failed", "value": {"type": "E"}}')) \g /dev/null
select is((select state::text from durable.checkpoints where name = 'flop'), 'failed',
  'a step may have failed');
select is_empty($$ select * from durable.save_checkpoints('q', '[]') $$, 'saving no checkpoints returns nothing');

-- values are kept exactly

create temp table exact (what, value) as values
  ('1e22',                    '1e22'),
  ('-0.0',                    '-0.0'),
  ('1.10',                    '1.10'),
  ('2^63',                    '9223372036854775808'),
  ('a long fraction',         '0.1000000000000000055511151231257827'),
  ('key order',               '{"b": 1, "a": 2}'),
  ('an empty key',            '{"": 0}'),
  ('white space',             '{ "a" :[ 1,2 ] }'),
  ('a string',                '"text"'),
  ('an empty string',         '""'),
  ('false',                   'false'),
  ('JSON null',               'null'),
  ('SQL''s quotes',           '"it''s; drop table \\ $$"'),
  ('escaped quotes',          '{"q": "\"\\\/\b\f\n\r\t"}'),
  ('an escape',               '{"e": "\u00e9"}'),
  ('Unicode',                 '{"é": "🐘 Ünïcode"}'),
  ('deep nesting',            repeat('[', 900) || repeat(']', 900)),
  ('a megabyte',              to_json(repeat('x', 1000000))::text);
select started('exact') \g /dev/null
select saved('exact', what, value::json) from exact \g /dev/null
select is(loaded.value::text, exact.value, format('%s reads back as it was written', what))
from exact
left join durable.load_checkpoints('q', held('exact')) as loaded on loaded.name = what;

-- refusals

select everything() as before \gset
select throws_ok(format('select durable.save_checkpoints(%L, held(%L, %L))', 'q', 'a', said),
  code, null,
  format('save_checkpoints() refuses %s', what))
from (values
  ('{}',                                                   '22023', 'a step without a name'),
  ('{"name": ""}',                                         '22023', 'an empty name'),
  ('{"name": "tab\t"}',                                    '22023', 'a control character in a name'),
  (jsonb_build_object('name', repeat('n', 513))::text,     '22023', 'a name of 513 bytes'),
  ('{"name": "n", "state": "maybe"}',                      '22P02', 'an unknown state')
) as refused (said, code, what);
select throws_ok(
  format($$ select durable.save_checkpoints('q',
    '[{"task_id": "%s", "claim": 1, "name": "nul", "value": %s}]') $$, id('a'), value),
  code, null, format('save_checkpoints() refuses %s', what))
from (values
  ('"\u0000"',         '22P05', 'a NUL character'),
  ('{"a": "\u0000"}',  '22P05', 'a NUL character inside'),
  ('"\ud800"',         '22P02', 'a lone surrogate'),
  ('NaN',              '22P02', 'NaN')
) as refused (value, code, what);
select is(everything(), :'before', 'a refused call leaves no trace');
select is(saved('a', repeat('é', 256)), 'ok',
  'a name may have 512 bytes: 255, and the prefix and suffix of its kind');
select is(saved('a', 'it''s "quoted" \ %s 🐘'), 'ok', 'a name may contain any printable character');

-- load_checkpoints

select started('l'), saved('l', 'one', '1') \g /dev/null
select durable.save_checkpoints('q',
  held('l', '{"name": "two", "state": "failed", "position": 1, "after": 1}'))
\g /dev/null
select failed('l'), move_to(600), claimed('l') \g /dev/null
select results_eq(
  $$ select nick(task_id), name, position, after, state, value::text
     from durable.load_checkpoints('q', held('l a')) where nick(task_id) = 'l' order by position $$,
  $$ values ('l', 'one', 0, 0, 'done', '1'), ('l', 'two', 1, 1, 'failed', 'null') $$,
  'the next attempt loads the checkpoints of the last one');
select saved('l', 'three') \g /dev/null
select results_eq(
  $$ select name collate "default", attempt, claim from durable.checkpoints where task_id = id('l')
     order by 1 $$,
  $$ values ('one'::text, 1, 1), ('three', 2, 3), ('two', 1, 1) $$,
  'a checkpoint keeps the attempt that saved it');
select is_empty($$ select * from durable.load_checkpoints('other', held('l')) $$,
  'load_checkpoints() sees no other queue');
select is_empty($$ select * from durable.load_checkpoints('q', '[]') $$, 'loading for no tasks returns nothing');

-- lock_task

select started('h'), saved('h', 'one', '1') \g /dev/null
select everything() as before \gset
select is((durable.lock_task('q', id('h'), 1, 'two')).state, null,
  'lock_task() returns nulls for a checkpoint that does not exist');
select results_eq(
  $$ select nick(task_id), name, state, value::text from durable.lock_task('q', id('h'), 1, 'one') $$,
  $$ values ('h', 'one', 'done', '1') $$,
  'and returns one that a lost transaction may have saved');
select is(everything(), :'before', 'it only locks');
select throws_ok(format($$ select durable.lock_task('q', %L, %s, 'one') $$, id('h'), claim), 'WFLST', null,
  format('it refuses claim %s', claim))
from (values (2), (3)) as refused (claim);
select throws_ok(format($$ select durable.lock_task('other', %L, 1, 'one') $$, id('h')), 'WFLST', null,
  'and a task of another queue');
select durable.cancel_task('q', id('h')) \g /dev/null
select throws_ok(format($$ select durable.lock_task('q', %L, 1, 'one') $$, id('h')), 'WFCAN', null,
  'and one that was cancelled');

select * from finish();
rollback;
