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
        "    on conflict do nothing;\n    perform from durable.mailboxes\n"
        "    where mailboxes.queue = _queue and mailboxes.task_id = _lock_mailbox.task_id\n"
        "      and mailboxes.topic = _topic\n    for share;",
        "    on conflict do nothing;",
        "test_wakes_a_receiver_that_is_suspending",
    ),
    Mutant(
        "leaves a mailbox of a task that is gone",
        "messages.sql",
        "  for key share; -- a mailbox is deleted with its task",
        "  ; -- a mailbox is deleted with its task",
        "test_leaves_no_mailbox_of_a_task_that_is_being_deleted",
    ),
    Mutant(
        "lets a task be deleted under a sender",
        "messages.sql",
        "_lock_receiver.task_id\n  for key share;",
        "_lock_receiver.task_id;",
        "test_does_not_delete_a_task_while_a_message_is_being_sent_to_it",
    ),
    Mutant(
        "keeps a receiver from its worker",
        "messages.sql",
        "_lock_receiver.task_id\n  for key share;",
        "_lock_receiver.task_id\n  for share;",
        "test_blocks_only_senders_and_receivers_of_the_topic",
    ),
    Mutant(
        "sends to a task that has finished",
        "messages.sql",
        "  elsif state in ('completed', 'failed', 'cancelled') then\n",
        "  elsif false then\n",
        "pgtap/messages.sql",
    ),
    Mutant(
        "wakes nobody who waits for a message",
        "messages.sql",
        "    perform durable._wake_all(_queue, array[task_id]);",
        "    null;",
        "test_wakes_a_receiver_that_is_suspending",
    ),
    Mutant(
        "wakes for a message of any topic",
        "messages.sql",
        "waits.task_id = _insert_message.task_id and waits.topic = _topic;",
        "waits.task_id = _insert_message.task_id;",
        "pgtap/messages.sql",
    ),
    Mutant(
        "defers nothing for a message that an old snapshot sends",
        "messages.sql",
        "    perform durable._defer(_queue, 'waiter', task_id);\n    return;",
        "    return;",
        "pgtap/isolation.sql",
    ),
    Mutant(
        "finds no message for deferred work",
        "waking.sql",
        "        select 'over'\n        from durable.messages\n",
        "        select null\n        from durable.messages\n",
        "test_wakes_a_receiver_that_an_old_snapshot_does_not_show",
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
        "partition by waits.topic order by waits.position, waits.name",
        "partition by waits.topic order by waits.name",
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
        "    perform durable._delete_waits(_queue, _places, _messages);\n",
        "    perform durable._delete_waits(_queue, _places);\n",
        "pgtap/messages.sql",
    ),
    Mutant(
        "never stops waiting for a message",
        "messages.sql",
        "  where message.ctid is not null or wait.expires_at <= at;",
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
        "  delete from durable.messages where messages.queue = _queue"
        " and messages.task_id = any (task_ids);\n",
        "",
        "test_does_not_delete_a_task_while_a_message_is_being_sent_to_it",
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
        "  perform durable._withdraw_waits(_queue, _held);\n",
        "",
        "test_gives_a_message_to_the_remaining_wait",
    ),
    Mutant(
        "keeps what a wait got that was given up",
        "withdraw_waits.sql",
        "    if _wait.topic is not null and _state = 'done' then\n",
        "    if false then\n",
        "test_returns_a_message_that_a_cancelled_wait_had_just_received",
    ),
    Mutant(
        "puts messages back in another order",
        "withdraw_waits.sql",
        "    order by own.task_id, wait.position desc, wait.name desc\n",
        "    order by own.task_id, wait.position, wait.name\n",
        "test_returns_a_message_that_a_cancelled_wait_had_just_received",
    ),
    Mutant(
        "withdraws the present claim's waits for a former one",
        "waits.sql",
        "  perform durable._withdraw_waits(_queue, _held);\n",
        "  perform durable._withdraw_waits(_queue, tasks);\n",
        "test_refuses_a_former_claim",
    ),
    Mutant(
        "leaves cancelled below a revived task what its snapshot shows alive",
        "cross_queue.sql",
        "    when batch_size <= 0 or not durable._is_read_committed() then 'busy'\n",
        "    when batch_size <= 0 then 'busy'\n",
        "test_revives_a_child_that_is_still_live_in_the_snapshot",
    ),
]
