"""Invariants of a queue once its deferred work is applied, after any concurrent calls.

Each promise is a query for rows that break it; `broken` names those that find any.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

__all__ = ["UNSEEN_WAIT", "UNTOLD", "broken"]

UNTOLD: Final = "a claim that a full history does not tell of"
# A call that ends a task by a snapshot that does not show its newest wait leaves that
# wait behind. It has no effect, and retry_task deletes it.
UNSEEN_WAIT: Final = "a wait of a task that ended badly"
PROMISES: Final = {
    "asleep though its event was emitted": """
        from durable.tasks join durable.waits using (queue, task_id)
        join durable.events
          on events.queue = waits.queue and events.name = waits.event_name
        where tasks.queue = %(queue)s and tasks.state = 'sleeping'
          and tasks.error is null and events.emitted_at is not null""",
    "asleep though it was sent what it waits for": """
        from durable.tasks join durable.waits using (queue, task_id)
        join durable.messages using (queue, task_id, topic)
        where tasks.queue = %(queue)s and tasks.state = 'sleeping'
          and tasks.error is null""",
    "asleep though all it waits for has finished": """
        from durable.tasks join durable.waits using (queue, task_id)
        where tasks.queue = %(queue)s and tasks.state = 'sleeping'
          and tasks.error is null and waits.task_ids is not null
          and waits.any_of is not true and not exists (
            select from unnest(waits.task_ids, waits.task_queues) as awaited (id, there)
            join durable.tasks as target
              on target.queue = coalesce(awaited.there, waits.queue)
              and target.task_id = awaited.id and target.finished_at is null)
        """,
    "asleep though the first it waits for has finished": """
        from durable.tasks join durable.waits using (queue, task_id)
        where tasks.queue = %(queue)s and tasks.state = 'sleeping'
          and tasks.error is null and waits.any_of and exists (
            select from unnest(waits.task_ids, waits.task_queues) as awaited (id, there)
            left join durable.tasks as target
              on target.queue = coalesce(awaited.there, waits.queue)
              and target.task_id = awaited.id
            where target.task_id is null or target.finished_at is not null)
        """,
    "asleep, and watching no live task": """
        from durable.tasks join durable.waits using (queue, task_id)
        where tasks.queue = %(queue)s and tasks.state = 'sleeping'
          and tasks.error is null and waits.task_ids is not null
          and waits.any_of is not true and not exists (
            select from durable.tasks as target
            where target.queue = coalesce(
                waits.task_queues[array_position(waits.task_ids, waits.target_task_id)],
                waits.queue)
              and target.task_id = waits.target_task_id
              and target.finished_at is null
              and (target.queue = waits.queue or exists (
                select from durable.watches
                where watches.queue = target.queue
                  and watches.task_id = target.task_id
                  and watches.waiter_queue = waits.queue
                  and watches.waiter_task_id = waits.task_id)))""",
    "asleep, and not watching each of those whose end is enough": """
        from durable.tasks join durable.waits using (queue, task_id)
        where tasks.queue = %(queue)s and tasks.state = 'sleeping'
          and tasks.error is null and waits.any_of and exists (
            select from unnest(waits.task_ids, waits.task_queues) as awaited (id, there)
            where not exists (
              select from durable.watches
              where watches.queue = coalesce(awaited.there, waits.queue)
                and watches.task_id = awaited.id
                and watches.waiter_queue = waits.queue
                and watches.waiter_task_id = waits.task_id))""",
    "asleep for nothing": """
        from durable.tasks
        where queue = %(queue)s and state = 'sleeping' and available_at is null
          and not exists (
            select from durable.waits
            where waits.queue = tasks.queue and waits.task_id = tasks.task_id)""",
    "pending, and never due": """
        from durable.tasks
        where queue = %(queue)s and state = 'pending' and available_at is null""",
    "alive below a parent that ended badly, and not tried again by itself": """
        from durable.tasks as child join durable.tasks as parent
          on parent.queue = coalesce(child.parent_queue, child.queue)
          and parent.task_id = child.parent_task_id
        where child.queue = %(queue)s and child.finished_at is null
          and parent.state in ('failed', 'cancelled') and not exists (
            select from durable.runs
            where runs.queue = child.queue and runs.task_id = child.task_id
              and runs.retried_by ? 'user')""",
    "cancelled for the end of one that is not above it, or has not ended so": """
        from durable.tasks as child
        where child.queue = %(queue)s and child.state = 'cancelled'
          and child.error ->> 'type' = '$CancelledByParent' and not exists (
            with recursive line as (
              select coalesce(child.parent_queue, child.queue) as queue,
                child.parent_task_id as task_id
              union all
              select coalesce(parent.parent_queue, parent.queue), parent.parent_task_id
              from line join durable.tasks as parent using (queue, task_id)
            )
            select from line left join durable.tasks as above using (queue, task_id)
            where line.task_id is not null and above.state is null -- deleted since
              or line.task_id::text = child.error ->> 'by'
                and above.state in ('failed', 'cancelled'))""",
    "ended by a deadline that it has not, or before it": """
        from durable.tasks
        where queue = %(queue)s and error ->> 'type' = '$DeadlineExceeded'
          and error ->> 'message' = 'not finished by its deadline'
          and (deadline <= finished_at) is not true""",
    "held and not running, or running and not held": """
        from durable.tasks
        where queue = %(queue)s and (
          (state = 'running') <> (claim %% 2 = 1)
          or (state = 'running') <> (lease_expires_at is not null))""",
    "half finished": """
        from durable.tasks
        where queue = %(queue)s and (
          (state in ('completed', 'failed', 'cancelled')) <> (finished_at is not null)
          or finished_at is not null
            and num_nonnulls(available_at, lease_expires_at, expires_at) > 0
          or state = 'running' and available_at is not null)""",
    "an attempt without its run, or a run without its attempt": """
        from durable.tasks
        where queue = %(queue)s and attempt - 1 <> (
          select count(*) from durable.runs
          where runs.queue = tasks.queue and runs.task_id = tasks.task_id
            and runs.attempt < tasks.attempt)""",
    "what belongs to a task, without a task": """
        from (
          select task_id from durable.runs where queue = %(queue)s
          union all select task_id from durable.checkpoints where queue = %(queue)s
          union all select task_id from durable.waits where queue = %(queue)s
          union all select task_id from durable.mailboxes where queue = %(queue)s
          union all select task_id from durable.messages where queue = %(queue)s
          union all select task_id from durable.message_keys where queue = %(queue)s
          union all
          select task_id from durable.idempotency_keys where queue = %(queue)s
          union all select task_id from durable.unique_keys where queue = %(queue)s
          union all select task_id from durable.task_values where queue = %(queue)s
          union all select task_id from durable.stream_entries where queue = %(queue)s
          union all select task_id from durable.log_lines where queue = %(queue)s
          union all select task_id from durable.claim_log where queue = %(queue)s
        ) as belonging
        where not exists (
          select from durable.tasks
          where tasks.queue = %(queue)s and tasks.task_id = belonging.task_id)""",
    "a task that lost its key": """
        from durable.tasks
        where queue = %(queue)s and idempotency_key is not null and not exists (
          select from durable.idempotency_keys
          where idempotency_keys.queue = tasks.queue
            and idempotency_keys.key = tasks.idempotency_key
            and idempotency_keys.task_id = tasks.task_id)""",
    "two unfinished tasks with one unique key, or one without it": """
        from durable.tasks
        where queue = %(queue)s and unique_kind = 'unique' and finished_at is null
          and not exists (
            select from durable.unique_keys
            where unique_keys.queue = tasks.queue and unique_keys.kind = 'unique'
              and unique_keys.name = tasks.name
              and unique_keys.key = tasks.unique_key
              and unique_keys.task_id = tasks.task_id)""",
    UNSEEN_WAIT: """
        from durable.waits join durable.tasks using (queue, task_id)
        where waits.queue = %(queue)s and tasks.state in ('failed', 'cancelled')""",
    "a wait that is over and not": """
        from durable.waits join durable.checkpoints using (queue, task_id, name)
        where waits.queue = %(queue)s""",
    "a wait for an event that has no place": """
        from durable.waits join durable.tasks using (queue, task_id)
        where waits.queue = %(queue)s and waits.event_name is not null
          and tasks.finished_at is null and not exists (
            select from durable.events
            where events.queue = waits.queue and events.name = waits.event_name)""",
    "a message without its mailbox, or of a number that was not counted": """
        from durable.messages
        where queue = %(queue)s and not exists (
          select from durable.mailboxes
          where mailboxes.queue = messages.queue
            and mailboxes.task_id = messages.task_id
            and mailboxes.topic = messages.topic
            and messages.number between 1 and mailboxes.sent)""",
    UNTOLD: """
        from durable.tasks join durable.queues using (queue)
        where tasks.queue = %(queue)s and queues.history = 'full'
          and (durable._claim_ordinal(tasks.claim, tasks.times_claimed) + 1) / 2 <> (
            select count(*) from durable.claim_log
            where claim_log.queue = tasks.queue and claim_log.task_id = tasks.task_id
              and claim_log.claim %% 2 = 1)
          and (tasks.headers ? 'durable:forked_from') is not true""",
    "deferred work": "from durable.deferred_work where queue = %(queue)s",
}
BROKEN: Final = " union all ".join(
    f"select '{promise}' where exists (select {query})"
    for promise, query in PROMISES.items()
)


def broken(session: psycopg.Connection[Any], queue: str) -> list[str]:
    """Return the promises that do not hold in a queue."""
    return [promise for (promise,) in session.execute(BROKEN, {"queue": queue})]
