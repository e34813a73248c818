-- The setup of every test: two queues, a clock that stands still until it is moved, and
-- helpers. The test's own rollback removes all of it.
--
-- Tests call tasks by nicknames: spawned('a') spawns one and id('a') is its id. held('a b') is
-- the argument that a worker passes for a and b under their last claims,
-- held('a', '{"claim": 1}') under the first.

create schema tap;
grant usage on schema tap to public;

\ir _search_path.sql
select set_config('timezone', 'UTC', true) as timezone,
  set_config('test.now', '2030-01-01 00:00:00+00', true) as now \gset

create or replace function durable._now()
returns timestamptz
language sql
volatile
as $$
  select current_setting('test.now')::timestamptz;
$$;

-- Numbers claims 1, 3, 5, ..., so that tests can name them.
create or replace function durable._next_claim(claim integer, random integer)
returns integer
language sql
immutable
as $$
  select claim + 1;
$$;

select durable.create_queue('q') as q, durable.create_queue('other') as other \gset

-- Invariants of every task in every test. Production does not have these checks, since they
-- cost too much there.
alter table durable.tasks
  add constraint tasks_are_leased_exactly_while_running
    check ((state = 'running') = (lease_expires_at is not null)),
  add constraint tasks_are_held_exactly_while_running
    check ((state = 'running') = (claim % 2 = 1)),
  add constraint tasks_are_claimable_only_while_waiting
    check (available_at is null or state in ('pending', 'sleeping')),
  add constraint tasks_are_finished_exactly_when_final
    check ((state in ('completed', 'failed', 'cancelled')) = (finished_at is not null)),
  add constraint tasks_have_no_deadline_when_final
    check (finished_at is null or expires_at is null),
  add constraint tasks_have_an_attempt
    check (max_attempts >= 1 and attempt >= 1);

create table tap.nicknames (
  nick    text primary key,
  task_id uuid not null
);


-- Returns the time so many seconds after the start of the test.
create function tap.at(seconds double precision)
returns timestamptz
language sql
immutable
as $$
  select timestamptz '2030-01-01 00:00:00+00' + make_interval(secs => seconds);
$$;


-- Moves the clock to that time.
create function tap.move_to(seconds double precision)
returns text
language sql
as $$
  select set_config('test.now', tap.at(seconds)::text, true);
$$;


create function tap.call_it(nick text, task_id uuid)
returns uuid
language sql
as $$
  insert into tap.nicknames values (nick, task_id)
  on conflict on constraint nicknames_pkey do update set task_id = excluded.task_id
  returning nicknames.task_id;
$$;


create function tap.id(nick text)
returns uuid
language sql
as $$
  select task_id from tap.nicknames where nicknames.nick = id.nick;
$$;


create function tap.nick(task_id uuid)
returns text
language sql
as $$
  select nicknames.nick from tap.nicknames where nicknames.task_id = nick.task_id;
$$;


create function tap.spawned(nick text, options jsonb default '{}', task text default 'job')
returns uuid
language sql
as $$
  select tap.call_it(nick, (durable.spawn('q', task, '{}', options)).task_id);
$$;


-- Spawns a child of another task.
create function tap.spawned_below(parent text, nick text, options jsonb default '{}')
returns uuid
language sql
as $$
  select tap.spawned(nick, options || jsonb_build_object('parent_task_id', tap.id(parent)));
$$;


-- Claims a task for 30 seconds, and only this one: the claim starts at the position just
-- before its own.
create function tap.claimed(nick text, worker text default 'worker')
returns integer
language sql
as $$
  update durable.tasks
  set available_at = least(available_at, durable._now())
  where queue = 'q' and task_id = tap.id(nick);
  select taken.claim
  from durable.tasks
  cross join lateral durable.claim_tasks('q', claimed.worker, array[name], 1, 30,
    array[available_at], array[overlay(task_id::text
      placing lpad(to_hex(('x' || right(task_id::text, 12))::bit(48)::bigint - 1), 12, '0') from 25)::uuid]
  ) as taken
  where tasks.queue = 'q' and tasks.task_id = tap.id(nick);
$$;


-- Spawns and claims.
create function tap.started(nick text, options jsonb default '{}')
returns integer
language sql
as $$
  select tap.claimed(nick) from tap.spawned(nick, options);
$$;


create function tap.started_below(parent text, nick text, options jsonb default '{}')
returns integer
language sql
as $$
  select tap.claimed(nick) from tap.spawned_below(parent, nick, options);
$$;


create function tap.task(nick text)
returns durable.tasks
language sql
as $$
  select tasks from durable.tasks where task_id = tap.id(nick);
$$;


