# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants, by what they break."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant
from tests.chaos.mutants.features import FEATURES
from tests.chaos.mutants.mail import MAIL

__all__ = ["MUTANTS"]

FENCE: Final = [
    Mutant(
        "completes what nobody holds",
        "attempts.sql",
        "tasks.task_id = done.task_id and tasks.claim = done.claim\n"
        "        and done.claim % 2 = 1",
        "tasks.task_id = done.task_id and tasks.claim = done.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "fails under any claim",
        "attempts.sql",
        "where tasks.queue = _queue and tasks.task_id = _hold.task_id and tasks.claim = _hold.claim\n",
        "where tasks.queue = _queue and tasks.task_id = _hold.task_id and tasks.claim >= _hold.claim\n",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "holds what nobody holds",
        "attempts.sql",
        "    and _hold.claim % 2 = 1\n  for no key update;",
        "  for no key update;",
        "pgtap/fence.sql",
    ),
    Mutant(
        "saves under any claim",
        "checkpoints.sql",
        "tasks.task_id = new.task_id and tasks.claim = new.claim\n",
        "tasks.task_id = new.task_id and tasks.claim >= new.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "extends the lease of a former claim",
        "claims.sql",
        "    where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim = _held.claim\n"
        "      and _held.claim % 2 = 1\n    for no key update skip locked;",
        "    where tasks.queue = _queue and tasks.task_id = _held.task_id and tasks.claim >= _held.claim\n"
        "      and _held.claim % 2 = 1\n    for no key update skip locked;",
        "pgtap/claims.sql",
    ),
    Mutant(
        "keeps the claim when a task is released",
        "claims.sql",
        "      claim = tasks.claim + 1,\n      state = 'pending',",
        "      claim = tasks.claim + 2,\n      state = 'pending',",
        "pgtap/claims.sql",
    ),
    Mutant(
        "keeps the claim when a task falls asleep",
        "waits.sql",
        "    claim = tasks.claim + 1,\n    state = 'sleeping',",
        "    claim = tasks.claim,\n    state = 'sleeping',",
        "pgtap/waits.sql",
    ),
    Mutant(
        "keeps the claim when an attempt fails",
        "attempts.sql",
        "    claim = tasks.claim + 1,\n    attempt = tasks.attempt + 1,",
        "    claim = tasks.claim,\n    attempt = tasks.attempt + 1,",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "keeps the claim of a cancelled task",
        "cancel.sql",
        "    claim = tasks.claim + tasks.claim % 2,\n",
        "",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "settles the waits of a task for a former claim",
        "settling.sql",
        "tasks.task_id = own.task_id and tasks.claim = own.claim\n      and own.claim % 2 = 1",
        "tasks.task_id = own.task_id and tasks.claim >= own.claim\n      and own.claim % 2 = 1",
        "pgtap/fence.sql",
    ),
    Mutant(
        "registers waits for a former claim",
        "waits.sql",
        "      and own.claim % 2 = 1\n    offset 0\n  ) as task\n"
        "  cross join lateral json_to_recordset(own.waits) as wait (\n    name text, position",
        "      or tasks.queue = _queue and tasks.task_id = own.task_id\n    offset 0\n  ) as task\n"
        "  cross join lateral json_to_recordset(own.waits) as wait (\n    name text, position",
        "pgtap/fence.sql",
    ),
    Mutant(
        "tells a cancelled holder that its claim is lost",
        "errors.sql",
        "    and tasks.claim = _refusal.claim + 1\n",
        "    and tasks.claim = _refusal.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "tells a former run that its repeated end is new",
        "attempts.sql",
        "    and tasks.claim = _has_ended.claim + 1\n",
        "    and tasks.claim > _has_ended.claim\n",
        "pgtap/fence.sql",
    ),
    Mutant(
        "takes a lost lease for the repetition of a failure",
        "attempts.sql",
        "        and coalesce(tasks.error ->> 'type', '') not in ('$LeaseExpired', '$CrashLoop')\n",
        "",
        "pgtap/fence.sql",
    ),
    Mutant(
        "lets a former claim's step stand for the present one's",
        "checkpoints.sql",
        "select distinct on (own.task_id, own.name, own.claim) own.*",
        "select distinct on (own.task_id, own.name) own.*",
        "pgtap/fence.sql",
    ),
    Mutant(
        "answers for a task instead of for a claim",
        "checkpoints.sql",
        " and held.claim is not distinct from refused.claim",
        "",
        "pgtap/fence.sql",
    ),
    Mutant(
        "emits for a former claim",
        "children.sql",
        "  if not durable._hold(_queue, task_id, claim) then\n"
        "    perform durable._refuse_claim(_queue, task_id, claim);\n  end if;\n"
        "  _recorded :=",
        "  _recorded :=",
        "pgtap/children.sql",
    ),
    Mutant(
        "spawns children for a former claim",
        "children.sql",
        "  if not durable._hold(_queue, task_id, claim) then\n"
        "    perform durable._refuse_claim(_queue, task_id, claim);\n  end if;\n"
        "  _new :=",
        "  _new :=",
        "pgtap/children.sql",
    ),
]

