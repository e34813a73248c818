-- What tasks publish, for whoever holds their ids.
--
-- One look is one snapshot: where a task stands, and what it had published by then. Once
-- it has ended, that is all there will be.

create or replace function durable.get_value(queue text, task_id uuid, key text)
returns setof durable.published_value
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _key text collate "C" := key;
begin
  return query
    select task.state::text, found.value, found.set_at
    from (
      select tasks.state
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = get_value.task_id
      offset 0
    ) as task
    left join lateral (
      select task_values.value, task_values.set_at
      from durable.task_values
      where task_values.queue = _queue and task_values.task_id = get_value.task_id
        and task_values.key = _key
      offset 0
    ) as found on true;
end;
$$;

comment on function durable.get_value is
'A value that a task has set: the last one, and where the task stands. Without a value
its columns are null; no row if there is no such task (or not yet).';


create or replace function durable.get_stream(
  queue text, task_id uuid, stream text, start integer default 0, quantity integer default 1000
)
returns setof durable.stream_entry
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _stream text collate "C" := stream;
begin
  return query
    select
      task.state::text, entry.number, entry.value, entry.value is null and entry.number is not null,
      case when entry.source not like '$stream:%' then entry.source::text end,
      entry.attempt, entry.restarted, entry.written_at
    from (
      select tasks.state
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = get_stream.task_id
      offset 0
    ) as task
    left join lateral (
      select *
      from durable.stream_entries
      where stream_entries.queue = _queue and stream_entries.task_id = get_stream.task_id
        and stream_entries.stream = _stream and stream_entries.number >= start
      order by stream_entries.number
      limit quantity
    ) as entry on true;
end;
$$;

comment on function durable.get_stream is
'The entries of a task''s stream in order, from the number start on, at most quantity.
Fewer of a task that is completed, failed or cancelled: that was all; so it is after an
entry that closes. Without an entry, one row that says where the task stands; no row if
there is no such task (or not yet). An entry with a step was written by that step''s
function: if it is restarted, the step had to begin again, and what it wrote before is
void.';


create or replace function durable.get_log_lines(
  queue text, task_id uuid, start integer default 0, quantity integer default 1000
)
returns setof durable.log_line
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
begin
  return query
    select
      task.state::text, line.number, line.logged_at, line.level, line.logger::text, line.step::text,
      line.attempt, line.message::text
    from (
      select tasks.state
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = get_log_lines.task_id
      offset 0
    ) as task
    left join lateral (
      select *
      from durable.log_lines
      where log_lines.queue = _queue and log_lines.task_id = get_log_lines.task_id
        and log_lines.number >= start
      order by log_lines.number
      limit quantity
    ) as line on true;
end;
$$;

comment on function durable.get_log_lines is
'What a task has logged, in order, from the number start on, at most quantity lines.
Without a line, one row that says where the task stands; no row if there is no such task
(or not yet).';
