-- Reads what tasks publish: values, streams and log lines.
--
-- Each call reads in one snapshot the state of the task and what it had published by then.
-- Once the state is final, nothing more will follow.

create or replace function durable.get_value(queue text, task_id uuid, key text)
returns setof durable.published_value language plpgsql stable as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
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
'Returns the last value that a task has set under a key, with the state of the task. Without a
value its columns are null; no row if the task does not exist (or has not committed yet).';

create or replace function durable.get_stream(
  queue text, task_id uuid, stream text, start integer default 0, page_size integer default 1000
) returns setof durable.stream_entry language plpgsql stable as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
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
      limit page_size
    ) as entry on true;
end;
$$;

comment on function durable.get_stream is
'Returns the entries of a task''s stream in order, from the number start (0 is the first), at
most page_size, each with the state of the task. The stream is complete if a finished task has
fewer than page_size entries, or after an entry with closes. Without entries there is one row
with the state alone; no row if the task does not exist (or has not committed yet). step: the
step whose function wrote the entry. restarted: that step had to start again, and the entries
it wrote before are void.';

create or replace function durable.get_log_lines(
  queue text, task_id uuid, start integer default 0, page_size integer default 1000
) returns setof durable.log_line language plpgsql stable as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
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
      limit page_size
    ) as line on true;
end;
$$;

comment on function durable.get_log_lines is
'Returns the lines that a task has logged, in order, from the number start (0 is the first),
at most page_size, each with the state of the task. Without lines there is one row with the
state alone; no row if the task does not exist (or has not committed yet).';
