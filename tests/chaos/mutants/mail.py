# ruff: noqa: E501 - the text of the sources as it stands there
"""The mutants of what is sent and received."""

from __future__ import annotations

from typing import Final

from tests.chaos.mutants import Mutant

__all__ = ["MAIL"]

MAIL: Final = [
    Mutant(
        "waits for a message where nobody sends it",
        "messages.sql",
        "    on conflict do nothing;\n    perform\n    from durable.mailboxes\n"
        "    where mailboxes.queue = _queue\n"
        "      and mailboxes.task_id = _meet_senders.task_id\n"
        "      and mailboxes.topic = _topic\n    for share;",
        "    on conflict do nothing;",
        "test_wakes_a_receiver_that_is_just_falling_asleep",
    ),
    Mutant(
        "leaves a mailbox of a task that is gone",
        "messages.sql",
        "  for key share; -- a mailbox goes with its task",
        "  ; -- a mailbox goes with its task",
        "test_leaves_no_mailbox_of_a_task_that_is_just_being_deleted",
    ),
    Mutant(
        "lets a task be deleted under a sender",
        "messages.sql",
        "_receives.task_id\n  for key share;",
        "_receives.task_id;",
        "test_keeps_a_task_from_being_deleted_under_a_sender",
    ),
    Mutant(
        "keeps a receiver from its worker",
        "messages.sql",
        "_receives.task_id\n  for key share;",
        "_receives.task_id\n  for share;",
        "test_holds_up_nobody_but_who_sends_or_waits_for_the_topic",
    ),
    Mutant(
        "sends to a task that has finished",
        "messages.sql",
        "  return found and _state not in ('completed', 'failed', 'cancelled');",
        "  return found;",
        "pgtap/messages.sql",
    ),
    Mutant(
        "wakes nobody who waits for a message",
        "messages.sql",
        "    perform durable._wake_all(_queue, array[task_id]);",
        "    null;",
        "test_wakes_a_receiver_that_is_just_falling_asleep",
    ),
    Mutant(
        "wakes for a message of any topic",
        "messages.sql",
        "waits.task_id = _post.task_id and waits.topic = _topic;",
        "waits.task_id = _post.task_id;",
        "pgtap/messages.sql",
    ),
    Mutant(
        "leaves no note of a message that an old snapshot sends",
        "messages.sql",
        "    perform durable._leave_note(_queue, 'waiter', task_id);\n    return;",
        "    return;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "finds no message for a note",
        "waking.sql",
        "        case when durable._has_message(_queue, waiter, _wait.topic) then 'over' end",
        "        null",
        "test_wakes_whom_an_old_snapshot_does_not_show",
    ),
    Mutant(
        "gives two waits the same message",
        "messages.sql",
        "    offset wait.turn - 1\n",
        "    offset 0\n",
        "pgtap/messages.sql",
    ),
    Mutant(
        "gives the oldest message to whichever wait",
        "messages.sql",
        "        order by registered.position, registered.name\n",
        "        order by registered.name\n",
        "pgtap/messages.sql",
    ),
    Mutant(
        "receives the newest first",
        "messages.sql",
        "    order by messages.number\n",
        "    order by messages.number desc\n",
        "pgtap/messages.sql",
    ),
    Mutant(
        "keeps what was received",
        "messages.sql",
        "    perform durable._forget_messages(_queue, _messages);\n",
        "",
        "pgtap/messages.sql",
    ),
    Mutant(
        "never stops waiting for a message",
        "messages.sql",
        "  where message.ctid is not null or wait.deadline_at <= at;",
        "  where message.ctid is not null;",
        "pgtap/messages.sql",
    ),
    Mutant(
        "sends a key twice",
        "messages.sql",
        "  if dedup_key is null then\n    return _number;",
        "  if true then\n    return _number;",
        "pgtap/messages.sql",
    ),
    Mutant(
        "sends once more on another connection of the same claim",
        "children.sql",
        "  _recorded := durable._recorded(_queue, task_id, name);\n",
        "",
        "test_sends_once_on_two_connections_of_one_claim",
    ),
    Mutant(
        "counts what was not sent",
        "messages.sql",
        "      perform durable._take_back(_to, to_task_id, topic, dedup_key);\n",
        "      null;\n",
        "test_sends_once_on_two_connections_of_one_claim",
    ),
    Mutant(
        "sends for a former claim",
        "children.sql",
        "  perform durable._hold_or_refuse(_queue, task_id, claim);\n  _recorded :=",
        "  _recorded :=",
        "pgtap/fence.sql",
    ),
    Mutant(
        "keeps the messages of a task that it deletes",
        "retention.sql",
        "  perform durable._delete_mail(_queue, task_ids);\n",
        "",
        "test_keeps_a_task_from_being_deleted_under_a_sender",
    ),
    Mutant(
        "keeps the messages of a queue that it drops",
        "queues.sql",
        "  delete from durable.messages where messages.queue = _queue;\n",
        "",
        "pgtap/queues.sql",
    ),
    Mutant(
        "goes on with a wait that was given up",
        "waits.sql",
        "  perform durable._withdraw(_queue, tasks);\n",
        "",
        "test_gives_a_message_to_the_wait_that_is_left",
    ),
    Mutant(
        "keeps what a wait got that was given up",
        "withdrawing.sql",
        "  if topic is not null and _state = 'done' then\n",
        "  if false then\n",
        "test_puts_back_what_a_wait_got_just_before",
    ),
    Mutant(
        "puts messages back in another order",
        "withdrawing.sql",
        "    order by own.task_id, wait.position desc, wait.name desc\n",
        "    order by own.task_id, wait.position, wait.name\n",
        "test_puts_back_what_a_wait_got_just_before",
    ),
    Mutant(
        "withdraws the present claim's waits for a former one",
        "withdrawing.sql",
        " and tasks.claim = own.claim\n        and own.claim % 2 = 1",
        "",
        "test_is_refused_under_a_former_claim",
    ),
    Mutant(
        "leaves cancelled below a revived task what its snapshot shows alive",
        "retry_task.sql",
        "  if not durable._sees_the_latest() then\n    perform durable._leave_again(",
        "  if false then\n    perform durable._leave_again(",
        "test_revives_a_child_that_a_snapshot_shows_alive",
    ),
]
