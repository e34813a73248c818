begin;
\ir ../_setup.sql
select plan(21);

select tables_are('durable', array[
  'migrations', 'queues', 'tasks', 'runs', 'checkpoints', 'events', 'waits',
    'watches', 'idempotency_keys', 'unique_keys', 'deferred_work', 'mailboxes', 'messages', 'message_keys',
    'versions', 'worker_sessions', 'audit', 'task_values', 'stream_entries', 'log_lines', 'claim_log', 'definitions',
    'cleanup_cursors', 'lanes', 'partitions', 'starts', 'schedules', 'tallies', 'metrics', 'totals',
    'samples'
], 'the tables are these');
select views_are('durable', array['attempts', 'waiting', 'workers', 'task_list', 'history'],
  'the views are these');
select enums_are('durable', array['task_state', 'run_outcome', 'checkpoint_state', 'deferred_kind', 'key_kind',
  'tally_kind'],
  'the enums are these');
select enum_has_labels('durable', 'task_state',
  array['pending', 'running', 'sleeping', 'completed', 'failed', 'cancelled'],
    'a task has these states');
select sequences_are('durable', array[]::name[], 'nothing is ordered by a sequence');

create temp view relations as
select oid, relname as name, relkind, reloptions from pg_class
  where relnamespace = 'durable'::regnamespace;

select is_empty($$ select name from relations
  where relkind in ('r', 'v') and obj_description(oid, 'pg_class') is null $$,
  'every table and view has a comment');
select is_empty(
  $$ select name, attname from relations join pg_attribute on attrelid = oid
     where relkind = 'r' and attnum > 0 and not attisdropped and col_description(oid,
     attnum) is null $$,
  'so has every column');
select is_empty(
  $$ select indexrelid::regclass from pg_index join relations on relations.oid = indrelid
     where not indisprimary and obj_description(indexrelid, 'pg_class') is null $$,
  'and every index that is no primary key');
select is_empty(
  $$ select name from relations where relkind = 'r'
     and not exists (select from pg_index where indrelid = relations.oid and indisprimary) $$,
  'every table has a primary key');
select results_eq(
  $$ select indrelid::regclass::text from pg_index
     join relations on relations.oid = indrelid
     join pg_attribute on attrelid = indrelid and attnum = indkey[0]
     where attname <> 'queue' $$,
  array['durable.migrations'],
  'the queue leads every key and index of what belongs to one');
select is_empty(
  $$ select indexrelid::regclass from pg_index join relations on relations.oid = indrelid
     where indisunique and not indisprimary $$,
  'nothing is unique but primary keys');
select results_eq(
  $$ select (name || '.' || attname) collate "default" from relations
     join pg_attribute on attrelid = oid
     join pg_collation on pg_collation.oid = attcollation
     where relkind = 'r' and attnum > 0 and atttypid = 'text'::regtype and collname <> 'C' $$,
  array['migrations.name'],
  'text is compared byte by byte');
select is_empty(
  $$ select indexrelid::regclass, pg_collation.collname from pg_index
     join relations on relations.oid = indrelid
     cross join unnest(indcollation) as coll join pg_collation on pg_collation.oid = coll
     where collname <> 'C' $$,
  'in every index');
select is_empty($$ select tgname from pg_trigger join relations on relations.oid = tgrelid $$,
  'there are no triggers');
select is_empty($$ select conname from pg_constraint
  where connamespace = 'durable'::regnamespace and contype = 'f' $$,
  'there are no foreign keys');
select is_empty(
  $$ select name, attname from relations join pg_attribute on attrelid = oid
     where attidentity <> '' or attgenerated <> '' $$,
  'there are no identity and no generated columns');
select is_empty(
  $$ select indexrelid::regclass from pg_index join relations on relations.oid = indrelid
     where indexrelid::regclass <> 'durable.tasks_failed_idx'::regclass
     and (pg_get_expr(indpred, indrelid) ~ 'state' or pg_get_expr(indpred,
     indrelid) !~ '^(\(\w+ IS NOT NULL\)|\(\(version <> ''''::text\) AND \(finished_at IS NULL\)\)|\(\(\w+ IS NOT NULL\) AND \(partition_key IS (NOT )?NULL\)\)|\(\(waits_since IS NOT NULL\) AND \(turn_at IS NOT NULL\)\)|\(\(partition_key IS NOT NULL\) AND \(started_at IS NOT NULL\) AND \(finished_at IS NULL\)\))$') $$,
  'a partial index names nothing but its own nullable column, in lanes or not, live tasks that are bound to a version or have started in lanes, or failed tasks');
select ok(reloptions @> array['fillfactor=50'], 'a page of tasks has room for their later versions')
from relations where name = 'tasks';
select results_eq(
  $$ select relname::text collate "default" from pg_class
     where relnamespace = 'durable'::regnamespace and relkind = 'r' and relpersistence <> 'p' $$,
  array['tallies'], 'only tallies are unlogged, so that they cost no WAL');
select is_empty(
  $$ select conname from pg_constraint
     where connamespace = 'durable'::regnamespace and contype = 'c'
     and conname !~ '^[a-z]+_(are|have|keep|is)_' $$,
  'a constraint is a sentence');
select is_empty($$ select name from relations
  where relkind = 'r' and oid in (select inhrelid from pg_inherits) $$,
  'no table inherits from another');

select * from finish();
rollback;