CLAIMS: Final = [
    Mutant(
        "claims what is not due",
        "claims.sql",
        "      and tasks.name = _name\n      and tasks.version is null\n      and tasks.available_at <= at\n",
        "      and tasks.name = _name\n      and tasks.version is null\n      and tasks.available_at is not null\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims more than it was asked for",
        "claims.sql",
        "    _left := _left - _claimed;\n",
        "",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims the youngest of a name",
        "claims.sql",
        "    order by tasks.available_at, tasks.task_id\n    limit quantity\n",
        "    order by tasks.available_at desc, tasks.task_id desc\n    limit quantity\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims names in their order, not by who has waited longest",
        "claims.sql",
        "    order by first.available_at, first.task_id\n",
        "    order by known.name\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims names it was not asked for",
        "claims.sql",
        "  _names text[] := coalesce(names, durable._waiting_names(_queue));\n  _head record;",
        "  _names text[] := durable._waiting_names(_queue);\n  _head record;",
        "pgtap/claims.sql",
    ),
    Mutant(
        "claims what is past its deadline",
        "claims.sql",
        "  where (due.deadline_at > at) is not false; -- else expire_deadlines will cancel it\n",
        ";",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "waits for rows that others claim",
        "claims.sql",
        "    limit quantity\n    for no key update skip locked\n  ) as due",
        "    limit quantity\n    for no key update\n  ) as due",
        "test_gives_two_claims_different_tasks_without_waiting",
    ),
    Mutant(
        "starts max_duration anew at each claim",
        "claims.sql",
        "      deadline_at = case when tasks.started_at is null\n"
        "        then least(to_timestamp(_epoch + tasks.max_duration), tasks.complete_by)\n"
        "        else tasks.deadline_at end,\n",
        "      deadline_at = to_timestamp(_epoch + tasks.max_duration),\n",
        "pgtap/claims.sql",
    ),
    Mutant(
        "lets max_delay end a task that has started",
        "claims.sql",
        "then least(to_timestamp(_epoch + tasks.max_duration), tasks.complete_by)\n",
        "then coalesce(to_timestamp(_epoch + tasks.max_duration), tasks.deadline_at)\n",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "keeps the error of the attempt before",
        "claims.sql",
        "      error = null,\n      version = coalesce",
        "      version = coalesce",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "shortens a lease",
        "claims.sql",
        "set lease_expires_at = greatest(tasks.lease_expires_at, _expires_at)",
        "set lease_expires_at = _expires_at",
        "pgtap/claims.sql",
    ),
    Mutant(
        "releases what a worker knows",
        "claims.sql",
        "      and not tasks.task_id = any (known)\n",
        "",
        "pgtap/claims.sql",
    ),
    Mutant(
        "releases what other workers hold",
        "claims.sql",
        "      and tasks.worker = _worker\n",
        "",
        "pgtap/claims.sql",
    ),
    Mutant(
        "releases a task to the end of the line",
        "claims.sql",
        "coalesce(held.available_at, _now) as available_at",
        "_now as available_at",
        "pgtap/claims.sql",
    ),
    Mutant(
        "waits for the row of a task whose lease it extends",
        "claims.sql",
        "      and _held.claim % 2 = 1\n    for no key update skip locked;",
        "      and _held.claim % 2 = 1\n    for no key update;",
        "test_says_busy_and_then_lost_to_an_extension_of_an_expired_lease",
    ),
]

