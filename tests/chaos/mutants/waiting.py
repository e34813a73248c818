# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of what tasks wait for, and what is left to notes."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["WAITING"]

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

WAITING: Final = [
    *WAITS,
    *NOTES,
]
