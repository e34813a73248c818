begin;
\ir _setup.sql
select plan(20);

-- What a task publishes: {"sets", "entries", "lines"}.
create function pg_temp.published(nick text, said jsonb, completions json default null)
returns text
language sql
as $$
  select coalesce(string_agg(outcome, ' '), '')
  from durable.publish('q', tap.held(nick, said), null, completions);
$$;

create function pg_temp.entry(number integer, value text, source text default null, restarted boolean default false)
returns jsonb
language sql
as $$
  select jsonb_build_object('stream', 'news', 'number', number, 'value', value, 'source', source,
    'restarted', restarted);
$$;

create function pg_temp.entries(nick text)
returns text
language sql
as $$
  select coalesce(string_agg(
    concat_ws(' ', number, value, source, case when restarted then 'restarted' end), ', '
      order by number), '')
  from durable.stream_entries where task_id = tap.id(nick);
$$;

create function pg_temp.line(number integer, message text)
returns jsonb
language sql
as $$
  select jsonb_build_object('number', number, 'at', tap.at(1), 'level', 20, 'logger', 'x', 'message', message);
$$;

-- publish()

select started('a') \g /dev/null
select is(pg_temp.published('a', jsonb_build_object('entries', jsonb_build_array(
    pg_temp.entry(0, 'first'), pg_temp.entry(1, 'second', 'step', true)))), '',
  'publish() returns nothing if all is published');
select is(pg_temp.entries('a'), '0 "first" $stream:news, 1 "second" step restarted',
  'an entry is kept under its number');
select is(pg_temp.published('a', jsonb_build_object('entries', jsonb_build_array(
    pg_temp.entry(1, 'again'), pg_temp.entry(2, 'third')))), '', 'a number may be published again');
select is(pg_temp.entries('a'), '0 "first" $stream:news, 1 "second" step restarted, 2 "third" $stream:news',
  'and is then skipped');
select pg_temp.published('a', '{"sets": [{"key": "k", "value": 1, "times": 1}]}'),
  pg_temp.published('a', '{"sets": [{"key": "k", "value": null, "times": 2}]}') \g /dev/null
select results_eq(format('select value::text, times, set_at from durable.task_values where task_id = %L', id('a')),
  $$ values ('null', 2, tap.at(0)) $$, 'the last value of a key is kept; JSON null is a value');
select pg_temp.published('a', '{"sets": [{"key": "k", "value": 1, "times": 1}]}') \g /dev/null
select is(value::text, 'null', 'a call that is repeated after a later one does not set the value back')
from durable.task_values where task_id = id('a');
select pg_temp.published('a', jsonb_build_object('lines', jsonb_build_array(pg_temp.line(0, repeat('x', 30000))))) \g /dev/null
select is(length(message), 20001, 'of a line that is too long the end is kept')
from durable.log_lines where task_id = id('a');
select is(pg_temp.published('a', '{}'), '', 'a task may publish nothing');

select throws_ok(
  format('select durable.publish(%L, %L)', 'q', held('a', jsonb_build_object('entries', jsonb_build_array(said)))),
  '22023', null, format('%s is refused', said))
from (values
  ('{"stream": "", "number": 5, "value": 1}'::jsonb),
  (jsonb_build_object('stream', repeat('x', 256), 'number', 5, 'value', 1))
) as bad (said);
select throws_ok(
  format('select durable.publish(%L, %L)', 'q', held('a', '{"sets": [{"key": "", "value": 1}]}')),
  '22023', null, 'so is a value without a name');

-- the fence

select started('gone'), durable.cancel_task('q', id('gone')) \g /dev/null
select is(pg_temp.published('gone', jsonb_build_object('entries', jsonb_build_array(pg_temp.entry(0, 'late')))),
  'cancelled', 'a claim that has ended publishes nothing');
select is(pg_temp.published('a gone', jsonb_build_object('entries', jsonb_build_array(pg_temp.entry(3, 'fourth')))),
  'cancelled', 'and does not affect the other tasks');
select is(pg_temp.entries('gone') || '|' || right(pg_temp.entries('a'), 23), '|3 "fourth" $stream:news',
  'whose publications are all kept');
select is(pg_temp.published('a', jsonb_build_object('entries', jsonb_build_array(pg_temp.entry(4, 'last'))),
    held('a', '{"result": 7}')), '', 'the last entries are published with the end');
select is(states('a') || ' ' || right(pg_temp.entries('a'), 21), 'completed 4 "last" $stream:news',
  'in one call');
select is(pg_temp.published('a', jsonb_build_object('entries', jsonb_build_array(pg_temp.entry(4, 'last'))),
    held('a', '{"result": 7}')), '', 'which may be repeated');

-- load_published()

select started('b') \g /dev/null
select pg_temp.published('b', jsonb_build_object(
  'entries', jsonb_build_array(pg_temp.entry(0, 'x'), pg_temp.entry(1, 'y'), pg_temp.entry(2, 'z', 'step')),
  'sets', '[{"key": "k", "value": 1, "times": 3}]'::jsonb,
  'lines', jsonb_build_array(pg_temp.line(0, 'one'), pg_temp.line(1, 'two')))) \g /dev/null
select set_eq(format('select * from durable.load_published(%L, %L)', 'q', id('b')),
  $$ values ('stream', 'news', '$stream:news', 2, 2), ('stream', 'news', 'step', 1, 3),
       ('value', 'k', null, 3, null), ('log', null, null, 2, 2) $$,
  'load_published() counts what a task has published');
select spawned('c') \g /dev/null
select is_empty(format('select * from durable.load_published(%L, %L)', 'q', id('c')),
  'which may be nothing');

-- deletion

select durable.drop_queue('q') \g /dev/null
select is((select count(*) from durable.stream_entries) + (select count(*) from durable.task_values)
  + (select count(*) from durable.log_lines), 0::bigint, 'drop_queue() deletes what was published');

select * from finish();
rollback;