ATTEMPTS: Final = [
    Mutant(
        "never runs out of attempts",
        "retry.sql",
        "(max_attempts is null or attempt < max_attempts)",
        "(max_attempts is null or attempt <= max_attempts)",
        "pgtap/retry.sql",
    ),
    Mutant(
        "retries what is not to be retried",
        "retry.sql",
        "coalesce(retry ->> 'kind', '') <> 'none'",
        "coalesce(retry ->> 'kind', '') <> 'never'",
        "pgtap/retry.sql",
    ),
    Mutant(
        "retries what is not retryable",
        "attempts.sql",
        "  elsif not (retryable and durable._may_retry",
        "  elsif not (durable._may_retry",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "delays the third attempt as the second",
        "retry.sql",
        "ln(_factor) * (attempt - 1)",
        "ln(_factor) * least(attempt - 1, 1)",
        "pgtap/retry.sql",
    ),
    Mutant(
        "delays beyond max_seconds",
        "retry.sql",
        "  _delay := least(_base * exp(_exponent), _most);",
        "  _delay := _base * exp(_exponent);",
        "pgtap/retry.sql",
    ),
    Mutant(
        "adds jitter instead of taking it off",
        "retry.sql",
        "_delay * (0.5 + random() / 2)",
        "_delay * (1 + random() / 2)",
        "pgtap/retry.sql",
    ),
    Mutant(
        "does not count an attempt whose lease was lost",
        "attempts.sql",
        "    attempt = tasks.attempt + 1,\n    state = case",
        "    attempt = tasks.attempt + case when outcome = 'lease_lost' then 0 else 1 end,\n    state = case",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "delays a task again whose lease was lost",
        "attempts.sql",
        "case when outcome = 'lease_lost' then 0 else",
        "case when outcome = 'lease_lost' then 1 else",
        "pgtap/fence.sql",
    ),
    Mutant(
        "begins an attempt after the deadline",
        "attempts.sql",
        "  if _next_at >= _task.deadline_at then",
        "  if _next_at > _task.deadline_at then",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "forgets the attempt that was lost",
        "attempts.sql",
        "  insert into durable.runs (queue, task_id, attempt, outcome, worker, ended_at, error)\n"
        "  values (_queue, task_id, _task.attempt, outcome, _task.worker, _now, error);\n",
        "",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "loses a result",
        "attempts.sql",
        "      result = place.result\n",
        "      result = null\n",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "leaves the deadline of a task that completed",
        "attempts.sql",
        "      lease_expires_at = null,\n      deadline_at = null,\n      finished_at = at,",
        "      lease_expires_at = null,\n      finished_at = at,",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "tells nobody that a task has failed",
        "attempts.sql",
        "    perform durable._finished(_queue, _completed || _fallen);",
        "    perform durable._finished(_queue, _completed);",
        "pgtap/waking.sql",
    ),
    Mutant(
        "leaves alive what lives below a failed task",
        "attempts.sql",
        "    perform durable._cascade(_queue, fallen.task_id) from unnest(_fallen) as fallen (task_id);\n",
        "",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "ends leases before they are over",
        "recovery.sql",
        "tasks.lease_expires_at <= _now",
        "tasks.lease_expires_at <= _now + '1 s'",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "cancels before the deadline",
        "recovery.sql",
        "tasks.deadline_at <= _now",
        "tasks.deadline_at <= _now + '1 s'",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "leaves alive what lives below a task that was late",
        "recovery.sql",
        "    perform durable._cascade(queue, ended.task_id) from unnest(task_ids) as ended (task_id);\n",
        "",
        "pgtap/recovery.sql",
    ),
    Mutant(
        "locks own rows in the order given",
        "attempts.sql",
        "      order by own.task_id\n      offset 0\n    ) as done",
        "      offset 0\n    ) as done",
        "test_waits_for_its_tasks_in_ascending_order",
    ),
]

