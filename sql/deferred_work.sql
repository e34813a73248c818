-- Defers work on rows that are locked, so that none is forgotten.
--
-- A call that finds rows of others locked neither waits nor fails: it writes a row of
-- deferred_work that commits with it, and maintenance does that work later. Outside READ
-- COMMITTED a call cannot see what was just committed, so there it always defers.

create or replace function durable._defer(
  queue text, kind durable.deferred_kind, task_id uuid default null, event_name text default null,
  root_queue text default null, root_task_id uuid default null,
  root_deadline timestamptz default null, after_id uuid default null
) returns void language plpgsql as $$
begin
  insert into durable.deferred_work (
    queue, work_id, kind, task_id, event_name, root_queue, root_task_id, root_deadline, after_id)
  values (queue, durable._uuid7(durable._id_microseconds(durable._now())), kind, task_id,
    event_name, root_queue, root_task_id, root_deadline, after_id);
end;
$$;

create or replace function durable._is_read_committed()
returns boolean language sql stable as $$
  select current_setting('transaction_isolation') not in ('repeatable read', 'serializable');
$$;

create or replace function durable._require_read_committed(function text)
returns void language plpgsql as $$
begin
  if not durable._is_read_committed() then
    raise exception using errcode = 'WFISO',
      message = format('%s cannot see what was just committed: the transaction is %s',
        function, current_setting('transaction_isolation')),
      hint = 'Call it at READ COMMITTED, whatever default_transaction_isolation says.';
  end if;
end;
$$;

-- Deletes each row of deferred_work and then does the work; if rows are still locked, that
-- defers it again in the same transaction. All share one subtransaction, as in recovery.sql. If
-- it fails, each gets its own, and work that cannot be done is deferred again.
create or replace function durable.apply_deferred_work(queue text, batch_size integer default 100)
returns integer language plpgsql as $$
declare
  _queue text collate "C" := durable._checked_queue(queue);
begin
  perform durable._require_read_committed('apply_deferred_work');
  begin
    return durable._apply_oldest_work(_queue, batch_size, false);
  exception when others then
    return durable._apply_oldest_work(_queue, least(batch_size, 50), true);
  end;
end;
$$;

comment on function durable.apply_deferred_work is
'Applies deferred work: at most batch_size pieces that earlier calls left because rows were
locked. Returns how many it applied, or batch_size if a large cascade should be continued at
once. Refuses a transaction stricter than READ COMMITTED (WFISO). Locks: tries deferred_work and
task rows with SKIP LOCKED; waits for none.';

create or replace function durable._apply_oldest_work(
  queue text, batch_size integer, one_by_one boolean
) returns integer language plpgsql as $$
declare
  _queue text collate "C" := queue;
  _work durable.deferred_work;
  _applied integer := 0;
  _remaining integer := 1000; -- tasks that cascades may still look at
begin
  for _work in
    select *
    from durable.deferred_work
    where deferred_work.queue = _queue
    order by deferred_work.work_id
    limit batch_size
    for update skip locked
  loop
    delete from durable.deferred_work
    where deferred_work.queue = _queue and deferred_work.work_id = _work.work_id;
    if one_by_one then
      begin -- a subtransaction
        _remaining := durable._apply_work(_work, _remaining);
      exception when others then
        raise warning 'durable: deferred work "%" on % cannot be applied: %',
          _work.kind, coalesce(_work.event_name, _work.task_id::text), sqlerrm;
        perform durable._defer(_work.queue, _work.kind, _work.task_id, _work.event_name,
          _work.root_queue, _work.root_task_id, _work.root_deadline, _work.after_id);
        continue;
      end;
    else
      _remaining := durable._apply_work(_work, _remaining);
    end if;
    _applied := _applied + 1;
    if _remaining <= 0 then
      return greatest(_applied, batch_size);
    end if;
  end loop;
  return _applied;
end;
$$;

-- Returns how many tasks later cascades may still look at.
create or replace function durable._apply_work(work durable.deferred_work, remaining integer)
returns integer language plpgsql as $$
begin
  case work.kind
    when 'waiter' then perform durable._try_wake(work.queue, work.task_id);
    when 'finished' then perform durable._on_finished(work.queue, array[work.task_id]);
    when 'event' then
      perform durable._wake_waiters(work.queue, work.event_name, work.task_id, 1000);
    when 'partition' then perform durable._free(work.queue, array[work.event_name]);
    when 'cascade', 'revive' then
      return durable._propagate_state(work.queue, work.kind, work.task_id,
        coalesce(work.root_queue, work.queue), coalesce(work.root_task_id, work.task_id),
        work.root_deadline, work.after_id, remaining);
  end case;
  return remaining;
end;
$$;
