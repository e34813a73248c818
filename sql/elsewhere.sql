-- Families that reach into other queues.
--
-- A child lives in its own queue: whoever serves that runs it. It knows its parent's
-- (parent_queue), and its parent knows into which queues it reaches (child_queues), so
-- that nobody looks anywhere else.
--
-- THE LOCK ORDER holds across queues. Ids ascend from parent to child wherever they
-- live, and what is in another queue than a call's own is only tried, but for the parent
-- of a task that is tried again, which comes before it. What could not be had is left as
-- a note in the queue in which it is to be done, and names the task because of which:
-- what has become of that one meanwhile decides, so a note that comes late, or twice,
-- does no harm.

create or replace function durable.spawn_children_in(
  queue text, task_id uuid, claim integer, child_queue text, children jsonb
)
returns setof durable.spawned_child
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
    select * from durable._spawn_children(queue, task_id, claim, child_queue, children);
end;
$$;

comment on function durable.spawn_children_in is
'spawn_children, but the children live in child_queue: that queue''s workers run them, and
its keys and policy are theirs. They are cancelled and revived with their parent as all
children are. Refuses what spawn_children refuses, for either queue.';


-- The caller holds the task.
create or replace function durable._reach_into(queue text, task_id uuid, child_queue text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  update durable.tasks
  set child_queues = array_append(tasks.child_queues, child_queue)
  where tasks.queue = _queue
    and tasks.task_id = _reach_into.task_id
    and (child_queue = any (tasks.child_queues)) is not true;
end;
$$;


-- What tasks of a tree have below them in other queues follows the end of a task above
-- them, or its revival; deadline: the one it had until then.
create or replace function durable._reach_below(
  queue text, task_ids uuid[], kind durable.note_kind, root_queue text, root uuid,
  deadline timestamptz default null
)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _there record;
begin
  for _there in
    select parent.task_id, reached.queue
    from unnest(task_ids) as parent (task_id)
    cross join lateral (
      select unnest(tasks.child_queues) as queue
      from durable.tasks
      where tasks.queue = _queue and tasks.task_id = parent.task_id
      offset 0
    ) as reached
    order by parent.task_id, reached.queue
  loop
    perform durable._follow(
      (_there.queue, null, kind, _there.task_id, null, root_queue, root, deadline)::durable.notes);
  end loop;
end;
$$;


-- Does to what lives in a queue below a task, of another one as a rule, what the root has
-- come to. The root is held meanwhile: it is neither tried again nor ended. One that has
-- been deleted had ended.
create or replace function durable._follow(note durable.notes)
returns void
language plpgsql
as $$
declare
  _root_queue text collate "C" := note.root_queue;
  _state durable.task_state;
  _held boolean := false;
  _cancelled uuid[];
begin
  if durable._sees_the_latest() then
    select tasks.state into _state
    from durable.tasks
    where tasks.queue = _root_queue and tasks.task_id = note.root_task_id
    for share skip locked;
    _held := found;
  end if;
  if not _held and (durable._exists(_root_queue, note.root_task_id) or not durable._sees_the_latest()) then
    perform durable._leave_again(note);
  elsif note.kind = 'ended_above' and (not _held or _state in ('failed', 'cancelled')) then
    _cancelled := durable._cancel_below(note.queue, note.task_id, 1000, _root_queue, note.root_task_id);
    if _cancelled <> '{}' then
      perform durable._finished(note.queue, _cancelled);
    end if;
  elsif note.kind = 'revived_above' and _held and _state not in ('failed', 'cancelled') then
    perform durable._revive_elsewhere(note);
  end if;
end;
$$;


create or replace function durable._exists(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform from durable.tasks where tasks.queue = _queue and tasks.task_id = _exists.task_id;
  return found;
end;
$$;


-- Exactly those that the root's end cancelled, or the deadline it had, which they had
-- inherited, as far as they can be had. What such a one's own end cancelled comes back
-- with it.
create or replace function durable._revive_elsewhere(note durable.notes)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := note.queue;
  _tree uuid[] := array(select tree.task_id from durable._tree(note.queue, note.task_id) as tree);
  _root text[] := array[note.root_task_id::text];
  _deadline timestamptz := durable._deadline_of(note.root_queue, note.root_task_id);
  _id uuid;
  _below durable.tasks;
  _late uuid[] := array[]::uuid[];
  _left_over boolean := false;
begin
  for _id in
    select taken.task_id
    from unnest(_tree) as member (task_id)
    cross join lateral (
      select tasks.task_id
      from durable.tasks
      where tasks.queue = _queue
        and tasks.task_id = member.task_id
        and durable._fell_with(tasks, _root, note.root_deadline)
      offset 0
    ) as taken
    order by taken.task_id
  loop
    select * into _below
    from durable.tasks
    where tasks.queue = _queue
      and tasks.task_id = _id
      and durable._fell_with(tasks, _root, note.root_deadline)
    for no key update skip locked;
    if found then
      perform durable._revive(_queue, _below,
        durable._new_deadline(_below.complete_by, note.root_deadline, _deadline));
      _late := _late || case when not _below.error ? 'by' then _id end;
    else
      _left_over := true;
    end if;
  end loop;
  if _left_over then
    perform durable._leave_again(note);
  end if;
  perform durable._follow(
    (_queue, null, 'revived_above', late.task_id, null, _queue, late.task_id, note.root_deadline)::durable.notes)
  from unnest(array_remove(_late, null)) as late (task_id);
  perform durable._reach_below(
    _queue, _tree, 'revived_above', note.root_queue, note.root_task_id, note.root_deadline);
  perform durable._knock(_queue, 'work');
end;
$$;


-- Whether a task's end was that of one of these above it, or of the deadline that it shared
-- with them. One that its max_duration ended before has ended by itself.
create or replace function durable._fell_with(task durable.tasks, roots text[], deadline timestamptz)
returns boolean
language sql
immutable
as $$
  select task.state = 'cancelled'
    and (task.error ->> 'by' = any (roots)
      or task.error ->> 'type' = '$DeadlineExceeded'
        and task.complete_by = deadline and task.finished_at >= deadline);
$$;


-- By when a task is to be finished whose root, tried again, has a new deadline: it too, if
-- it had inherited the old one, and never later.
create or replace function durable._new_deadline(own timestamptz, old timestamptz, new timestamptz)
returns timestamptz
language sql
immutable
as $$
  select case when own = old then new else least(own, new) end;
$$;


-- What of a cascade is to be done later: of one that began in this queue, or elsewhere.
create or replace function durable._leave_cascade(queue text, root uuid, by_queue text, by uuid)
returns void
language plpgsql
as $$
begin
  if by_queue = queue and by = root then
    perform durable._leave_note(queue, 'cascade', root);
  else
    perform durable._leave_again((queue, null, 'ended_above', root, null, by_queue, by, null)::durable.notes);
  end if;
end;
$$;


-- What a wait says of the tasks it is for.
create or replace function durable._check_awaited(wait json, task_id uuid)
returns void
language plpgsql
stable
as $$
begin
  if position(task_id::text in lower(wait ->> 'task_ids')) > 0 then
    perform durable._refuse_argument(format('task %s would wait for itself', task_id),
      'Pass other tasks.');
  end if;
  if wait ->> 'any_of' = 'true' and json_array_length(wait -> 'task_ids') = 0 then
    perform durable._refuse_argument('a wait for the first of no tasks', 'Pass at least one.');
  end if;
  if wait ->> 'queues' is not null then
    if json_array_length(wait -> 'queues') <> json_array_length(wait -> 'task_ids') then
      perform durable._refuse_argument('a wait has not as many queues as task_ids',
        'Pass one for each, or leave queues out.');
    end if;
    perform durable._granted(there.queue)
    from (
      select distinct awaited.queue
      from json_array_elements_text(wait -> 'queues') as awaited (queue)
      where awaited.queue is not null
    ) as there;
  end if;
end;
$$;


-- A queue is about to be emptied: who waits in another one for its tasks is to look again,
-- once they are gone.
create or replace function durable._part_from_watchers(queue text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._leave_note(waiter.queue, 'waiter', waiter.task_id)
  from (
    select distinct watches.waiter_queue as queue, watches.waiter_task_id as task_id
    from durable.watches
    where watches.queue = _queue and watches.waiter_queue <> _queue
  ) as waiter
  cross join lateral (
    select from durable.queues where queues.queue = waiter.queue offset 0
  ) as known;
  delete from durable.watches where watches.queue = _queue;
end;
$$;


-- And what lives in another one below its live tasks ends with them.
create or replace function durable._part_from_children(queue text)
returns void
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
begin
  perform durable._leave_again(
    (reached.queue, null, 'ended_above', parent.task_id, null, _queue, parent.task_id, null)::durable.notes)
  from (
    select tasks.task_id, tasks.child_queues
    from durable.tasks
    where tasks.queue = _queue and tasks.child_queues is not null
  ) as parent
  cross join lateral unnest(parent.child_queues) as reached (queue)
  cross join lateral (
    select from durable.queues where queues.queue = reached.queue offset 0
  ) as known
  where durable._has_live_line(_queue, parent.task_id);
end;
$$;


-- Whether a task lives, or one above it in its queue.
create or replace function durable._has_live_line(queue text, task_id uuid)
returns boolean
language plpgsql
as $$
declare
  _queue text collate "C" := queue;
  _id uuid := task_id;
  _finished_at timestamptz;
begin
  while _id is not null loop
    select tasks.parent_task_id, tasks.finished_at into _id, _finished_at
    from durable.tasks
    where tasks.queue = _queue and tasks.task_id = _id;
    if found and _finished_at is null then
      return true;
    end if;
  end loop;
  return false;
end;
$$;
