# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of what tasks wait for, and what is deferred."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["WAITING"]

WAITS: Final = [
    Mutant(
        "ignores a timeout",
        "resolve_waits.sql",
        "        when (wait.expires_at > at) is not false then null\n",
        "        when (wait.expires_at > at) is not false or wait.event_name is not null then null\n",
        "pgtap/waits.sql",
    ),
    Mutant(
        "times out what has happened",
        "resolve_waits.sql",
        "        when event.payload is not null or joined",
        "        when event.payload is not null and (wait.expires_at > at) is not false or joined",
        "pgtap/waits.sql",
    ),
    Mutant(
        "sleeps until the last of several waits",
        "waits.sql",
        "min(waits.expires_at) as until",
        "max(waits.expires_at) as until",
        "pgtap/waits.sql",
    ),
    Mutant(
        "counts a timeout anew each time",
        "waits.sql",
        "  on conflict on constraint waits_pkey do nothing;",
        "  on conflict on constraint waits_pkey do update set expires_at = excluded.expires_at;",
        "pgtap/waits.sql",
    ),
    Mutant(
        "watches nobody",
        "waits.sql",
        "  where durable._watch(waiting.wait, true) <> 'watched';",
        "  where false;",
        "pgtap/waking.sql",
    ),
    Mutant(
        "watches the first task only",
        "waking.sql",
        "      when _wait.task_ids is not null then durable._watch(_wait, false)",
        "      when _wait.task_ids is not null then 'over'",
        "pgtap/waking.sql",
    ),
    Mutant(
        "does not watch on",
        "waking.sql",
        "  update durable.waits\n"
        "  set target_task_id = _target, watched = coalesce(_passed_over, _i)\n"
        "  where waits.queue = wait.queue and waits.task_id = wait.task_id and waits.name = wait.name;\n",
        "",
        "pgtap/waking.sql",
    ),
    Mutant(
        "watches without holding what it watches",
        "waking.sql",
        "    for share skip locked;\n    exit when found;",
        "    ;\n    exit when found;",
        "test_wakes_a_parent_that_joined_while_the_child_was_finishing",
    ),
    Mutant(
        "watches nobody in another queue",
        "waking.sql",
        "  elsif _queues[_i] <> _queue then\n",
        "  elsif false then\n",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "does not look who watches",
        "waking.sql",
        "watches.queue = _queue and watches.task_id = finished.task_id\n",
        "watches.queue = _queue and false\n",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "waits for all where the first would do",
        "resolve_waits.sql",
        "  if any_of then\n    return durable._first",
        "  if false then\n    return durable._first",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "takes a watch for set that its waiter has slept through",
        "waits.sql",
        "durable._watch(waiting.wait, true)",
        "durable._watch(waiting.wait, coalesce(not (waiting.wait).any_of, true))",
        "test_wakes_a_parent_that_suspends_again_while_the_first_child_finishes",
    ),
    Mutant(
        "deletes a task whose end is still to be told",
        "retention.sql",
        "deferred_work.kind in ('cascade', 'finished')",
        "deferred_work.kind = 'cascade'",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "revives what had a limit of its own",
        "cross_queue.sql",
        " and task.finished_at >= deadline);",
        ");",
        "pgtap/cross_queue.sql",
    ),
    Mutant(
        "tells the one given first from who was first",
        "wait_any.sql",
        "    order by task.finished_at nulls last, wanted.ordinal\n",
        "    order by wanted.ordinal\n",
        "pgtap/wait_any.sql",
    ),
    Mutant(
        "wakes a task between two attempts",
        "waking.sql",
        "      and tasks.state = 'sleeping' and tasks.error is null\n    offset 0\n    for no key",
        "      and tasks.state = 'sleeping'\n    offset 0\n    for no key",
        "pgtap/attempts.sql",
    ),
    Mutant(
        "forgets a waiter that is in other hands",
        "waking.sql",
        "    perform durable._defer(_queue, 'waiter', sleeper.task_id)\n",
        "    perform\n",
        "test_defers_the_wake_up_of_a_locked_parent",
    ),
    Mutant(
        "forgets who waits for an event and is in other hands",
        "waking.sql",
        "  if cardinality(_held) < cardinality(task_ids) then",
        "  if cardinality(_held) > cardinality(task_ids) then",
        "test_defers_the_wake_up_of_a_locked_waiter",
    ),
    Mutant(
        "wakes a task without making it due",
        "waking.sql",
        "  set state = 'pending', available_at = _now\n",
        "  set state = 'pending'\n",
        "pgtap/waking.sql",
    ),
    Mutant(
        "does not meet emitters",
        "waits.sql",
        "      where events.queue = _queue and events.name = _event\n      for share;",
        "      where events.queue = _queue and events.name = _event;",
        "test_wakes_both_of_two_tasks_that_were_suspending",
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
        "resolve_waits.sql",
        "    perform durable._delete_waits(_queue, _places);\n",
        "",
        "pgtap/waits.sql",
    ),
    Mutant(
        "keeps the waits of a cancelled task",
        "attempts.sql",
        "  delete from durable.waits where waits.queue = _queue and waits.task_id = _end_task.task_id;\n",
        "",
        "pgtap/cancel.sql",
    ),
    Mutant(
        "forgets the name of a lost task in a join",
        "resolve_waits.sql",
        "coalesce(task.state::text, 'not_found')",
        "task.state::text",
        "pgtap/waking.sql",
    ),
]

NOTES: Final = [
    Mutant(
        "forgets in an old snapshot who waits for a task",
        "waking.sql",
        "    perform durable._defer(_queue, 'finished', finished.task_id)\n"
        "    from unnest(task_ids) as finished (task_id);\n",
        "    null;\n",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "forgets in an old snapshot who waits for an event",
        "events.sql",
        "    perform durable._defer(_queue, 'event', first, _event);\n    return;",
        "    return;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "trusts an old snapshot",
        "deferred_work.sql",
        "  select current_setting('transaction_isolation') not in ('repeatable read', 'serializable');",
        "  select true;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "forgets in an old snapshot what lives below a cancelled task",
        "cancel.sql",
        "  if not durable._is_read_committed() then\n"
        "    perform durable._defer(_queue, 'cascade', task_id);\n  end if;",
        "",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "forgets a child that is in other hands",
        "cancel.sql",
        "    perform durable._defer(_queue, 'cascade', busy.task_id, null, by_queue, by)\n"
        "    from unnest(_busy) as busy (task_id);\n",
        "",
        "test_defers_the_cancellation_of_a_locked_child",
    ),
    Mutant(
        "keeps deferred work that was done",
        "deferred_work.sql",
        "    delete from durable.deferred_work\n"
        "    where deferred_work.queue = _queue and deferred_work.work_id = _work.work_id;\n",
        "",
        "pgtap/deferred_work.sql",
    ),
    Mutant(
        "deletes deferred work without doing it",
        "deferred_work.sql",
        "    when 'cascade', 'revive' then\n",
        "    when 'cascade' then null;\n    when 'revive' then\n",
        "pgtap/deferred_work.sql",
    ),
    Mutant(
        "cancels below a task that was tried again",
        "cross_queue.sql",
        "  elsif (_state in ('failed', 'cancelled')) = (kind = 'revive') then\n",
        "  elsif kind = 'revive' and _state in ('failed', 'cancelled') then\n",
        "test_keeps_an_unseen_child_of_a_parent_revived_before_the_cascade",
    ),
]

WAITING: Final = [
    *WAITS,
    *NOTES,
]
