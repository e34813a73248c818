begin;
\ir _setup.sql
select plan(13);

select started('a') \g /dev/null
select durable.publish('q', held('a', jsonb_build_object(
  'sets', '[{"key": "k", "value": null, "times": 1}, {"key": "other", "value": 7, "times": 1}]'::jsonb,
  'entries', '[{"stream": "news", "number": 0, "value": "first"},
    {"stream": "news", "number": 1, "value": null, "source": "step", "restarted": true},
    {"stream": "other", "number": 0, "value": 7}]'::jsonb,
  'lines', '[{"number": 0, "at": "2030-01-01 00:00Z", "level": 20, "logger": "x", "step": "s", "message": "one"},
    {"number": 1, "at": "2030-01-01 00:00Z", "level": 40, "logger": "x", "message": "two"}]'::jsonb))) \g /dev/null

-- get_value()

select results_eq(format('select state, value::text, set_at from durable.get_value(%L, %L, %L)', 'q', id('a'), 'k'),
  $$ values ('running', 'null', tap.at(0)) $$, 'get_value() returns a value, also JSON null');
select results_eq(format('select state, value::text, set_at from durable.get_value(%L, %L, %L)', 'q', id('a'), 'none'),
  $$ values ('running', null, null::timestamptz) $$, 'without a value, the state of the task');
select is_empty(format('select * from durable.get_value(%L, %L, %L)', 'other', id('a'), 'k'),
  'and no row for a task that does not exist');

-- get_stream()

select results_eq(
  format('select state, number, value::text, closes, step, attempt, restarted, written_at
    from durable.get_stream(%L, %L, %L)', 'q', id('a'), 'news'),
  $$ values ('running', 0, '"first"', false, null, 1, false, tap.at(0)),
       ('running', 1, 'null', false, 'step', 1, true, tap.at(0)) $$,
  'get_stream() returns one stream in order, with the step that wrote each entry');
select results_eq(format('select number from durable.get_stream(%L, %L, %L, 1)', 'q', id('a'), 'news'),
  array[1], 'from a number on');
select results_eq(format('select number from durable.get_stream(%L, %L, %L, 0, 1)', 'q', id('a'), 'news'),
  array[0], 'at most page_size');
select results_eq(
  format('select state, number, closes from durable.get_stream(%L, %L, %L, 2)', 'q', id('a'), 'news'),
  $$ values ('running', null::integer, false) $$, 'without an entry, the state of the task');
select durable.publish('q', held('a', '{"entries": [{"stream": "news", "number": 2, "closes": true}]}')) \g /dev/null
select results_eq(format('select number, closes from durable.get_stream(%L, %L, %L, 2)', 'q', id('a'), 'news'),
  $$ values (2, true) $$, 'the last entry may close it');
select is_empty(format('select * from durable.get_stream(%L, %L, %L)', 'other', id('a'), 'news'),
  'no row for a task that does not exist');

-- get_log_lines()

select results_eq(
  format('select state, number, level, logger, step, attempt, message from durable.get_log_lines(%L, %L)',
    'q', id('a')),
  $$ values ('running', 0, 20, 'x', 's', 1, 'one'), ('running', 1, 40, 'x', null, 1, 'two') $$,
  'get_log_lines() returns what a task has logged, in order');
select results_eq(format('select message from durable.get_log_lines(%L, %L, 1)', 'q', id('a')),
  array['two'], 'from a number on');
select completed('a') \g /dev/null
select results_eq(format('select state, number from durable.get_log_lines(%L, %L, 2)', 'q', id('a')),
  $$ values ('completed', null::integer) $$, 'without a line, the state of the task');
select is_empty(format('select * from durable.get_log_lines(%L, %L)', 'other', id('a')),
  'no row for a task that does not exist');

select * from finish();
rollback;