-- Returns the claim under which it is held, or was held last.
create function tap.claim(nick text)
returns integer
language sql
as $$
  select greatest(claim - 1 + claim % 2, 1) from tap.task(nick);
$$;


-- Turns 'a b c' into three rows.
create function tap.words(nicks text)
returns table (nick text, place bigint)
language sql
immutable
as $$
  select * from string_to_table(nicks, ' ') with ordinality;
$$;


create function tap.states(nicks text)
returns text
language sql
as $$
  select string_agg(coalesce((tap.task(nick)).state::text, 'gone'), ' ' order by place)
  from tap.words(nicks);
$$;


create function tap.held(nicks text, said jsonb default '{}')
returns json
language sql
as $$
  select json_agg(
    jsonb_build_object('task_id', tap.id(nick), 'claim', tap.claim(nick)) || said
    order by place)
  from tap.words(nicks);
$$;


-- Returns the ids of tasks, as await_tasks takes them.
create function tap.ids(nicks text)
returns uuid[]
language sql
as $$
  select array_agg(tap.id(nick) order by place) from tap.words(nicks);
$$;


create function tap.completed(nicks text, result jsonb default 'null')
returns text
language sql
as $$
  select string_agg(outcome, ' ')
  from durable.complete_tasks('q', tap.held(nicks, jsonb_build_object('result', result)));
$$;


create function tap.failed(nicks text, said jsonb default '{}')
returns text
language sql
as $$
  select string_agg(outcome, ' ')
  from durable.fail_tasks('q', tap.held(nicks,
    '{"error": {"type": "Oops", "message": "no"}}'::jsonb || said));
$$;


-- Releases a task, which is then due at once.
create function tap.released(nicks text)
returns text
language sql
as $$
  select string_agg(outcome, ' ') from durable.release_tasks('q', tap.held(nicks));
$$;


create function tap.saved(nicks text, name text, value json default 'null')
returns text
language sql
as $$
  select string_agg(outcome, ' ')
  from durable.save_checkpoints('q', (
    select json_agg(json_build_object(
      'task_id', tap.id(nick), 'claim', tap.claim(nick), 'name', name, 'value', value))
    from tap.words(nicks)));
$$;


-- Suspends a task until all of these have finished, or for the timeout.
create function tap.joining(nick text, others text, timeout double precision default null)
returns text
language sql
as $$
  select outcome
  from durable.await_tasks('q', tap.id(nick), tap.claim(nick), '$join', tap.ids(others), timeout);
$$;


create function tap.awaiting(nick text, event text, timeout double precision default null)
returns text
language sql
as $$
  select outcome
  from durable.await_event('q', tap.id(nick), tap.claim(nick), '$event:' || event, event, timeout);
$$;


-- Suspends a task until it is sent a message.
create function tap.receiving(nick text, topic text, timeout double precision default null)
returns text
language sql
as $$
  select outcome
  from durable.recv_message('q', tap.id(nick), tap.claim(nick), '$recv:' || topic, topic, timeout);
$$;


create function tap.sleeping(nick text, seconds double precision)
returns text
language sql
as $$
  select outcome
  from durable.sleep_until('q', tap.id(nick), tap.claim(nick), '$sleep', tap.at(seconds));
$$;


-- Returns the checkpoints of a task as one line: "name state value, ...".
create function tap.history(nick text)
returns text
language sql
as $$
  select coalesce(string_agg(concat_ws(' ', name, state, value), ', ' order by name), '')
  from durable.checkpoints
  where task_id = tap.id(nick);
$$;


-- Returns a hash of every row, to check that nothing was changed.
create function tap.everything()
returns text
language sql
as $$
  select md5(string_agg(line, e'\n' order by line))
  from (
    select tasks::text from durable.tasks
    union all select runs::text from durable.runs
    union all select checkpoints::text from durable.checkpoints
    union all select events::text from durable.events
    union all select waits::text from durable.waits
    union all select idempotency_keys::text from durable.idempotency_keys
    union all select unique_keys::text from durable.unique_keys
    union all select deferred_work::text from durable.deferred_work
    union all select mailboxes::text from durable.mailboxes
    union all select messages::text from durable.messages
    union all select message_keys::text from durable.message_keys
    union all select task_values::text from durable.task_values
    union all select stream_entries::text from durable.stream_entries
    union all select log_lines::text from durable.log_lines
    union all select watches::text from durable.watches
    union all select schedules::text from durable.schedules
    union all select queues::text from durable.queues
  ) as lines (line);
$$;


-- Tests that a statement raises nothing and leaves every row as it was.
create function tap.changes_nothing(statement text, description text)
returns text
language plpgsql
as $$
declare
  _before text := tap.everything();
begin
  execute statement;
  return is(tap.everything(), _before, description);
end;
$$;