WAITS: Final = [
    Mutant(
        "ignores a timeout",
        "settling.sql",
        "  elsif (deadline_at > at) is not false then",
        "  elsif (deadline_at > at) is not false or event is not null then",
        "pgtap/waits.sql",
    ),
    Mutant(
        "times out what has happened",
        "settling.sql",
        "  if payload is not null then",
        "  if payload is not null and (deadline_at > at) is not false then",
        "pgtap/waits.sql",
    ),
    Mutant(
        "sleeps until the last of several waits",
        "waits.sql",
        "min(waits.deadline_at) as until",
        "max(waits.deadline_at) as until",
        "pgtap/waits.sql",
    ),
    Mutant(
        "counts a timeout anew each time",
        "waits.sql",
        "  where saved.times + registered.times = 0\n  order by own.task_id, wait.name;",
        "  where saved.times = 0\n  order by own.task_id, wait.name\n"
        "  on conflict (queue, task_id, name) do update set deadline_at = excluded.deadline_at;",
        "pgtap/waits.sql",
    ),
    Mutant(
        "watches nobody",
        "waits.sql",
        "  perform durable._set_watches(_queue, tasks, goes_on);\n",
        "",
        "pgtap/waking.sql",
    ),
    Mutant(
        "watches the first task only",
        "waking.sql",
        "      when _wait.task_ids is not null then durable._watch(_wait)",
        "      when _wait.task_ids is not null then 'over'",
        "pgtap/waking.sql",
    ),
    Mutant(
        "does not watch on",
        "waking.sql",
        "    if found then\n      update durable.waits\n"
        "      set target_task_id = _ids[_i], watched = coalesce(_passed_over, _i)\n"
        "      where waits.queue = wait.queue and waits.task_id = wait.task_id and waits.name = wait.name;\n"
        "      if _queues[_i] <> _queue then\n",
        "    if found then\n      if _queues[_i] <> _queue then\n",
        "pgtap/waking.sql",
    ),
    Mutant(
        "watches without holding what it watches",
        "waking.sql",
        "    for share skip locked;\n    if found then",
        "    ;\n    if found then",
        "test_wakes_a_parent_that_joined_while_the_child_was_finishing",
    ),
    Mutant(
        "watches nobody in another queue",
        "waking.sql",
        "      if _queues[_i] <> _queue then\n",
        "      if false then\n",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "does not look who watches",
        "waking.sql",
        "          and watches.task_id = finished.task_id\n",
        "          and false\n",
        "pgtap/first.sql",
    ),
    Mutant(
        "waits for all where the first would do",
        "settling.sql",
        "    when any_of then durable._first(queue, task_ids, task_queues)\n",
        "",
        "pgtap/first.sql",
    ),
    Mutant(
        "takes a watch for set that its waiter has slept through",
        "waits.sql",
        "durable._watch_each(_wait, true)",
        "durable._watch_each(_wait, false)",
        "test_wakes_who_falls_asleep_again_while_the_first_is_finishing",
    ),
    Mutant(
        "deletes a task whose end is still to be told",
        "retention.sql",
        "notes.kind in ('cascade', 'finished')",
        "notes.kind = 'cascade'",
        "pgtap/first.sql",
    ),
    Mutant(
        "revives what had a limit of its own",
        "elsewhere.sql",
        " and task.finished_at >= deadline);",
        ");",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "tells the one given first from who was first",
        "first.sql",
        "    order by task.finished_at nulls last, wanted.ordinal\n",
        "    order by wanted.ordinal\n",
        "pgtap/first.sql",
    ),
    Mutant(
        "wakes a task between two attempts",
        "waking.sql",
        "  where tasks.queue = _queue\n    and tasks.task_id = _try_sleeper.task_id\n"
        "    and tasks.state = 'sleeping'\n    and tasks.error is null\n  for no key update skip locked;",
        "  where tasks.queue = _queue\n    and tasks.task_id = _try_sleeper.task_id\n"
        "    and tasks.state = 'sleeping'\n  for no key update skip locked;",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "forgets a waiter that is in other hands",
        "waking.sql",
        "  if found then\n    perform durable._leave_note(_queue, 'waiter', task_id);\n  end if;\n  return false;",
        "  return false;",
        "test_wakes_later_a_parent_that_is_in_other_hands",
    ),
    Mutant(
        "forgets who waits for an event and is in other hands",
        "waking.sql",
        "  if cardinality(_woken) < cardinality(task_ids) then",
        "  if cardinality(_woken) > cardinality(task_ids) then",
        "test_wakes_later_whom_an_emitter_finds_in_other_hands",
    ),
    Mutant(
        "wakes a task without making it due",
        "waking.sql",
        "  set state = 'pending', available_at = _now\n"
        "  where tasks.queue = _queue\n    and tasks.task_id = _wake.task_id;",
        "  set state = 'pending'\n"
        "  where tasks.queue = _queue\n    and tasks.task_id = _wake.task_id;",
        "pgtap/waking.sql",
    ),
    Mutant(
        "does not meet emitters",
        "waits.sql",
        "      where events.queue = _queue and events.name = _event\n      for share;",
        "      where events.queue = _queue and events.name = _event;",
        "test_wakes_the_second_task_that_was_falling_asleep_too",
    ),
    Mutant(
        "wakes nobody for an event",
        "events.sql",
        "  perform durable._wake_waiters(_queue, event);\n  return true;",
        "  return true;",
        "pgtap/events.sql",
    ),
    Mutant(
        "lets the last emitter win",
        "events.sql",
        "  where events.emitted_at is null;\n  return found;",
        "  ;\n  return found;",
        "pgtap/events.sql",
    ),
    Mutant(
        "keeps a wait that is over",
        "settling.sql",
        "    perform durable._forget_waits(_queue, _places);\n",
        "",
        "pgtap/waits.sql",
    ),
    Mutant(
        "keeps the waits of a cancelled task",
        "cancel.sql",
        "  delete from durable.waits where waits.queue = _queue and waits.task_id = _cancel_one.task_id;\n",
        "",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "forgets the name of a lost task in a join",
        "settling.sql",
        "coalesce(task.state::text, 'not_found')",
        "task.state::text",
        "pgtap/waking.sql",
    ),
]

