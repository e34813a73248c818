begin;
\ir _setup.sql
select plan(17);

-- tasks

select spawned('a', '{"partition_key": null, "headers": {"h": 1}}'), spawned('b') \g /dev/null
select is(durable.find_task(id('a')), 'q', 'find_task() returns the queue of a task');
select is(durable.find_task('00000000-0000-0000-0000-000000000000'), null, 'or null');
select is(durable.get_task('q', id('a')) is not distinct from durable.get_task('q', id('b')), false,
  'get_task() returns a task');
select is((durable.get_task('q', id('a'))).state, 'pending', 'with its state');
select is((durable.get_task('q', id('a'))).headers, '{"h": 1}', 'its headers');
select is((durable.get_task('q', id('a'))).result, null, 'no result');
select claimed('a'), completed('a') \g /dev/null
select is((durable.get_task('q', id('a'))).result, 'null', 'until it has one');
select throws_ok($$ select durable.get_task('q', '00000000-0000-0000-0000-000000000000') $$, 'WFNFD', null,
  'get_task() refuses an unknown task');
create role durable_tap_eve;
grant usage on schema durable, tap to durable_tap_eve;
grant select on tap.nicknames to durable_tap_eve;
grant execute on function durable.find_task to durable_tap_eve;
select durable.create_queue('q', '{"roles": ["postgres"]}') \g /dev/null
set local role durable_tap_eve;
select is(durable.find_task(id('a')), null, 'find_task() does not look into the queues of others');
reset role;

-- events

create function tap.events(prefix text, page_size integer default 9, after text default null, waited_for boolean default false)
returns text
language sql
as $$
  select string_agg(concat_ws(' ', name, payload, nullif(waiting, 0)), ', ' order by place)
  from durable.list_events('q', prefix, page_size, after, waited_for) with ordinality
    as event (name, emitted_at, payload, waiting, place);
$$;

select claimed('b'), completed('b') \g /dev/null
select started('w'), started('v'), awaiting('w', 'b:2'), awaiting('v', 'b:2') \g /dev/null
select durable.emit_event('q', 'a', '1'), durable.emit_event('q', 'b:1', '2'), durable.emit_event('q', 'c', '3') \g /dev/null
select is(events(''), 'a 1, b:1 2, b:2 2, c 3', 'list_events() returns events by name, and how many tasks wait');
select is(events('', 2, 'a'), 'b:1 2, b:2 2', 'page by page');
select is(events('b:'), 'b:1 2, b:2 2', 'those with a prefix');
select is(events('b:', after => 'b:1'), 'b:2 2', 'of these the next page');
select is(events('', waited_for => true), 'b:2 2', 'or those that tasks wait for');
select is(events('', waited_for => true, after => 'b:2'), null, 'page by page too');

-- what is published

select started('p'), durable.publish('q', held('p', '{"sets": [{"key": "k", "value": 1, "times": 1}],
  "entries": [{"stream": "s", "number": 0, "source": "$stream:s", "value": 1}, {"stream": "s", "number": 1, "source": "$stream:s", "value": 2},
    {"stream": "t", "number": 0, "source": "$stream:t", "closes": true}]}')) \g /dev/null
select results_eq(
  $$ select kind, name, entries, closed from durable.list_published('q', id('p')) $$,
  $$ values ('value', 'k', null::integer, null::boolean), ('stream', 's', 2, false), ('stream', 't', 0, true) $$,
  'list_published() returns keys and streams');
select throws_ok($$ select durable.list_published('q', '00000000-0000-0000-0000-000000000000') $$, 'WFNFD', null,
  'of a known task');

select * from finish();
rollback;
