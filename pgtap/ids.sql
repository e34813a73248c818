begin;
\ir _setup.sql
select plan(13);

select ok(bool_and(task_id::text ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'),
  'a task''s id is a uuid v7')
from (select (durable.spawn('q', 'job')).task_id from generate_series(1, 100)) as spawned;
select is(durable._uuid7(microseconds => 1893456000000000)::text like '01b8dac5-b400-7000-%', true,
  'it begins with the millisecond');
select is(left(durable._uuid7(1893456000000500)::text, 18), '01b8dac5-b400-7800',
  'then comes the fraction of it');
select is(left(durable._uuid7(1893456000000000, 4000)::text, 18), '01b8dac5-b401-7000',
  'a counter carries over into the time');
select is(count(distinct durable._uuid7(1893456000000000)), 1000::bigint, 'the rest is random')
from generate_series(1, 1000);
select ok(bool_and(id > before), 'ids sort in the order of their counter')
from (
  select id, lag(id) over (order by n) as before
  from (select n, durable._uuid7(1893456000000000, n) as id from generate_series(1, 5000) as n) as made
) as compared;
select ok(durable._uuid7(1893456000000001) > durable._uuid7(1893456000000000, 3),
  'ids sort in the order of their microsecond');

select is(durable._id_microseconds(at(0)), 1893456000000000, 'an id contains its time');
select is(durable._id_microseconds(at(0), durable._uuid7(1893456000000000)), 1893456000001000,
  'a child''s id comes after its parent''s, even at the same time');
select is(durable._id_microseconds(at(0), durable._uuid7(1893456009999000, 7)), 1893456010000000,
  'also if the clock was set back');
select is(durable._id_microseconds(at(9), durable._uuid7(1893456000000000)), 1893456009000000,
  'and otherwise contains its own time');

select ok(
  durable._uuid7_floor(at(0)) <= durable._uuid7(1893456000000000) and durable._uuid7(1893455999999999,
    3) < durable._uuid7_floor(at(0)),
  'the floor of a time lies between earlier ids and its own');
select is(durable._run_id(uuid '01b8dac5-b400-7000-8000-000000000000', 1),
  durable._run_id(uuid '01b8dac5-b400-7000-8000-000000000000', 1),
  'a run''s id follows from its task and attempt')
where durable._run_id(uuid '01b8dac5-b400-7000-8000-000000000000',
  1) <> durable._run_id(uuid '01b8dac5-b400-7000-8000-000000000000', 2);

select * from finish();
rollback;