NOTES: Final = [
    Mutant(
        "forgets in an old snapshot who waits for a task",
        "waking.sql",
        "    perform durable._leave_note(_queue, 'finished', finished.task_id)\n"
        "    from unnest(task_ids) as finished (task_id);\n",
        "    null;\n",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "forgets in an old snapshot who waits for an event",
        "events.sql",
        "    perform durable._leave_note(_queue, 'event', first, _event);\n    return;",
        "    return;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "trusts an old snapshot",
        "notes.sql",
        "  select current_setting('transaction_isolation') not in ('repeatable read', 'serializable');",
        "  select true;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "forgets in an old snapshot what lives below a failed task",
        "cancel.sql",
        "  elsif durable._ended_badly(_queue, root) then\n"
        "    perform durable._leave_note(_queue, 'cascade', root);\n  end if;",
        "  end if;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "forgets a child that is in other hands",
        "cancel.sql",
        "        _left_over := true;\n",
        "        null;\n",
        "test_cancels_later_a_child_that_is_in_other_hands",
    ),
    Mutant(
        "keeps a note that was applied",
        "notes.sql",
        "    delete from durable.notes where notes.queue = _queue and notes.note_id = _note.note_id;\n",
        "",
        "pgtap/notes.sql",
    ),
    Mutant(
        "deletes notes without applying them",
        "notes.sql",
        "        when 'cascade' then perform durable._cascade(_queue, _note.task_id);",
        "        when 'cascade' then null;",
        "pgtap/notes.sql",
    ),
    Mutant(
        "cancels below a task that was tried again",
        "cancel.sql",
        "tasks.task_id = root and tasks.state in ('failed', 'cancelled')\n  for share skip locked;",
        "tasks.task_id = root\n  for share skip locked;",
        "test_leaves_alone_the_children_of_a_parent_revived_before_the_note",
    ),
]

