create table durable.task_values (
  task_id uuid             not null,
  set_at  timestamptz      not null,
  times   integer          not null,
  queue   text collate "C" not null,
  key     text collate "C" not null,
  value   json             not null,
  primary key (queue, task_id, key)
) with (fillfactor = 70);

comment on table  durable.task_values         is 'What tasks say of themselves to whoever asks: of each value the last that was set.';
comment on column durable.task_values.task_id is 'The task.';
comment on column durable.task_values.set_at  is 'When it was set.';
comment on column durable.task_values.times   is 'How often the task''s own code had set it: a replay passes over as many.';
comment on column durable.task_values.queue   is 'The task''s queue.';
comment on column durable.task_values.key     is 'Its name, at most 512 bytes.';
comment on column durable.task_values.value   is 'The value, exactly as written.';


create table durable.stream_entries (
  task_id    uuid             not null,
  written_at timestamptz      not null,
  number     integer          not null,
  claim      integer          not null,
  attempt    integer          not null,
  restarted  boolean          not null,
  queue      text collate "C" not null,
  stream     text collate "C" not null,
  source     text collate "C" not null,
  value      json,
  primary key (queue, task_id, stream, number)
);

comment on table  durable.stream_entries            is 'What tasks write for whoever follows them: appended, never changed.';
comment on column durable.stream_entries.task_id    is 'The task.';
comment on column durable.stream_entries.written_at is 'When it was saved.';
comment on column durable.stream_entries.number     is 'Its place in its stream, from 0 upwards.';
comment on column durable.stream_entries.claim      is 'The claim that wrote it: the same claim may say so again.';
comment on column durable.stream_entries.attempt    is 'The attempt that wrote it.';
comment on column durable.stream_entries.restarted  is 'Whether the step that wrote it has begun again, so that what it wrote before is void.';
comment on column durable.stream_entries.queue      is 'The task''s queue.';
comment on column durable.stream_entries.stream     is 'The stream''s name, at most 255 bytes.';
comment on column durable.stream_entries.source     is 'The step whose function wrote it; $stream: and a name, if it was the task''s own code.';
comment on column durable.stream_entries.value      is 'The value, exactly as written; null closes the stream.';


create table durable.log_lines (
  task_id   uuid             not null,
  logged_at timestamptz      not null,
  number    integer          not null,
  claim     integer          not null,
  attempt   integer          not null,
  level     integer          not null,
  queue     text collate "C" not null,
  logger    text collate "C" not null,
  step      text collate "C",
  message   text collate "C" not null,
  primary key (queue, task_id, number)
);

comment on table  durable.log_lines           is 'What tasks have logged.';
comment on column durable.log_lines.task_id   is 'The task.';
comment on column durable.log_lines.logged_at is 'When it was logged, by its worker''s reckoning of the database''s clock.';
comment on column durable.log_lines.number    is 'Its place among the task''s lines, from 0.';
comment on column durable.log_lines.claim     is 'The claim that logged it: the same claim may say so again.';
comment on column durable.log_lines.attempt   is 'The attempt that logged it.';
comment on column durable.log_lines.level     is 'How grave it is: 10 for debug, 20 info, 30 warning, 40 error, 50 critical.';
comment on column durable.log_lines.queue     is 'The task''s queue.';
comment on column durable.log_lines.logger    is 'Who said so.';
comment on column durable.log_lines.step      is 'In which step; null: between steps.';
comment on column durable.log_lines.message   is 'What was said, with the traceback if there was one.';

create type durable.publication as (
  kind   text,
  name   text,
  source text,
  times  integer,
  next   integer
);

comment on type durable.publication is
'How much of something a task has published: kind is stream, value or log; times is how
often, from one source if it is a stream; next is the number that comes next.';

create type durable.published_value as (
  state  text,
  value  json,
  set_at timestamptz
);

comment on type durable.published_value is
'Where a task stands, and a value that it has set; without one, nulls.';

create type durable.stream_entry as (
  state      text,
  number     integer,
  value      json,
  closes     boolean,
  step       text,
  attempt    integer,
  restarted  boolean,
  written_at timestamptz
);

comment on type durable.stream_entry is
'Where a task stands, and an entry of one of its streams; if there is none, nulls.';

create type durable.log_line as (
  state     text,
  number    integer,
  logged_at timestamptz,
  level     integer,
  logger    text,
  step      text,
  attempt   integer,
  message   text
);

comment on type durable.log_line is
'Where a task stands, and a line that it has logged; if there is none, nulls.';
