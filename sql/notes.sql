-- What must not be forgotten.
--
-- A call that finds other people's rows locked does not wait and does not give up:
-- it leaves a note that commits with it, and whoever applies the note later does
-- what was left. Outside READ COMMITTED a call cannot see what has just been
-- committed, so there it always leaves one.

create or replace function durable._leave_note(
  queue text,
  kind durable.note_kind,
  task_id uuid default null,
  event_name text default null
)
returns void
language plpgsql
as $$
declare
  _note_id uuid := durable._uuid7(durable._id_milliseconds(durable._now()));
begin
  insert into durable.notes (queue, note_id, kind, task_id, event_name)
  values (queue, _note_id, kind, task_id, event_name);
end;
$$;


-- The same once more, at the end of the line.
create or replace function durable._leave_again(note durable.notes)
returns void
language plpgsql
as $$
declare
  _note_id uuid := durable._uuid7(durable._id_milliseconds(durable._now()));
begin
  insert into durable.notes (
    queue, note_id, kind, task_id, event_name, root_queue, root_task_id, root_deadline
  )
  values (note.queue, _note_id, note.kind, note.task_id, note.event_name, note.root_queue,
    note.root_task_id, note.root_deadline);
end;
$$;


create or replace function durable._sees_the_latest()
returns boolean
language sql
stable
as $$
  select current_setting('transaction_isolation') not in ('repeatable read', 'serializable');
$$;


-- A note is deleted first and acted on then: what still cannot be had leaves a new
-- note, in the same transaction. One that cannot be applied goes to the end of the line.
create or replace function durable.apply_notes(queue text, quantity integer default 100)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  _queue text collate "C" := durable._granted(queue);
  _note durable.notes;
  _applied integer := 0;
begin
  if not durable._sees_the_latest() then
    return 0;
  end if;
  for _note in
    select *
    from durable.notes
    where notes.queue = _queue
    order by notes.note_id
    limit quantity
    for update skip locked
  loop
    delete from durable.notes where notes.queue = _queue and notes.note_id = _note.note_id;
    begin
      case _note.kind
        when 'waiter' then perform durable._reconsider(_queue, _note.task_id);
        when 'finished' then perform durable._finished(_queue, array[_note.task_id]);
        when 'event' then perform durable._wake_waiters(_queue, _note.event_name, _note.task_id, 1000);
        when 'cascade' then perform durable._cascade(_queue, _note.task_id);
        when 'ended_above', 'revived_above' then perform durable._follow(_note);
      end case;
      _applied := _applied + 1;
    exception when others then
      raise warning 'durable: the note "%" on % cannot be applied: %',
        _note.kind, coalesce(_note.event_name, _note.task_id::text), sqlerrm;
      perform durable._leave_again(_note);
    end;
  end loop;
  return _applied;
end;
$$;

comment on function durable.apply_notes is
'Does what earlier calls had to leave undone, at most quantity notes, skipping what
others are at. Returns how many were applied; does nothing outside READ COMMITTED.';