FAMILIES: Final = [
    Mutant(
        "leaves alive what lives below in other queues",
        "cancel.sql",
        "  perform durable._reach_below(_queue, _seen, 'ended_above', by_queue, by);\n",
        "",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "revives nobody in other queues",
        "elsewhere.sql",
        "    if found then\n      perform durable._revive(_queue, _below,",
        "    if found and false then\n      perform durable._revive(_queue, _below,",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "cancels for an end that is over",
        "elsewhere.sql",
        "note.kind = 'ended_above' and (not _held or _state in ('failed', 'cancelled'))",
        "note.kind = 'ended_above'",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "revives for a retry that is over",
        "elsewhere.sql",
        "note.kind = 'revived_above' and _held and _state not in ('failed', 'cancelled')",
        "note.kind = 'revived_above'",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "lets who waits elsewhere sleep when a queue is dropped",
        "elsewhere.sql",
        "    where watches.queue = _queue and watches.waiter_queue <> _queue\n",
        "    where false\n",
        "pgtap/elsewhere.sql",
    ),
    Mutant(
        "cancels children, but not theirs",
        "cancel.sql",
        "          and tasks.parent_task_id = tree.task_id\n",
        "          and tasks.parent_task_id = tree.task_id and tree.task_id = root\n",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "cancels nothing below what has finished",
        "cancel.sql",
        "          and tasks.parent_task_id = tree.task_id\n",
        "          and tasks.parent_task_id = tree.task_id and (tree.task_id = root or exists (\n"
        "            select from durable.tasks as alive where alive.queue = _queue\n"
        "              and alive.task_id = tree.task_id and alive.finished_at is null))\n",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "forgets whose end it was",
        "cancel.sql",
        "format('cancelled by parent %s', by), 'by', by)",
        "format('cancelled by parent %s', by))",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "takes another reason than the one given",
        "cancel.sql",
        "coalesce(reason, 'cancelled')",
        "'cancelled'",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "does not hold a parent while it gets a child",
        "spawn.sql",
        "  where tasks.queue = _queue and tasks.task_id = parent\n  for share;",
        "  where tasks.queue = _queue and tasks.task_id = parent;",
        "test_refuses_a_child_of_a_parent_that_was_just_cancelled",
    ),
    Mutant(
        "gives a finished task children",
        "spawn.sql",
        "  elsif _state in ('completed', 'failed', 'cancelled') then",
        "  elsif _state in ('failed', 'cancelled') then",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "revives children that were cancelled by somebody else",
        "retry_task.sql",
        "      and durable._fell_with(tasks, _ends, root.complete_by)\n",
        "      and tasks.state = 'cancelled'\n",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "revives no children",
        "retry_task.sql",
        "  perform durable._revive_below(_queue, _task, _deadline);\n",
        "",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "tries again what has completed",
        "retry_task.sql",
        "  elsif _task.state not in ('failed', 'cancelled') then",
        "  elsif _task.state not in ('failed', 'cancelled', 'completed') then",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "gives a retried task no attempt",
        "retry_task.sql",
        "then tasks.attempt + 1 else tasks.max_attempts end",
        "then tasks.attempt else tasks.max_attempts end",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "counts max_duration on after a retry",
        "retry_task.sql",
        "    started_at = null,\n",
        "",
        "pgtap/retry_task.sql",
    ),
    Mutant(
        "spawns a recorded child again",
        "children.sql",
        "    where saved.times = 0\n    order by task.ordinal\n",
        "    order by task.ordinal\n",
        "pgtap/children.sql",
    ),
    Mutant(
        "does not record that a child was there",
        "children.sql",
        "'attempt', spawned.attempt, 'created', spawned.created",
        "'attempt', spawned.attempt, 'created', true",
        "pgtap/children.sql",
    ),
    Mutant(
        "emits again what a task has emitted",
        "children.sql",
        "  if _recorded is not null then\n    return _recorded::text::boolean;\n  end if;\n",
        "",
        "pgtap/children.sql",
    ),
]

