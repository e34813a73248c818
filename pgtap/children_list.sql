begin;
\ir _setup.sql
select plan(9);

create function tap.children(nick text, page_size integer default 1000, after uuid default null)
returns text
language sql
as $$
  select string_agg(nick((child).task_id) || ' ' || child_queue, ', ')
  from durable.list_children('q', id(nick), page_size, after);
$$;

select started('p'), move_to(1), spawned_below('p', 'a'), move_to(2) \g /dev/null
select call_it('b', spawned.task_id)
from durable.spawn_children_in('q', id('p'), claim('p'), 'other',
  '[{"name": "$spawn:b", "task": "job"}]') as spawned \g /dev/null
select move_to(3), spawned_below('p', 'c'), spawned_below('a', 'below'), spawned('stranger') \g /dev/null

select is(children('p'), 'a q, b other, c q', 'children come in the order in which they were spawned, from every queue');
select is(children('p', 2), 'a q, b other', 'at most page_size at a time');
select is(children('p', 2, id('b')), 'c q', 'and the next page continues after one');
select is(children('c'), null, 'a task without children has none');
select results_eq(
  $$ select (child).* from durable.list_children('q', id('a')) $$,
  format($$ select * from durable.list_tasks('q', '{"parent_task_id": "%s"}') $$, id('a')),
  'a child is returned as in list_tasks()');

create role tap_stranger;
create role tap_owner;
grant usage on schema durable to tap_stranger;
grant execute on function durable.list_children to tap_stranger;
grant select on all tables in schema tap to tap_stranger;
update durable.queues set roles = '{tap_owner}' where queue = 'other';
set local role tap_stranger;
select is(children('p'), 'a q, c q', 'children in queues that the caller may not use are left out');
reset role;

select throws_ok($$ select durable.list_children('nowhere', id('p')) $$, 'WFQUE', null, 'the queue must exist');
select throws_ok($$ select durable.list_children('q', gen_random_uuid()) $$, 'WFNFD', null, 'and so must the task');
select throws_ok($$ select durable.list_children('q', id('p'), 0) $$, '22023', null, 'and page_size must be at least 1');

select * from finish();
rollback;