KEYS: Final = [
    Mutant(
        "takes one key for other params",
        "spawn.sql",
        "_task.name <> new.name or not durable._same_params(_queue, new, _task.params)",
        "_task.name <> new.name",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "takes one key for params with another fingerprint",
        "spawn.sql",
        "coalesce(idempotency_keys.fingerprint = any ((new.options).fingerprint), true)",
        "true",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "compares sealed params beside their fingerprint",
        "spawn.sql",
        "  if (new.options).fingerprint is null then\n    return params",
        "  if params <> new.params or (new.options).fingerprint is null then\n    return params",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "takes one key for another name",
        "spawn.sql",
        "  if _task.name <> new.name or ",
        "  if ",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "says that a task was created that was there",
        "spawn.sql",
        "_task.attempt), _task.attempt, false);",
        "_task.attempt), _task.attempt, true);",
        "pgtap/idempotency.sql",
    ),
    Mutant(
        "keeps the key of a task that is gone",
        "retention.sql",
        "  delete from durable.idempotency_keys\n"
        "  where idempotency_keys.queue = _queue and idempotency_keys.key = _key;\n  return true;",
        "  return true;",
        "pgtap/retention.sql",
    ),
    Mutant(
        "frees the key of a child that stays for its parent",
        "retention.sql",
        "        when parent.times > 0 then false\n"
        "        when task.idempotency_key is null then true\n"
        "        else durable._free_key(_queue, task.idempotency_key)\n",
        "        when task.idempotency_key is null then parent.times = 0\n"
        "        else durable._free_key(_queue, task.idempotency_key) and parent.times = 0\n",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes a task whose key somebody has just been told",
        "spawn.sql",
        "    for key share; -- cleanup leaves the task alone until the caller has heard of it\n",
        ";",
        "test_keeps_a_task_whose_key_somebody_has_just_been_told",
    ),
    Mutant(
        "forgets the deadline of a spawned task",
        "spawn.sql",
        "    least(at + make_interval(secs => (task.options).max_delay), latest.moment), parent",
        "    null::timestamptz, parent",
        "pgtap/spawn_many.sql",
    ),
]

RETENTION: Final = [
    Mutant(
        "deletes children before their parent",
        "retention.sql",
        "        when parent.times > 0 then false\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "leaves the checkpoints of deleted tasks",
        "retention.sql",
        "  delete from durable.checkpoints where checkpoints.queue = _queue"
        " and checkpoints.ctid = any (of_checkpoints);\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "leaves the attempts of deleted tasks",
        "retention.sql",
        "  delete from durable.runs where runs.queue = _queue and runs.ctid = any (of_runs);\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes what is not old enough",
        "retention.sql",
        "  _cutoff := durable._now() - make_interval(secs => _policy.keep_tasks);",
        "  _cutoff := durable._now() - make_interval(secs => _policy.keep_tasks / 2);",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes a task that was just tried again",
        "retention.sql",
        "tasks.task_id = over.task_id and tasks.finished_at <= cutoff\n      offset 0\n"
        "      for update skip locked",
        "tasks.task_id = over.task_id\n      offset 0",
        "test_keeps_a_task_that_is_just_tried_again",
    ),
    Mutant(
        "does not begin again once it has come round",
        "retention.sql",
        "    _next := _walked[quantity];\n  end if;",
        "    _next := _walked[quantity];\n  else\n    _next := _policy.tasks_cleaned_to;\n  end if;",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes events that are awaited",
        "retention.sql",
        "  if found then\n    return false;\n  end if;\n  delete from durable.events",
        "  delete from durable.events",
        "pgtap/retention.sql",
    ),
    Mutant(
        "deletes events that are young",
        "retention.sql",
        "    and (events.emitted_at is null or events.emitted_at <= cutoff)\n",
        "",
        "pgtap/retention.sql",
    ),
    Mutant(
        "keeps the places of events for who has finished",
        "retention.sql",
        "    and durable._is_live(_queue, waits.task_id);",
        ";",
        "pgtap/retention.sql",
    ),
]

LOOKS: Final = [
    Mutant(
        "counts the sleeping as ready",
        "stats.sql",
        "count(*) filter (where tasks.available_at <= durable._now()) as ready",
        "count(*) as ready",
        "pgtap/stats.sql",
    ),
    Mutant(
        "counts the failed as cancelled",
        "stats.sql",
        "count(*) filter (where tasks.state = 'cancelled') as cancelled",
        "count(*) filter (where tasks.state in ('failed', 'cancelled')) as cancelled",
        "pgtap/stats.sql",
    ),
    Mutant(
        "lists what finished tasks have waited for",
        "views.sql",
        "where tasks.finished_at is null;",
        ";",
        "pgtap/views.sql",
    ),
    Mutant(
        "gives a completed task without result none",
        "results.sql",
        "case when task.state = 'completed' then coalesce(task.result, 'null') end",
        "task.result",
        "pgtap/results.sql",
    ),
    Mutant(
        "takes a name of any length",
        "checks.sql",
        "  elsif octet_length(name) > max_bytes then",
        "  elsif false then",
        "pgtap/checks.sql",
    ),
    Mutant(
        "takes an empty name",
        "checks.sql",
        "  elsif name is null or btrim(name) = '' then",
        "  elsif name is null then",
        "pgtap/checks.sql",
    ),
    Mutant(
        "takes a long name whose characters are plain",
        "checks.sql",
        "  if octet_length(name) <= max_bytes and name ~",
        "  if name ~",
        "pgtap/checks.sql",
    ),
    Mutant(
        "takes an object for one that has only known keys",
        "checks.sql",
        "  if jsonb_typeof(given) = 'object' and given - known = '{}' then",
        "  if jsonb_typeof(given) = 'object' then",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes options it does not know",
        "checks.sql",
        "  if found then\n    perform durable._refuse_argument(format('unknown key",
        "  if false then\n    perform durable._refuse_argument(format('unknown key",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes numbers below the least",
        "checks.sql",
        "_value::numeric < minimum::numeric or ",
        "",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes a kind of retry that it does not know",
        "retry.sql",
        "  if retry ->> 'kind' is null or retry ->> 'kind' not in ('none', 'fixed', 'exponential') then",
        "  if retry ->> 'kind' is null then",
        "pgtap/spawn.sql",
    ),
    Mutant(
        "takes a lease of no time",
        "claims.sql",
        "not lease > 0",
        "lease < 0",
        "pgtap/claims.sql",
    ),
    Mutant(
        "takes a wait without end",
        "waits.sql",
        "  elsif wait ->> 'until' ~* 'infinity' then",
        "  elsif wait ->> 'until' ~* 'never' then",
        "pgtap/waits.sql",
    ),
    Mutant(
        "takes two children of one name",
        "children.sql",
        "    having count(*) > 1\n",
        "    having count(*) > 2\n",
        "pgtap/children.sql",
    ),
]

LIFECYCLE: Final = [
    Mutant(
        "keeps in a fork what ran beside its step",
        "fork.sql",
        "        or (ranked.saved).after < point.after and ranked.before + ranked.caught < point.after",
        "        or (ranked.saved).after < point.after",
        "pgtap/fork.sql",
    ),
    Mutant(
        "keeps in a fork what its step has led to",
        "fork.sql",
        "        or (ranked.saved).after < point.after and ranked.before + ranked.caught < point.after",
        "        or ranked.before + ranked.caught < point.after",
        "pgtap/fork.sql",
    ),
    Mutant(
        "runs a failure again that the origin of a fork had caught",
        "fork.sql",
        "      else ranked.was_caught\n",
        "      else false\n",
        "pgtap/fork.sql",
    ),
    Mutant(
        "takes the checkpoints of a fork as its origin counted them",
        "fork.sql",
        "      least(saved.after, rank() over (order by saved.after) - 1),",
        "      saved.after,",
        "pgtap/fork.sql",
    ),
    Mutant(
        "lets the first claim of a fork forget what it begins with",
        "fork.sql",
        "  set claim = 2",
        "  set claim = 0",
        "pgtap/fork.sql",
    ),
    Mutant(
        "revives with many what nobody's end had cancelled",
        "many.sql",
        "    and durable._fell_with(tasks, roots::text[], null)\n",
        "    and tasks.state = 'cancelled'\n",
        "pgtap/many.sql",
    ),
    Mutant(
        "changes every task where no filter is said",
        "filter.sql",
        "  elsif filter = '{}' and not of_all then",
        "  elsif filter = '{}' and not of_all and of_all then",
        "pgtap/many.sql",
    ),
    Mutant(
        "counts the next attempt twice when its delay is skipped",
        "retry_task.sql",
        "  perform durable._wake(_queue, task.task_id);",
        "  perform durable._revive(_queue, task.task_id);",
        "pgtap/retry_task.sql",
    ),
]

MUTANTS: Final = [
    *FENCE,
    *CLAIMS,
    *ATTEMPTS,
    *WAITS,
    *NOTES,
    *FAMILIES,
    *KEYS,
    *RETENTION,
    *LOOKS,
    *MAIL,
    *LIFECYCLE,
    *FEATURES,
]
